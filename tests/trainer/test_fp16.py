"""Training with float16 convolutions: losses are scaled, and steps by gradients that overflow are skipped."""

import math

import pytest
import torch
from conftest import differing, new_trainer, run, step_and_batch, weights
from test_train import TINY
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import train
from magnet.agents import agent as agents
from magnet.agents import losses
from magnet.agents.layers import WideLinear
from magnet.config import Config
from magnet.evaluation.sampling import FixedGrids
from magnet.support.devices import settle

pytestmark = pytest.mark.usefixtures("every_step")

R1 = {"r1": 0.1, "r1_every": 1}
IN_FLOAT32 = {"generator/critic", "discriminator/critic"}  # nothing overflows there


def operations(work) -> list[str]:
    """The names of the operations that PyTorch executes in `work`."""
    names = []

    class Note(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            names.append(str(function))
            return function(*args, **(kwargs or {}))

    with Note():
        work()
    return names


def set_scale(trainer, scale: float) -> None:
    for agent in trainer.agents:
        agent.scaler.load_state_dict(agent.scaler.state_dict() | {"scale": scale})


def scales(trainer) -> set[float]:
    return {agent.scaler.get_scale() for agent in trainer.agents}


@pytest.mark.parametrize(
    "changes", [R1, R1 | {"algorithm": "gan"}, {"r2": 0.1, "gradient_penalty": 1.0}, {"spectral_norm": True}], ids=str
)
def test_fp16_learns_all_networks_and_all_numbers_stay_finite(changes):
    trainer = new_trainer(precision="fp16", **changes)
    before = weights(trainer.agents)
    metrics = run(trainer, 20)
    assert all(math.isfinite(value) for line in metrics for value in line.values())
    assert all(metrics[-1][name] > 0 for name in metrics[-1] if name.endswith("_gradient")), "no step is skipped by now"
    assert differing(before, weights(trainer.agents)) == set(before)
    assert all(value.isfinite().all() for value in weights(trainer.agents).values())


@pytest.mark.parametrize("changes", [{}, R1, {"r2": 0.1}, {"gradient_penalty": 1.0}, {"algorithm": "gan"}], ids=str)
def test_the_first_gradients_are_those_of_float32(changes):
    """The norms agree: at a scale of 64 nothing overflows, and the gradients are divided by it before their norm."""
    expected, scaled = (new_trainer(precision=one, **changes) for one in ("fp32", "fp16"))
    set_scale(scaled, 64.0)
    expected, found = run(expected, 1)[0], run(scaled, 1)[0]
    assert found == pytest.approx(expected, rel=0.05, abs=0.01)
    assert scales(scaled) == {64.0}


def test_a_step_that_overflows_is_skipped_and_halves_the_scale():
    trainer = new_trainer(precision="fp16", **R1)
    run(trainer, 3)
    set_scale(trainer, 2.0**40)
    before = weights(trainer.agents)
    counts = {
        (agent.name, key): [state["step"].clone() for state in optimizer.state.values()]
        for agent in trainer.agents for key, optimizer in agent.optimizers.items()
    }  # fmt: skip
    (metrics,) = run(trainer, 1)
    moved = differing(before, weights(trainer.agents))
    assert {name for name in moved if not name.endswith("target")} == IN_FLOAT32
    for agent in trainer.agents:
        for key, optimizer in agent.optimizers.items():
            steps = [state["step"] for state in optimizer.state.values()]
            skipped = f"{agent.name}/{key}" not in IN_FLOAT32
            assert (steps == counts[agent.name, key]) == skipped
            assert (metrics[f"{agent.name}/{key}_gradient"] == 0) == skipped
    assert scales(trainer) == {2.0**39}
    assert all(map(math.isfinite, metrics.values())), "else the log takes it for divergence"


def test_the_mean_over_the_processes_decides_whether_a_step_is_skipped(monkeypatch):
    """Another process's gradients overflow, not this one's."""
    trainer = new_trainer(precision="fp16", algorithm="gan")
    set_scale(trainer, 64.0)

    def mean(tensors) -> None:
        next(iter(tensors)).fill_(float("inf"))

    monkeypatch.setattr(agents, "all_reduce_mean", mean)
    before = weights(trainer.agents)
    trainer.step()
    assert not differing(before, weights(trainer.agents)) and scales(trainer) == {32.0}


def test_the_device_is_never_waited_for():
    trainer = new_trainer(precision="fp16", **R1)
    run(trainer, 2)
    assert not [name for name in operations(trainer.step) if "_local_scalar_dense" in name or "nonzero" in name]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_in_other_precisions_an_agents_step_has_no_operation_more(precision):
    trainer = new_trainer(precision=precision)
    run(trainer, 1)
    (agent,) = trainer.discriminators
    parameters, optimizer = list(agent.networks["actor"].parameters()), agent.optimizers["actor"]
    loss = parameters[0].sum()
    assert agent.scaler.scale(loss) is loss

    def by_hand() -> None:
        nn.utils.get_total_norm([p.grad for p in parameters])
        optimizer.step()
        optimizer.zero_grad()

    seen = []
    for work in (by_hand, lambda: agent.descend("actor")):
        for p in parameters:
            p.grad = torch.ones_like(p)
        seen.append(operations(work))
    assert seen[0] == seen[1]
    assert not operations(agent.scaler.update) and "scaler" not in agent.state_dict()


# Divergence


@pytest.fixture
def without_grids(monkeypatch):
    """They take longer than all the steps here."""
    monkeypatch.setattr(FixedGrids, "draw", lambda self: {})


@pytest.mark.parametrize("loss", ["td_target", "gradient_penalty"])
def test_a_loss_that_is_not_finite_ends_the_run(place, capsys, without_grids, monkeypatch, loss):
    honest = getattr(losses, loss)
    monkeypatch.setattr(losses, loss, lambda *args: honest(*args) * float("nan"))
    assert train.main([*TINY, "--precision", "fp16", "--r1-every", "1", "--steps", "2"]) == 3
    assert "was nan" in capsys.readouterr().err


def test_gradients_that_no_scale_makes_finite_end_the_run(place, capsys, without_grids, monkeypatch):
    honest = agents.Agent.descend

    def descend(agent, key, with_metrics):
        if key == "actor":
            next(agent.networks[key].parameters()).grad[0] = float("nan")
        return honest(agent, key, with_metrics)

    monkeypatch.setattr(agents.Agent, "descend", descend)
    assert train.main([*TINY, "--precision", "fp16", "--steps", "40"]) == 3
    error = capsys.readouterr().err
    assert "actor_gradient was nan at step 18" in error, "the first 17 halve the scale from 2^16 to 1/2"


# Around it


@pytest.mark.parametrize(("capability", "precision"), [((7, 5), "fp32"), ((8, 0), "bf16")])
def test_auto_is_bfloat16_from_ampere_on_and_float32_before(monkeypatch, capability, precision):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda name: capability)
    for given, expected in (("auto", precision), ("fp16", "fp16")):
        assert settle(Config(device="cuda", precision=given)).precision == expected


def test_the_convolutions_alone_compute_in_float16():
    trainer = new_trainer(precision="fp16")
    seen = set()
    for agent in trainer.agents:
        for network in agent.networks.values():
            for layer in network.modules():
                if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear, nn.LSTMCell)):
                    layer.register_forward_hook(
                        lambda layer, _, out: seen.add((type(layer), (out[0] if type(out) is tuple else out).dtype))
                    )
    _, batch = step_and_batch(trainer)
    half, full = torch.float16, torch.float32
    assert seen == {
        (nn.Conv2d, half),
        (nn.ConvTranspose2d, half),
        *((kind, full) for kind in (nn.Linear, WideLinear, nn.LSTMCell)),
    }
    assert batch.policy_images[0].dtype == batch.outputs[0][0].logits.dtype == full

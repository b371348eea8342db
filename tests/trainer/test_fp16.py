"""Training with float16 convolutions: losses are scaled, and a step whose gradients overflow is skipped."""

import math

import pytest
import torch
from conftest import differing, new_trainer, run, weights
from test_train import TINY

import train
from magnet.agents import agent as agents
from magnet.agents import losses
from magnet.config import Config
from magnet.evaluation.sampling import FixedGrids
from magnet.support.devices import settle

pytestmark = pytest.mark.usefixtures("every_step")

R1 = {"r1": 0.1, "r1_every": 1}
PENALTIES = R1 | {"r2": 0.1, "gradient_penalty": 1.0}
IN_FLOAT32 = {"generator/critic", "discriminator/critic"}  # nothing overflows there


def set_scale(trainer, scale: float) -> None:
    for agent in trainer.agents:
        agent.scaler.load_state_dict(agent.scaler.state_dict() | {"scale": scale})


def scales(trainer) -> set[float]:
    return {agent.scaler.get_scale() for agent in trainer.agents}


def adam_counts(trainer) -> dict[str, list[float]]:
    """The step counters of Adam, by network."""
    return {
        f"{agent.name}/{key}": [state["step"].item() for state in optimizer.state.values()]
        for agent in trainer.agents for key, optimizer in agent.optimizers.items()
    }  # fmt: skip


@pytest.mark.parametrize("changes", [PENALTIES, R1 | {"algorithm": "gan"}, {"spectral_norm": True}], ids=str)
def test_fp16_learns_all_networks_and_all_numbers_stay_finite(changes):
    trainer = new_trainer(precision="fp16", **changes)
    before = weights(trainer.agents)
    metrics = run(trainer, 20)
    assert all(math.isfinite(value) for line in metrics for value in line.values())
    assert all(metrics[-1][name] > 0 for name in metrics[-1] if name.endswith("_gradient")), "no step is skipped by now"
    assert differing(before, weights(trainer.agents)) == set(before)
    assert all(value.isfinite().all() for value in weights(trainer.agents).values())


@pytest.mark.parametrize("changes", [PENALTIES, {"algorithm": "gan"}], ids=str)
def test_the_first_gradients_are_those_of_float32(changes):
    """The norms agree: at a scale of 64 nothing overflows, and the gradients are divided by it before their norm."""
    plain, scaled = (new_trainer(precision=one, **changes) for one in ("fp32", "fp16"))
    set_scale(scaled, 64.0)
    assert run(scaled, 1)[0] == pytest.approx(run(plain, 1)[0], rel=0.05, abs=0.01)
    assert scales(scaled) == {64.0}


def test_a_step_that_overflows_is_skipped_and_halves_the_scale():
    trainer = new_trainer(precision="fp16", **R1)
    run(trainer, 3)
    set_scale(trainer, 2.0**40)
    before = weights(trainer.agents)
    counts = adam_counts(trainer)
    (metrics,) = run(trainer, 1)
    changed = differing(before, weights(trainer.agents))
    assert {name for name in changed if not name.endswith("target")} == IN_FLOAT32
    for name, count in adam_counts(trainer).items():
        assert (count == counts[name]) == (metrics[f"{name}_gradient"] == 0) == (name not in IN_FLOAT32)
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


# Divergence


@pytest.fixture
def without_grids(monkeypatch):
    """Grids take longer than all the steps here."""
    monkeypatch.setattr(FixedGrids, "draw", lambda self: {})


@pytest.mark.parametrize("loss", ["td_target", "gradient_penalty"])
def test_a_loss_that_is_not_finite_ends_the_run(place, capsys, without_grids, monkeypatch, loss):
    function = getattr(losses, loss)
    monkeypatch.setattr(losses, loss, lambda *args: function(*args) * float("nan"))
    assert train.main([*TINY, "--precision", "fp16", "--r1-every", "1", "--steps", "2"]) == 3
    assert "was nan" in capsys.readouterr().err


def test_gradients_that_no_scale_makes_finite_end_the_run(place, capsys, without_grids, monkeypatch):
    descend = agents.Agent.descend

    def spoil(agent, key, with_metrics):
        if key == "actor":
            next(agent.networks[key].parameters()).grad[0] = float("nan")
        return descend(agent, key, with_metrics)

    monkeypatch.setattr(agents.Agent, "descend", spoil)
    assert train.main([*TINY, "--precision", "fp16", "--steps", "40"]) == 3
    # The first 17 steps halve the scale from 2^16 to 1/2.
    assert "actor_gradient was nan at step 18" in capsys.readouterr().err


@pytest.mark.parametrize(("capability", "precision"), [((7, 5), "fp32"), ((8, 0), "bf16")])
def test_auto_is_bfloat16_from_ampere_on_and_float32_before(monkeypatch, capability, precision):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda name: capability)
    for given, expected in (("auto", precision), ("fp16", "fp16")):
        assert settle(Config(device="cuda", precision=given)).precision == expected

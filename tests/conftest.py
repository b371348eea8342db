"""Shared by several test files: a tiny game that steps in milliseconds, and functions that record what agents learn."""

import io
import os
import signal

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import export as export_program
import train
from magnet import maddpg
from magnet.agents.agent import Agent
from magnet.config import Config
from magnet.data.image_dataset import ImageDataset
from magnet.game.environment import new_environment
from magnet.game.extra_rewards import load_extra_reward
from magnet.maddpg import MADDPG
from magnet.run import tuning
from magnet.run.signals import SIGNALS

pytest.register_assert_rewrite("downloads")  # fixtures of some test files
if hasattr(signal, "SIGHUP"):
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup makes this process and its children ignore it
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
CACHE = os.environ["MAGNET_CACHE"] = os.path.join("data", "cache")  # in a test's working folder, not the repository
torch.set_num_threads(1)  # the networks are so small that more threads are slower

SEED = int(os.environ.get("MAGNET_TEST_SEED", 0))  # of the tests with random cases


def pytest_report_header() -> str:
    """The line that pytest prints above the tests."""
    return f"MAGNET_TEST_SEED={SEED}"


def cases(short: int, long: int):
    """For a test with random cases: `count` of them, few in `make test` and many in `make test-long`."""
    return pytest.mark.parametrize("count", [short, pytest.param(long, marks=pytest.mark.long)])


CPU = torch.device("cpu")
TINY = {
    "image_size": 32, "width": 4, "nz": 6, "batch_size": 8, "episode_length": 3, "precision": "fp32",
    "gamma": 0.0, "tau": 0.1, "replay_fraction": 0.0, "replay_size": 20, "r1": 0.0,
}  # fmt: skip
# With these, all that a trainer saves affects later steps: targets, the replay buffer, critics.
FULL = {"gamma": 0.9, "replay_fraction": 0.25}
PRECISIONS = pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A working folder with 40 small images in faces/."""
    random = np.random.default_rng(0)
    (tmp_path / "faces").mkdir()
    for i in range(40):
        pixels = random.integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "faces" / f"{i:02d}.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def exported_run(tmp_path_factory):
    """A working folder with images in faces/, others/ and photos/ (of another size), models/run and models/team, short
    runs on faces/, and w.pt, the weights of models/run.
    """
    folder, random = tmp_path_factory.mktemp("place"), np.random.default_rng(0)
    for name, count, shape in (("faces", 40, (32, 32, 3)), ("others", 40, (32, 32, 3)), ("photos", 5, (50, 41, 3))):
        (folder / name).mkdir()
        for i in range(count):
            Image.fromarray(random.integers(0, 256, shape, np.uint8)).save(folder / name / f"{i:02d}.png")
    flags = "--preset cpu --width 4 --nz 6 --batch-size 8 --steps 4 --precision fp32 --data faces --name".split()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(tuning, "tune", lambda config, requested: config)
        assert train.main([*flags, "run"]) == 0 and export_program.main(["models/run", "--out", "w.pt"]) == 0
        assert train.main([*flags, "team", "--generators", "2", "--hold-out", "0.3"]) == 0
    return folder


@pytest.fixture(autouse=True)
def isolation(monkeypatch, request):
    """Restores what programs change: signal handlers and the folder of --cache-dir.

    A run measures no settings: it takes those of PyTorch and devices.py, so that two runs do the same.
    """
    monkeypatch.setenv("MAGNET_CACHE", CACHE)
    if request.path.name != "test_tuning.py":
        monkeypatch.setattr(tuning, "tune", lambda config, asked: config)
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


def small_config(**changes) -> Config:
    """A Config of tiny networks, with `changes`."""
    return Config(**(TINY | changes))


def small_faces(count: int = 20) -> ImageDataset:
    """`count` images of 32x32 random pixels, always the same."""
    return ImageDataset(np.random.default_rng(0).integers(0, 256, (count, 3, 32, 32), np.uint8), CPU)


def weights(agents: list[Agent]) -> dict[str, Tensor]:
    """By "agent/network" and "agent/network target": all parameters in one vector, copied."""
    named = {}
    for agent in agents:
        for key, network in agent.networks.items():
            named[f"{agent.name}/{key}"], named[f"{agent.name}/{key} target"] = network, agent.targets[key]
    return {name: torch.cat([p.detach().flatten() for p in net.parameters()]) for name, net in named.items()}


def differing(first: dict[str, Tensor], second: dict[str, Tensor]) -> set[str]:
    """The names under which two results of `weights` are not equal."""
    return {name for name in first if not torch.equal(first[name], second[name])}


def gradient(objective: Tensor, network: nn.Module) -> Tensor:
    """d objective / d parameters of `network`, in one vector; nothing is left in their .grad."""
    parameters = list(network.parameters())
    gradients = torch.autograd.grad(objective, parameters, retain_graph=True, materialize_grads=True)
    return torch.cat([g.flatten() for g in gradients])


def step_critic(agent: Agent, loss: Tensor) -> Tensor:
    """Makes the critic's optimizer step on `loss`. Returns the gradient, in one vector."""
    gradients = torch.autograd.grad(loss, agent.critic.parameters())
    for p, g in zip(agent.critic.parameters(), gradients, strict=True):
        p.grad = g
    agent.optimizers["critic"].step()
    return torch.cat([g.flatten() for g in gradients])


def watch_steps(agent: Agent) -> dict[str, Tensor]:
    """A dict that fills as `agent` learns: for each network the gradient of its last optimizer step."""
    gradients = {}
    for key, network in agent.networks.items():

        def note(*_, key=key, network=network):
            gradients[key] = torch.cat([p.grad.flatten() for p in network.parameters()])

        agent.optimizers[key].register_step_pre_hook(note)
    return gradients


class Thumbnail(nn.Module):
    """A feature network: uint8 (N, 3, 64, 64) -> (N, 12), mean colours of the quarters, each with its own factor."""

    def forward(self, images: Tensor) -> Tensor:
        colours = nn.functional.avg_pool2d(images.float() / 255, 32).flatten(1)
        return colours * torch.arange(1, 13)


def export(network: nn.Module, path) -> None:
    """Writes `network`, which takes uint8 (N, 3, 64, 64), with torch.export, for any N."""
    example, any_count = torch.zeros(4, 3, 64, 64, dtype=torch.uint8), torch.export.Dim("count")
    torch.export.save(torch.export.export(network.eval(), (example,), dynamic_shapes=({0: any_count},)), path)


@pytest.fixture(scope="session")
def thumbnail(tmp_path_factory):
    """The file of an exported Thumbnail."""
    path = tmp_path_factory.mktemp("network") / "thumbnail.pt2"
    export(Thumbnail(), path)
    return path


def relative_error(value: Tensor, expected: Tensor) -> float:
    """|value - expected| / |expected|."""
    return ((value - expected).norm() / expected.norm()).item()


def new_agents(kind, names: list[str], config) -> list[Agent]:
    """Agents with large random weights, so that targets differ from networks, and logits and images from 0."""
    torch.manual_seed(0)
    agents = [kind(name, config, CPU) for name in names]
    for agent in agents:
        for network in (*agent.networks.values(), *agent.targets.values()):
            for layer in network.modules():
                if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
                    nn.init.normal_(layer.weight, std=2 / layer.weight[0].numel() ** 0.5)
    return agents


def pictures(seed: int, count: int = 8) -> Tensor:
    """Random images (count, 3, 32, 32) in [-1, 1]."""
    return torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def new_trainer(generators: int = 1, discriminators: int = 1, **changes) -> MADDPG:
    """A trainer of tiny networks on the small faces."""
    return trainer_on(small_config(generators=generators, discriminators=discriminators, **changes), small_faces())


def trainer_on(config, faces, device: torch.device = CPU) -> MADDPG:
    """A trainer of the game of `config` on `faces`, with the extra reward that it names."""
    extra = load_extra_reward(config.extra_reward) if config.extra_reward else None
    return MADDPG(config, new_environment(config, faces, extra), device)


def run(trainer, steps):
    """The metrics of some steps, as numbers."""
    return [{name: value.item() for name, value in trainer.step().items()} for _ in range(steps)]


def step_and_batch(trainer):
    """The metrics of one step, and the batch that it learns from."""
    batches, learn = [], trainer.learn
    trainer.learn = lambda batch: batches.append(batch) or learn(batch)
    metrics = trainer.step()
    del trainer.learn
    return metrics, batches[0]


@pytest.fixture
def every_step(monkeypatch):
    """Every step computes all metrics and moves the targets. test_maddpg.py tests how often they do by default."""
    monkeypatch.setattr(maddpg, "MEASURE_EVERY", 1)
    monkeypatch.setattr(maddpg, "TARGETS_EVERY", 1)


def overhear(agent, critic="critic"):
    """A list that fills with the arguments of `agent.update_critic` for the network `critic`, step by step."""
    calls, update_critic = [], agent.update_critic

    def note(features, actions, reward, next_value, key="critic", *others, **named):
        if key == critic:
            calls.append({"features": features, "actions": actions, "reward": reward, "next_value": next_value})
        return update_critic(features, actions, reward, next_value, key, *others, **named)

    agent.update_critic = note
    return calls


def saved(trainer):
    """The trainer's state as a checkpoint would bring it back."""
    file = io.BytesIO()
    torch.save(trainer.state_dict(), file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def leaves(state, path=()):
    """The tensors and numbers of a saved state, by their paths."""
    if not isinstance(state, dict | list):
        return {path: state}
    parts = state.items() if isinstance(state, dict) else enumerate(state)
    return {leaf: value for key, part in parts for leaf, value in leaves(part, (*path, key)).items()}


def same(first, second):
    """Whether two saved states are equal to the last bit."""
    first, second = leaves(first), leaves(second)
    return first.keys() == second.keys() and all(
        torch.equal(value, second[path]) if isinstance(value, torch.Tensor) else value == second[path]
        for path, value in first.items()
    )

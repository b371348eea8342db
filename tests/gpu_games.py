"""What the tests on the pretended GPU share: small games on a device."""

import numpy as np
import torch

from magnet.data.gaussians import PointDataset, draw_points
from magnet.data.image_dataset import ImageDataset
from magnet.game.environment import new_environment
from magnet.game.extra_rewards import load_extra_reward
from magnet.maddpg import MADDPG
from magnet.run import checkpoint
from magnet.run.checkpoint_validation import find_trainer_fault

DEFAULT = {"replay_fraction": 0.25, "r1": 0.1, "precision": "bf16", "sample_every": 2, "evaluate_every": 2}
TEAM = {"generators": 2, "discriminators": 2}


def data(config, device, count: int = 40):
    """Faces or points to learn from."""
    if config.points:
        return PointDataset(draw_points(config.data), device)
    pixels = np.random.default_rng(0).integers(0, 256, (count, *config.shape), np.uint8)
    return ImageDataset(pixels, device)


def on(device, config) -> MADDPG:
    """A trainer on `device`."""
    extra = load_extra_reward(config.extra_reward) if config.extra_reward else None
    return MADDPG(config, new_environment(config, data(config, device), extra), torch.device(device))


def going_on(trainer: MADDPG, device, path) -> MADDPG:
    """A new trainer on `device` that goes on where `trainer` stands, by way of a file and its checks."""
    state = {"config": {}, "faces": trainer.dataset.fingerprint, "trainer": trainer.state_dict(), "best": None}
    checkpoint.save(path, state)
    saved = checkpoint.load(path)["trainer"]
    other = on(device, trainer.config)
    assert find_trainer_fault(saved, other) is None
    other.load_state_dict(saved)
    return other


def step(trainer: MADDPG) -> dict[str, float]:
    """The metrics of a step, as numbers."""
    return {name: value.item() for name, value in trainer.step().items()}

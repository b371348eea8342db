"""Shared by the tests on the pretended GPU: small games on a device."""

import conftest
import numpy as np
import torch

from magnet.data.gaussians import PointDataset, draw_points
from magnet.data.image_dataset import ImageDataset
from magnet.maddpg import MADDPG
from magnet.run import checkpoint
from magnet.run.checkpoint_validation import find_trainer_fault

DEFAULT = {"replay_fraction": 0.25, "r1": 0.1, "precision": "bf16", "sample_every": 2, "evaluate_every": 2}
TEAM = {"generators": 2, "discriminators": 2}


def new_data(config, device, count: int = 40):
    """Random faces, or points."""
    if config.points:
        return PointDataset(draw_points(config.data), device)
    pixels = np.random.default_rng(0).integers(0, 256, (count, *config.shape), np.uint8)
    return ImageDataset(pixels, device)


def make_trainer(device, config) -> MADDPG:
    """A trainer on `device`."""
    return conftest.trainer_on(config, new_data(config, device), torch.device(device))


def restore_on(device, trainer: MADDPG, path) -> MADDPG:
    """A new trainer on `device` with the state of `trainer`, by way of a checkpoint and its validation."""
    state = {"config": {}, "faces": trainer.dataset.fingerprint, "trainer": trainer.state_dict(), "best": None}
    checkpoint.save(path, state)
    saved = checkpoint.load(path)["trainer"]
    restored = make_trainer(device, trainer.config)
    assert find_trainer_fault(saved, restored) is None
    restored.load_state_dict(saved)
    return restored

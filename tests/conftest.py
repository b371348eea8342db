"""What several test files share: a tiny game that steps in milliseconds, and ways to look at networks from outside."""

import numpy as np
import torch
from torch import nn

from magnet.faces import Faces
from train import Config

torch.set_num_threads(1)  # the networks are so small that threads cost more than they bring

CPU = torch.device("cpu")
TINY = {"image_size": 32, "width": 4, "nz": 6, "batch_size": 8, "episode_length": 3, "precision": "fp32"}


def small_config(**changes) -> Config:
    """A Config of tiny networks, with `changes`."""
    return Config(**(TINY | changes))


def small_faces(count: int = 20, image_size: int = 32) -> Faces:
    """`count` images of random pixels, always the same."""
    return Faces(np.random.default_rng(0).integers(0, 256, (count, 3, image_size, image_size), np.uint8), CPU)


def weights(networks: dict[str, nn.Module]) -> dict[str, torch.Tensor]:
    """All parameters of each network in one vector, copied."""
    return {
        key: nn.utils.parameters_to_vector(network.parameters()).detach().clone() for key, network in networks.items()
    }


def changed(before: dict[str, torch.Tensor], networks: dict[str, nn.Module]) -> set[str]:
    """Names of the networks whose parameters are no longer those of `before`."""
    return {key for key, now in weights(networks).items() if not torch.equal(now, before[key])}


def gradient(objective: torch.Tensor, network: nn.Module) -> torch.Tensor:
    """d objective / d parameters of `network`, in one vector; nothing is left in their .grad."""
    found = torch.autograd.grad(objective, list(network.parameters()), retain_graph=True)
    return torch.cat([g.flatten() for g in found])

"""Points in the plane, drawn from a mixture of Gaussians: data whose modes can be counted.

    points = PointDataset(draw_points("gaussians-25"), device)
    x = points.batch(torch.randint(2 * len(points), (16,)))
    count_modes(x, "gaussians-25")            # {"modes": 12, "high_quality": 1.0, "kl": 0.86}

The mixtures and what is counted are those of VEEGAN (Srivastava et al. 2017, arXiv 1705.07761), with the numbers of
PacGAN (Lin et al. 2018, arXiv 1712.04086, section 4.1, and its code). Points stand where the game has pictures:
what is (B, 3, S, S) of these is (B, 2) of them.
"""

import math

import numpy as np
import torch
from torch import Tensor

from magnet.data.image_dataset import fingerprint

COUNT = 100_000  # points to learn from, as in PacGAN
SHOWN = 2500  # samples to count modes in, as in PacGAN, and in a picture
NEAR = 3  # standard deviations: what lies farther from every centre is of no mode
SIDE, EDGE = 256, 1.25  # of a picture: pixels, and the coordinate at its border
WHITE, GREY, BLUE = (1.0, 1.0, 1.0), (0.6, 0.6, 0.6), (-0.8, -0.3, 0.6)  # RGB in [-1, 1]


def mixture(name: str) -> tuple[np.ndarray, float]:
    """The centres (K, 2) float32 of the modes, all equally likely, and their standard deviation in each coordinate.

    gaussians-8: on a circle of radius 1, deviation 0.01. gaussians-25: a grid of 5 x 5 from -1 to 1, a quarter of the
    size that it has in PacGAN (from -4 to 4, deviation 0.05), so that both mixtures have coordinates of mean 0 and
    variance 1/2. What is counted does not depend on the scale.
    """
    if name == "gaussians-8":
        angle = np.arange(8) * (2 * math.pi / 8)
        return np.stack([np.cos(angle), np.sin(angle)], axis=1).astype(np.float32), 0.01
    side = np.linspace(-1, 1, 5, dtype=np.float32)
    return np.stack(np.meshgrid(side, side), axis=-1).reshape(25, 2), 0.05 / 4


def draw_points(name: str, count: int = COUNT, seed: int = 0) -> np.ndarray:
    """`count` points (count, 2) float32 of the mixture `name`."""
    centres, deviation = mixture(name)
    random = np.random.default_rng(seed)
    noise = random.standard_normal((count, 2), np.float32)
    return centres[random.integers(len(centres), size=count)] + np.float32(deviation) * noise


def count_modes(points: Tensor, name: str) -> dict[str, float]:
    """How well points (N, 2) cover the mixture `name`.

    high_quality: the share of the points that lie within 3 standard deviations of the nearest centre. modes: how many
    centres have such a point. kl: of these points' histogram over the K centres to the uniform one, in nats, from 0 to
    log K, which it is too if there is no such point.
    """
    centres, deviation = mixture(name)
    distance, nearest = torch.cdist(points.cpu(), torch.from_numpy(centres)).min(dim=1)
    counts = nearest[distance < NEAR * deviation].bincount(minlength=len(centres))
    share = counts / counts.sum().clamp_min(1)
    return {
        "modes": (counts > 0).sum().item(),
        "high_quality": counts.sum().item() / len(points),
        "kl": math.log(len(centres)) + torch.xlogy(share, share).sum().item(),
    }


def paint(points: Tensor, behind: Tensor) -> Tensor:
    """A picture (3, 256, 256) in [-1, 1] of points (N, 2), blue, over those `behind` (M, 2), grey.

    Points outside the square from -1.25 to 1.25 are drawn at its border.
    """
    picture = torch.tensor(WHITE).repeat(SIDE, SIDE, 1)
    for some, colour in ((behind, GREY), (points, BLUE)):
        right, down = (some.cpu() * torch.tensor([1, -1]) * (SIDE / 2 / EDGE) + SIDE / 2).long().clamp(0, SIDE - 1).T
        picture[down, right] = torch.tensor(colour)
    return picture.permute(2, 0, 1)


class PointDataset:
    """Points ready for training on a device; stands in for ImageDataset."""

    stored, grid_size = torch.float32, SHOWN

    def __init__(self, points: np.ndarray, device: torch.device | str):
        """points: (N, 2) float32, as from draw_points."""
        self.device = torch.device(device)
        self.fingerprint = fingerprint(points)
        self._points = torch.from_numpy(points).to(self.device)
        self._mirror = torch.tensor([-1.0, 1.0], device=self.device)

    def __len__(self) -> int:
        return len(self._points)

    def batch(self, indices: Tensor) -> Tensor:
        """Points (B, 2) float32 on the device, for indices (B,) int64 in [0, 2N).

        Index N + i is point i mirrored left to right: both mixtures are symmetric, so it is as likely as the point.
        """
        indices = indices.to(self.device)
        mirrored = indices >= len(self)
        points = self._points[torch.where(mirrored, indices - len(self), indices)]
        return torch.where(mirrored[:, None], points * self._mirror, points)

    def pack(self, points: Tensor) -> Tensor:
        """As the replay buffer keeps them."""
        return points.detach()

    def unpack(self, points: Tensor) -> Tensor:
        """The inverse of pack."""
        return points

    def grid(self, points: Tensor, states: Tensor | None = None) -> Tensor:
        """A picture (1, 3, 256, 256) in [-1, 1] of points (N, 2), with some of the data behind them."""
        return paint(points, self._points[:SHOWN])[None]

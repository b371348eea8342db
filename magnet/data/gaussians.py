"""Points in the plane from a mixture of Gaussians: data whose modes can be counted.

    dataset = PointDataset(draw_points("gaussians-25"), device)
    points = dataset.batch(torch.randint(2 * len(dataset), (16,)))
    count_modes(points, "gaussians-25")            # {"modes": 12, "high_quality": 1.0, "kl": 0.86}

The mixtures and scores are those of VEEGAN (Srivastava et al. 2017, arXiv 1705.07761). The counts are those of PacGAN
(Lin et al. 2018, arXiv 1712.04086, section 4.1, and its code). Where images are (B, 3, S, S), points are (B, 2).
"""

import math

import numpy as np
import torch
from torch import Tensor

from magnet.data.image_dataset import fingerprint

POINT_COUNT = 100_000  # training points, as in PacGAN
SAMPLE_COUNT = 2500  # samples in a score, as in PacGAN, and points in a picture
RADIUS = 3  # of a mode, in standard deviations
SIDE, EDGE = 256, 1.25  # of a picture: pixels, and the coordinate at its border
WHITE, GREY, BLUE = (1.0, 1.0, 1.0), (0.6, 0.6, 0.6), (-0.8, -0.3, 0.6)  # RGB in [-1, 1]


def get_mixture(name: str) -> tuple[np.ndarray, float]:
    """Returns the centres (K, 2) float32 of the modes, all equally likely, and their deviation in each coordinate.

    gaussians-8 is a circle of radius 1 with deviation 0.01. gaussians-25 is a grid of 5 x 5 from -1 to 1: a quarter of
    PacGAN's size (-4 to 4, deviation 0.05). So the coordinates of both have mean 0 and variance 1/2. No score depends
    on the scale.
    """
    if name == "gaussians-8":
        angle = np.arange(8) * (2 * math.pi / 8)
        return np.stack([np.cos(angle), np.sin(angle)], axis=1).astype(np.float32), 0.01
    side = np.linspace(-1, 1, 5, dtype=np.float32)
    return np.stack(np.meshgrid(side, side), axis=-1).reshape(25, 2), 0.05 / 4


def draw_points(name: str, count: int = POINT_COUNT, seed: int = 0) -> np.ndarray:
    """Draws points (count, 2) float32 from the mixture `name`."""
    centres, deviation = get_mixture(name)
    random = np.random.default_rng(seed)
    noise = random.standard_normal((count, 2), np.float32)
    return centres[random.integers(len(centres), size=count)] + np.float32(deviation) * noise


def count_modes(points: Tensor, name: str) -> dict[str, float]:
    """Measures how well points (N, 2) cover the mixture `name`.

    high_quality: share of the points that lie within RADIUS of the nearest centre. modes: centres with such a point.
    kl: divergence of these points' histogram over the K centres from the uniform one, in nats, at most log K. It is
    log K if there is no such point.
    """
    centres, deviation = get_mixture(name)
    distance, nearest = torch.cdist(points.cpu(), torch.from_numpy(centres)).min(dim=1)
    counts = nearest[distance < RADIUS * deviation].bincount(minlength=len(centres))
    share = counts / counts.sum().clamp_min(1)
    return {
        "modes": (counts > 0).sum().item(),
        "high_quality": counts.sum().item() / len(points),
        "kl": math.log(len(centres)) + torch.xlogy(share, share).sum().item(),
    }


def paint(points: Tensor, background: Tensor) -> Tensor:
    """Paints points (N, 2), blue, over `background` (M, 2), grey: a picture (3, 256, 256) in [-1, 1].

    Points outside the square from -1.25 to 1.25 are painted at its border.
    """
    picture = torch.tensor(WHITE).repeat(SIDE, SIDE, 1)
    for some, colour in ((background, GREY), (points, BLUE)):
        right, down = (some.cpu() * torch.tensor([1, -1]) * (SIDE / 2 / EDGE) + SIDE / 2).long().clamp(0, SIDE - 1).T
        picture[down, right] = torch.tensor(colour)
    return picture.permute(2, 0, 1)


class PointDataset:
    """Points for training on a device, in the place of ImageDataset."""

    storage_dtype, grid_size = torch.float32, SAMPLE_COUNT
    pack, unpack = staticmethod(Tensor.detach), staticmethod(lambda points: points)  # into the replay buffer and back

    def __init__(self, points: np.ndarray, device: torch.device | str):
        """points: (N, 2) float32, as from draw_points."""
        self.device = torch.device(device)
        self.fingerprint = fingerprint(points)
        self._points = torch.from_numpy(points).to(self.device)
        self._mirror = torch.tensor([-1.0, 1.0], device=self.device)

    def __len__(self) -> int:
        return len(self._points)

    def batch(self, indices: Tensor) -> Tensor:
        """Returns points (B, 2) float32 on the device, for indices (B,) int64 in [0, 2N).

        Index N + i is point i mirrored left to right. It is as likely as the point, since both mixtures are symmetric.
        """
        indices = indices.to(self.device)
        is_mirrored = indices >= len(self)
        points = self._points[torch.where(is_mirrored, indices - len(self), indices)]
        return torch.where(is_mirrored[:, None], points * self._mirror, points)

    def grid(self, points: Tensor, states: Tensor | None = None) -> Tensor:
        """Paints points (N, 2) over some of the data: a picture (1, 3, 256, 256) in [-1, 1]. `states` are ignored."""
        return paint(points, self._points[:SAMPLE_COUNT])[None]

"""Samples in pieces, so that a large job needs the memory of a small one; and walks between points of noise."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from magnet.data.image_dataset import read_images, to_uint8
from magnet.evaluation.sampling import BATCH, Guide, Sampler

WAY = 8  # pictures from one point of a walk to the next
POINTS = 8  # of a walk

Piece = tuple[Tensor, Tensor | None]  # images, and for policy samples their states


def interpolate(a: Tensor, b: Tensor, share: float) -> Tensor:
    """The point at `share` in [0, 1] of the way from a to b, both (B, nz), on the arc between them.

    A straight line between two draws of N(0, I) passes through points shorter than any draw; the arc does not (White
    2016, arXiv 1609.04468).
    """
    cosine = torch.nn.functional.cosine_similarity(a, b, dim=1).clamp(-1 + 1e-6, 1 - 1e-6).unsqueeze(1)
    angle = cosine.acos()
    return (torch.sin((1 - share) * angle) * a + torch.sin(share * angle) * b) / angle.sin()


def divide(count: int, samplers: list[Sampler]) -> list[tuple[Sampler, int]]:
    """Each sampler with its share of `count` samples; those that make none are left out."""
    n = len(samplers)
    return [(sampler, count // n + (i < count % n)) for i, sampler in enumerate(samplers) if i < count]


def draw_pieces(samplers: list[Sampler], kind: str, count: int, guide: Guide | None = None) -> Iterator[Piece]:
    """`count` samples in pieces of up to a batch, and for policy samples their states, else None.

    Images are (n, 3, S, S) uint8 on the CPU, points (n, 2) float32. kind: prior, policy or guided. Each generator makes
    its share, one after another. Policy samples come from the middle of episodes, whose recurrent state goes from batch
    to batch. With one generator and one seed a larger `count` begins with the same samples.
    """
    for sampler, remaining in divide(count, samplers):
        pack = Tensor.detach if sampler.config.points else to_uint8
        for batch in _draw_batches(sampler, kind, remaining, guide):
            images, states = (None if part is None else pack(part[:remaining]).cpu() for part in batch)
            yield images, states
            remaining -= len(images)


def draw(samplers: list[Sampler], kind: str, count: int, guide: Guide | None = None) -> Piece:
    """All of `draw_pieces` in one: (count, 3, S, S), and for policy samples their states, else None."""
    images, states = zip(*draw_pieces(samplers, kind, count, guide), strict=True)
    return torch.cat(images), torch.cat(states) if kind == "policy" else None


def answer_photos(sampler: Sampler, photos: Sequence) -> Iterator[Piece]:
    """The sampler's answers to `photos` in their order, in pieces like those of `draw_pieces`.

    photos: image files, or pixels (N, 3, S, S) uint8. Raises UserError for a file that cannot be used.
    """
    for start in range(0, len(photos), BATCH):
        part = photos[start : start + BATCH]
        is_array = isinstance(part, np.ndarray)
        states = torch.from_numpy(part.copy()) if is_array else read_images(part, sampler.config.image_size)
        yield sampler.answer(states), states


def _draw_batches(sampler: Sampler, kind: str, count: int, guide: Guide | None) -> Iterator[Piece]:
    """At least `count` images in [-1, 1], batch after batch, each with its states or None."""
    batch = sampler.config.batch_size
    for t in range(-(-count // batch)):
        if kind == "policy":
            if t % sampler.run_length == 0:
                recurrent = sampler.warm_up(batch)
            states = sampler.draw_states(batch)
            images, recurrent = sampler.act(states, recurrent)
            yield images, states
        else:
            z = sampler.draw_noise(batch)
            yield sampler.generate(guide(sampler, z) if kind == "guided" else z), None


def draw_walks(samplers: list[Sampler], count: int) -> Iterator[Tensor]:
    """POINTS * WAY frames of `count` walks, (count, 3, S, S) uint8 on the CPU each. The first follows the last.

    Each generator makes its share of the walks, one after another.
    """
    corners = [(one, one.draw_noise(n * POINTS).unflatten(0, (n, POINTS))) for one, n in divide(count, samplers)]
    for frame in range(POINTS * WAY):
        point, step = divmod(frame, WAY)
        images = [
            sampler.generate(interpolate(points[:, point], points[:, (point + 1) % POINTS], step / WAY))
            for sampler, points in corners
        ]
        yield to_uint8(torch.cat(images)).cpu()

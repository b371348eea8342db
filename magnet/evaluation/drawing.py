"""Samples in pieces, so that a job of any size needs the memory of a small one; and walks between points of noise."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from magnet.data.image_dataset import read_images, to_uint8
from magnet.evaluation.sampling import BATCH, Guide, Sampler

WAY = 8  # pictures from one point of a walk to the next
POINTS = 8  # of a walk in a moving picture
BLOCK = 64  # batches of points that an interpolation draws at once

Piece = tuple[Tensor, Tensor | None]


def spherical(a: Tensor, b: Tensor, share: float) -> Tensor:
    """The point at `share` in [0, 1] of the way from a to b, both (B, nz), on the arc between them.

    A straight line between two draws of N(0, I) passes through points shorter than any draw (White 2016,
    arXiv 1609.04468); the arc does not.
    """
    cosine = torch.nn.functional.cosine_similarity(a, b, dim=1).clamp(-1 + 1e-6, 1 - 1e-6).unsqueeze(1)
    angle = cosine.acos()
    return (torch.sin((1 - share) * angle) * a + torch.sin(share * angle) * b) / angle.sin()


def shares(count: int, samplers: list[Sampler]) -> list[tuple[Sampler, int]]:
    """Each sampler with how many of `count` samples it makes; those that make none are left out."""
    n = len(samplers)
    return [(sampler, count // n + (i < count % n)) for i, sampler in enumerate(samplers) if i < count]


def pieces(samplers: list[Sampler], kind: str, count: int, guide: Guide | None = None) -> Iterator[Piece]:
    """`count` images in pieces of up to a batch: (n, 3, S, S) uint8 on the CPU, and for policy samples their states,
    else None. Of a run on points these, (n, 2) float32.

    kind: prior, policy, guided or interpolation. Every generator makes its share, one after another. Policy samples are
    from the middle of episodes: a batch at a time, the recurrent state carried from state to state. With one generator
    and the same seed, more samples of any kind but interpolation begin with the fewer.
    """
    for sampler, left in shares(count, samplers):
        pack = Tensor.detach if sampler.config.points else to_uint8
        for batch in _batches(sampler, kind, left, guide):
            images, states = (None if part is None else pack(part[:left]).cpu() for part in batch)
            yield images, states
            left -= len(images)


def draw(samplers: list[Sampler], kind: str, count: int, guide: Guide | None = None) -> Piece:
    """All of `pieces` in one: (count, 3, S, S), and for policy samples their states, else None."""
    images, states = zip(*pieces(samplers, kind, count, guide), strict=True)
    return torch.cat(images), torch.cat(states) if kind == "policy" else None


def answer_photos(sampler: Sampler, photos: Sequence) -> Iterator[Piece]:
    """The sampler's answers to `photos` in pieces as `pieces` gives them, each photo once, in their order.

    photos: image files, or pixels (N, 3, S, S) uint8. Raises UserError for a file that cannot be used.
    """
    for start in range(0, len(photos), BATCH):
        part = photos[start : start + BATCH]
        is_array = isinstance(part, np.ndarray)
        states = torch.from_numpy(part.copy()) if is_array else read_images(part, sampler.config.image_size)
        yield sampler.answer(states), states


def _batches(sampler: Sampler, kind: str, count: int, guide: Guide | None) -> Iterator[Piece]:
    """At least `count` images in [-1, 1], batch after batch, each with its states or None."""
    batch = sampler.config.batch_size
    if kind == "interpolation":
        for z in _arcs(sampler, count, batch):
            yield sampler.prior(z), None
        return
    for t in range(-(-count // batch)):
        if kind == "policy":
            if t % sampler.run_length == 0:
                recurrent = sampler.recurrent_state(batch)
            state = sampler.state(batch)
            generated, recurrent = sampler.policy(state, recurrent)
            yield generated, state
        else:
            z = sampler.noise(batch)
            yield sampler.prior(guide(sampler, z) if kind == "guided" else z), None


def _arcs(sampler: Sampler, count: int, batch: int) -> Iterator[Tensor]:
    """The z (n, nz) of an interpolation, a batch at a time: `count` steps from point to point, back to the first."""
    total = -(-count // WAY)
    block = BLOCK * batch
    first = points = sampler.noise(min(block, total))
    for start in range(0, total, block):
        following = sampler.noise(min(block, total - start - block)) if start + block < total else first
        ends = torch.cat([points[1:], following[:1]])
        arcs = torch.stack([spherical(points, ends, step / WAY) for step in range(WAY)], dim=1)
        yield from arcs.flatten(0, 1)[: count - start * WAY].split(batch)
        points = following


def walks(samplers: list[Sampler], count: int) -> Iterator[Tensor]:
    """POINTS * WAY frames of `count` walks at once, (count, 3, S, S) uint8 on the CPU; after the last comes the first.

    Every generator makes its share of the walks, one after another.
    """
    corners = [(sampler, sampler.noise(n * POINTS).unflatten(0, (n, POINTS))) for sampler, n in shares(count, samplers)]
    for frame in range(POINTS * WAY):
        point, step = divmod(frame, WAY)
        images = [
            sampler.prior(spherical(points[:, point], points[:, (point + 1) % POINTS], step / WAY))
            for sampler, points in corners
        ]
        yield to_uint8(torch.cat(images)).cpu()

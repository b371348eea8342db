"""How near the players are to equilibrium, where no discriminator can tell the generator's images from the data's.

    report = report_equilibrium(discriminator, fakes=fakes, draw=draw, training=training, held_out=held_out)

A discriminator that is right half the time proves nothing alone: it may be a poor one. So the report also trains a
fresh discriminator against the generator as it stands, and gives its accuracy.
"""

import dataclasses
from collections.abc import Callable
from copy import deepcopy

import torch
from torch import Tensor

from magnet.agents.batch import Batch
from magnet.agents.discriminator import DiscriminatorAgent
from magnet.data.image_dataset import ImageDataset, from_uint8, to_uint8
from magnet.game.rewards import reward_function
from magnet.support.random_streams import stream

# The fresh discriminator sees BATCH real and BATCH generated images a step. Fakes for POOL steps are drawn at once.
BATCH, POOL = 64, 25


def report_equilibrium(
    discriminator: DiscriminatorAgent, *, fakes: Tensor, draw: Callable[[int], Tensor],
    training: ImageDataset, held_out: ImageDataset | None = None, steps: int = 500, seed: int = 0,
) -> dict[str, float]:  # fmt: skip
    """How D_a and a fresh discriminator classify the images of one generator.

    fakes: uint8 (N, 3, S, S), samples of the trained G, against which D_a has learned, not of its average. draw(count):
    others, from which the fresh discriminator learns for `steps`. training: images that the players learned from;
    held_out: images that they never saw, or None. N of either are classified, in random order and half of them
    mirrored, as in the game.

    accuracy_real, accuracy_fake, accuracy_held_out: the share that D_a classifies correctly; 0.5 at equilibrium.
    value: V(D, G) (Goodfellow et al. 2014, eq. 1); `equilibrium` of the reward function at equilibrium.
    fresh_accuracy: that of the fresh discriminator, on as many fakes as held-out images. Without held-out images it is
    tested on a fifth of the training images, from which it does not learn.
    """
    random, count = stream(seed, "equilibrium"), len(fakes)
    rewards = reward_function(discriminator.config.reward_function)

    def share_right(real_logits: Tensor, fake_logits: Tensor) -> tuple[float, float]:
        border = rewards.border(real_logits, fake_logits)
        return (real_logits > border).float().mean().item(), (fake_logits <= border).float().mean().item()

    real = _draw_images(training, torch.randperm(len(training), generator=random)[:count], random)
    real_logits, fake_logits = discriminate(discriminator, real), discriminate(discriminator, fakes)
    report = dict(zip(("accuracy_real", "accuracy_fake"), share_right(real_logits, fake_logits), strict=True))
    pairs = min(len(real), count)
    report["value"] = rewards.discriminator(real_logits[:pairs], fake_logits[:pairs]).mean().item()
    indices = torch.randperm(len(training), generator=random)
    if held_out is None:
        fifth = max(1, len(training) // 5)
        unseen, indices = _draw_images(training, indices[:fifth][:count], random), indices[fifth:]
    else:
        unseen = _draw_images(held_out, torch.randperm(len(held_out), generator=random)[:count], random)
        border = rewards.border(real_logits, fake_logits)
        report["accuracy_held_out"] = (discriminate(discriminator, unseen) > border).float().mean().item()
    fresh = train_fresh_discriminator(discriminator, draw=draw, real=training, indices=indices, steps=steps, seed=seed)
    accuracies = share_right(discriminate(fresh, unseen), discriminate(fresh, fakes[: len(unseen)]))
    return report | {"fresh_accuracy": sum(accuracies) / 2}


def _draw_images(faces: ImageDataset, indices: Tensor, random: torch.Generator) -> Tensor:
    """Images by index, each mirrored with chance 1/2 as in the game: uint8 (n, 3, S, S) on the CPU."""
    mirrored = torch.randint(2, indices.shape, generator=random)
    return torch.cat([to_uint8(faces.batch(part)).cpu() for part in (indices + mirrored * len(faces)).split(256)])


@torch.no_grad()
def discriminate(discriminator: DiscriminatorAgent, images: Tensor) -> Tensor:
    """D_a's logits (N,) on images (N, 3, S, S) uint8, either all real or all generated; on the CPU.

    As in the game, BatchNorm normalises by the batch, of the training's size and of one kind. In evaluation mode D_a
    would use running statistics that mix those of real and generated batches, with which it never played. A copy runs,
    so that these stay as they are.
    """
    actor = deepcopy(discriminator.networks["actor"]).train()
    # Some batches have a few more images, so that none is too small for BatchNorm.
    batches = images.tensor_split(max(1, len(images) // discriminator.config.batch_size))
    return torch.cat([actor(from_uint8(batch.to(discriminator.device))).cpu() for batch in batches])


def train_fresh_discriminator(
    discriminator: DiscriminatorAgent, *, draw: Callable[[int], Tensor], real: ImageDataset, indices: Tensor,
    steps: int, seed: int,
) -> DiscriminatorAgent:  # fmt: skip
    """A new D_a with the architecture and Adam of `discriminator`'s, which has learned from the reward for `steps`.

    Each step shows it BATCH images from `draw`, and BATCH of `real` among `indices` (n,) int64, half of them mirrored.
    Weights and order follow `seed`; torch's own generator is left as it was.
    """
    config = dataclasses.replace(
        discriminator.config, algorithm="gan", batch_size=BATCH, generators=1, discriminators=1, specialise=0.0,
        seed=seed,
    )  # fmt: skip
    fresh = DiscriminatorAgent("fresh discriminator", config, discriminator.device)
    random = stream(seed, "fresh discriminator")
    for step in range(steps):
        if step % POOL == 0:
            fakes = draw(min(POOL, steps - step) * BATCH).split(BATCH)
        reals = _draw_images(real, indices[torch.randint(len(indices), (BATCH,), generator=random)], random)
        x, y = (from_uint8(images.to(fresh.device)) for images in (reals, fakes[step % POOL]))
        x.requires_grad_(config.r1 > 0)
        outputs = [fresh.networks["actor"].discriminate(images) for images in (x, y)]
        fresh.update(Batch(BATCH, {}, x, x, config.r1, played_images=[y], outputs=[outputs]))
    return fresh

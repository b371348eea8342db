"""How near the players are to equilibrium: where the generator's images are the data's, and no discriminator can
classify them.

    report = equilibrium_report(discriminator, fakes=fakes, draw=draw, training=training, held_out=held_out)

A discriminator that is right half the time proves nothing alone: it may be a poor one. So the report also teaches a
fresh discriminator against the generator as it stands, and reports its accuracy.
"""

import dataclasses
from collections.abc import Callable
from copy import deepcopy

import torch
from torch import Tensor

from magnet.agents.batch import Batch
from magnet.agents.discriminator import DiscriminatorAgent
from magnet.data.image_dataset import ImageDataset, from_uint8, to_uint8
from magnet.game.rewards import RewardFunction, reward_function
from magnet.support.random_streams import stream

BINS = 10  # of p, for its calibration
BATCH, POOL = 64, 25  # of the fresh discriminator: images of either kind a step; steps to draw fakes for at once


def equilibrium_report(
    discriminator: DiscriminatorAgent, *, fakes: Tensor, draw: Callable[[int], Tensor],
    training: ImageDataset, held_out: ImageDataset | None = None, steps: int = 500, seed: int = 0,
) -> dict[str, float]:  # fmt: skip
    """What D_a and a fresh discriminator make of the images of one generator.

    fakes: its samples, uint8 (N, 3, S, S); draw(count): others, for the fresh discriminator to learn from for `steps`.
    D_a has played against the trained G: the running average's samples it may know at once (seen at step 1,500: 100 %
    of them, 76 % of the trained G's), and V(D, G) is then not the game's.
    training: real images that the players learned from; held_out: such that they never saw, or None. Of either as many
    as there are fakes are classified, in random order and half of them mirrored, as the game shows them.

    accuracy_real, accuracy_fake, accuracy_held_out: the share that D_a classifies rightly.
    value, from_equilibrium: V(D, G) and its distance from -log 4, or from `equilibrium` of the reward function;
    value_held_out, from_equilibrium_held_out: the same on the held-out images. Much below the first, D_a
    overfits the training images.
    calibration_error: see there; on equally many training images and fakes; absent where sigmoid(l) is no chance.
    fresh_accuracy, fresh_value: of the fresh discriminator, on the held-out images, else on a fifth of the training
    images that it was not taught, and on as many of the fakes. At equilibrium 0.5 and -log 4.
    """
    random = stream(seed, "equilibrium")
    real = _shown(training, torch.randperm(len(training), generator=random)[: len(fakes)], random)
    real_logits, fake_logits = d_a(discriminator, real), d_a(discriminator, fakes)
    rewards = reward_function(discriminator.config.reward_function)
    border = rewards.border(real_logits, fake_logits)
    report = {
        "accuracy_real": _share(real_logits > border), "accuracy_fake": _share(fake_logits <= border),
        "value": _value(real_logits, fake_logits, rewards),
    }  # fmt: skip
    report["from_equilibrium"] = report["value"] - rewards.equilibrium
    pairs = min(len(real), len(fakes))
    logits, is_real = torch.cat([real_logits[:pairs], fake_logits[:pairs]]), torch.arange(2 * pairs) < pairs
    if rewards.probability:
        report["calibration_error"] = calibration_error(logits, is_real)
    taught = torch.randperm(len(training), generator=random)
    if held_out is None:
        fifth = max(1, len(training) // 5)
        unseen, taught = _shown(training, taught[:fifth][: len(fakes)], random), taught[fifth:]
    else:
        unseen = _shown(held_out, torch.randperm(len(held_out), generator=random)[: len(fakes)], random)
        unseen_logits = d_a(discriminator, unseen)
        report["accuracy_held_out"] = _share(unseen_logits > border)
        report["value_held_out"] = _value(unseen_logits, fake_logits, rewards)
        report["from_equilibrium_held_out"] = report["value_held_out"] - rewards.equilibrium
    fresh = fresh_discriminator(discriminator, draw=draw, real=training, taught=taught, steps=steps, seed=seed)
    real_logits, fake_logits = d_a(fresh, unseen), d_a(fresh, fakes[: len(unseen)])
    border = rewards.border(real_logits, fake_logits)
    report["fresh_accuracy"] = (_share(real_logits > border) + _share(fake_logits <= border)) / 2
    report["fresh_value"] = _value(real_logits, fake_logits, rewards)
    return report


def _share(right: Tensor) -> float:
    return right.float().mean().item()


def _value(real_logits: Tensor, fake_logits: Tensor, rewards: RewardFunction) -> float:
    """V(D, G) (Goodfellow et al. 2014, eq. 1), of any number of logits on either side."""
    if rewards.paired:
        pairs = min(len(real_logits), len(fake_logits))
        return rewards.discriminator(real_logits[:pairs], fake_logits[:pairs]).mean().item()
    # Neither reward depends on the logit beside it.
    return (rewards.real(real_logits, real_logits).mean() + rewards.fake(fake_logits, fake_logits).mean()).item()


def _shown(faces: ImageDataset, indices: Tensor, random: torch.Generator) -> Tensor:
    """Images by index, each mirrored with chance 1/2 as in the game: uint8 (n, 3, S, S) on the CPU."""
    mirrored = torch.randint(2, indices.shape, generator=random)
    return torch.cat([to_uint8(faces.batch(part)).cpu() for part in (indices + mirrored * len(faces)).split(256)])


def _batches(images: Tensor, size: int) -> tuple[Tensor, ...]:
    """All of `images` in batches of `size` or a few more, so that none is too small for BatchNorm."""
    return images.tensor_split(max(1, len(images) // size))


@torch.no_grad()
def d_a(discriminator: DiscriminatorAgent, images: Tensor) -> Tensor:
    """D_a's logits (N,) on images (N, 3, S, S) uint8, either all real or all fake; on the CPU.

    As in the game: BatchNorm normalises by the batch, of the training's size and of one kind. In evaluation mode D_a
    would be another network, by running statistics that mix those of real and fake batches and that it never played
    with. A copy runs, so that these stay as they are.
    """
    actor = deepcopy(discriminator.networks["actor"]).train()
    batches = _batches(images, discriminator.config.batch_size)
    return torch.cat([actor(from_uint8(batch.to(discriminator.device))).cpu() for batch in batches])


def calibration_error(logits: Tensor, is_real: Tensor) -> float:
    """Expected calibration error of p = sigmoid(l) in [0, 1]: logits (N,), is_real (N,) bool.

    Guo et al. 2017 (arXiv 1706.04599), eq. 3, over 10 bins of equal width. For two classes their accuracy and
    confidence become the share of real images in a bin and the mean of p there, and the bins cover [0, 1].
    """
    p = logits.double().sigmoid()
    bins = (p * BINS).long().clamp(max=BINS - 1)
    gaps = torch.zeros(BINS, dtype=p.dtype).index_add_(0, bins, is_real.double() - p)
    return (gaps.abs().sum() / len(p)).item()  # |B| / N * |share - mean| = |sum of (real - p) over B| / N


def fresh_discriminator(
    discriminator: DiscriminatorAgent, *, draw: Callable[[int], Tensor], real: ImageDataset, taught: Tensor,
    steps: int, seed: int,
) -> DiscriminatorAgent:  # fmt: skip
    """A new D_a with the architecture and Adam of `discriminator`'s, taught by the reward for `steps`.

    Each step shows it BATCH images from `draw`, and BATCH of `real` with the indices `taught` (n,) int64, half of them
    mirrored. Weights and order follow `seed`; torch's own generator is left as it was.
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
        chosen = taught[torch.randint(len(taught), (BATCH,), generator=random)]
        x, y = (from_uint8(images.to(fresh.device)) for images in (_shown(real, chosen, random), fakes[step % POOL]))
        x.requires_grad_(config.r1 > 0)
        outputs = [fresh.networks["actor"].discriminate(images) for images in (x, y)]
        fresh.update(Batch(BATCH, {}, x, x, config.r1, played_images=[y], outputs=[outputs]))
    return fresh

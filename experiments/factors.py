"""Which factors a drawn face has, read off its pixels by a small network, and how many combinations of them there are.

    reader, known = trained_reader(Path("factors.pt"))   # about two minutes on one core; then the file is read
    count_combinations(reader(pixels))                   # {"modes": 153, "kl": 0.41}

The network learns from synthetic faces too: of seed 1 (training has seed 0); those of seed 2 say how good it is.
"""

import math
import pickle
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from magnet.data import synthetic
from magnet.data.image_dataset import from_uint8
from magnet.support.atomic_files import write_atomically
from magnet.support.errors import UserError
from magnet.support.random_streams import stream

# Those that can be seen at 32x32 (each is read rightly in over 98 % of unseen faces), and are discrete. So are the
# eyes' four colours, but of 720 combinations 5,000 samples have too few each.
NAMES = ("hair_style", "hair_colour", "glasses", "beard")
LEVELS = [synthetic.FACTORS[name] for name in NAMES]
COMBINATIONS = math.prod(LEVELS)  # 180, of which every face has each with the same chance
# The share of samples by which a combination counts as covered: 10 of 5,000, of which it should have 28. Among so many
# synthetic faces the rarest has more, and the network's mistakes make less of a combination (`known` says both).
ENOUGH = 1 / 500

SIZE, FACES, UNSEEN = 32, 20_000, 5000
EPOCHS, BATCH, LR, WEIGHT_DECAY = 4, 100, 4e-3, 0.05


def combination(factors: Tensor) -> Tensor:
    """The number, 0 ... 179, of what factors (N, 4) int64 are together: (N,) int64."""
    numbers = torch.zeros(len(factors), dtype=torch.int64)
    for column, levels in zip(factors.T, LEVELS, strict=True):
        numbers = numbers * levels + column
    return numbers


def count_combinations(found: Tensor) -> dict[str, float]:
    """How well samples cover the combinations, of which they have the numbers found (N,) int64.

    modes: how many combinations have their share of the samples (`ENOUGH`). kl: of the histogram to the uniform one,
    which is the synthetic faces' own, in nats, from 0 to log 180.
    """
    counts = found.bincount(minlength=COMBINATIONS)
    share = counts.double() / len(found)
    return {
        "modes": (counts >= ENOUGH * len(found)).sum().item(),
        "kl": math.log(COMBINATIONS) + torch.xlogy(share, share).sum().item(),
    }


def drawn(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Drawn faces (N, 3, 32, 32) uint8, every other one mirrored, as training sees them, and their factors (N, 4)."""
    pixels, factors = synthetic.draw_faces(count, SIZE, seed)
    pixels = torch.from_numpy(pixels)
    pixels[1::2] = pixels[1::2].flip(3)
    return pixels, torch.stack([torch.from_numpy(factors[name]) for name in NAMES], dim=1)


def build() -> nn.Sequential:
    """Images (N, 3, 32, 32) in [-1, 1] -> logits of all levels of the factors, one after another (N, 16)."""
    layers = []
    for inner, outer, stride in ((3, 24, 1), (24, 48, 2), (48, 48, 1), (48, 96, 2), (96, 96, 2)):  # 32x32 to 4x4
        layers += [nn.Conv2d(inner, outer, 3, stride, 1, bias=False), nn.BatchNorm2d(outer), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(96 * 4 * 4, sum(LEVELS)))


def learn() -> nn.Sequential:
    """A network that has learned to classify the factors, for evaluation."""
    pixels, factors = drawn(FACES, seed=1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        network = build()
    optimizer = torch.optim.AdamW(network.parameters(), LR, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LR, total_steps=EPOCHS * -(-FACES // BATCH))
    random = stream(1, "batches")
    for _ in range(EPOCHS):
        for batch in torch.randperm(FACES, generator=random).split(BATCH):
            logits = network(from_uint8(pixels[batch])).split(LEVELS, dim=1)
            pairs = zip(logits, factors[batch].T, strict=True)
            loss = torch.stack([nn.functional.cross_entropy(*pair) for pair in pairs]).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return network.eval()


@torch.no_grad()
def read_factors(network: nn.Module, pixels: Tensor) -> Tensor:
    """The factors (N, 4) int64 that the network reads off pixels (N, 3, 32, 32) uint8."""
    logits = torch.cat([network(from_uint8(part)) for part in pixels.split(250)])
    return torch.stack([part.argmax(dim=1) for part in logits.split(LEVELS, dim=1)], dim=1)


def discriminated(network: nn.Module) -> dict:
    """What the network makes of unseen faces: how often it is right, by factor and in all of them at once.

    And of the combinations that it finds: their count as of samples, the fewest faces of one, and the most that one has
    by mistake.
    """
    pixels, factors = drawn(UNSEEN, seed=2)
    found = read_factors(network, pixels)
    right = found == factors
    numbers = combination(found)
    mistaken = numbers[~right.all(dim=1)].bincount(minlength=COMBINATIONS)
    return {
        "accuracy": dict(zip(NAMES, right.double().mean(dim=0).tolist(), strict=True)),
        "all": right.all(dim=1).double().mean().item(),
        "drawn": count_combinations(numbers),
        "fewest": numbers.bincount(minlength=COMBINATIONS).min().item(),
        "most_mistaken": mistaken.max().item(),
    }


def trained_reader(path: Path) -> tuple[Callable[[Tensor], Tensor], dict]:
    """A function that finds the combinations (N,) of pixels (N, 3, 32, 32) uint8, and what `judged` says of it.

    Its network is in the file `path`, or is trained now and written there. Raises UserError if that cannot be read.
    """
    network = build().eval()
    if path.exists():
        try:
            saved = torch.load(path, map_location="cpu", weights_only=True)
            network.load_state_dict(saved["network"])
        except (OSError, RuntimeError, EOFError, ValueError, KeyError, TypeError, pickle.UnpicklingError) as error:
            raise UserError(f"{path} holds no network of factors; delete it, and it is made anew.") from error
    else:
        print("training the network that classifies the factors of synthetic faces", flush=True)
        network = learn()
        saved = {"network": network.state_dict(), "known": discriminated(network)}
        write_atomically(path, lambda file: torch.save(saved, file))
    return lambda pixels: combination(read_factors(network, pixels)), saved["known"]

#!/usr/bin/env python3
"""Trains a small network to classify CelebA's 40 attributes, and exports its features, by which faces can be scored.

    python3 experiments/face_features.py --out NET.pt2
    python3 evaluate.py RUN --features NET.pt2

NET.pt2 is a program of torch.export: uint8 (N, 3, 64, 64) -> float32 (N, 128), for any N; torch.export.load reads it.
A tenth of the faces, by a hash of their names, is kept from training and says how good the network is.
Exit status 2: a mistake in the settings or the data, said in one sentence.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np  # noqa: E402
import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from magnet.data.held_out import is_held_out  # noqa: E402
from magnet.data.image_dataset import load_faces  # noqa: E402
from magnet.data.image_files import find_images  # noqa: E402
from magnet.support.atomic_files import write_atomically  # noqa: E402
from magnet.support.errors import UserError  # noqa: E402
from magnet.support.output import as_program  # noqa: E402
from magnet.support.paths import expand, user_path  # noqa: E402
from magnet.support.random_streams import stream  # noqa: E402

SIZE, FEATURES = 64, 128
HELD_OUT = 0.1  # share of the faces
BATCH, LR, WEIGHT_DECAY = 64, 2e-3, 0.05
SHIFT = 4  # pixels: the largest shift of a face in training
REMEDY = "get CelebA's with `python3 download_celeba.py --attributes`"


def read_attributes(path: Path) -> tuple[dict[str, int], list[str], Tensor]:
    """The list of attributes at `path`: {file name: row}, the attributes' names, and float32 (rows, attributes) 0 or 1.

    The official format: the number of rows, the attributes' names, then a file name and 1 or -1 for each in a row.
    Raises UserError if the file is missing, cut short or something else.
    """
    try:
        count, header, *lines = path.read_text(encoding="utf-8").splitlines()
        rows = [line.split() for line in lines if line.strip()]
        names = {row[0]: i for i, row in enumerate(rows)}
        if not int(count) == len(rows) == len(names):
            raise ValueError(f"it has {len(names)} names in {len(rows)} rows, not {int(count)}")
        for row in rows:
            if len(row) != 1 + len(header.split()) or not {"1", "-1"}.issuperset(row[1:]):
                raise ValueError(f"the row of {row[0]} is not a 1 or -1 for each attribute")
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be used as a list of attributes ({error}); {REMEDY}.") from error
    return names, header.split(), torch.tensor([[value == "1" for value in row[1:]] for row in rows]).float()


def load_data(folder: str, attributes: Path, size: int = SIZE, only: str | None = None) -> list[tuple[Tensor, Tensor]]:
    """Faces uint8 (N, 3, size, size) and their attributes float32 (N, attributes), to learn from; and those held out.

    An image and a row belong together by the file's name; those without the other are counted and left out.
    only: the one attribute to return, as (N,). Raises UserError.
    """
    rows, columns, values = read_attributes(attributes)
    if only is not None:
        if only not in columns:
            raise UserError(f"{attributes} has no attribute {only}; {REMEDY}.")
        values = values[:, columns.index(only)]
    names = [path.name for path in find_images(Path(folder))]
    pixels = load_faces(folder, size)  # in the order of find_images
    known = [i for i, name in enumerate(names) if name in rows]
    unused = len(rows.keys() - set(names))
    print(f"{len(known)} images with attributes; left out: {len(names) - len(known)} images, {unused} rows")
    parts = [[i for i in known if is_held_out(names[i], HELD_OUT) == kept_apart] for kept_apart in (False, True)]
    if len(parts[0]) < 2 or not parts[1]:
        raise UserError(f"Too few images in {folder} have a row in {attributes} to learn from; {REMEDY}.")
    return [(torch.from_numpy(np.asarray(pixels)[part]), values[[rows[names[i]] for i in part]]) for part in parts]


class Features(nn.Module):
    """The part that is exported: uint8 (N, 3, 64, 64) -> float32 (N, 128)."""

    def __init__(self):
        super().__init__()
        layers = self.convolution(3, 16, 1)  # 64x64
        for inner, outer in ((16, 32), (32, 64), (64, 64), (64, 128)):  # 32x32, 16x16, 8x8, 4x4
            layers += self.convolution(inner, outer, 2) + self.convolution(outer, outer, 1)
        self.layers = nn.Sequential(*layers, nn.Flatten(), nn.Linear(128 * 4 * 4, FEATURES))

    @staticmethod
    def convolution(inner: int, outer: int, stride: int) -> list[nn.Module]:
        """A 3x3 convolution with BatchNorm and ReLU."""
        return [nn.Conv2d(inner, outer, 3, stride, 1, bias=False), nn.BatchNorm2d(outer), nn.ReLU()]

    def forward(self, pixels: Tensor) -> Tensor:
        return self.layers(pixels.float() / 127.5 - 1)


def move(pixels: Tensor, random: torch.Generator, shift: int = SHIFT) -> Tensor:
    """Each of pixels (B, 3, S, S) mirrored or not, and shifted by up to `shift` pixels, the edges repeated."""
    count, side = len(pixels), pixels.shape[-1]
    shifts = torch.randint(-shift, shift + 1, (2, count, 1), generator=random)
    rows, columns = (torch.arange(side) + shifts).clamp(0, side - 1)  # (B, S) each
    mirrored = torch.randint(2, (count, 1), generator=random).bool()
    columns = torch.where(mirrored, side - 1 - columns, columns)
    images = torch.arange(count)[:, None, None]
    return pixels[images, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)  # from (B, S, S, 3)


def fit(network: nn.Module, pixels: Tensor, values: Tensor, augment: Callable, lr: float, epochs: int, random) -> None:
    """Trains `network` to give values (N, ...) of 0 or 1 as logits for uint8 pixels (N, 3, S, S); prints the loss.

    augment: of pixels and the generator `random`, which also orders the faces.
    """
    network.train()
    steps = -(-len(pixels) // BATCH)
    optimizer = torch.optim.AdamW(network.parameters(), lr=lr, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=epochs * steps)
    for epoch in range(epochs):
        total = 0.0
        for batch in torch.randperm(len(pixels), generator=random).tensor_split(steps):
            logits = network(augment(pixels[batch], random))
            loss = nn.functional.binary_cross_entropy_with_logits(logits, values[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item() / steps
        print(f"epoch {epoch + 1}/{epochs}: loss {total:.4f}", flush=True)


def evaluate(network: nn.Module, pixels: Tensor) -> Tensor:
    """The network's outputs (N, ...), in evaluation, for uint8 pixels (N, 3, S, S)."""
    network.eval()
    with torch.no_grad():
        return torch.cat([network(part) for part in pixels.split(250)])


def standardise(features: Features, pixels: Tensor) -> None:
    """Brings the features to mean 0, and all together to deviation 1, over pixels.

    At that scale the kernel of KID, (x.y / F + 1)^3, is neither flat nor all outliers. Frechet distance, precision and
    recall depend on it by a factor, or not at all.
    """
    outputs, last = evaluate(features, pixels), features.layers[-1]
    mean = outputs.mean(0)
    deviation = (outputs - mean).square().mean().sqrt()
    with torch.no_grad():
        last.weight.div_(deviation)
        last.bias.sub_(mean).div_(deviation)


def learn(training: tuple[Tensor, Tensor], held_out: tuple[Tensor, Tensor], epochs: int, seed: int) -> Features:
    """Trains the features and a head on them; prints how often they are right on held-out faces. For evaluation."""
    (pixels, values), (unseen, answers) = training, held_out
    torch.manual_seed(seed)
    features = Features()
    network = nn.Sequential(features, nn.ReLU(), nn.Dropout(0.3), nn.Linear(FEATURES, values.shape[1]))
    fit(network, pixels, values, move, LR, epochs, stream(seed, "batches"))
    right = ((evaluate(network, unseen) > 0) == answers).float().mean()
    commonest = ((values.mean(0) > 0.5) == answers).float().mean()
    print(f"{len(unseen)} held-out faces: {right:.2%} of the answers right; always the commonest: {commonest:.2%}")
    standardise(features, pixels)
    return features


def export(features: nn.Module, out: Path) -> None:
    """Writes the features' network, in evaluation, to `out` as a program for any number of images."""
    example = torch.zeros(2, 3, SIZE, SIZE, dtype=torch.uint8)
    program = torch.export.export(features, (example,), dynamic_shapes=({0: torch.export.Dim("images")},))
    write_atomically(out, lambda file: torch.export.save(program, file))


def parse(arguments: list[str] | None, about: str, epochs: int, out: Path | None = None) -> argparse.Namespace:
    """The command line, with defaults; `out` is required if it has none. Exits with 2 on a bad word."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    add, listed = parser.add_argument, Path("data/celeba/list_attr_celeba.txt")
    add("--data", type=expand, default="data/celeba", help="folder or .zip of CelebA's images (default %(default)s)")
    add("--attributes", type=user_path, default=listed, help="default %(default)s")
    place = f"default {out}" if out else "required"
    add("--out", type=user_path, required=not out, default=out, metavar="FILE", help=f"the network ({place})")
    add("--epochs", type=int, default=epochs, help="passes over the faces (default %(default)s)")
    add("--seed", type=int, default=0, help="of the weights and batches (default %(default)s)")
    options = parser.parse_args(arguments)
    if options.epochs < 1:
        parser.error(f"--epochs is {options.epochs}, but must be at least 1")
    if not options.out.parent.is_dir():
        parser.error(f"--out: there is no folder {options.out.parent}")
    return options


@as_program
def main(arguments: list[str] | None = None) -> int:
    """The program; returns its exit status."""
    options = parse(arguments, __doc__, epochs=20)
    try:
        export(learn(*load_data(options.data, options.attributes), options.epochs, options.seed), options.out)
    except (UserError, OSError) as error:
        print(f"face_features.py: {error}", file=sys.stderr)
        return 2
    print(options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())

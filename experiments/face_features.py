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
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from magnet.config import Config  # noqa: E402
from magnet.support.devices import settle  # noqa: E402
from magnet.support.errors import UserError  # noqa: E402
from magnet.support.output import as_program  # noqa: E402
from magnet.support.paths import expand, user_path  # noqa: E402

SIZE, FEATURES = 64, 128
HELD_OUT = 0.1  # share of the faces
BATCH, LR, WEIGHT_DECAY = 64, 2e-3, 0.05
SHIFT = 4  # pixels: the largest shift of a face in training
REMEDY = "get CelebA's with `python3 download_celeba.py --attributes`"


def read_attributes(path: Path):
    """The list of attributes at `path`: {file name: row}, the attributes' names, and float32 (rows, attributes) 0 or 1.

    The official format: the number of rows, the attributes' names, then a file name and 1 or -1 for each in a row.
    Raises UserError if the file is missing, cut short or something else.
    """
    import torch

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


def load_data(folder: str, attributes: Path, size: int = SIZE, only: str | None = None):
    """Faces and their attributes: uint8 (N, 3, size, size), float32 (N, attributes), bool (N,): is it held out?

    An image and a row belong together by the file's name; those without the other are counted and left out.
    only: the one attribute to return, in (N, 1). Raises UserError.
    """
    import numpy as np
    import torch

    from magnet.data.held_out import is_held_out
    from magnet.data.image_dataset import load_faces
    from magnet.data.image_files import find_images

    rows, columns, values = read_attributes(attributes)
    if only is not None:
        if only not in columns:
            raise UserError(f"{attributes} has no attribute {only}; {REMEDY}.")
        values = values[:, [columns.index(only)]]
    names = [path.name for path in find_images(Path(folder))]
    pixels = load_faces(folder, size)  # in the order of find_images
    known = [i for i, name in enumerate(names) if name in rows]
    unused = len(rows.keys() - set(names))
    print(f"{len(known)} images with attributes; left out: {len(names) - len(known)} images, {unused} rows")
    held_out = torch.tensor([is_held_out(names[i], HELD_OUT) for i in known], dtype=torch.bool)
    if held_out.sum() < 1 or (~held_out).sum() < 2:
        raise UserError(f"Too few images in {folder} have a row in {attributes} to learn from; {REMEDY}.")
    return torch.from_numpy(np.asarray(pixels)[known]), values[[rows[names[i]] for i in known]], held_out


def build(attributes: int):
    """The part that is exported, uint8 (N, 3, 64, 64) -> (N, 128), and the head on it, -> logits (N, attributes)."""
    from torch import nn

    def convolution(inner: int, outer: int, stride: int):
        return [nn.Conv2d(inner, outer, 3, stride, 1, bias=False), nn.BatchNorm2d(outer), nn.ReLU()]

    class Features(nn.Module):
        def __init__(self):
            super().__init__()
            layers = convolution(3, 16, 1)  # 64x64
            for inner, outer in ((16, 32), (32, 64), (64, 64), (64, 128)):  # 32x32, 16x16, 8x8, 4x4
                layers += convolution(inner, outer, 2) + convolution(outer, outer, 1)
            self.layers = nn.Sequential(*layers, nn.Flatten(), nn.Linear(128 * 4 * 4, FEATURES))

        def forward(self, pixels):
            return self.layers(pixels.float() / 127.5 - 1)

    return Features(), nn.Sequential(nn.ReLU(), nn.Dropout(0.3), nn.Linear(FEATURES, attributes))


def moved(pixels, random, shift: int = SHIFT):
    """Each of pixels (B, 3, S, S) mirrored or not, and shifted by up to `shift` pixels, the edges repeated."""
    import torch

    count, side = len(pixels), pixels.shape[-1]
    shifts = torch.randint(-shift, shift + 1, (2, count, 1), generator=random)
    rows, columns = (torch.arange(side) + shifts).clamp(0, side - 1)  # (B, S) each
    mirrored = torch.randint(2, (count, 1), generator=random).bool()
    columns = torch.where(mirrored, side - 1 - columns, columns)
    images = torch.arange(count)[:, None, None]
    return pixels[images, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)  # from (B, S, S, 3)


def applied(network, pixels, device: str):
    """What the network, in evaluation, makes of uint8 pixels (N, 3, S, S): (N, outputs) on the CPU."""
    import torch

    network.eval()
    with torch.no_grad():
        return torch.cat([network(part.to(device)).cpu() for part in pixels.split(250)])


def standardise(features, pixels, device: str) -> None:
    """Brings the features to mean 0, and all together to deviation 1, over pixels.

    At that scale the kernel of KID, (x.y / F + 1)^3, is neither flat nor all outliers. Frechet distance, precision and
    recall depend on it by a factor, or not at all.
    """
    import torch

    found, last = applied(features, pixels, device), features.layers[-1]
    mean = found.mean(0)
    deviation = (found - mean).square().mean().sqrt()
    with torch.no_grad():
        last.weight.div_(deviation.to(device))
        last.bias.sub_(mean.to(device)).div_(deviation.to(device))


def learn(pixels, values, held_out, epochs: int, seed: int, device: str):
    """Trains on what is not held out; prints an epoch a line. Returns the features' network, for evaluation."""
    import torch
    from torch import nn

    from magnet.support.random_streams import stream

    torch.manual_seed(seed)
    torch.backends.cudnn.deterministic = True
    features, head = build(values.shape[1])
    network = nn.Sequential(features, head).to(device)
    random = stream(seed, "batches")
    chosen = (~held_out).nonzero().flatten()
    steps = -(-len(chosen) // BATCH)
    optimizer = torch.optim.AdamW(network.parameters(), lr=LR, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LR, total_steps=epochs * steps)
    commonest = ((values[chosen].mean(0) > 0.5) == values[held_out]).float().mean()
    for epoch in range(epochs):
        network.train()
        total = 0.0
        for batch in chosen[torch.randperm(len(chosen), generator=random)].tensor_split(steps):
            logits = network(moved(pixels[batch], random).to(device))
            loss = nn.functional.binary_cross_entropy_with_logits(logits, values[batch].to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item() / steps
        right = ((applied(network, pixels[held_out], device) > 0) == values[held_out]).float().mean()
        print(f"epoch {epoch + 1}/{epochs}: loss {total:.4f}, held-out accuracy {right:.2%}", flush=True)
    print(f"{held_out.sum()} held-out faces: {right:.2%} of the answers right; always the commonest: {commonest:.2%}")
    standardise(features, pixels[chosen], device)
    return features.cpu()


def export(features, out: Path) -> None:
    """Writes the features' network, in evaluation on the CPU, to `out` as a program for any number of images."""
    import torch

    from magnet.support.atomic_files import write_atomically

    example = torch.zeros(2, 3, SIZE, SIZE, dtype=torch.uint8)
    program = torch.export.export(features, (example,), dynamic_shapes=({0: torch.export.Dim("images")},))
    write_atomically(out, lambda file: torch.export.save(program, file))


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line. Exits with 2 on a bad word."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", type=expand, default="data/celeba", help="folder of CelebA's images (default %(default)s)"
    )
    parser.add_argument(
        "--attributes", type=user_path, default=Path("data/celeba/list_attr_celeba.txt"), help="default %(default)s"
    )
    parser.add_argument("--out", type=user_path, required=True, metavar="NET.pt2", help="the exported network")
    parser.add_argument("--epochs", type=int, default=20, help="passes over the faces (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the weights and batches (default %(default)s)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default %(default)s)")
    options = parser.parse_args(arguments)
    if options.epochs < 1:
        parser.error(f"--epochs is {options.epochs}, but must be at least 1")
    if not options.out.parent.is_dir():
        parser.error(f"--out: there is no folder {options.out.parent}")
    return options


@as_program
def main(arguments: list[str] | None = None) -> int:
    """The program; returns its exit status."""
    options = parse(sys.argv[1:] if arguments is None else arguments)
    try:
        device = settle(Config(device=options.device)).device
        pixels, values, held_out = load_data(options.data, options.attributes)
        export(learn(pixels, values, held_out, options.epochs, options.seed, device), options.out)
    except (UserError, OSError) as error:
        print(f"face_features.py: {error}", file=sys.stderr)
        return 2
    print(options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())

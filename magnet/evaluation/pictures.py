"""Samples as files: a grid, a loop, single pictures, an array."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torchvision.utils import make_grid

ROW = 8  # pictures in a row of the grid
FRAME = 60  # milliseconds


def write(images, states, out: Path | None, folder: Path | None, npz: Path | None) -> None:
    """Writes a grid of up to 64 pictures (a .gif: all in a loop), a PNG each into `folder`, an array; if not None."""
    if out and out.suffix.lower() == ".gif":
        shown = images if states is None else torch.cat([states, images], dim=3)
        frames = [Image.fromarray(picture) for picture in shown.permute(0, 2, 3, 1).numpy()]
        frames[0].save(out, save_all=True, append_images=frames[1:], duration=FRAME, loop=0)
    elif out:
        shown = images if states is None else torch.stack([states, images], dim=1).flatten(0, 1)
        Image.fromarray(make_grid(shown[: ROW * ROW], nrow=ROW).permute(1, 2, 0).numpy()).save(out)
    pixels = images.permute(0, 2, 3, 1).numpy()  # (N, H, W, 3)
    if folder:
        folder.mkdir(parents=True, exist_ok=True)
        for i, picture in enumerate(pixels):
            Image.fromarray(picture).save(folder / f"{i:06d}.png")
    if npz:
        with open(npz, "wb") as file:  # np.savez would add an ending to a bare name
            np.savez(file, arr_0=pixels)

"""Samples as files: a grid, single pictures, an array, all written as they are drawn; and walks as an animation."""

import math
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate, pad
from tqdm import tqdm

from magnet.data.archives import require_space
from magnet.support.atomic_files import open_atomically
from magnet.support.errors import UserError

ROW, GRID_IMAGES = 8, 64  # pictures in a row of the grid, and in all of it
GAP = 2  # black pixels between and around them
FRAME = 80  # milliseconds
WIDTH = 512  # pixels, about, of an animation


def write(
    pieces: Iterable[tuple[Tensor, Tensor | None]], shape: tuple[int, int, int], out: Path | None,
    folder: Path | None = None, npz: Path | None = None,
) -> None:  # fmt: skip
    """Writes a grid of up to 64 pictures to `out`, a PNG of each into `folder`, and an array to `npz`, unless None.

    pieces: as `drawing.draw_pieces` gives them; shape: (N, H, W) of all of them. Memory does not grow with N. The array
    is whole or absent. A bar is on stderr. Raises UserError if the disk is too small.
    """
    count = shape[0]
    if folder:
        folder.mkdir(parents=True, exist_ok=True)
    require_room(shape, folder, npz)
    first_images, done, digits = [], 0, max(6, len(str(count - 1)))
    with ExitStack() as stack:
        array = stack.enter_context(open_array(npz, (*shape, 3))) if npz else None
        bar = stack.enter_context(tqdm(total=count, unit=" images", desc="drawing", leave=False, disable=None))
        for images, states in pieces:
            if out and done < GRID_IMAGES:
                first_images.append(images if states is None else torch.stack([states, images], dim=1).flatten(0, 1))
                if done + len(images) >= min(count, GRID_IMAGES):
                    Image.fromarray(grid(torch.cat(first_images)[:GRID_IMAGES], ROW)).save(out)
            pixels = images.permute(0, 2, 3, 1).contiguous().numpy()  # (n, H, W, 3)
            if array:
                array.write(pixels.data)
            for i, picture in enumerate(pixels if folder else ()):
                with open_atomically(folder / f"{done + i:0{digits}d}.png", sync=False) as file:
                    Image.fromarray(picture).save(file, format="PNG")
            done += len(images)
            bar.update(len(images))


def require_room(shape: tuple[int, int, int], folder: Path | None, npz: Path | None) -> None:
    """Raises UserError if a disk has less room than the pictures or the array of `shape` (N, H, W) take."""
    count, height, width = shape
    # A PNG has a byte for each row beside its pixels, and where these cannot be packed it grows a little; a disk rounds
    # up. The array's file has headers.
    png = 4096 * math.ceil((1.01 * height * (3 * width + 1) + 256) / 4096)
    for place, size in ((folder, count * png), (npz and npz.parent, count * height * width * 3 + 1024)):
        if place:
            require_space(place, size, "lower --count")


@contextmanager
def open_array(path: Path, shape: tuple[int, ...]) -> Iterator[BinaryIO]:
    """A file for the bytes of the uint8 array `arr_0` of `shape` in an .npz file, as np.savez writes it."""
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    with open_atomically(path) as file, zipfile.ZipFile(file, "w") as archive:
        with archive.open("arr_0.npy", "w", force_zip64=True) as member:
            np.lib.format.write_array_header_1_0(member, header)
            yield member


def grid(images: Tensor, columns: int, scale: int = 1) -> np.ndarray:
    """Images (N, 3, H, W) uint8, each `scale` times as large, in rows of up to `columns`: (height, width, 3) uint8."""
    if scale > 1:  # smooth, and each by itself: squares of one colour hide a small face
        larger = interpolate(images.float(), scale_factor=scale, mode="bicubic", align_corners=False)
        images = larger.round().clamp(0, 255).to(torch.uint8)
    count, channels, height, width = images.shape
    columns, gap = min(columns, count), GAP if count > 1 else 0
    # torchvision's make_grid makes the same picture, but its import would nearly double the time of sample.py.
    cells = images.new_zeros(-(-count // columns) * columns, height + gap, width + gap, channels)
    cells[:count, gap:, gap:] = images.permute(0, 2, 3, 1)
    rows = cells.unflatten(0, (-1, columns)).transpose(1, 2).flatten(0, 1).flatten(1, 2)
    return pad(rows, (0, 0, 0, gap, 0, gap)).numpy()


def write_animation(frames: Iterable[Tensor], out: Path) -> None:
    """Writes walks as a .gif or .mp4 that shows them side by side, in a loop; `out` is whole or absent.

    frames: (N, 3, S, S) uint8 each, of the same N walks, enlarged to about 512 pixels in all. Raises UserError if the
    package for .mp4 is missing.
    """
    encode = save_gif if out.suffix.lower() == ".gif" else load_mp4_encoder()
    pictures = []
    for images in tqdm(frames, unit=" frames", desc="drawing", leave=False, disable=None):
        columns = math.ceil(len(images) ** 0.5)
        pictures.append(grid(images, columns, max(1, round(WIDTH / (columns * images.shape[-1])))))
    with open_atomically(out) as file:
        encode(pictures, file)


def save_gif(frames: list[np.ndarray], file: BinaryIO) -> None:
    """Writes a looping GIF of frames (height, width, 3) uint8. They share a palette, so that still colours stay."""
    pictures = [Image.fromarray(frame) for frame in frames]
    palette = Image.fromarray(np.concatenate(frames[:: max(1, len(frames) // 8)])).quantize(255)
    first, *others = (picture.quantize(palette=palette, dither=Image.Dither.NONE) for picture in pictures)
    first.save(file, format="GIF", save_all=True, append_images=others, duration=FRAME, loop=0)


def load_mp4_encoder():
    """A function like `save_gif` for MP4 (H.264). Raises UserError if imageio-ffmpeg is not installed."""
    try:
        from imageio_ffmpeg import write_frames
    except ImportError:
        raise UserError("An .mp4 needs imageio-ffmpeg: `pip3 install imageio-ffmpeg` gets it, .gif does not.") from None

    def encode(frames: list[np.ndarray], file: BinaryIO) -> None:
        height, width, _ = frames[0].shape
        video = write_frames(
            file.name, (width, height), fps=1000 / FRAME, quality=7, macro_block_size=2, output_params=["-f", "mp4"]
        )
        video.send(None)
        for frame in frames:
            video.send(frame)
        video.close()

    return encode

"""Pictures for training: a folder or .zip of images, or faces drawn by the program, as one array of uint8 pixels.

    pixels = load_faces("data/celeba", 64)
    faces = ImageDataset(pixels, device)
    images = faces.batch(torch.randint(2 * len(faces), (16,), device=device))

Every image is decoded once, into an .npy file in the cache (cache.py) that later runs map into memory.
"""

import hashlib
import os
import sys
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from tqdm import tqdm

from magnet.data import synthetic
from magnet.data.cache import find_place
from magnet.data.file_lists import BadSource
from magnet.data.held_out import select_part
from magnet.data.image_files import BadImage, find_images, load_image, stamp
from magnet.support.atomic_files import remove_abandoned, write_atomically
from magnet.support.errors import UserError
from magnet.support.locks import locked

MAX_BAD_SHARE = 0.01  # of the images, with skip_bad_images
SYNTHETIC_FACES = 10_000
CHUNK = 32  # images per task of a worker
FORMAT_VERSION = 2  # raise it when the same files give other pixels
SKIPPED_VERSION = 3  # raise it when other files are bad


def load_faces(
    source: str, image_size: int, *, cache_dir: Path | None = None, skip_bad_images: bool = False,
    workers: int | None = None, hold_out: float = 0.0, held_out: bool = False, outputs: Sequence[str | Path] = (),
) -> np.ndarray:  # fmt: skip
    """Pixels (N, 3, S, S) uint8, read-only, mapped from a file in cache_dir, None: the cache, that is made if need be.

    The images of a folder or archive are in the order of find_images.
    source: a folder or .zip of images, or "synthetic" (a folder of that name: "./synthetic").
    skip_bad_images: leave out files that cannot be decoded, at most 1 %, and say so on stderr.
    workers: decoding threads, by default one for each core. Threads do: Pillow decodes outside Python's lock.
    hold_out: the share of images to leave out of the array (`is_held_out` of the relative name, of a synthetic face's
    index), said on stderr; with held_out those alone are in it. outputs: as in find_images.
    The file's name is a digest of what it was made from: relative names, sizes and times of change (in an archive:
    CRCs) of the images, S and skip_bad_images. Raises UserError.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    workers = workers or cores or 1
    if source == "synthetic":
        indices = select_part(source, list(range(SYNTHETIC_FACES)), str, hold_out, held_out)
        part = f"-{'held-out' if held_out else 'without'}-{hold_out}" if hold_out else ""
        digest = f"synthetic-v{synthetic.VERSION}-{SYNTHETIC_FACES}-{image_size}{part}"
        found, blocks = len(indices), _drawn(indices, image_size, workers)
    else:
        outputs = [*outputs, *filter(None, [cache_dir])]
        images = find_images(Path(source), tell=not held_out, outputs=outputs)
        images = select_part(source, images, lambda path: path.relative_to(source).as_posix(), hold_out, held_out)
        digest = _digest(Path(source), images, image_size, skip_bad_images)
        found, blocks = len(images), _decoded(images, image_size, skip_bad_images, workers)

    target = Path(cache_dir, f"{digest}.npy") if cache_dir else find_place(f"{digest}.npy")
    if not target.exists():
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with locked(target.parent / "lock", wait=_say_that_it_waits):
                if not target.exists():
                    _make_array(target, image_size, found, blocks)
        except OSError as error:
            advice = "fix this, or name another folder with `--cache-dir FOLDER` or MAGNET_CACHE"
            raise UserError(f"cannot write {target} ({error.strerror}): {advice}") from error
    try:
        pixels = np.load(target, mmap_mode="r")
    except (OSError, EOFError, ValueError) as error:
        raise UserError(f"cannot read {target} ({error}): delete it and start again") from error
    if len(pixels) < found:
        print(f"{found - len(pixels)} of {found} images in {source} are left out (--skip-bad-images)", file=sys.stderr)
    return pixels


def read_images(files: Iterable[Path], image_size: int) -> torch.Tensor:
    """Image files, at least one, as they are: uint8 (N, 3, S, S). Raises UserError for one that cannot be used."""
    try:
        return torch.from_numpy(np.stack([load_image(file, image_size) for file in files]))
    except BadImage as error:
        raise UserError(f"bad image {error}; give another image, or leave this one out.") from error


def _digest(folder: Path, images: list, image_size: int, skip_bad_images: bool) -> str:
    made = f"{FORMAT_VERSION} {image_size} {skip_bad_images and SKIPPED_VERSION}"
    digest = hashlib.blake2b(made.encode(), digest_size=8)
    for image in images:
        digest.update(b"\0" + os.fsencode(image.relative_to(folder).as_posix()) + stamp(image))
    return digest.hexdigest()


def _say_that_it_waits() -> None:
    print("Waiting for another program that decodes images.", file=sys.stderr)


def _make_array(target: Path, image_size: int, expected: int, blocks: Iterable[np.ndarray]) -> None:
    """Write blocks (n, 3, S, S) uint8 one after another as an .npy file, which has its final name only when complete.

    Plain writing, not a memory map, whose writer the system kills when the disk is full.
    """
    remove_abandoned(target.parent)

    def write(file: BinaryIO) -> None:
        header = {"descr": "|u1", "fortran_order": False, "shape": (expected, 3, image_size, image_size)}
        np.lib.format.write_array_header_1_0(file, header)
        count = 0
        with tqdm(total=expected, desc=f"making {target}", unit="image", disable=None) as bar:
            for block in blocks:
                file.write(block.tobytes())
                count += len(block)
                bar.update(len(block))
        file.seek(0)
        header["shape"] = (count, 3, image_size, image_size)
        np.lib.format.write_array_header_1_0(file, header)  # as long as the first: numpy leaves room for any count

    write_atomically(target, write)


def _in_order(work: Callable, tasks: Iterable, workers: int) -> Iterator:
    """The results of work(task), in the order of the tasks, a few tasks ahead: memory stays bounded."""
    pool, waiting = ThreadPoolExecutor(workers), deque()
    try:
        for task in tasks:
            waiting.append(pool.submit(work, task))
            if len(waiting) > 2 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _decoded(images: list, image_size: int, skip_bad_images: bool, workers: int) -> Iterator[np.ndarray]:
    def decode(start: int) -> tuple[np.ndarray, list[BadImage]]:
        good, bad = [], []
        for path in images[start : start + CHUNK]:
            try:
                good.append(load_image(path, image_size))
            except BadImage as error:
                bad.append(error)
        return np.array(good, np.uint8).reshape(-1, 3, image_size, image_size), bad

    first, count = None, 0
    for good, bad in _in_order(decode, range(0, len(images), CHUNK), workers):
        for error in bad:
            first, count = first or error, count + 1
            if count <= 5 and (skip_bad_images or count > 1):
                tqdm.write(f"{'left out' if skip_bad_images else 'bad image'} {error}", file=sys.stderr)
            if count > MAX_BAD_SHARE * len(images) and skip_bad_images:
                share = f"more than {MAX_BAD_SHARE:.0%} of {len(images)} images"
                raise BadSource(f"{share} are bad, the last {error}", "; delete them or get the images anew")
            if count > MAX_BAD_SHARE * len(images):
                raise BadSource(f"bad image {first}", "; delete it, or put a good copy in its place")
        if skip_bad_images or not first:
            yield good
    if first and not skip_bad_images:  # all were decoded, so it is known that the flag takes them
        them = f"the {count} bad ones" if count > 1 else "it"
        raise BadSource(f"bad image {first}", f"; delete it, or leave {them} out with `--skip-bad-images`")


def _drawn(indices: list[int], image_size: int, workers: int) -> Iterator[np.ndarray]:
    wanted = np.isin(np.arange(SYNTHETIC_FACES), indices)

    def draw(start: int) -> np.ndarray:
        chosen = wanted[start : start + CHUNK]
        return synthetic.draw_faces(len(chosen), image_size, seed=0, start=start)[0][chosen]

    return _in_order(draw, range(0, SYNTHETIC_FACES, CHUNK), workers)


def fingerprint(pixels: np.ndarray) -> str:
    """16 hexadecimal digits by which sets of images differ: of their number and of up to 1,000, evenly spaced."""
    digest = hashlib.blake2b(repr(pixels.shape).encode(), digest_size=8)
    for i in np.linspace(0, len(pixels) - 1, min(len(pixels), 1000)).astype(int):
        digest.update(pixels[i].tobytes())
    return digest.hexdigest()


def from_uint8(pixels: torch.Tensor) -> torch.Tensor:
    """uint8 0 ... 255 -> float32 in [-1, 1], a new tensor."""
    return pixels.div(127.5).sub_(1)


def to_uint8(images: torch.Tensor) -> torch.Tensor:
    """The inverse of from_uint8: floats in [-1, 1] to the nearest of 0 ... 255, uint8; what lies outside is clamped."""
    return images.detach().float().add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8)


class ImageDataset:
    """Images ready for training on a device: held there if they fit beside a model, else in the computer's memory."""

    stored, grid_size = torch.uint8, 64  # how the replay buffer keeps images; how many a grid has
    pack, unpack = staticmethod(to_uint8), staticmethod(from_uint8)  # into the replay buffer and back

    def __init__(self, pixels: np.ndarray, device: torch.device | str):
        """pixels: (N, 3, S, S) uint8, N >= 1, as from load_faces; they are never written to."""
        if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[1] != 3 or len(pixels) == 0:
            raise ValueError(f"pixels must be (N, 3, S, S) uint8, not {pixels.shape} {pixels.dtype}")
        self.device = torch.device(device)
        self.fingerprint = fingerprint(pixels)
        with warnings.catch_warnings():  # torch warns that it has no read-only tensors; nothing here writes
            warnings.simplefilter("ignore", UserWarning)
            self._pixels = torch.from_numpy(pixels)  # the same memory, not a copy
        if self.device.type == "cuda" and pixels.nbytes <= torch.cuda.mem_get_info(self.device)[0] // 2:
            self._pixels = self._pixels.to(self.device)

    def __len__(self) -> int:
        return len(self._pixels)

    def batch(self, indices: torch.Tensor) -> torch.Tensor:
        """Images (B, 3, S, S) float32 in [-1, 1] on the device, for indices (B,) int64 in [0, 2N).

        Index N + i is image i mirrored left to right. The indices may lie on any device; where the images do not fit on
        the GPU, indices there make the CPU wait.
        """
        indices = indices.to(self._pixels.device)
        mirrored = indices >= len(self)
        rows = self._gather(torch.where(mirrored, indices - len(self), indices))
        mirrored = mirrored.to(self.device, non_blocking=True)[:, None, None, None]
        return from_uint8(torch.where(mirrored, rows.flip(3), rows))

    def _gather(self, indices: torch.Tensor) -> torch.Tensor:
        if self._pixels.device.type != "cpu" or self.device.type != "cuda":
            return self._pixels.index_select(0, indices).to(self.device)
        # Page-locked: the copy runs beside the computation.
        rows = torch.empty((len(indices), *self._pixels.shape[1:]), dtype=torch.uint8, pin_memory=True)
        return torch.index_select(self._pixels, 0, indices, out=rows).to(self.device, non_blocking=True)

    @staticmethod
    def grid(images: torch.Tensor, states: torch.Tensor | None = None) -> torch.Tensor:
        """The pictures of a grid: images (B, 3, S, S), or (2B, 3, S, S) with each to the right of its state."""
        return images if states is None else torch.stack([states, images], dim=1).flatten(0, 1)

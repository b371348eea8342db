"""Images for training: a folder or .zip of images, or synthetic faces, as one array of uint8 pixels.

    pixels = load_faces("data/celeba", 64)
    dataset = ImageDataset(pixels, device)
    images = dataset.batch(torch.randint(2 * len(dataset), (16,), device=device))

Every image is decoded once, into an .npy file in the cache (cache.py). Later runs map this file into memory.
"""

import hashlib
import os
import sys
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from magnet.data import synthetic
from magnet.data.cache import find_cache_path
from magnet.data.file_lists import BadSource
from magnet.data.held_out import select_part
from magnet.data.image_files import BadImage, find_images, load_image
from magnet.support.atomic_files import open_atomically, remove_abandoned
from magnet.support.errors import UserError
from magnet.support.locks import locked

MAX_BAD_SHARE = 0.01  # of the images
SYNTHETIC_FACES = 10_000
CHUNK = 32  # images per task of a worker
FORMAT_VERSION = 2  # raise it if the same files give other pixels
SKIPPED_VERSION = 3  # raise it if other files count as bad


def load_faces(
    source: str, image_size: int, *, cache_dir: Path | None = None, skip_bad_images: bool = False,
    workers: int | None = None, hold_out: float = 0.0, held_out: bool = False, outputs: Sequence[str | Path] = (),
) -> np.ndarray:  # fmt: skip
    """Returns pixels (N, 3, S, S) uint8, read-only, mapped from a file that is made if need be. Raises UserError.

    source: a folder or .zip of images, in the order of find_images, or "synthetic" (a folder of that name is
    "./synthetic"). cache_dir: the file's folder; None: the cache. skip_bad_images: leave out files that cannot be
    decoded, at most 1 %, and print which. workers: decoding threads, by default one for each core; Pillow decodes
    outside Python's lock. hold_out: the share of images to leave out (`is_held_out` of the relative name, of a
    synthetic face's index), which is printed; with held_out the array has those alone. outputs: as in find_images.
    The file's name is a digest of what it was made from: relative names, sizes and times of change (in an archive:
    CRCs) of the images, S and skip_bad_images.
    """
    if not source:  # as Path it would be the working folder
        raise BadSource("--data is empty")
    workers = workers or (len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()) or 1
    if source == "synthetic":
        images = select_part(source, list(range(SYNTHETIC_FACES)), str, hold_out, held_out)
        part = f"-{'held-out' if held_out else 'without'}-{hold_out}" if hold_out else ""
        digest = f"synthetic-v{synthetic.VERSION}-{SYNTHETIC_FACES}-{image_size}{part}"
        blocks = _draw_blocks(images, image_size, workers)
    else:
        outputs = [*outputs, *filter(None, [cache_dir])]
        images = find_images(Path(source), verbose=not held_out, outputs=outputs)
        images = select_part(source, images, lambda path: path.relative_to(source).as_posix(), hold_out, held_out)
        digest = _hash_files(Path(source), images, image_size, skip_bad_images)
        blocks = _decode_blocks(images, image_size, skip_bad_images, workers)

    target = Path(cache_dir, f"{digest}.npy") if cache_dir else find_cache_path(f"{digest}.npy")
    if not target.exists():
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with locked(target.parent / "lock", wait=_report_waiting):
                if not target.exists():
                    _write_array(target, image_size, len(images), blocks)
        except OSError as error:
            advice = "fix this, or name another folder with `--cache-dir FOLDER` or MAGNET_CACHE"
            raise UserError(f"cannot write {target} ({error.strerror}): {advice}") from error
    try:
        pixels = np.load(target, mmap_mode="r")
    except (OSError, EOFError, ValueError) as error:
        raise UserError(f"cannot read {target} ({error}): delete it and start again") from error
    if bad := len(images) - len(pixels):
        print(f"{bad} of {len(images)} images in {source} are left out (--skip-bad-images)", file=sys.stderr)
    return pixels


def read_images(files: Iterable[Path], image_size: int) -> torch.Tensor:
    """Decodes image files, at least one: uint8 (N, 3, S, S). Raises UserError for one that cannot be used."""
    try:
        return torch.from_numpy(np.stack([load_image(file, image_size) for file in files]))
    except BadImage as error:
        raise UserError(f"bad image {error}; give another image, or leave this one out.") from error


def _hash_files(folder: Path, images: list, image_size: int, skip_bad_images: bool) -> str:
    settings = f"{FORMAT_VERSION} {image_size} {skip_bad_images and SKIPPED_VERSION}"
    digest = hashlib.blake2b(settings.encode(), digest_size=8)
    for image in images:
        digest.update(b"\0" + os.fsencode(image.relative_to(folder).as_posix()))
        with suppress(OSError):  # a link to nowhere: decoding will name it
            status = image.stat()
            digest.update(b"\0%d\0%d" % (status.st_size, status.st_mtime_ns))
    return digest.hexdigest()


def _report_waiting() -> None:
    print("Waiting for another program that decodes images.", file=sys.stderr)


def _write_array(target: Path, image_size: int, expected: int, blocks: Iterable[np.ndarray]) -> None:
    """Writes blocks (n, 3, S, S) uint8 one after another as an .npy file, which is whole or absent.

    It maps no memory: the system kills a process that writes to a memory map on a full disk.
    """
    remove_abandoned(target.parent)
    header, count = {"descr": "|u1", "fortran_order": False, "shape": (expected, 3, image_size, image_size)}, 0
    bar = tqdm(total=expected, desc=f"making {target}", unit="image", disable=None)
    with open_atomically(target) as file, bar:
        np.lib.format.write_array_header_1_0(file, header)
        for block in blocks:
            file.write(block.tobytes())
            count += len(block)
            bar.update(len(block))
        file.seek(0)
        header["shape"] = (count, 3, image_size, image_size)
        np.lib.format.write_array_header_1_0(file, header)  # as long as the first: numpy leaves room for any count


def _map_in_order(work: Callable, tasks: Iterable, workers: int) -> Iterator:
    """Yields work(task) in the order of the tasks. Threads work a few tasks ahead, so memory stays bounded."""
    pool, futures = ThreadPoolExecutor(workers), deque()
    try:
        for task in tasks:
            futures.append(pool.submit(work, task))
            if len(futures) > 2 * workers:
                yield futures.popleft().result()
        yield from (future.result() for future in futures)
    finally:
        pool.shutdown(cancel_futures=True)


def _decode_blocks(images: list, image_size: int, skip_bad_images: bool, workers: int) -> Iterator[np.ndarray]:
    def decode(start: int) -> tuple[np.ndarray, list[BadImage]]:
        good, bad = [], []
        for path in images[start : start + CHUNK]:
            try:
                good.append(load_image(path, image_size))
            except BadImage as error:
                bad.append(error)
        return np.array(good, np.uint8).reshape(-1, 3, image_size, image_size), bad

    count = 0
    for pixels, errors in _map_in_order(decode, range(0, len(images), CHUNK), workers):
        for error in errors:
            count += 1
            if not skip_bad_images:
                skip = f", or leave up to {MAX_BAD_SHARE:.0%} of the images out with `--skip-bad-images`"
                raise BadSource(f"bad image {error}", "; delete it" + skip * (len(images) * MAX_BAD_SHARE >= 1))
            if count > MAX_BAD_SHARE * len(images):
                cause = f"more than {MAX_BAD_SHARE:.0%} of {len(images)} images are bad, the last {error}"
                raise BadSource(cause, "; delete them or get the images anew")
            if count <= 5:
                tqdm.write(f"left out {error}", file=sys.stderr)
        yield pixels


def _draw_blocks(indices: list[int], image_size: int, workers: int) -> Iterator[np.ndarray]:
    is_selected = np.isin(np.arange(SYNTHETIC_FACES), indices)

    def draw(start: int) -> np.ndarray:
        selection = is_selected[start : start + CHUNK]
        return synthetic.draw_faces(len(selection), image_size, seed=0, start=start)[0][selection]

    return _map_in_order(draw, range(0, SYNTHETIC_FACES, CHUNK), workers)


def fingerprint(pixels: np.ndarray) -> str:
    """Returns 16 hexadecimal digits of the number of images and of up to 1,000 of them, evenly spaced."""
    digest = hashlib.blake2b(repr(pixels.shape).encode(), digest_size=8)
    for i in np.linspace(0, len(pixels) - 1, min(len(pixels), 1000)).astype(int):
        digest.update(pixels[i].tobytes())
    return digest.hexdigest()


def from_uint8(pixels: torch.Tensor) -> torch.Tensor:
    """Converts uint8 0 ... 255 to float32 in [-1, 1], a new tensor."""
    return pixels.div(127.5).sub_(1)


def to_uint8(images: torch.Tensor) -> torch.Tensor:
    """Inverts from_uint8: floats in [-1, 1] become the nearest of 0 ... 255, uint8. It clamps other floats."""
    return images.detach().float().add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8)


class ImageDataset:
    """Images for training on a device. The device holds them if they fit beside a model, else the computer's memory."""

    storage_dtype, grid_size = torch.uint8, 64  # of images in the replay buffer; how many a grid has
    pack, unpack = staticmethod(to_uint8), staticmethod(from_uint8)  # into the replay buffer and back

    def __init__(self, pixels: np.ndarray, device: torch.device | str):
        """pixels: (N, 3, S, S) uint8, N >= 1, as from load_faces. Nothing writes to them."""
        if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[1] != 3 or len(pixels) == 0:
            raise ValueError(f"pixels must be (N, 3, S, S) uint8, not {pixels.shape} {pixels.dtype}")
        self.device = torch.device(device)
        self.fingerprint = fingerprint(pixels)
        with warnings.catch_warnings():  # torch warns that it has no read-only tensors
            warnings.simplefilter("ignore", UserWarning)
            self._pixels = torch.from_numpy(pixels)  # the same memory, not a copy
        if self.device.type == "cuda" and pixels.nbytes <= torch.cuda.mem_get_info(self.device)[0] // 2:
            self._pixels = self._pixels.to(self.device)

    def __len__(self) -> int:
        return len(self._pixels)

    def batch(self, indices: torch.Tensor) -> torch.Tensor:
        """Returns images (B, 3, S, S) float32 in [-1, 1] on the device, for indices (B,) int64 in [0, 2N).

        Index N + i is image i mirrored left to right. The indices may lie on any device. If the images do not fit on
        the GPU, indices there make the CPU wait.
        """
        indices = indices.to(self._pixels.device)
        is_mirrored = indices >= len(self)
        rows = self._gather(torch.where(is_mirrored, indices - len(self), indices))
        is_mirrored = is_mirrored.to(self.device, non_blocking=True)[:, None, None, None]
        return from_uint8(torch.where(is_mirrored, rows.flip(3), rows))

    def _gather(self, indices: torch.Tensor) -> torch.Tensor:
        if self._pixels.device.type != "cpu" or self.device.type != "cuda":
            return self._pixels.index_select(0, indices).to(self.device)
        # Page-locked: the copy runs beside the computation.
        rows = torch.empty((len(indices), *self._pixels.shape[1:]), dtype=torch.uint8, pin_memory=True)
        return torch.index_select(self._pixels, 0, indices, out=rows).to(self.device, non_blocking=True)

    @staticmethod
    def grid(images: torch.Tensor, states: torch.Tensor | None = None) -> torch.Tensor:
        """Returns images (B, 3, S, S), or (2B, 3, S, S) with each image to the right of its state."""
        return images if states is None else torch.stack([states, images], dim=1).flatten(0, 1)

"""Image files: find those in a folder or a .zip archive, and decode one.

pixels = load_image(find_images(Path("data/celeba"))[0], 64)
"""

import contextlib
import io
import os
import re
import stat
import sys
import threading
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from magnet.data.file_lists import BadSource, list_archive, list_folder
from magnet.data.image_metadata import hide_metadata, read_orientation
from magnet.data.zipped_images import ZippedImage
from magnet.support.errors import one_line

ENDINGS = (".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".gif")
DECODERS = {  # by the first bytes of a file; its name does not count
    rb"\xff\xd8\xff": JpegImageFile,
    rb"\x89PNG\r\n\x1a\n": PngImageFile,
    rb"RIFF....WEBP": WebPImageFile,
    rb"BM.{12}[\x0c\x28\x34\x38\x40\x6c\x7c]\0\0\0": BmpImageFile,  # the size of its second header
    rb"GIF8[79]a": GifImageFile,
}
HEAD = 18  # bytes that show the format
TURNS = {  # by EXIF orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip
MAX_FILE_BYTES = 100_000_000  # photos of 200 megapixels take up to 80 MB
LARGE_FILE_BYTES = 20_000_000  # one thread at a time reads a larger file: memory stays bounded
MAX_PIXELS = 10_000_000  # to decode, by the header: a small file can decode to gigabytes
MAX_ASPECT = 10  # long side / short side: a strip one pixel wide would fill the memory once that pixel is S wide
MAX_SCANS = 500  # of a JPEG, which has about ten; the decoder passes over all pixels for each scan of a few bytes
_large_file_lock = threading.Lock()


class BadImage(ValueError):
    """A file that cannot be used as an image. The message names it and says why, in one line."""


def find_images(source: Path, verbose: bool = False, outputs: Sequence[str | Path] = ()) -> list[Path | ZippedImage]:
    """Finds all images in a folder, or .zip archive, and in the folders inside it, sorted by relative name.

    An image has one of ENDINGS in any case, or no ending and the first bytes of an image. Links to folders are
    followed, each folder once. Names that begin with a dot are left out: archives made on macOS hold a "._000001.jpg"
    for each "000001.jpg". What MAGNET wrote below the source is left out too: run folders (with a config.json and a
    folder checkpoints), the repository's models, the cache, and `outputs`. The source itself is always read.
    verbose: print to stderr how many files were left out. Raises BadSource if the source is missing, cannot be read or
    holds no image.
    """
    images, others = [], Counter()
    files, written = list_archive(source) if os.path.isfile(source) else list_folder(source, outputs)
    for file in files:
        ending = os.path.splitext(file.name)[1].lower().rstrip(".")
        if ending in ENDINGS or not ending and _begins_as_image(file):
            images.append(file)
        else:
            others[ending or "without an ending"] += 1
    others.update({f"that MAGNET wrote in {folder}": count for folder, count in written.items()})
    left_out = ", ".join(f"{count} {kind}" for kind, count in others.most_common(5)) + ", ..." * (len(others) > 5)
    if not images:
        where = f"{source} or in the folders inside it" + f" (but {left_out})" * bool(others)
        raise BadSource(f"no {', '.join(ENDINGS)} file in {where}")
    if verbose and others:
        total = others.total()
        print(one_line(f"{total} of {total + len(images)} files left out: {left_out}"), file=sys.stderr)
    return images


def _begins_as_image(file: Path | ZippedImage) -> bool:
    try:
        _get_size(file)
        with file.open("rb") as stream:
            return bool(_find_decoder(stream.read(HEAD)))
    except Exception:  # zipfile raises nearly anything on a broken archive
        return False


def _find_decoder(head: bytes) -> type | None:
    return next((decoder for pattern, decoder in DECODERS.items() if re.match(pattern, head, re.DOTALL)), None)


def _get_size(file: Path | ZippedImage) -> int:
    status = file.stat()
    if not stat.S_ISREG(status.st_mode):  # reading a pipe may never end
        raise ValueError("no file, but a pipe, a device or a folder")
    return status.st_size


def load_image(file: Path | ZippedImage, image_size: int) -> np.ndarray:
    """Decodes a JPEG, PNG, WebP, BMP or GIF (its first picture) file: (3, S, S) uint8 RGB. Raises BadImage.

    The picture is turned as its EXIF orientation says; all other metadata is ignored. Pillow converts it to RGB: grey
    three times, without alpha. 16-bit grey keeps its upper 8 bits. The short side becomes S, and the centre is cut out.
    A JPEG that is large enough is decoded at 1/2, 1/4 or 1/8 of its size. This moves CelebA's pixels by 0.8 grey levels
    on average at S = 64, by 1.2 at S = 32. With more than MAX_PIXELS it keeps a short side of at least 2S.
    """
    try:
        size = _get_size(file)
        if size == 0:
            raise ValueError("the file is empty")
        if size > MAX_FILE_BYTES:
            raise ValueError(f"{size:,} bytes, more than {MAX_FILE_BYTES:,}")
        with _large_file_lock if size > LARGE_FILE_BYTES else contextlib.nullcontext():
            with file.open("rb") as stream:
                data = io.BytesIO(stream.read(MAX_FILE_BYTES))
            return _decode(data, image_size)
    except Exception as error:  # Pillow raises nearly anything on a broken file
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        if isinstance(error, SyntaxError):  # Pillow's for a header that it cannot read
            reason = "its header is damaged"
        raise BadImage(one_line(f"{file}: {reason}")) from error


def _decode(file: io.BytesIO, image_size: int) -> np.ndarray:
    decoder = _find_decoder(file.getvalue()[:HEAD])
    if not decoder:
        raise ValueError("no JPEG, PNG, WebP, BMP or GIF image")
    with file.getbuffer() as data:
        orientation = hide_metadata(data, decoder.format)
    with decoder(file) as image:  # it reads the header alone, without the limit of Image.open
        if decoder is WebPImageFile:  # it does not parse its metadata
            orientation = read_orientation(image.info.get("exif", b""))
        limit, advice = MAX_PIXELS, ": save it smaller, or as a JPEG that is not progressive"
        if decoder is JpegImageFile:
            if not _has_several_scans(image, file):
                limit, advice = 64 * MAX_PIXELS, ""  # the decoder gives 1/8 of each side
            elif (scans := file.getvalue().count(b"\xff\xda")) > MAX_SCANS:
                raise ValueError(f"{scans:,} scans, more than {MAX_SCANS}")
        w, h = image.size
        if max(w, h) > MAX_ASPECT * min(w, h):
            raise ValueError(f"{w} x {h} pixels, more than {MAX_ASPECT} times as long as wide")
        if w * h > limit:
            raise ValueError(f"{w} x {h} pixels, more than {limit:,}{advice}")
        is_large, is_upright = w * h > MAX_PIXELS, orientation == 1
        if is_large or is_upright:  # JPEG decoders give 1/2, 1/4 or 1/8 of the size for less work
            box = image.draft(None, _scale_sides(w, h, 2 * image_size if is_large else image_size))
        picture = image.transpose(TURNS[orientation]) if orientation in TURNS else image
        # The image is the `box` of the decoded pixels. A turned one may be stretched by part of a pixel.
        w, h = box[1][2:] if is_upright and box else picture.size
        wide, high = _scale_sides(w, h, image_size)
        x, y = (wide - image_size) // 2, (high - image_size) // 2
        centre = (x / wide * w, y / high * h, (x + image_size) / wide * w, (y + image_size) / high * h)
        picture = _to_rgb(picture).resize((image_size, image_size), Image.Resampling.BILINEAR, centre)
        return np.ascontiguousarray(np.asarray(picture).transpose(2, 0, 1))


def _has_several_scans(image: JpegImageFile, file: io.BytesIO) -> bool:
    """Whether a JPEG, read to the end of its first scan's header, is progressive or has its colours one after another.

    The decoder keeps all pixels of such a file at full size, but only a few rows of others: 200 megapixels took 613 MB
    and 13 MB.
    """
    length = 6 + 2 * image.layers  # of that header, if all colours are in the scan
    file.seek(-2 - length, io.SEEK_CUR)
    return "progressive" in image.info or file.read(5) != bytes((0xFF, 0xDA, 0, length, image.layers))


def _scale_sides(w: float, h: float, image_size: int) -> tuple[int, int]:
    """Returns width and height such that the short side is S."""
    scale = image_size / min(w, h)
    return max(image_size, round(w * scale)), max(image_size, round(h * scale))


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit grey, whose values above 255 Pillow would clip to white
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return image if image.mode == "RGB" else image.convert("RGB")

"""Image files: which ones a folder or a .zip archive holds, and one of them as pixels.

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
DECODERS = {  # by the first bytes of a file, whatever its name
    rb"\xff\xd8\xff": JpegImageFile,
    rb"\x89PNG\r\n\x1a\n": PngImageFile,
    rb"RIFF....WEBP": WebPImageFile,
    rb"BM.{12}[\x0c\x28\x34\x38\x40\x6c\x7c]\0\0\0": BmpImageFile,  # the size of its second header
    rb"GIF8[79]a": GifImageFile,
}
HEAD = 18  # bytes that tell a format
TURNS = {  # by EXIF orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip
MAX_FILE_BYTES = 100_000_000  # photos of 200 megapixels take up to 80 MB
LARGE_FILE_BYTES = 20_000_000  # larger ones are read one at a time: memory stays bounded, whatever the threads
MAX_PIXELS = 10_000_000  # that are decoded, told by the header: a small file can decode to gigabytes
MAX_ASPECT = 10  # long side / short side: a strip one pixel wide would fill the memory once that pixel is S wide
MAX_SCANS = 500  # of a JPEG, which has some ten; a few bytes each make the decoder pass over all its pixels once more
_large_file = threading.Lock()


class BadImage(ValueError):
    """A file that cannot be used as an image; the message names it and says why, in one line."""


def find_images(source: Path, tell: bool = False, outputs: Sequence[str | Path] = ()) -> list[Path] | list[ZippedImage]:
    """All images in a folder, or .zip archive, and in the folders inside it, sorted by relative name.

    Images are files with one of ENDINGS in any case, and those without an ending whose first bytes are an image's.
    Links to folders are followed, each folder once. Names that begin with a dot are left out: archives made on macOS
    hold a "._000001.jpg", which is no image, for each "000001.jpg".
    What MAGNET wrote below the source is left out too: run folders, which hold a config.json and a folder checkpoints,
    the repository's models, the cache, and `outputs`. The source itself is always read, also a run's samples.
    tell: say in a line on stderr how many other files there are.
    Raises BadSource when the source is missing, cannot be read or holds no image.
    """
    images, others = [], Counter()
    files, written = list_archive(source) if os.path.isfile(source) else list_folder(source, outputs)
    for file in files:
        ending = os.path.splitext(file.name)[1].lower().rstrip(".")
        if ending in ENDINGS or not ending and _decoder_of(file):
            images.append(file)
        else:
            others[ending or "without an ending"] += 1
    most = others.most_common(5)
    rest = others.total() - sum(count for _, count in most)
    parts = [f"{count} {ending}" for ending, count in most] + [f"{rest} others"] * (rest > 0)
    if written:
        folders = ", ".join([*sorted(written)[:3], *["..."] * (len(written) > 3)])
        parts.append(f"{written.total()} that MAGNET wrote in {folders}")
    left_out = ", ".join(parts)
    if not images:
        where = f"{source} or in the folders inside it" + f" (but {left_out})" * bool(left_out)
        raise BadSource(f"no {', '.join(ENDINGS)} file in {where}")
    if tell and left_out:
        count = others.total() + written.total()
        print(one_line(f"{count} of {count + len(images)} files left out: {left_out}"), file=sys.stderr)
    return images


def _decoder_of(file: Path | ZippedImage) -> type | None:
    """What decodes a file; None if it is no image, or cannot be read."""
    try:
        _size(file)
        with file.open("rb") as stream:
            return _decoder(stream.read(HEAD))
    except Exception:  # zipfile raises nearly anything on a broken archive
        return None


def _decoder(head: bytes) -> type | None:
    return next((kind for pattern, kind in DECODERS.items() if re.match(pattern, head, re.DOTALL)), None)


def _size(file: Path | ZippedImage) -> int:
    """Bytes in a file. Raises ValueError if it is none, and OSError."""
    if isinstance(file, ZippedImage):
        return file.info.file_size
    status = os.stat(file)
    if not stat.S_ISREG(status.st_mode):  # the next read of a pipe may never end
        raise ValueError("no file, but a pipe, a device or a folder")
    return status.st_size


def stamp(file: Path | ZippedImage) -> bytes:
    """What differs once a file has changed: its size and time of change, in an archive its size and CRC."""
    if isinstance(file, ZippedImage):
        return b"\0%d\0%d" % (file.info.file_size, file.info.CRC)
    try:
        status = os.stat(file)
    except OSError:  # a link to nowhere: decoding will name it
        return b""
    return b"\0%d\0%d" % (status.st_size, status.st_mtime_ns)


def load_image(file: Path | ZippedImage, image_size: int) -> np.ndarray:
    """Decode a JPEG, PNG, WebP, BMP or GIF (its first picture) file: (3, S, S) uint8 RGB. Raises BadImage.

    The picture is turned as its EXIF orientation says; all other metadata is ignored. It becomes RGB as by Pillow,
    grey three times, alpha dropped. Of 16-bit grey the upper 8 bits are kept. Then its short side is made S
    and its centre cut out. JPEG files that are large enough are decoded at 1/2, 1/4 or 1/8 of their size, which moves
    CelebA's pixels by 0.8 grey levels on average at S = 64, by 1.2 at 32; those of more than MAX_PIXELS so that the
    short side is at least 2S.
    """
    try:
        size = _size(file)
        if size == 0:
            raise ValueError("the file is empty")
        if size > MAX_FILE_BYTES:
            raise ValueError(f"{size:,} bytes, more than {MAX_FILE_BYTES:,}")
        with _large_file if size > LARGE_FILE_BYTES else contextlib.nullcontext():
            with file.open("rb") as stream:
                data = io.BytesIO(stream.read(MAX_FILE_BYTES))
            return _decode(data, image_size)
    except Exception as error:  # Pillow raises nearly anything on a broken file
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        if isinstance(error, SyntaxError):  # Pillow's for a header that it cannot read
            reason = "its header is damaged"
        raise BadImage(one_line(f"{file}: {reason}")) from error


def _decode(file: io.BytesIO, image_size: int) -> np.ndarray:
    decoder, orientation = _decoder(file.getvalue()[:HEAD]), 1
    if not decoder:
        raise ValueError("no JPEG, PNG, WebP, BMP or GIF image")
    if decoder in (JpegImageFile, PngImageFile, GifImageFile):
        with file.getbuffer() as data:
            orientation = hide_metadata(data, decoder.format)
    with decoder(file) as image:  # reads the header alone, and without Image.open's own limit
        if decoder is WebPImageFile:  # it hands metadata over without a look at it
            orientation = read_orientation(image.info.get("exif", b""), image.info.get("xmp", b""))
        w, h = image.size
        jpeg = decoder is JpegImageFile
        full_size = not jpeg or _has_several_scans(image, file)
        if jpeg and full_size and (scans := file.getvalue().count(b"\xff\xda")) > MAX_SCANS:
            raise ValueError(f"{scans:,} scans, more than {MAX_SCANS}")
        if max(w, h) > MAX_ASPECT * min(w, h):
            raise ValueError(f"{w} x {h} pixels, more than {MAX_ASPECT} times as long as wide")
        if w * h > (limit := MAX_PIXELS if full_size else 64 * MAX_PIXELS):
            advice = ": save it smaller, or as a JPEG that is not progressive" * full_size
            raise ValueError(f"{w} x {h} pixels, more than {limit:,}{advice}")
        large = w * h > MAX_PIXELS
        upright = orientation == 1
        # JPEG decoders give 1/2, 1/4 or 1/8 of the size for less work; `box` is how much of the result is image
        box = image.draft(None, _scaled(w, h, 2 * image_size if large else image_size)) if upright or large else None
        turned = image.transpose(TURNS[orientation]) if orientation in TURNS else image
        w, h = box[1][2:] if box and upright else turned.size  # turned, it may be stretched by part of a pixel
        picture = _to_rgb(turned)
        wide, high = _scaled(w, h, image_size)
        x, y = (wide - image_size) // 2, (high - image_size) // 2
        centre = (x / wide * w, y / high * h, (x + image_size) / wide * w, (y + image_size) / high * h)
        picture = picture.resize((image_size, image_size), Image.Resampling.BILINEAR, centre)
        return np.ascontiguousarray(np.asarray(picture).transpose(2, 0, 1))


def _has_several_scans(image: JpegImageFile, file: io.BytesIO) -> bool:
    """Whether a JPEG, read to the end of its first scan's header, is progressive or has its colours one after another.

    Of such a file the decoder keeps all pixels at full size, of others a few rows: 200 megapixels took 613 and 13 MB.
    """
    length = 6 + 2 * image.layers  # of that header, if all colours are in the scan
    file.seek(-2 - length, io.SEEK_CUR)
    return "progressive" in image.info or file.read(5) != bytes((0xFF, 0xDA, 0, length, image.layers))


def _scaled(w: float, h: float, image_size: int) -> tuple[int, int]:
    """Width and height once the short side is S."""
    scale = image_size / min(w, h)
    return max(image_size, round(w * scale)), max(image_size, round(h * scale))


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit grey, whose values above 255 Pillow would clip to white
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # the same colours, without Pillow's warning
    return image if image.mode == "RGB" else image.convert("RGB")

"""Image files: which ones a folder holds, and one of them as pixels.

pixels = load_image(find_images(Path("data/celeba"))[0], 64)
"""

import io
import os
import stat
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from magnet.support.errors import UserError, one_line

ENDINGS = (".jpg", ".jpeg", ".png")
MAX_FILE_BYTES = 20_000_000
MAX_PIXELS = 10_000_000  # told by the header: a small file can decode to gigabytes
MAX_ASPECT = 10  # long side / short side: a strip one pixel wide would fill the memory once that pixel is S wide
MAX_SCANS = 500  # of a JPEG, which has some ten; a few bytes each make the decoder pass over all its pixels once more
REMEDY = (
    "get CelebA with `python3 download_celeba.py`, name another folder of images with `--data FOLDER`, "
    "or let the program draw faces with `--data synthetic`"
)


class BadImage(ValueError):
    """A file that cannot be used as an image; the message names it and says why, in one line."""


def find_images(folder: Path) -> list[Path]:
    """All .jpg, .jpeg and .png files in a folder and in the folders inside it, sorted by relative name.

    Links to folders are followed, each folder once. Names that begin with a dot are left out: archives made on macOS
    hold a "._000001.jpg", which is no image, for each "000001.jpg".
    Raises UserError when the folder is missing, cannot be read or holds no image.
    """
    if not os.path.isdir(folder):  # unlike Path.is_dir it knows that there is none of too long a name
        raise UserError(f"there is no folder {folder}: {REMEDY}")

    def refuse(error: OSError):
        raise UserError(f"cannot read the folder {error.filename} ({error.strerror}): {REMEDY}")

    images, visited = [], set()
    try:
        for place, inner, names in os.walk(folder, onerror=refuse, followlinks=True):
            real = os.path.realpath(place)
            if real in visited:
                inner.clear()
                continue
            visited.add(real)
            inner[:] = sorted(name for name in inner if not name.startswith("."))
            names = (name for name in names if name.lower().endswith(ENDINGS) and not name.startswith("."))
            images += [Path(place, name) for name in names]
    except RecursionError:  # os.walk before Python 3.12
        raise UserError(f"the folders in {folder} lie too deep in one another: {REMEDY}") from None
    if not images:
        raise UserError(f"no {', '.join(ENDINGS)} file in {folder} or in the folders inside it: {REMEDY}")
    return sorted(images, key=Path.as_posix)  # all begin with the folder: the order of their relative names


def load_image(path: Path, image_size: int) -> np.ndarray:
    """Decode a JPEG or PNG file: (3, S, S) uint8 RGB. Raises BadImage.

    The picture is turned as its EXIF orientation says and becomes RGB as Pillow's convert does it: grey three times,
    alpha dropped. Of 16-bit grey the upper 8 bits are kept. Then its short side is made S and its centre cut out. JPEG
    files that are large enough are decoded at 1/2, 1/4 or 1/8 of their size, which moves CelebA's pixels by 0.8 grey
    levels on average at S = 64, by 1.2 at 32.
    """
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):  # the next read of a pipe may never end
            raise ValueError("no file, but a pipe, a device or a folder")
        if status.st_size == 0:
            raise ValueError("the file is empty")
        if status.st_size > MAX_FILE_BYTES:
            raise ValueError(f"{status.st_size:,} bytes, more than {MAX_FILE_BYTES:,}")
        file = io.BytesIO(path.read_bytes())
        with Image.open(file, formats=("JPEG", "PNG")) as image:  # reads the header alone
            scans = file.getvalue().count(b"\xff\xda")  # in other data by chance, one in 65,536 bytes
            if scans > MAX_SCANS and image.format != "PNG":
                raise ValueError(f"{scans:,} scans, more than {MAX_SCANS}")
            w, h = image.size
            if w * h > MAX_PIXELS:
                raise ValueError(f"{w} x {h} pixels, more than {MAX_PIXELS:,}")
            if max(w, h) > MAX_ASPECT * min(w, h):
                raise ValueError(f"{w} x {h} pixels, more than {MAX_ASPECT} times as long as wide")
            upright = image.getexif().get(ExifTags.Base.Orientation, 1) == 1
            # JPEG decoders give 1/2, 1/4 or 1/8 of the size for less work; `box` is how much of the result is image
            box = image.draft(None, _scaled(w, h, image_size)) if upright else None
            ImageOps.exif_transpose(image, in_place=True)
            w, h = box[1][2:] if box else image.size
            image = _to_rgb(image)
        wide, high = _scaled(w, h, image_size)
        x, y = (wide - image_size) // 2, (high - image_size) // 2
        centre = (x / wide * w, y / high * h, (x + image_size) / wide * w, (y + image_size) / high * h)
        image = image.resize((image_size, image_size), Image.Resampling.BILINEAR, centre)
        return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))
    except UnidentifiedImageError:
        raise BadImage(one_line(f"{path}: no JPEG or PNG image")) from None
    except Exception as error:  # Pillow raises nearly anything on a broken file
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise BadImage(one_line(f"{path}: {reason}")) from error


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

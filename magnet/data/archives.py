"""Check an archive of CelebA and extract its images.

record = verify(path, archive)
count = extract_images(path, archive, Path("data/celeba.download/images"))
"""

import dataclasses
import errno
import hashlib
import re
import shutil
import stat
import zipfile
import zlib
from pathlib import Path

from tqdm import tqdm

from magnet.data.image_files import BadImage, load_image
from magnet.support.errors import UserError

FOLDER = "img_align_celeba"  # in the archive and on disk
MAX_UNPACKED = 4_000_000_000  # bytes, with --any-archive too; the official images are 1.4 GB
MAX_RATIO = 20  # unpacked to packed size; JPEGs hardly shrink, so the official ratio is near 1


@dataclasses.dataclass(frozen=True)
class Archive:
    """Where an archive, or the list of attributes, is and what it must be; None accepts anything."""

    url: str
    size: int | None  # bytes
    md5: str | None
    images: int | None
    name: str = "img_align_celeba.zip"
    head: bytes = rb"PK\x03\x04"  # a pattern of its first bytes: web pages come under any name
    by_hand: str = "--from-zip"  # how the program takes a file that was fetched by hand


class BadArchive(Exception):
    """The message says what is wrong with the archive. Reading it again does not help."""


class UnofficialArchive(BadArchive):
    """The archive has another size or other members than the official one. It may hold good images all the same."""


def require_space(folder: Path, needed: float, otherwise: str = "use --data-dir") -> None:
    """Raises UserError if the folder's disk has less than `needed` bytes free. otherwise: another remedy."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        amounts = f"needs {needed / 1e9:.2f} GB and has {free / 1e9:.2f} GB"
        raise UserError(f"{folder} {amounts}: make room, or {otherwise}")


def verify(path: Path, archive: Archive) -> dict:
    """Returns the file's "size" and "md5". Raises BadArchive if they, or its first bytes, are not the archive's."""
    digest, size = hashlib.md5(usedforsecurity=False), path.stat().st_size
    with open(path, "rb") as file:
        head = file.read(8192)
        if not re.match(archive.head, head):
            title = re.search(r"<title[^>]*>([^<]*)|$", head.decode(errors="replace"), re.IGNORECASE)[1] or "no title"
            raise BadArchive(f"not {archive.name} but perhaps a web page ({title[:80]})")
        if archive.size not in (None, size):
            raise UnofficialArchive(f"not the right file: it has {size:,} bytes, not {archive.size:,}")
        file.seek(0)
        with tqdm.wrapattr(file, "read", total=size, desc="Checking", disable=None) as reader:
            while piece := reader.read(1 << 20):
                digest.update(piece)
    if archive.md5 not in (None, digest.hexdigest()):
        raise BadArchive(f"not the right file: its md5 is {digest.hexdigest()}, not {archive.md5}")
    return {"size": size, "md5": digest.hexdigest()}


def extract_images(path: Path, archive: Archive, folder: Path) -> int:
    """Extracts the images of the archive into a new folder and returns their number.

    If the md5 is unknown, it decodes every image. Raises BadArchive, UserError (no room) and OSError.
    """
    try:
        with zipfile.ZipFile(path) as source:
            images = list_images(source.infolist(), path.stat().st_size, archive.images)
            require_space(folder.parent, sum(image.file_size + 4096 for image in images))  # a disk rounds up
            folder.mkdir()
            for image in tqdm(images, unit=" images", desc="Unpacking", disable=None):
                target = folder / Path(image.filename).name
                with source.open(image) as packed, open(target, "xb") as file:
                    shutil.copyfileobj(packed, file)
                if archive.md5 is None:
                    require_jpeg(target)
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, ValueError, OSError) as error:
        if isinstance(error, OSError) and error.errno != errno.EINVAL:  # zipfile seeks to before the file's start
            raise
        raise BadArchive(f"damaged ({error})") from error
    return len(images)


def list_images(members: list[zipfile.ZipInfo], packed_size: int, count: int | None) -> list[zipfile.ZipInfo]:
    """Returns the images among an archive's members.

    packed_size: bytes of the archive. count: how many images it must have; None accepts any number but 0. Raises
    BadArchive if a member is no image, stands there twice or is unsafe to extract, or if all together are too large.
    """
    images = [member for member in members if member.orig_filename != f"{FOLDER}/"]
    for image in images:
        name = image.orig_filename  # zipfile changes slashes and null bytes in `filename`
        if not re.fullmatch(FOLDER + r"/[0-9]{6}\.jpg", name):
            raise UnofficialArchive(f"not the right archive: its member {name!r} is not {FOLDER}/NNNNNN.jpg")
        if image.flag_bits & 1:
            raise BadArchive(f"unsafe: its member {name} is encrypted")
        if stat.S_IFMT(image.external_attr >> 16) not in (0, stat.S_IFREG):
            raise BadArchive(f"unsafe: its member {name} is a link or a device")
        if image.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise BadArchive(f"unsafe: its member {name} is packed with method {image.compress_type}")
    if len({image.orig_filename for image in images}) < len(images):
        raise BadArchive("unsafe: one of its members is there twice")
    size = sum(image.file_size for image in images)
    if size > min(MAX_UNPACKED, MAX_RATIO * packed_size):  # of the file: members may share bytes and declare more
        raise BadArchive(f"unsafe: its {packed_size:,} bytes would unpack to {size:,}")
    if not images or count not in (None, len(images)):
        raise UnofficialArchive(f"not the right archive: it has {len(images):,} images, not {count or 'one or more'}")
    return images


def require_jpeg(path: Path) -> None:
    """Raises BadArchive if an unpacked image does not decode as a JPEG."""
    try:
        load_image(path, 32)
        is_jpeg = path.read_bytes().startswith(b"\xff\xd8\xff")
    except BadImage:
        is_jpeg = False
    if not is_jpeg:
        raise BadArchive(f"damaged: {FOLDER}/{path.name} does not decode as a JPEG")

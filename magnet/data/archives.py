"""Archives of CelebA: what one must be, and how its images are unpacked if it is that.

record = verify(path, archive)
count = unpack(path, archive, Path("data/celeba.download/images"))
"""

import dataclasses
import errno
import hashlib
import re
import shutil
import stat
import zipfile
import zlib
from multiprocessing.pool import ThreadPool
from pathlib import Path

from tqdm import tqdm

from magnet.data.image_files import BadImage, load_image
from magnet.support.errors import UserError

FOLDER = "img_align_celeba"  # in the archive and on disk
MAX_UNPACKED = 4_000_000_000  # bytes, whatever the archive (--any-archive); the official images are 1.4 GB
MAX_RATIO = 20  # unpacked to packed; JPEGs hardly shrink, so the official archive is near 1


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
    """What is wrong with an archive; reading it again will not help."""


class OtherArchive(BadArchive):
    """An archive that is not the official one, or has other folders: nothing else is known to be wrong with it."""


def require_space(folder: Path, needed: float, otherwise: str = "use --data-dir") -> None:
    """Raises UserError if the folder's disk has less than `needed` bytes free. otherwise: what helps too."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        amounts = f"needs {needed / 1e9:.2f} GB and has {free / 1e9:.2f} GB"
        raise UserError(f"{folder} {amounts}: make room, or {otherwise}")


def verify(path: Path, archive: Archive) -> dict:
    """The "size" and "md5" of the file. Raises BadArchive if they, or its first bytes, are not the archive's."""
    with open(path, "rb") as file:
        head = file.read(8192)
    if not re.match(archive.head, head):
        title = re.search(r"<title[^>]*>([^<]*)|$", head.decode(errors="replace"), re.IGNORECASE)[1] or "no title"
        raise BadArchive(f"not {archive.name} but perhaps a web page ({title[:80]})")
    size = path.stat().st_size
    if archive.size not in (None, size):
        raise OtherArchive(f"not the right file: it has {size:,} bytes, not {archive.size:,}")
    digest = hashlib.md5(usedforsecurity=False)
    with open(path, "rb") as file, tqdm(total=size, unit="B", unit_scale=True, desc="Checking", disable=None) as bar:
        while piece := file.read(1 << 20):
            digest.update(piece)
            bar.update(len(piece))
    md5 = digest.hexdigest()
    if archive.md5 not in (None, md5):
        raise BadArchive(f"not the right file: its md5 is {md5}, not {archive.md5}")
    return {"size": size, "md5": md5}


def unpack(path: Path, archive: Archive, folder: Path) -> int:
    """Unpack the images of the archive into a new folder; returns how many they are.

    If nothing is known of it (no md5), all are decoded. Raises BadArchive, UserError (no room) and OSError.
    """
    try:
        with zipfile.ZipFile(path) as source:
            members = image_members(source.infolist(), path.stat().st_size, archive.images)
            require_space(folder.parent, sum(member.file_size + 4096 for member in members))  # a disk rounds up
            folder.mkdir()
            for member in tqdm(members, unit=" images", desc="Unpacking", disable=None):
                with source.open(member) as packed, open(folder / Path(member.filename).name, "xb") as image:
                    shutil.copyfileobj(packed, image)
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, ValueError, OSError) as error:
        if isinstance(error, OSError) and error.errno != errno.EINVAL:  # which a member before the file's start gives
            raise
        raise BadArchive(f"damaged ({error})") from error
    if archive.md5 is None:
        decode_all(folder)
    return len(members)


def image_members(infos: list[zipfile.ZipInfo], packed_size: int, images: int | None) -> list[zipfile.ZipInfo]:
    """The images among the members, if all is as in the official archive: nothing else, nothing twice, no bomb.

    packed_size: bytes of the archive; images: how many there must be, None: any number. Raises BadArchive.
    """
    members = [info for info in infos if info.orig_filename != f"{FOLDER}/"]
    seen = set()
    for info in members:
        name = info.orig_filename  # zipfile changes slashes and null bytes in `filename`
        if not re.fullmatch(FOLDER + r"/[0-9]{6}\.jpg", name):
            raise OtherArchive(f"not the right archive: its member {name!r} is not {FOLDER}/NNNNNN.jpg")
        if info.flag_bits & 1:
            raise BadArchive(f"unsafe: its member {name} is encrypted")
        if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG):
            raise BadArchive(f"unsafe: its member {name} is a link or a device")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise BadArchive(f"unsafe: its member {name} is packed with method {info.compress_type}")
        if name in seen:
            raise BadArchive(f"unsafe: its member {name} is there twice")
        seen.add(name)
    unpacked_size = sum(info.file_size for info in members)
    # Compared with the file itself, because members can share bytes in it and so declare more than it has.
    if unpacked_size > min(MAX_UNPACKED, MAX_RATIO * packed_size):
        raise BadArchive(f"unsafe: its {packed_size:,} bytes would unpack to {unpacked_size:,}")
    if not members or images not in (None, len(members)):
        raise OtherArchive(f"not the right archive: it has {len(members):,} images, not {images or 'one or more'}")
    return members


def decode_all(folder: Path) -> None:
    """Raises BadArchive unless every image in the folder decodes."""
    images = sorted(folder.iterdir())
    with ThreadPool() as pool:
        for error in tqdm(
            pool.imap(decoding_error, images, chunksize=64), total=len(images), desc="Decoding", disable=None
        ):
            if error:
                raise BadArchive(f"damaged: {error}")


def decoding_error(path: Path) -> str | None:
    """Why the image does not decode; None if it does."""
    try:
        with open(path, "rb") as file:
            if file.read(3) != b"\xff\xd8\xff":
                return f"{FOLDER}/{path.name} does not decode as a JPEG"
        load_image(path, 32)
    except (BadImage, OSError) as error:
        return f"{FOLDER}/{path.name} does not decode as a JPEG ({str(error).partition(': ')[2] or error})"
    return None

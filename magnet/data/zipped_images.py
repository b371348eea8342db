"""Images in a .zip archive, read without unpacking it.

images = list_members(Path("img_align_celeba.zip"))
head = images[0].open().read(16)
"""

import dataclasses
import stat
import zipfile
from pathlib import Path, PurePosixPath
from types import SimpleNamespace
from typing import BinaryIO


@dataclasses.dataclass(frozen=True)
class ZippedImage:
    """A file in an archive, in the place of a Path. Several threads may read from one archive."""

    archive: zipfile.ZipFile
    info: zipfile.ZipInfo

    def __str__(self) -> str:
        return f"{self.archive.filename}/{self.info.filename}"

    @property
    def name(self) -> str:
        """The last part of its name."""
        return PurePosixPath(self.info.filename).name

    def relative_to(self, _: Path) -> PurePosixPath:
        """Returns its name in the archive."""
        return PurePosixPath(self.info.filename)

    def stat(self) -> SimpleNamespace:
        """Returns its size and, in place of the time of change, its CRC."""
        return SimpleNamespace(st_mode=stat.S_IFREG, st_size=self.info.file_size, st_mtime_ns=self.info.CRC)

    def open(self, mode: str = "rb") -> BinaryIO:
        """Opens its unpacked bytes, at most info.file_size. Raises nearly anything; reading raises at a wrong CRC."""
        if self.info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # others may take gigabytes
            raise ValueError(f"packed with method {self.info.compress_type}")
        return self.archive.open(self.info)


def list_members(path: Path) -> list[ZippedImage]:
    """Lists all files in an archive, sorted by name. Raises OSError, BadZipFile, RuntimeError, ValueError."""
    archive = zipfile.ZipFile(path)  # it closes when its last image is gone
    infos = sorted(archive.infolist(), key=lambda info: info.filename)
    return [ZippedImage(archive, info) for info in infos if not info.is_dir()]

"""Images in a .zip archive, read where they lie: nothing is unpacked.

images = members(Path("img_align_celeba.zip"))
head = images[0].open().read(16)
"""

import dataclasses
import zipfile
from pathlib import Path, PurePosixPath
from typing import BinaryIO


@dataclasses.dataclass(frozen=True)
class ZippedImage:
    """A file in an archive; stands in for a Path. Several threads may read from one archive."""

    archive: zipfile.ZipFile
    info: zipfile.ZipInfo

    def __str__(self) -> str:
        return f"{self.archive.filename}/{self.info.filename}"

    @property
    def name(self) -> str:
        """The last part of its name."""
        return PurePosixPath(self.info.filename).name

    def relative_to(self, _: Path) -> PurePosixPath:
        """Its name in the archive."""
        return PurePosixPath(self.info.filename)

    def open(self, mode: str = "rb") -> BinaryIO:
        """Its unpacked bytes, at most info.file_size; if the CRC is another, reading raises. Raises nearly anything."""
        if self.info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # others may take gigabytes
            raise ValueError(f"packed with method {self.info.compress_type}")
        return self.archive.open(self.info)


def members(path: Path) -> list[ZippedImage]:
    """All files in an archive, sorted by name. Raises OSError, BadZipFile, RuntimeError, ValueError."""
    archive = zipfile.ZipFile(path)  # closed when its last image is gone
    infos = sorted(archive.infolist(), key=lambda info: info.filename)
    return [ZippedImage(archive, info) for info in infos if not info.is_dir()]

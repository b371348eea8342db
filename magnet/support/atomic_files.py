"""Files that are whole or absent: written under a temporary name, synced to the disk, renamed."""

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

TEMPORARY = ".tmp"


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Calls `write(file)` on a temporary file beside `path`, syncs it and renames it to `path`.

    On any exception the temporary file goes and `path` stays as it was; the exception is raised on.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}{TEMPORARY}")
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if hasattr(os, "O_DIRECTORY"):  # POSIX: the new name must reach the disk too
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def remove_abandoned(folder: Path) -> None:
    """Deletes what killed programs left half written in `folder`. Only its one writer may call this."""
    for path in folder.glob(f"*{TEMPORARY}"):
        with suppress(OSError):
            path.unlink()

"""Files that are whole or absent: written under a temporary name, synced to the disk, renamed."""

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

TEMPORARY = ".tmp"
NO_SYNC = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}  # some network and virtual-machine shares


@contextmanager
def open_atomically(path: Path, sync: bool = True) -> Iterator[BinaryIO]:
    """Opens a temporary file beside `path` for writing, and renames it to `path` when the block ends.

    After an exception the temporary file is gone, `path` is as before, and the exception is raised on. sync: whether
    the file must survive a loss of power.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}{TEMPORARY}")
    try:
        with name_path_in_errors(path, temporary):
            with open(temporary, "wb") as file:
                yield file
                file.flush()
                try:
                    if sync:
                        os.fsync(file.fileno())
                except OSError as error:
                    if error.errno not in NO_SYNC:
                        raise
            os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if sync:  # the new name too; Windows has no O_DIRECTORY, and some folders cannot be opened
        with suppress(OSError, AttributeError):
            folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)


@contextmanager
def name_path_in_errors(path: Path, temporary: Path | None = None) -> Iterator[None]:
    """Puts `path` into each OSError of the block that names no file, or the temporary one."""
    try:
        yield
    except OSError as error:
        if error.errno and error.filename in (None, temporary, str(temporary)):
            error.filename = str(path)
            del error.filename2  # with None in it the message would end in "-> None"
        raise


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Calls `write(file)` on a file that is whole or absent."""
    with open_atomically(path) as file:
        write(file)


def remove_abandoned(folder: Path) -> None:
    """Deletes the files that killed programs left half written in `folder`. Only its one writer may call this."""
    for path in folder.glob(f"*{TEMPORARY}"):
        with suppress(OSError):
            path.unlink()

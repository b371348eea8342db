"""Files that are whole or absent: written under a temporary name, synced to the disk, renamed."""

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

TEMPORARY = ".tmp"
NO_SYNC = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}


@contextmanager
def atomically(path: Path, sync: bool = True) -> Iterator[BinaryIO]:
    """A temporary file beside `path`, open for writing, which is synced and renamed to `path` when the block ends.

    On any exception the temporary file goes and `path` stays as it was; the exception is raised on. sync: whether the
    file must survive a loss of power from then on.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}{TEMPORARY}")
    try:
        with named(path, temporary):
            with open(temporary, "wb") as file:
                yield file
                file.flush()
                if sync:
                    sync_to_disk(file.fileno())
            os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if sync and hasattr(os, "O_DIRECTORY"):  # POSIX: the new name must reach the disk too
        with suppress(OSError):  # the file is whole and there; a folder that cannot be opened or synced is no failure
            folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)


def sync_to_disk(descriptor: int) -> None:
    """os.fsync, where the file system has it: some network and virtual-machine shares have not."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in NO_SYNC:
            raise


@contextmanager
def named(path: Path, temporary: Path | None = None) -> Iterator[None]:
    """Within, an OSError that names no file, or the temporary one, names `path`."""
    try:
        yield
    except OSError as error:
        if error.errno and error.filename in (None, temporary, str(temporary)):
            error.filename, error.filename2 = str(path), None
        raise


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Calls `write(file)` on a file that is whole or absent, as `atomically` says."""
    with atomically(path) as file:
        write(file)


def remove_abandoned(folder: Path) -> None:
    """Deletes what killed programs left half written in `folder`. Only its one writer may call this."""
    for path in folder.glob(f"*{TEMPORARY}"):
        with suppress(OSError):
            path.unlink()

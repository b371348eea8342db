"""Locks of folders: only one program at a time may write there. A lock ends with its program, however that ends."""

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

try:
    import fcntl
except ImportError:  # Windows
    import msvcrt

    fcntl = None

PAUSE = 0.1  # seconds between two looks at a lock that another program holds


class Locked(Exception):
    """Another program holds the lock."""


def take(file: BinaryIO) -> None:
    """Takes the lock of an open file. Raises BlockingIOError or PermissionError if another program holds it."""
    if fcntl:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    else:
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)


@contextmanager
def locked(path: Path, wait: Callable[[], None] | None = None) -> Iterator[None]:
    """Within, no other program has the lock of the file `path`, which guards its folder.

    wait: is called if another one has it, before this one waits; None: Locked is raised. Where the disk has no locks, a
    sentence says so, and nothing is guarded.
    """
    with open(path, "ab") as file:
        waited = False
        while True:
            try:
                take(file)
                break
            except (BlockingIOError, PermissionError):
                if not wait:
                    raise Locked from None
                if not waited:
                    wait()
                waited = True
                time.sleep(PAUSE)
            except OSError as error:
                reason = os.strerror(error.errno)
                print(f"{path.parent} has no locks ({reason}): start no other program there.", file=sys.stderr)
                break
        yield

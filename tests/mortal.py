"""Kills a program by SIGKILL within one of its own file operations, which a random time hardly ever hits."""

import builtins
import io
import itertools
import os
import signal
import sys

DEATH = getattr(signal, "SIGKILL", signal.SIGTERM)  # on Windows SIGTERM ends a process as abruptly
CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir")  # Python's audit events; os.replace raises os.rename


def die_in_operation(n: int, part: str) -> None:
    """Ends this process in its `n`-th operation from now on a file below the working folder with `part` in its path.

    Operations on files and folders are to open for writing, to rename and to delete; the last one does not happen. A
    write to a file opened with `open` in binary mode is one too; its first half is written.
    """
    folder, operations = os.getcwd() + os.sep, itertools.count(1)

    def is_last(path) -> bool:
        path = "" if isinstance(path, int) else os.path.abspath(os.fsdecode(path))
        return path.startswith(folder) and part in path[len(folder) :] and next(operations) == n

    def audit(event: str, arguments: tuple) -> None:
        opened = event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if (opened or event in CHANGES) and is_last(arguments[0]):
            os.kill(os.getpid(), DEATH)

    class Mortal(io.FileIO):
        def write(self, data) -> int:
            if is_last(self.name):
                super().write(memoryview(data)[: len(data) // 2])
                os.kill(os.getpid(), DEATH)
            return super().write(data)

    def open_(file, mode="r", *others, whole=builtins.open, **options):
        if mode in ("wb", "xb", "ab") and not isinstance(file, int):
            return Mortal(file, mode.replace("b", ""))
        return whole(file, mode, *others, **options)

    builtins.open = open_
    sys.addaudithook(audit)

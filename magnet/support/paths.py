"""Paths as a user writes them: a `~` that the shell left alone (`--data=~/photos`) is the home folder here too."""

import os
from pathlib import Path


def expand(path: str) -> str:
    """`path` with a leading `~` or `~NAME` replaced by that home folder, if there is one."""
    try:
        return os.path.expanduser(path)
    except ValueError:  # a zero byte
        return path


def user_path(path: str | Path) -> Path:
    """The type of all paths on a command line, expanded."""
    return Path(expand(os.fspath(path)))

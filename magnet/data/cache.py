"""Where decoded images are kept: `--cache-dir` or MAGNET_CACHE, else data/cache in the repository.

If that folder cannot be written, or pip installed MAGNET, ~/.cache/magnet (or XDG_CACHE_HOME) takes new files. Files in
either folder are used.
"""

import argparse
import os
import tempfile
from contextlib import suppress
from pathlib import Path

from magnet.support.paths import INSTALLED, ROOT


def list_cache_folders() -> list[Path]:
    """Returns the folders that may hold arrays. A new array goes to the first one that can be written."""
    if folder := os.environ.get("MAGNET_CACHE"):
        return [Path(os.path.expanduser(folder))]
    home = os.environ.get("XDG_CACHE_HOME", "")
    user_folder = Path(home if os.path.isabs(home) else os.path.expanduser("~/.cache"), "magnet")
    return [user_folder] if INSTALLED else [ROOT / "data" / "cache", user_folder]


def find_cache_path(name: str) -> Path:
    """Returns the path of the file `name` in the cache, which may not exist yet."""
    paths = [folder / name for folder in list_cache_folders()]
    for path in paths:
        if path.exists():
            return path
    for path in paths:
        with suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=path.parent):
                return path
    return paths[0]  # the error of writing there says what is wrong


class _SetCache(argparse.Action):
    def __call__(self, parser, namespace, values, option_string=None):
        os.environ["MAGNET_CACHE"] = values  # processes that this one starts use it too


def add_cache_flag(parser) -> None:
    """Adds --cache-dir, which sets MAGNET_CACHE, to a parser or a group of flags."""
    about = "of the decoded images (default: MAGNET_CACHE, or data/cache in the repository, or ~/.cache/magnet)"
    parser.add_argument("--cache-dir", action=_SetCache, default=argparse.SUPPRESS, metavar="FOLDER", help=about)

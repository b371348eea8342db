"""Where decoded images are kept: `--cache-dir` or MAGNET_CACHE, else data/cache in the repository.

Where that folder cannot be written, and where pip installed MAGNET, it is ~/.cache/magnet (or XDG_CACHE_HOME). A file
that exists in either folder is used.
"""

import argparse
import os
import tempfile
from pathlib import Path

from magnet.support.paths import INSTALLED, ROOT


def cache_folders() -> list[Path]:
    """Where arrays are looked for. A new one is made in the first folder that can be written."""
    if named := os.environ.get("MAGNET_CACHE"):
        return [Path(os.path.expanduser(named))]
    home = os.environ.get("XDG_CACHE_HOME", "")
    of_user = Path(home if os.path.isabs(home) else os.path.expanduser("~/.cache"), "magnet")
    return [of_user] if INSTALLED else [ROOT / "data" / "cache", of_user]


def find_place(name: str) -> Path:
    """The path of the file `name` in the cache, whether it exists or is to be made."""
    places = [folder / name for folder in cache_folders()]
    for place in places:
        if place.exists():
            return place
    for place in places:
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=place.parent):
                return place
        except OSError:
            continue
    return places[0]  # writing there says what is wrong


class _SetCache(argparse.Action):
    def __call__(self, parser, namespace, values, option_string=None):
        os.environ["MAGNET_CACHE"] = values  # of this process and of those that it starts


def add_cache_flag(parser) -> None:
    """Adds --cache-dir, which sets MAGNET_CACHE, to a parser or a group of flags."""
    parser.add_argument(
        "--cache-dir", action=_SetCache, default=argparse.SUPPRESS, metavar="FOLDER",
        help="of the decoded images (default: MAGNET_CACHE, or data/cache in the repository, or ~/.cache/magnet)",
    )  # fmt: skip

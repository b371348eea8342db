"""The files in a folder or .zip archive, without hidden ones and without what MAGNET itself wrote there."""

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from zipfile import BadZipFile

from magnet.data.cache import cache_folders
from magnet.data.zipped_images import ZippedImage, members
from magnet.support.errors import UserError
from magnet.support.paths import ROOT, command_of

UNMENTIONED = ("__macosx", "thumbs.db", "desktop.ini")  # what systems leave behind, beside names that begin with a dot
REMEDY = (
    f"get CelebA with `{command_of('download_celeba')}`, name another folder or .zip of images with `--data`, "
    "or let the program draw faces with `--data synthetic`"
)


class BadSource(UserError):
    """Images that cannot be used; `cause` says why, without the advice, which is for train.py."""

    def __init__(self, cause: str, advice: str = f": {REMEDY}"):
        super().__init__(cause + advice)
        self.cause = cause


def _hidden(name: str) -> bool:
    return name.startswith(".") or name.lower() in UNMENTIONED


def list_folder(folder: Path, outputs: Sequence[str | Path]) -> tuple[list[Path], Counter]:
    """The files of a folder without hidden ones, sorted by relative name; and for each folder that MAGNET wrote, and
    that is skipped, its number of files. Raises BadSource.
    """
    if not os.path.isdir(folder):  # unlike Path.is_dir it knows that there is none of too long a name
        raise BadSource(f"there is no folder {folder}")

    def refuse(error: OSError):
        raise BadSource(f"cannot read the folder {error.filename} ({error.strerror})")

    files, visited, written = [], set(), Counter()
    own = {os.path.realpath(place) for place in (*outputs, ROOT / "models", *cache_folders())}
    try:
        for place, inner, names in os.walk(folder, onerror=refuse, followlinks=True):
            real = os.path.realpath(place)
            if real in visited:
                inner.clear()
                continue
            visited.add(real)
            if len(visited) > 1 and (real in own or "config.json" in names and "checkpoints" in inner):
                written[os.path.relpath(place, folder)] = sum(len(files) for _, _, files in os.walk(place))
                inner.clear()
                continue
            inner[:] = sorted(name for name in inner if not _hidden(name))
            files += [Path(place, name) for name in names if not _hidden(name)]
    except RecursionError:  # os.walk before Python 3.12
        raise BadSource(f"the folders in {folder} lie too deep in one another") from None
    return sorted(files, key=Path.as_posix), +written  # all begin with the folder: the order of their relative names


def list_archive(path: Path) -> tuple[list[ZippedImage], Counter]:
    """All files in an archive but hidden ones, sorted by name, and how many MAGNET wrote in which folders.

    Raises BadSource.
    """
    try:
        files = [file for file in members(path) if not any(map(_hidden, file.relative_to(path).parts))]
    except (BadZipFile, OSError, RuntimeError, ValueError) as error:
        raise BadSource(f"cannot read {path} as a .zip archive ({error})") from error
    settings = {file.relative_to(path).parent for file in files if file.name == "config.json"} - {PurePosixPath()}
    runs = {run for run in settings if any(run / "checkpoints" in file.relative_to(path).parents for file in files)}
    kept, written = [], Counter()
    for file in files:
        if inside := runs.intersection(file.relative_to(path).parents):
            written[str(min(inside))] += 1
        else:
            kept.append(file)
    return kept, written

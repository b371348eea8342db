"""Lists of the files in a folder or .zip archive, without hidden ones and those that MAGNET itself wrote there."""

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from zipfile import BadZipFile

from magnet.data.cache import list_cache_folders
from magnet.data.zipped_images import ZippedImage, list_members
from magnet.support.errors import UserError
from magnet.support.paths import ROOT, command_of

SYSTEM_FILES = ("__macosx", "thumbs.db", "desktop.ini")  # systems leave them behind, and names with a dot in front
REMEDY = (
    f"get CelebA with `{command_of('download_celeba')}`, name another folder or .zip of images with `--data`, "
    "or let the program draw faces with `--data synthetic`"
)


class BadSource(UserError):
    """Images that cannot be used. `cause` says why; the rest of the message is advice for train.py."""

    def __init__(self, cause: str, advice: str = f": {REMEDY}"):
        super().__init__(cause + advice)
        self.cause = cause


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name.lower() in SYSTEM_FILES


def list_folder(folder: Path, outputs: Sequence[str | Path]) -> tuple[list[Path], Counter]:
    """Lists the files of a folder without hidden ones, sorted by relative name. Raises BadSource.

    It skips folders that MAGNET wrote, and returns the number of files in each.
    """
    if not os.path.isdir(folder):  # Path.is_dir raises for a name that is too long
        raise BadSource(f"there is no folder {folder}")

    def refuse(error: OSError):
        raise BadSource(f"cannot read the folder {error.filename} ({error.strerror})")

    files, visited, written = [], set(), Counter()
    outputs = {os.path.realpath(output) for output in (*outputs, ROOT / "models", *list_cache_folders())}
    try:
        for path, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
            real = os.path.realpath(path)
            is_output = real in outputs or "config.json" in names and "checkpoints" in folders
            if real in visited:
                folders.clear()
            elif visited and is_output:
                written[os.path.relpath(path, folder)] = sum(len(inside) for _, _, inside in os.walk(path))
                folders.clear()
            else:
                folders[:] = sorted(name for name in folders if not _is_hidden(name))
                files += [Path(path, name) for name in names if not _is_hidden(name)]
            visited.add(real)
    except RecursionError:  # os.walk before Python 3.12
        raise BadSource(f"the folders in {folder} lie too deep in one another") from None
    return sorted(files, key=Path.as_posix), +written  # all begin with the folder: the order of their relative names


def list_archive(path: Path) -> tuple[list[ZippedImage], Counter]:
    """Lists the files of an archive without hidden ones, sorted by name. Raises BadSource.

    It skips run folders, and returns the number of files in each.
    """
    try:
        files = [file for file in list_members(path) if not any(map(_is_hidden, file.relative_to(path).parts))]
    except (BadZipFile, OSError, RuntimeError, ValueError) as error:
        raise BadSource(f"cannot read {path} as a .zip archive ({error})") from error
    configs = {file.relative_to(path).parent for file in files if file.name == "config.json"} - {PurePosixPath()}
    runs = {run for run in configs if any(run / "checkpoints" in file.relative_to(path).parents for file in files)}
    others, written = [], Counter()
    for file in files:
        if outer_runs := runs.intersection(file.relative_to(path).parents):
            written[str(min(outer_runs))] += 1
        else:
            others.append(file)
    return others, written

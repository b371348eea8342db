"""Checkpoints: files that hold one dict of tensors and plain types. A crash loses at most the newest one.

A file is written under a temporary name, synced to the disk and renamed, so a file with its final name is whole. It is
read with `weights_only=True` alone, so nothing in it can execute. All contents are checked before any are used: damage
and the outermost values here, the rest in checkpoint_validation.py.
"""

import zipfile
from pathlib import Path

import torch

from magnet.run.checkpoint_validation import find_fault, refuse
from magnet.support.atomic_files import remove_abandoned, write_atomically
from magnet.support.errors import Diverged, UserError
from magnet.support.paths import command_of

FORMAT = "magnet-checkpoint"
WEIGHTS = "magnet-weights"  # the format of exported weights (exported.py), which no run goes on from
VERSIONS = {FORMAT: 3, WEIGHTS: 2}  # raise one when networks in it change their names or shapes
OUTERMOST = {  # the example of a checkpoint's own items (checkpoint_validation.py)
    "format": str, "version": int, "config": dict, "faces": str,
    "trainer": lambda state: None if isinstance(state, dict) and type(state.get("steps")) is int else "has no steps",
    "best": lambda best: None if isinstance(best, dict | None) else "is no dict",
}  # fmt: skip
BEST = "best.pt"  # the checkpoint with the best score, which is never pruned


def save(path: Path, contents: dict) -> None:
    """Writes `contents` (tensors and plain types) to `path`, or nothing.

    Raises Diverged for a tensor that is not finite, and OSError if the disk does not take the file.
    """
    if name := find_non_finite(contents):
        raise Diverged(f"{name} is not finite, so {path} was not written")
    contents = {"format": FORMAT, "version": VERSIONS[contents.get("format", FORMAT)]} | contents
    try:
        write_atomically(path, lambda file: torch.save(contents, file))
    except (OSError, RuntimeError) as error:  # PyTorch's writer turns a full disk into a RuntimeError
        raise OSError(f"{path} could not be written ({error})") from error


def find_non_finite(value, name: str = "") -> str | None:
    """The dotted name of the first tensor with a NaN or infinity in it, or None."""
    if isinstance(value, torch.Tensor):
        return None if not value.is_floating_point() or value.isfinite().all() else name
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, (list, tuple)) else ()
    names = (find_non_finite(item, f"{name}.{key}".lstrip(".")) for key, item in items)
    return next(filter(None, names), None)


def load(path: Path, formats: tuple[str, ...] = (FORMAT,)) -> dict:
    """Reads what `save` wrote, with tensors on the CPU.

    formats: those that are accepted. Raises UserError, with the file's name, if it is absent, damaged or foreign.
    """
    try:
        refuse_damaged(path)
        contents = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"There is no checkpoint {path}; `ls {path.parent}` shows which there are.") from None
    except Exception as error:  # PyTorch's reader raises nearly anything for a damaged or hostile file
        # PyTorch's first line advises to load without weights_only, which would execute what is in the file.
        lines = [line.strip() for line in str(error).splitlines() if line.strip() and "weights_only" not in line]
        reason = lines[0][:200] if lines else type(error).__name__
        raise UserError(
            f"{path} cannot be read as a checkpoint ({reason}); give a file that train.py wrote."
        ) from error
    name, version = map(contents.get, ("format", "version")) if isinstance(contents, dict) else (None, None)
    if name == WEIGHTS and WEIGHTS not in formats:
        raise UserError(f"{path} holds exported weights, from which no run goes on; give a checkpoint of train.py.")
    if not isinstance(name, str) or name not in formats:
        raise UserError(f"{path} is not a checkpoint of MAGNET; give a file that train.py wrote.")
    if isinstance(version, int) and version != VERSIONS[name]:
        raise UserError(
            f"{path} is of version {version}, this program reads {VERSIONS[name]}; use the commit that wrote it."
        )
    refuse(path, find_fault(contents, OUTERMOST, ""))
    return contents


def refuse_damaged(path: Path) -> None:
    """Raises an exception if a byte of `path` that counts is not what was written.

    PyTorch writes a zip archive of uncompressed records with checksums, which its reader does not compare.
    """
    with zipfile.ZipFile(path) as archive:
        if any(record.compress_type != zipfile.ZIP_STORED for record in archive.infolist()):
            raise ValueError("its records are compressed")  # and might fill the memory
        damaged_record = archive.testzip()
    if damaged_record:
        raise ValueError(f"its record {damaged_record} is damaged")


def list_checkpoints(folder: Path) -> list[Path]:
    """The numbered checkpoints in `folder`, oldest first. Their names are their steps: 000500.pt."""
    return sorted((p for p in folder.glob("*.pt") if p.stem.isdigit()), key=lambda p: int(p.stem))


def is_checkpoint_name(path: Path) -> bool:
    """Whether the file has the name of a checkpoint from which a run can go on."""
    return path.suffix == ".pt" and (path.stem.isdigit() or path.name == BEST)


def load_newest(folder: Path) -> tuple[Path, dict]:
    """The newest numbered checkpoint of `folder` that can be read, and its contents. Prints each damaged one's name.

    Raises UserError if there is none.
    """
    for path in reversed(list_checkpoints(folder)):
        try:
            return path, load(path)
        except UserError as error:
            print(f"warning: {error} Trying the one before it.")
    raise UserError(f"{folder} holds no checkpoint that can be read; start a new run with `{command_of('train')}`.")


def load_latest(folder: Path) -> tuple[Path, dict]:
    """The checkpoint where a run goes on: best.pt if it is later than all numbered ones, else `load_newest`.

    best.pt is later if the run was killed after its best score and before the next checkpoint. A run thus never goes on
    behind the best that it knows of. If best.pt cannot be read, that best is forgotten. Raises UserError.
    """
    best = folder / BEST
    if best.exists() and not list_checkpoints(folder):  # the run went back to it, and was killed before the next one
        return best, load(best)
    path, contents = load_newest(folder)
    if best.exists():
        try:
            best_contents = load(best)
        except UserError as error:
            print(f"warning: {error} The next score makes it anew.")
            contents["best"] = None
        else:
            if best_contents["trainer"]["steps"] > contents["trainer"]["steps"]:
                return best, best_contents
    return path, contents


def load_earlier(path: Path) -> dict:
    """The checkpoint `path`, to which a run goes back. It forgets its best score if best.pt is now a later one.

    Raises UserError.
    """
    contents, best = load(path), path.with_name(BEST)
    if best.exists() and read_step(best) not in range(contents["trainer"]["steps"] + 1):
        contents["best"] = None
    return contents


def read_step(path: Path) -> int | None:
    """The step at which the checkpoint was saved; None if it cannot be read."""
    try:
        return load(path)["trainer"]["steps"]
    except UserError:
        return None


def set_aside(folder: Path, step: int) -> None:
    """Prepares `folder` for a run that goes on from `step`. Deletes half written files, renames later checkpoints.

    Unreadable ones become *.damaged, the others *.later. If a name is taken, *.later-2 and so on follow.
    """
    remove_abandoned(folder)
    best = folder / BEST
    later = [path for path in list_checkpoints(folder) if int(path.stem) > step]
    later += [best] * (best.exists() and (read_step(best) or 0) > step)
    for path in later:
        ending = "damaged" if read_step(path) is None else "later"
        target, count = path.with_suffix(f".{ending}"), 1
        while target.exists():
            count += 1
            target = path.with_suffix(f".{ending}-{count}")
        path.replace(target)
        print(f"{path} is set aside as {target.name}.")


def prune(folder: Path, keep: int) -> None:
    """Deletes all numbered checkpoints but the last `keep`."""
    for path in list_checkpoints(folder)[:-keep]:
        path.unlink(missing_ok=True)

"""Checkpoints: one dict of tensors and plain types a file, written so that a crash loses at most the newest.

A file is written under a temporary name, synced to the disk and renamed, so whatever has its final name is whole. It is
read with `weights_only=True` and never otherwise: nothing in it can execute. What it holds is checked before any of it
is taken over: damage and the outermost values here, the others by checkpoint_validation.py.
"""

import zipfile
from pathlib import Path

import torch

from magnet.run.checkpoint_validation import first_fault, refuse
from magnet.support.atomic_files import remove_abandoned, write_atomically
from magnet.support.errors import Diverged, UserError
from magnet.support.paths import command_of

FORMAT = "magnet-checkpoint"
WEIGHTS = "magnet-weights"  # the format of exported weights (exported.py), which no run goes on from
VERSIONS = {FORMAT: 3, WEIGHTS: 2}  # raise one when networks in it change their names or shapes
OUTERMOST = {  # the form of a checkpoint's own items (checkpoint_validation.py)
    "format": str, "version": int, "config": dict, "faces": str,
    "trainer": lambda state: None if isinstance(state, dict) and type(state.get("steps")) is int else "has no steps",
    "best": lambda best: None if isinstance(best, dict | None) else "is no dict",
}  # fmt: skip
BEST = "best.pt"  # the checkpoint with the best score: a file like the others, which is never pruned


def save(path: Path, contents: dict) -> None:
    """Writes `contents` (tensors and plain types) to `path`, or nothing.

    Raises Diverged if a tensor in it is not finite, and OSError if the disk does not take it.
    """
    spoiled = first_non_finite(contents)
    if spoiled:
        raise Diverged(f"{spoiled} is not finite, so {path} was not written")
    labelled = {"format": FORMAT, "version": VERSIONS[contents.get("format", FORMAT)]} | contents
    try:
        write_atomically(path, lambda file: torch.save(labelled, file))
    except (OSError, RuntimeError) as error:  # PyTorch's writer turns a full disk into a RuntimeError
        raise OSError(f"{path} could not be written ({error})") from error


def first_non_finite(value, name: str = "") -> str | None:
    """The dotted name of the first tensor with a NaN or infinity in it, or None."""
    if isinstance(value, torch.Tensor):
        return None if not value.is_floating_point() or value.isfinite().all() else name
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, (list, tuple)) else ()
    found = (first_non_finite(item, f"{name}.{key}".lstrip(".")) for key, item in items)
    return next((one for one in found if one), None)


def load(path: Path, formats: tuple[str, ...] = (FORMAT,)) -> dict:
    """What `save` wrote, tensors on the CPU. Raises UserError, naming the file, if it is absent, damaged or foreign.

    formats: what it may be; of a run a checkpoint.
    """
    try:
        refuse_damaged(path)
        contents = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"There is no checkpoint {path}; `ls {path.parent}` shows which there are.") from None
    except Exception as error:  # of a damaged or hostile file PyTorch's reader raises nearly anything
        # PyTorch's first line advises to load without weights_only, which would execute what is in the file.
        told = [line.strip() for line in str(error).splitlines() if line.strip() and "weights_only" not in line]
        reason = told[0][:200] if told else type(error).__name__
        raise UserError(
            f"{path} cannot be read as a checkpoint ({reason}); give a file that train.py wrote."
        ) from error
    kind, version = map(contents.get, ("format", "version")) if isinstance(contents, dict) else (None, None)
    if kind == WEIGHTS and WEIGHTS not in formats:
        raise UserError(f"{path} holds exported weights, from which no run goes on; give a checkpoint of train.py.")
    if not isinstance(kind, str) or kind not in formats:
        raise UserError(f"{path} is not a checkpoint of MAGNET; give a file that train.py wrote.")
    if isinstance(version, int) and version != VERSIONS[kind]:
        raise UserError(
            f"{path} is of version {version}, this program reads {VERSIONS[kind]}; use the commit that wrote it."
        )
    refuse(path, first_fault(contents, OUTERMOST, ""))
    return contents


def refuse_damaged(path: Path) -> None:
    """Raises an exception if a byte of `path` that counts is not what was written.

    PyTorch writes a zip archive of records that are not compressed, with checksums at which it does not look again.
    """
    with zipfile.ZipFile(path) as archive:
        if any(record.compress_type != zipfile.ZIP_STORED for record in archive.infolist()):
            raise ValueError("its records are compressed")  # and might fill the memory
        damaged = archive.testzip()
    if damaged:
        raise ValueError(f"its record {damaged} is damaged")


def listed(folder: Path) -> list[Path]:
    """The checkpoints in `folder`, oldest first. Their names are their steps: 000500.pt."""
    return sorted((p for p in folder.glob("*.pt") if p.stem.isdigit()), key=lambda p: int(p.stem))


def is_one(path: Path) -> bool:
    """Whether the file has the name of a checkpoint from which a run can go on."""
    return path.suffix == ".pt" and (path.stem.isdigit() or path.name == BEST)


def newest(folder: Path) -> tuple[Path, dict]:
    """The newest checkpoint of `folder` that can be read, and its contents; each damaged one is named on the way.

    Raises UserError if there is none.
    """
    for path in reversed(listed(folder)):
        try:
            return path, load(path)
        except UserError as error:
            print(f"warning: {error} Trying the one before it.")
    raise UserError(f"{folder} holds no checkpoint that can be read; start a new run with `{command_of('train')}`.")


def latest(folder: Path) -> tuple[Path, dict]:
    """Where a run goes on: `newest`, or best.pt if that was written at a later step and a kill came before the next.

    So what goes on never lies behind the best that it knows of. If best.pt cannot be read, that best is forgotten.
    Raises UserError.
    """
    best = folder / BEST
    if best.exists() and not listed(folder):  # the run went back to it, and was killed before its next checkpoint
        return best, load(best)
    path, contents = newest(folder)
    if best.exists():
        try:
            later = load(best)
        except UserError as error:
            print(f"warning: {error} The next score makes it anew.")
            contents["best"] = None
        else:
            if later["trainer"]["steps"] > contents["trainer"]["steps"]:
                return best, later
    return path, contents


def load_named(path: Path) -> dict:
    """A checkpoint of a run that goes back to it. It forgets its best score if best.pt is a later one by now.

    Raises UserError.
    """
    contents, best = load(path), path.with_name(BEST)
    if best.exists() and steps_of(best) not in range(contents["trainer"]["steps"] + 1):
        contents["best"] = None
    return contents


def steps_of(path: Path) -> int | None:
    """At which step the checkpoint was saved; None if it cannot be read."""
    try:
        return load(path)["trainer"]["steps"]
    except UserError:
        return None


def set_aside(folder: Path, step: int) -> None:
    """Makes `folder` what a run that goes on from `step` expects: no half written file, no later checkpoint.

    Later ones that could not be read are renamed to *.damaged; the others, of a run that goes back, to *.later, or to
    *.later-2 and so on where there is one already.
    """
    remove_abandoned(folder)
    best = folder / BEST
    later = [path for path in listed(folder) if int(path.stem) > step]
    later += [best] * (best.exists() and (steps_of(best) or 0) > step)
    for path in later:
        ending = "damaged" if steps_of(path) is None else "later"
        target, count = path.with_suffix(f".{ending}"), 1
        while target.exists():
            count += 1
            target = path.with_suffix(f".{ending}-{count}")
        path.replace(target)
        print(f"{path} is set aside as {target.name}.")


def prune(folder: Path, keep: int) -> None:
    """Deletes all but the last `keep` checkpoints."""
    for path in listed(folder)[:-keep]:
        path.unlink(missing_ok=True)

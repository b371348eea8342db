"""A run on disk: its folder, its metrics (metrics.jsonl and TensorBoard) and its pictures (PNG grids, progress.gif).

models/2026-11-22_14-03-59/
    config.json  environment.json  metrics.jsonl  events.out.tfevents.*  progress.gif
    samples/000500.png  samples/000500-policy.png     checkpoints/000500.pt  checkpoints/best.pt
"""

import json
import math
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from magnet.data.image_dataset import to_uint8
from magnet.evaluation.pictures import ROW, grid
from magnet.support.atomic_files import name_path_in_errors, remove_abandoned, write_atomically
from magnet.support.errors import Diverged, UserError
from magnet.support.locks import Locked, locked
from magnet.support.paths import INSTALLED

LOG_EVERY = 20  # steps: metrics are read back from the device, checked and written together
GIF_FRAMES, GIF_MILLISECONDS = 60, 100


def create_run(models_dir: Path, name: str | None = None) -> Path:
    """Makes a new run folder: `name`, or the local time (2026-11-22_14-03-59); a name that is taken gets -2, -3, ...

    Raises UserError if the folder cannot be made.
    """
    name = name or datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    attempt = 1
    while True:
        run = models_dir / (name if attempt == 1 else f"{name}-{attempt}")
        try:
            run.mkdir(parents=True, exist_ok=False)  # exclusive: only one of two programs gets it
        except FileExistsError:
            if not models_dir.is_dir():
                raise UserError(f"{models_dir} is no folder; name another with `--models-dir FOLDER`.") from None
            attempt += 1
            continue
        except OSError as error:
            raise UserError(
                f"Cannot make {run} ({error.strerror}); name another place with `--models-dir FOLDER`."
            ) from error
        (run / "samples").mkdir()
        (run / "checkpoints").mkdir()
        return run


@contextmanager
def lock_run(run: Path) -> Iterator[None]:
    """Within, no other process trains `run`. The lock ends with its process.

    Raises UserError with the id of the process that trains it. The id stands in a file of its own: on Windows a locked
    file cannot be read.
    """
    owner = run / ".owner"
    with ExitStack() as locks:
        try:
            locks.enter_context(locked(run / ".lock"))
        except Locked:
            process = owner.read_text() if owner.exists() else "which is just starting"
            raise UserError(f"{run} is being trained by another process, {process}; stop that one first.") from None
        owner.write_text(str(os.getpid()))
        locks.callback(owner.unlink, missing_ok=True)
        yield


def write_json(path: Path, contents: dict) -> None:
    """Writes `contents` as indented JSON, whole or not at all."""
    write_atomically(path, lambda file: file.write((json.dumps(contents, indent=2) + "\n").encode()))


def describe_environment(device: torch.device) -> dict:
    """Versions, device and git commit (None outside a checkout), for environment.json."""
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:  # not where pip installed MAGNET: site-packages may lie in a checkout of another project
        commit = None if INSTALLED else subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        commit = None
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {
        "python": platform.python_version(), "torch": str(torch.__version__), "numpy": str(np.__version__),
        "cuda": torch.version.cuda, "platform": platform.platform(), "device": str(device), "device_name": name,
        "threads": torch.get_num_threads(), "git_commit": commit,
    }  # fmt: skip


def open_writer(run: Path, **options) -> SummaryWriter:
    """A SummaryWriter on the folder `run`. TensorBoard takes UTF-8 names alone; on Linux others get another name."""
    name = str(run)
    if os.fsencode(name) != name.encode(errors="replace"):
        run.mkdir(parents=True, exist_ok=True)
        name = f"/proc/self/fd/{os.open(run, os.O_RDONLY)}"  # open as long as the program: the writer opens files later
    return SummaryWriter(name, **options)


class RunLogger:
    """Writes what a run shows. Metrics wait on the device and are read back every `every` steps, in one transfer."""

    def __init__(
        self, run: Path, step: int, batch: int, every: int = LOG_EVERY, clock: Callable[[], float] = time.perf_counter
    ):
        """step: where the run (re)starts; what a killed process wrote after it is deleted.

        batch: images a step. clock: the seconds that count for the rate, such as a StepClock.
        """
        self.run, self.batch, self.every, self.clock = run, batch, every, clock
        self.metrics = run / "metrics.jsonl"
        self._delete_after(step)
        # TensorBoard drops what an earlier file of this run has from here on; step 0's grids are drawn again.
        self.tensorboard = open_writer(run, purge_step=step + 1 if step else 0)
        self.waiting: list[dict[str, Tensor]] = []
        self.step = step
        self.since = clock()

    def _delete_after(self, step: int) -> None:
        """Deletes the log's lines after `step`, a line that was cut off, later grids and half written files."""
        for folder in (self.run, self.run / "samples"):
            remove_abandoned(folder)
        if self.metrics.exists():
            lines = self.metrics.read_bytes().splitlines(keepends=True)
            kept_lines = [line for line in lines if line.endswith(b"\n") and json.loads(line)["step"] <= step]
            write_atomically(self.metrics, lambda file: file.writelines(kept_lines))
        for path in (self.run / "samples").glob("*.png"):
            drawn_at = path.stem.removesuffix("-policy")
            if drawn_at.isdigit() and int(drawn_at) > step:
                path.unlink()

    def add(self, metrics: dict[str, Tensor], scores: dict[str, float] | None = None) -> dict[str, float] | None:
        """Takes the metrics of the next step, scalars on any device. Returns `flush`'s line when it is due.

        scores: numbers of this step alone, which are written at once, into the line with the means.
        """
        self.waiting.append(metrics)
        self.step += 1
        return self.flush(scores) if scores or len(self.waiting) >= self.every else None

    def flush(self, scores: dict[str, float] | None = None) -> dict[str, float] | None:
        """Writes and returns one line with each metric's mean over the steps since the last line that have it.

        Returns None if no step was made. Raises Diverged if a score, or a value of any of those steps, is not finite.
        """
        if not self.waiting:
            return None
        first, count = self.step - len(self.waiting) + 1, len(self.waiting)
        entries = [(step, name) for step, metrics in enumerate(self.waiting, first) for name in metrics]
        numbers = torch.stack([value.float() for metrics in self.waiting for value in metrics.values()]).cpu().tolist()
        values: dict[str, list[float]] = {}
        for (step, name), value in zip(entries, numbers, strict=True):
            if not math.isfinite(value):
                raise Diverged(f"{name} was {value} at step {step}")
            values.setdefault(name, []).append(value)
        for name, score in (scores or {}).items():
            if not math.isfinite(score):
                raise Diverged(f"{name} was {score} at step {self.step}")
        now = self.clock()
        line = {"step": self.step, "steps": count, "images": self.step * self.batch}
        line |= {name: statistics.fmean(every) for name, every in values.items()} | (scores or {})
        line["images_per_second"] = count * self.batch / (now - self.since)
        with name_path_in_errors(self.metrics), open(self.metrics, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        for name, value in line.items():
            if name not in ("step", "steps"):
                self.tensorboard.add_scalar(name, value, self.step)
        self.waiting, self.since = [], now
        return line

    def save_grid(self, kind: str, images: Tensor) -> None:
        """Saves images (N, 3, S, S) in [-1, 1] as a grid with rows of 8, in TensorBoard and as samples/STEP-KIND.png.

        The grids of kind "prior" are plain STEP.png. Raises Diverged if an image is not finite.
        """
        if not images.isfinite().all():
            raise Diverged(f"a {kind} sample was not finite at step {self.step}")
        suffix = "" if kind == "prior" else f"-{kind}"
        pixels = grid(to_uint8(images).cpu(), ROW)
        path = self.run / "samples" / f"{self.step:06d}{suffix}.png"
        write_atomically(path, lambda file: Image.fromarray(pixels).save(file, "PNG"))
        self.tensorboard.add_image(kind, pixels, self.step, dataformats="HWC")

    def __enter__(self) -> "RunLogger":
        return self

    def __exit__(self, *_) -> None:
        self.tensorboard.close()


def write_progress(run: Path) -> Path | None:
    """Writes progress.gif, up to 60 of the run's prior grids in their order. Returns None if there are none."""
    grids = sorted((p for p in (run / "samples").glob("*.png") if p.stem.isdigit()), key=lambda p: int(p.stem))
    if not grids:
        return None
    frames = []
    for i in np.linspace(0, len(grids) - 1, min(len(grids), GIF_FRAMES)).round().astype(int):
        with Image.open(grids[i]) as image:
            frames.append(image.convert("P", palette=Image.Palette.ADAPTIVE))
    options = {
        "save_all": True, "append_images": frames[1:], "loop": 0,
        "duration": [GIF_MILLISECONDS] * (len(frames) - 1) + [20 * GIF_MILLISECONDS],
    }  # fmt: skip
    path = run / "progress.gif"
    write_atomically(path, lambda file: frames[0].save(file, "GIF", **options))
    return path

"""How long a run takes: a clock of its steps, an estimate from the first of them, and what would take less."""

import math
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from magnet.config import PRESETS

WARM_UP, ENOUGH = 2, 20  # steps of a process: the first ones, in which libraries set themselves up; all that count
LONG = 3 * 3600  # seconds, from which on a run on a CPU deserves a hint


class StepClock:
    """Seconds that a run's steps have taken: it stands still within `paused`, for grids, scores and checkpoints."""

    def __init__(self, device: torch.device, now: Callable[[], float] = time.perf_counter):
        self.device, self.now, self.left_out = device, now, 0.0

    def __call__(self) -> float:
        return self.now() - self.left_out

    def wait(self) -> None:
        """Until a GPU has done what it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def seconds(self, work: Callable[[], object]) -> float:
        """How long `work` takes, which is called. It does not count."""
        self.wait()
        began = self.now()
        with self.paused():
            work()
        return self.now() - began

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Within, time does not count. What a GPU still had to do before does: it belongs to the steps."""
        self.wait()
        began = self.now()
        try:
            yield
        finally:
            self.wait()
            self.left_out += self.now() - began


class Pace:
    """Measures the first steps of a process. Steps with R1 take longer, so they are kept apart from the others."""

    def __init__(self, config, clock: StepClock):
        self.config, self.clock = config, clock
        self.spent: list[tuple[bool, float]] = []  # of each step: with R1? seconds
        self.since = clock()

    def note(self, step: int) -> None:
        """Takes the time of the run's `step`-th step, which was just made."""
        self.clock.wait()
        now = self.clock()
        self.spent.append((self.config.r1 > 0 and (step - 1) % self.config.r1_every == 0, now - self.since))
        self.since = now

    def seconds(self, first: int, total: int, grid: float = 0.0, score: float = 0.0) -> float:
        """What a run will take from its step `first` to `total`; a grid and a score in seconds."""
        return run_seconds(self.config, first, total, self.typical(False), self.typical(True), grid, score)

    def typical(self, r1: bool) -> float:
        """The median of the steps with R1, or of the others; of all steps where none is of the kind."""
        late, of_kind = ([s for kind, s in part if kind == r1] for part in (self.spent[WARM_UP:], self.spent))
        return statistics.median(late or of_kind or [s for _, s in self.spent])


def run_seconds(
    config, first: int, total: int, plain: float, with_r1: float, grid: float = 0.0, score: float = 0.0
) -> float:
    """Seconds from step `first` to `total` of a run, if a step takes `plain` or `with_r1`, a grid `grid`, and so on."""

    def falling(every: int) -> int:
        return total // every - first // every

    r1_steps = math.ceil(total / config.r1_every) - math.ceil(first / config.r1_every) if config.r1 > 0 else 0
    grids = falling(config.sample_every) + (total % config.sample_every > 0)
    scores = falling(config.evaluate_every) if config.evaluate_every else 0
    return r1_steps * with_r1 + (total - first - r1_steps) * plain + grids * grid + scores * score


def total_steps(config, per_epoch: int) -> int:
    """The step at which a run ends, with `per_epoch` steps an epoch."""
    total = config.epochs * per_epoch
    return min(total, config.steps) if config.steps else total


def described(config, images: int, per_epoch: int, first: int) -> str:
    """How many steps a run makes, in how many epochs, of what, and how many are made already (`first`)."""
    total = total_steps(config, per_epoch)
    epochs = f"{round(total / per_epoch, 1 if total >= per_epoch else 3):,}".removesuffix(".0")
    data = f"{images:,} points" if config.points else f"{images:,} images at {config.image_size}x{config.image_size}"
    return f"Steps: {total:,}, {epochs} epochs of {data}" + (f"; {first:,} are made" if first else "")


def in_words(seconds: float) -> str:
    """A time in seconds, minutes or hours, about as exact as the estimate."""
    if seconds < 10:
        return "less than 10 seconds"
    for unit, size in (("seconds", 1), ("minutes", 60)):
        if seconds < 100 * size:
            return f"about {seconds / size:.0f} {unit}"
    hours = seconds / 3600
    return f"about {hours:,.{int(hours < 10)}f} hours"


def shorter(config, flags: dict | None, per_epoch: int, first: int) -> str:
    """The flags that make a run shorter, to be said to people; "" if there are none.

    flags: those of a new run, which win over a preset; None where no preset can be added.
    """
    found = []
    if flags is not None and not config.points:
        small = {name: flags.get(name, PRESETS["cpu"][name]) for name in ("image_size", "width")}
        given = {name: getattr(config, name) for name in small}
        if small != given and all(small[name] <= given[name] for name in small):
            found.append("`--preset cpu`")
    epochs = first // per_epoch + 1
    if epochs * per_epoch < total_steps(config, per_epoch):
        found.append(f"`--epochs {epochs}`")
    return " or ".join(found)


def estimate(config, seconds: float, less: str) -> str:
    """`seconds` in words, and where a run on a CPU takes long, what takes `less` (of `shorter`)."""
    hint = f" on this CPU; {less} takes less" if config.device == "cpu" and seconds >= LONG and less else ""
    return in_words(seconds) + hint

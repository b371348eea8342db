"""The time that a run takes: a clock of its steps, and an estimate from some of them."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

LONG_RUN = 3 * 3600  # seconds, from which on a run on a CPU deserves a hint


class StepClock:
    """Seconds that a run's steps have taken. It stands still within `pause`: for grids, scores and checkpoints."""

    def __init__(self, device: torch.device, now: Callable[[], float] = time.perf_counter):
        self.device, self.now, self.left_out = device, now, 0.0

    def __call__(self) -> float:
        return self.now() - self.left_out

    def wait(self) -> None:
        """Waits until a GPU has done its work."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def measure(self, work: Callable[[], object]) -> float:
        """Calls `work` and returns how many seconds it takes, during which the clock stands still."""
        self.wait()
        began = self.now()
        with self.pause():
            work()
        return self.now() - began

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Within, the clock stands still. What a GPU still had to do before counts: it belongs to the steps."""
        self.wait()
        began = self.now()
        try:
            yield
        finally:
            self.wait()
            self.left_out += self.now() - began


def estimate_seconds(config, first: int, total: int, step: float, grid: float = 0.0, score: float = 0.0) -> float:
    """The seconds of a run from its step `first` to `total`, with the seconds of a step, of a grid and of a score."""

    def count(every: int) -> int:
        return total // every - first // every

    grids = count(config.sample_every) + (total % config.sample_every > 0)  # the last step has one anyway
    scores = count(config.evaluate_every) if config.evaluate_every else 0
    return (total - first) * step + grids * grid + scores * score


def count_steps(config, per_epoch: int) -> int:
    """The step at which a run ends, with `per_epoch` steps an epoch."""
    total = config.epochs * per_epoch
    return min(total, config.steps) if config.steps else total


def describe_run(config, images: int, per_epoch: int, first: int) -> str:
    """The number of a run's steps and epochs, of its images or points, and of the steps already made (`first`)."""
    total = count_steps(config, per_epoch)
    epochs = f"{round(total / per_epoch, 1 if total >= per_epoch else 3):,}".removesuffix(".0")
    data = f"{images:,} points" if config.points else f"{images:,} images at {config.image_size}x{config.image_size}"
    return f"Steps: {total:,}, {epochs} epochs of {data}" + (f"; {first:,} are made" if first else "")


def describe_time(config, seconds: float) -> str:
    """A time in seconds, minutes or hours; for a long run on a CPU also what shortens it."""
    if seconds < 10:
        return "less than 10 seconds"
    for unit, size in (("seconds", 1), ("minutes", 60)):
        if seconds < 100 * size:
            return f"about {seconds / size:.0f} {unit}"
    hours = seconds / 3600
    hint = " on this CPU; fewer `--epochs` or `--preset cpu` shorten it"
    is_slow = config.device == "cpu" and seconds >= LONG_RUN
    return f"about {hours:,.{int(hours < 10)}f} hours" + (hint if is_slow else "")

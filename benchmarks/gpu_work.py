"""What gpu.py measures, and the process that does it: an error of CUDA may spoil a process, then there is a new one."""

import dataclasses
import functools
import gc
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import nullcontext
from multiprocessing import get_context
from pathlib import Path
from unittest.mock import patch

import torch

from benchmarks.measure import make_period, new_clock, new_trainer, period, timed, warm_up
from magnet.config import Config
from magnet.run import checkpoint
from magnet.run.logger import describe_environment
from magnet.support.errors import one_line


def failure(error: Exception) -> str:
    """An error in one line of a table."""
    text = str(error).strip().splitlines() or [""]
    return one_line(f"failed: {type(error).__name__}: {text[0]:.160}").replace("|", "/")


def attempt(work: Callable, arguments: tuple):
    """The result of `work`, or the line of `failure`. Frees before what earlier work left on the GPU."""
    gc.collect()
    torch.cuda.empty_cache()  # does nothing where CUDA has not begun
    try:
        return work(*arguments)
    except Exception as error:  # whatever it is, the other settings go on
        return failure(error)


class Worker:
    """Calls functions in a process of its own, which ends with the context or after a failure."""

    def __init__(self, threads: int):
        self.threads, self.pool = threads, None

    def __call__(self, work: Callable, *arguments):
        """The result of `work`, which is no string; or a string that says in a line why there is none."""
        if not self.pool:
            self.pool = ProcessPoolExecutor(1, get_context("spawn"), torch.set_num_threads, (self.threads,))
        try:
            result = self.pool.submit(attempt, work, arguments).result()
        except BrokenProcessPool as error:
            result = failure(error)
        if isinstance(result, str):
            self.end()
        return result

    def end(self) -> None:
        """Ends the process; the next call begins another."""
        if self.pool:
            self.pool.shutdown()
        self.pool = None

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_) -> None:
        self.end()


def in_mebibytes(size: int | None) -> str:
    """A number of bytes for people."""
    return "not known" if size is None else f"{size / 2**20:,.0f} MiB"


def describe(device: str) -> dict:
    """The machine; for a GPU also its capability, its memory, cuDNN's version."""
    facts = describe_environment(torch.device(device))
    if device != "cpu":
        card, free = torch.cuda.get_device_properties(device), torch.cuda.mem_get_info(device)[0]
        facts |= {
            "capability": f"{card.major}.{card.minor}", "memory": in_mebibytes(card.total_memory),
            "free": in_mebibytes(free), "cudnn": torch.backends.cudnn.version(),
        }  # fmt: skip
    return facts


def time_step(config: Config, in_memory: bool, seconds: float, cpu_time: bool) -> dict:
    """Seconds of a step, the mean over a block of about `seconds`; whether it is recorded as CUDA graphs; where the
    images lie; peak bytes on a GPU.

    in_memory: the images lie in the computer's memory, since ImageDataset is told that the GPU has none free.
    """
    device = torch.device(config.device)
    if device.type == "cuda":
        torch.cuda.init()  # before, there are no statistics
        torch.cuda.reset_peak_memory_stats(device)
    full = patch.object(torch.cuda, "mem_get_info", lambda *_: (0, 0))
    with full if in_memory else nullcontext():
        trainer = new_trainer(config)
    warm_up(trainer)
    clock, work = new_clock(device, cpu_time), functools.partial(make_period, trainer)
    times = max(1, round(seconds / timed(clock, work)))
    return {
        "seconds": timed(clock, work, times) / period(config),
        "graphs": bool(trainer.graphs and trainer.graphs.steps),
        "place": "GPU" if trainer.dataset._pixels.device.type == "cuda" else "memory",
        "peak": torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None,
    }


def difference(first, second) -> float:
    """The largest |a - b| / |a| of a weight or target of one trainer and the same of the other; 0: all are equal."""
    largest = 0.0
    for one, other in zip(first.agents, second.agents, strict=True):
        for kind in ("networks", "targets"):
            for key, network in getattr(one, kind).items():
                pairs = zip(network.parameters(), getattr(other, kind)[key].parameters(), strict=True)
                largest = max(largest, *(((a - b).norm() / a.norm().clamp(min=1e-30)).item() for a, b in pairs))
    return largest


def resume(config: Config, count: int) -> dict[str, float]:
    """How far weights lie apart (`difference`) after 2 `count` steps in one go and as many with a checkpoint between.

    repeated: after the same steps made twice in one go, for what the device's own order of sums changes.
    """
    whole, again = new_trainer(config), new_trainer(config)
    for _ in range(count):
        whole.step()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "checkpoint.pt")
        state = {"config": dataclasses.asdict(config), "faces": whole.dataset.fingerprint, "best": None}
        checkpoint.save(path, state | {"trainer": whole.state_dict()})
        resumed = new_trainer(config, path, checkpoint.load(path))
    for trainer, left in ((whole, count), (resumed, count), (again, 2 * count)):
        for _ in range(left):
            trainer.step()
    return {"resumed": difference(whole, resumed), "repeated": difference(whole, again)}

"""A process for work that may spoil it, as an error of CUDA does; what fails is told in a line."""

import gc
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context

from magnet.support.errors import one_line


def failure(error: Exception) -> str:
    """An error in one line of a table."""
    text = str(error).strip().splitlines() or [""]
    return one_line(f"failed: {type(error).__name__}: {text[0]:.160}").replace("|", "/")


def attempt(work: Callable, arguments: tuple):
    """The result of `work`, or the line of `failure`. What earlier work left on the GPU is freed before."""
    gc.collect()
    if "torch" in sys.modules:
        sys.modules["torch"].cuda.empty_cache()  # nothing where CUDA has not begun
    try:
        return work(*arguments)
    except Exception as error:  # whatever it is, the other settings go on
        return failure(error)


def prepare(threads: int | None) -> None:
    """Begins a process."""
    if threads:
        import torch

        torch.set_num_threads(threads)


class Worker:
    """Calls functions in a process of its own, as a context. After a failure, which may spoil CUDA, it is a new one."""

    def __init__(self, threads: int | None = None):
        self.threads, self.pool = threads, None

    def __call__(self, work: Callable, *arguments):
        """The result of `work`, which is no string; or a string that says in a line why there is none."""
        if not self.pool:
            self.pool = ProcessPoolExecutor(1, get_context("spawn"), prepare, (self.threads,))
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

"""How benchmarks measure: time in turns, floating-point operations, memory."""

import statistics
import time
from collections import Counter
from collections.abc import Callable

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from magnet.run.process_memory import read_resident_peak

BLOCK_SECONDS = 1.0  # about how long a block lasts, unless one call lasts longer
Clock = Callable[[], float]


def new_clock(device: torch.device, cpu_time: bool = False) -> Clock:
    """Seconds, read when all work given to `device` is done: the wall's, or those that the process was computing."""
    read = time.process_time if cpu_time else time.perf_counter

    def clock() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return read()

    return clock


def timed(clock: Clock, work: Callable, times: int = 1) -> float:
    """Seconds of one call of `work`, the mean over `times` calls."""
    start = clock()
    for _ in range(times):
        work()
    return (clock() - start) / times


def in_turns(
    works: dict[str, Callable], clock: Clock, repeats: int, before: dict[str, int] | None = None
) -> dict[str, list[float]]:
    """Seconds of one call of each work, by turn: in each of `repeats` turns every one has a block of calls.

    before: of a work the calls before each block that are not timed (none unless it is named).
    """
    times = {name: max(1, round(BLOCK_SECONDS / max(timed(clock, work), 1e-9))) for name, work in works.items()}
    spent = {name: [] for name in works}
    for _ in range(repeats):
        for name, work in works.items():
            for _ in range((before or {}).get(name, 0)):
                work()
            spent[name].append(timed(clock, work, times[name]))
    return spent


def spread(values: list[float]) -> dict[str, float]:
    """The median, the lowest and the highest."""
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def ratios(first: list[float], second: list[float]) -> dict[str, float]:
    """The spread of first / second over the turns."""
    return spread([a / b for a, b in zip(first, second, strict=True)])


def shown(figure: dict[str, float], unit: float = 1, digits: int = 2) -> str:
    """A spread in words: the median, in brackets the lowest and the highest, in units of `unit`."""
    median, low, high = (f"{figure[name] / unit:.{digits}f}" for name in ("median", "low", "high"))
    return f"{median} ({low}-{high})"


def flops(work: Callable) -> Counter:
    """Floating-point operations of the convolutions and matrix products in `work`, by operator."""
    counted = Counter()

    class Count(TorchDispatchMode):  # FlopCounterMode itself fails where autograd.grad asks for a network's input
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if formula := flop_registry.get(func.overloadpacket):
                counted[func.overloadpacket.__name__] += formula(*args, **(kwargs or {}), out_val=out)
            return out

    with Count():
        work()
    return counted


def matrix_peak(device: torch.device, dtype: torch.dtype, clock: Clock) -> float:
    """FLOP per second of the best of 5 large matrix products in `dtype`."""
    size = 8192 if device.type == "cuda" else 1024
    a = torch.randn(size, size, device=device, dtype=dtype)
    return 2 * size**3 / min(timed(clock, lambda: a @ a, times=2) for _ in range(5))


def peak_memory(device: torch.device, work: Callable) -> int | None:
    """Bytes that `work` takes at its peak, beyond what was taken before: by PyTorch on a GPU, else by the process.

    None where the system cannot tell. On a CPU the process must not have had more in memory earlier.
    """
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        work()
        return torch.cuda.max_memory_allocated(device) - before
    before = read_resident_peak()
    work()
    return None if before is None else read_resident_peak() - before


def in_mebibytes(size: int | None) -> str:
    """Of memory, for people."""
    return "not known" if size is None else f"{size / 2**20:,.0f} MiB"

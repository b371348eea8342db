"""What benchmarks share: their command line, trainers on random images, seconds in turns, floating-point operations."""

import argparse
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from magnet.config import PRESETS, Config, check, complete
from magnet.data.gaussians import draw_points
from magnet.maddpg import MADDPG, MEASURE_EVERY, TARGETS_EVERY
from magnet.run import command_line
from magnet.run.session import build, load_reward
from magnet.support.errors import UserError

BLOCK_SECONDS = 1.0  # about how long a block lasts, unless one call lasts longer
Clock = Callable[[], float]


def new_parser(about: str, repeats: int) -> argparse.ArgumentParser:
    """The flags of all benchmarks: --repeats, by default `repeats`, and --cpu-time."""
    parser = argparse.ArgumentParser(
        description=about, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--repeats", type=int, default=repeats, help=f"turns of a block of each (default {repeats})")
    parser.add_argument(
        "--cpu-time", action="store_true", help="count the seconds that this process computes, not those that pass: "
        "with --threads 1 the time of other programs does not count",
    )  # fmt: skip
    return parser


def parse(parser: argparse.ArgumentParser, arguments: list[str]) -> tuple[argparse.Namespace, list[str], Config]:
    """The benchmark's options, train.py's words, and the config of these words, unsettled. Raises UserError."""
    options, words = parser.parse_known_args(arguments)
    given, commands = command_line.parse(words)
    if commands.resume or commands.config or commands.dry_run:
        raise UserError("A benchmark begins with fresh weights: leave out --resume, --config and --dry-run.")
    if given.get("extra_reward") or given.get("init"):
        raise UserError("A benchmark chooses its rewards and weights itself: leave out --extra-reward and --init.")
    if options.repeats < 1:
        raise UserError(f"--repeats is {options.repeats}, but must be at least 1.")
    config = complete(given, PRESETS[commands.preset])
    if config.algorithm == "gan":
        raise UserError("The plain GAN is measured beside MAGNET: leave out --algorithm gan.")
    check(config)
    return options, words, config


def new_trainer(config: Config, path: Path | None = None, saved: dict | None = None) -> MADDPG:
    """A trainer on random images or on points. It goes on where the checkpoint `path`, with contents `saved`, stood."""
    if config.points:
        pixels = draw_points(config.data)
    else:
        count = max(4096, 8 * config.batch_size)
        pixels = np.random.default_rng(0).integers(0, 256, (count, *config.shape), np.uint8)
    return build(config, pixels, path, saved, load_reward(config, {}))[0]


def period(config: Config) -> int:
    """Steps after which all repeats: R1, the metrics, the targets. 40 by default."""
    return math.lcm(config.r1_every if config.r1 else 1, MEASURE_EVERY, TARGETS_EVERY)


def make_period(trainer: MADDPG) -> None:
    """Makes the steps of one period."""
    for _ in range(period(trainer.config)):
        trainer.step()


def warm_up(trainer: MADDPG) -> None:
    """Makes steps that do not count: the first imports what all need; on a GPU the others are recorded as CUDA graphs.

    The rarest kind of step is made once in a period. It is recorded the third time, where the first step is another.
    """
    trainer.step()
    for _ in range(4 if trainer.graphs else 0):
        make_period(trainer)


def new_clock(device: torch.device, cpu_time: bool = False) -> Clock:
    """Seconds, read when `device` has done all its work: the wall's, or those that the process was computing."""
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


def in_turns(works: dict[str, Callable], clock: Clock, repeats: int) -> dict[str, list[float]]:
    """Seconds of one call of each work, by turn: in each of `repeats` turns every one has a block of calls."""
    times = {name: max(1, round(BLOCK_SECONDS / max(timed(clock, work), 1e-9))) for name, work in works.items()}
    seconds = {name: [] for name in works}
    for _ in range(repeats):
        for name, work in works.items():
            seconds[name].append(timed(clock, work, times[name]))
    return seconds


def spread(values: list[float]) -> dict[str, float]:
    """The median, the lowest and the highest."""
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def shown(figure: dict[str, float], unit: float = 1, digits: int = 2) -> str:
    """A spread in units of `unit`: the median and, in brackets, the lowest and the highest."""
    median, low, high = (f"{figure[name] / unit:.{digits}f}" for name in ("median", "low", "high"))
    return f"{median} ({low}-{high})"


def count_flops(work: Callable) -> int:
    """Floating-point operations of the convolutions and matrix products in `work`; not those of CUDA graphs."""
    counts = []

    class Count(TorchDispatchMode):  # PyTorch's FlopCounterMode fails where autograd.grad asks for an input's gradient
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if formula := flop_registry.get(func.overloadpacket):
                counts.append(formula(*args, **(kwargs or {}), out_val=out))
            return out

    with Count():
        work()
    return sum(counts)

"""Measures which number of threads and which precision make a run's steps fastest on this CPU, before it begins."""

import dataclasses
import os
import time

import numpy as np
import torch

from magnet.config import Config
from magnet.data.gaussians import PointDataset, draw_points
from magnet.data.image_dataset import ImageDataset
from magnet.game.environment import new_environment
from magnet.maddpg import MADDPG
from magnet.support.distributed import world_size

MAX_SECONDS = 3.0  # seconds, about; large networks take longer, and fewer settings of them are measured
MAX_STEPS = 5  # steps with one setting, at most, after one that does not count


def build_trial(config: Config) -> MADDPG:
    """A trainer of this game on noise instead of images."""
    config = dataclasses.replace(config, extra_reward="", replay_size=config.batch_size)
    if config.points:
        dataset = PointDataset(draw_points(config.data), "cpu")
    else:
        noise = np.random.default_rng(0).integers(256, size=(2 * config.batch_size, *config.shape), dtype=np.uint8)
        dataset = ImageDataset(noise, "cpu")
    return MADDPG(config, new_environment(config, dataset), torch.device("cpu"))


def measure_steps(config: Config, counts: list[int], precisions: list[str]) -> dict[tuple[int, str], float]:
    """The seconds of the fastest step, by (threads, precision).

    It measures every precision with the first of `counts`, and with the others as far as MAX_SECONDS allows. It leaves
    PyTorch with another number of threads.
    """
    fastest = {}
    for precision in precisions:  # one trainer at a time: each takes the memory of a run
        trainer = build_trial(dataclasses.replace(config, precision=precision))
        trainer.step()  # has fewer rows than others; the first one imports what the run needs as well
        began, share = time.monotonic(), MAX_SECONDS / len(precisions) / len(counts)
        for turn, threads in enumerate(counts, 1):
            torch.set_num_threads(threads)
            seconds = []
            while len(seconds) < 2 or len(seconds) <= MAX_STEPS and time.monotonic() - began < turn * share:
                since = time.perf_counter()
                trainer.step()
                seconds.append(time.perf_counter() - since)
            fastest[threads, precision] = min(seconds[1:])
            if time.monotonic() - began > MAX_SECONDS / len(precisions):
                break
    return fastest


def tune(config: Config, requested: Config) -> Config:
    """`config`, which is settled, with the fastest threads and precision. Prints the times.

    requested: what it was settled from; only what is auto there is measured. On a GPU nothing is measured, and
    OMP_NUM_THREADS fixes the threads.
    """
    cores = int(config.threads)
    counts, precisions = [cores], [config.precision]
    if requested.threads == "auto" and "OMP_NUM_THREADS" not in os.environ:
        counts = sorted({cores, max(1, cores // 2), 1}, reverse=True)
    if requested.precision == "auto" and config.precision == "bf16":
        precisions = ["bf16", "fp32"]
    if config.device != "cpu" or len(counts) * len(precisions) == 1:
        return config
    fastest = measure_steps(config, counts, precisions)
    threads, precision = min(fastest, key=fastest.get)
    times = ", ".join(f"{n} x {one} {1000 * seconds:.1f} ms" for (n, one), seconds in fastest.items())
    print(f"Fastest here: --threads {threads} --precision {precision} (a step with threads x precision: {times})")
    return dataclasses.replace(config, threads=str(threads), precision=precision)


def prepare_cpu(config: Config, requested: Config, is_new: bool) -> Config:
    """Returns `config`, tuned if the run is new and has one process. Sets PyTorch's number of threads to its own."""
    if is_new and world_size() == 1:
        config = tune(config, requested)
    torch.set_num_threads(int(config.threads))
    return config

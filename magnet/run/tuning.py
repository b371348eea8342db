"""Which number of threads and which precision make a run's steps fastest on this CPU: measured before it begins."""

import dataclasses
import itertools
import os
import time

import numpy as np
import torch

from magnet.config import Config
from magnet.data.gaussians import PointDataset, draw_points
from magnet.data.image_dataset import ImageDataset
from magnet.game.environment import new_environment
from magnet.maddpg import MADDPG

LONGEST = 3.0  # seconds; large networks, whose steps take longer, are measured on fewer threads
WARM_UP, TIMED = 2, 5  # steps with one setting: the first ones have fewer rows, and make what PyTorch keeps


def new_trial(config: Config) -> MADDPG:
    """A trainer of this game on noise instead of images."""
    config = dataclasses.replace(config, extra_reward="")
    if config.points:
        faces = PointDataset(draw_points(config.data), "cpu")
    else:
        noise = np.random.default_rng(0).integers(256, size=(4 * config.batch_size, *config.shape), dtype=np.uint8)
        faces = ImageDataset(noise, "cpu")
    return MADDPG(config, new_environment(config, faces), torch.device("cpu"))


def measure(config: Config, settings: list[tuple[int, str]]) -> dict[tuple[int, str], float]:
    """By (threads, precision): seconds of the fastest step, for as many `settings` as LONGEST allows, in their order.

    Leaves PyTorch with another number of threads.
    """
    trainers = {precision: new_trial(dataclasses.replace(config, precision=precision)) for _, precision in settings}
    trainers[settings[0][1]].step()  # imports what the run needs as well
    began, found = time.monotonic(), {}
    for setting in settings:
        if time.monotonic() - began > LONGEST:
            break
        threads, precision = setting
        torch.set_num_threads(threads)
        seconds = []
        while len(seconds) < WARM_UP + TIMED:
            since = time.perf_counter()
            trainers[precision].step()
            seconds.append(time.perf_counter() - since)
            if time.monotonic() - began + seconds[-1] > LONGEST:
                break
        if len(seconds) > WARM_UP:
            found[setting] = min(seconds[WARM_UP:])
    return found


def tune(config: Config, asked: Config) -> Config:
    """`config`, which is settled, with the fastest threads and precision, where `asked`, from which it was settled, has
    auto; and says in a line what was measured. On a GPU, and with OMP_NUM_THREADS set, the threads stay.
    """
    cores = int(config.threads)
    counts, precisions = [cores], [config.precision]
    if asked.threads == "auto" and "OMP_NUM_THREADS" not in os.environ:
        counts = sorted({cores, max(1, cores // 2), 1}, reverse=True)
    if asked.precision == "auto" and config.precision == "bf16":
        precisions = ["bf16", "fp32"]
    settings = list(itertools.product(counts, precisions))
    if config.device != "cpu" or len(settings) == 1:
        return config
    found = measure(config, settings)
    if not found:  # the networks are so large that all threads are right
        return config
    threads, precision = min(found, key=found.get)
    times = ", ".join(f"{n} x {one} {1000 * seconds:.1f} ms" for (n, one), seconds in found.items())
    print(f"Fastest here: --threads {threads} --precision {precision} (a step with threads x precision: {times})")
    return dataclasses.replace(config, threads=str(threads), precision=precision)

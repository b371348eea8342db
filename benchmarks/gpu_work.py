"""What gpu.py measures; each function runs in a worker process."""

import dataclasses
import tempfile
from contextlib import nullcontext
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch

from benchmarks.floor import period, steps
from benchmarks.measure import in_mebibytes, new_clock, timed
from magnet.config import Config
from magnet.run import checkpoint
from magnet.run.logger import describe_environment
from magnet.run.session import build

IMAGES = 4096  # random ones: their number does not change a step's time
WARM_UP_PERIODS = 4  # of R1, or 121 steps if these are more: by then each kind of step is recorded as CUDA graphs


def describe(device: str) -> dict:
    """The machine; of a GPU also capability, memory, free memory in bytes, cuDNN's version."""
    found = describe_environment(torch.device(device))
    if device != "cpu":
        card, free = torch.cuda.get_device_properties(device), torch.cuda.mem_get_info(device)[0]
        found |= {
            "capability": f"{card.major}.{card.minor}", "memory": in_mebibytes(card.total_memory),
            "free": in_mebibytes(free), "cudnn": torch.backends.cudnn.version(),
        }  # fmt: skip
    return found


def new_trainer(config: Config, path: Path | None = None, saved: dict | None = None):
    """A trainer of `config` on random images, and its scores; where the checkpoint `path`, `saved`, stood."""
    pixels = np.random.default_rng(0).integers(0, 256, (IMAGES, *config.shape), np.uint8)
    return build(config, pixels, path, saved)


def time_step(config: Config, in_memory: bool, seconds: float, cpu_time: bool) -> dict:
    """Seconds of a step, the mean over a block of about `seconds`; whether it is recorded as CUDA graphs; where the
    images lie; peak bytes on a GPU.

    in_memory: the images are held in the computer's memory, since ImageDataset is told that the GPU has none free.
    """
    device = torch.device(config.device)
    if device.type == "cuda":
        torch.cuda.init()  # before, there are no statistics
        torch.cuda.reset_peak_memory_stats(device)
    full = patch.object(torch.cuda, "mem_get_info", lambda *_: (0, 0))
    with full if in_memory else nullcontext():
        trainer, _ = new_trainer(config)
    for _ in range(max(WARM_UP_PERIODS, -(-121 // period(config)))):
        steps(trainer)
    clock = new_clock(device, cpu_time)
    times = max(1, round(seconds / timed(clock, lambda: steps(trainer))))
    return {
        "seconds": timed(clock, lambda: steps(trainer), times) / period(config),
        "graphs": bool(trainer.graphs and trainer.graphs.recorded),
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
    """How far weights lie apart (`difference`) of 2 `count` steps in one go and of as many with a checkpoint between.

    repeated: of the same steps made twice in one go, for what the device's own order of sums moves.
    """
    whole, evaluation = new_trainer(config)
    again, _ = new_trainer(config)
    for _ in range(count):
        whole.step()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "checkpoint.pt")
        state = {"config": dataclasses.asdict(config), "faces": whole.dataset.fingerprint}
        checkpoint.save(path, state | {"trainer": whole.state_dict(), "best": evaluation.best})
        resumed, _ = new_trainer(config, path, checkpoint.load(path))
    for trainer, left in ((whole, count), (resumed, count), (again, 2 * count)):
        for _ in range(left):
            trainer.step()
    return {"resumed": difference(whole, resumed), "repeated": difference(whole, again)}

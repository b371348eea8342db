#!/usr/bin/env python3
"""What the data cost: the array's making against decoding alone, the way to the first step, batches, more images.

    python3 benchmarks/data.py --image-size 64 --width 64 --batch-size 32 --device cpu --threads 2
    python3 benchmarks/data.py --preset cpu --data synthetic --cpu-time

All further words are train.py's flags. Decoding alone is what torchvision's ImageFolder does to a file: Pillow opens
it and converts it to RGB. The files are the first of --data; of `--data synthetic` synthetic faces, as JPEG files of
CelebA's 178x218 pixels. Printed are medians and, in brackets, the lowest and the highest over the turns, in which what
is compared takes turns in one process; the last line is JSON, whose `ratio` is the array's rate with one worker over
that of decoding alone.
Exit status: 0 done, 2 a mistake in the settings, said in one sentence.
"""

import argparse
import contextlib
import dataclasses
import io
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.options import new_parser, parse  # noqa: E402
from magnet.config import Config  # noqa: E402
from magnet.support.errors import UserError  # noqa: E402
from magnet.support.output import as_program  # noqa: E402
from magnet.support.paths import user_path  # noqa: E402

# What imports torch is imported where it is needed: --help is immediate.

FEW, MANY = 1_000, 200_000  # images, between which a step should take the same time


def make_array(folder: Path, config: Config, workers: int | None = None) -> int:
    """Makes the array of a folder anew, and throws it away. Returns its bytes."""
    from magnet.data.image_dataset import load_faces

    with tempfile.TemporaryDirectory() as cache, contextlib.redirect_stderr(io.StringIO()):  # no progress bars
        pixels = load_faces(str(folder), config.image_size, cache_dir=Path(cache), workers=workers)
        size = pixels.nbytes
        del pixels  # Windows deletes no file that is mapped
    return size


def measure_making(folder: Path, config: Config, repeats: int, cpu_time: bool) -> dict:
    """Images a second of the array's making, with one worker and with all, against decoding alone."""
    import torch
    from PIL import Image

    from benchmarks.measure import in_turns, new_clock, ratios, spread

    files, cores = sorted(folder.iterdir()), len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None

    def decode() -> None:
        for path in files:
            with Image.open(path) as image:
                image.convert("RGB")

    works = {"decode": decode, "one": lambda: make_array(folder, config, 1), "all": lambda: make_array(folder, config)}
    spent = in_turns(works, new_clock(torch.device("cpu"), cpu_time), repeats)
    child = [sys.executable, __file__, "--make", str(folder), "--image-size", str(config.image_size)]
    memory = json.loads(subprocess.run(child, stdout=subprocess.PIPE, check=True).stdout)
    rates = {name: spread([len(files) / seconds for seconds in values]) for name, values in spent.items()}
    ratio = ratios(spent["decode"], spent["one"])
    return {
        "files": len(files), "bytes_per_file": sum(path.stat().st_size for path in files) / len(files),
        "images_per_second": rates, "cores": cores or os.cpu_count(), "ratio": ratio["median"], "ratio_spread": ratio,
        "all_against_one": ratios(spent["one"], spent["all"]), "peak_memory": memory,
    }  # fmt: skip


def until_first_step(words: list[str]) -> None:
    """What `train.py` does with these words, until its first step is made; then prints the time and ends."""
    import runpy

    from magnet import maddpg

    step = maddpg.MADDPG.step

    def noted(trainer) -> None:
        if any(value.isnan() for value in step(trainer).values()):  # and waits for the device
            raise RuntimeError("the first step is not finite")
        sys.stdout.flush()
        print(f"\n{time.time()}", flush=True)
        os._exit(0)

    maddpg.MADDPG.step = noted
    sys.argv = [str(ROOT / "train.py"), *words]
    runpy.run_path(sys.argv[0], run_name="__main__")


def measure_first_step(config: Config, words: list[str], repeats: int) -> dict:
    """Seconds from a program's start to the end of its first step, its array made before."""
    from benchmarks.measure import spread
    from magnet.data.image_dataset import load_faces

    if not config.points:
        load_faces(
            config.data, config.image_size, hold_out=config.hold_out, skip_bad_images=config.skip_bad_images,
            outputs=[config.models_dir],
        )  # fmt: skip
    seconds = []
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as models:
            child = [sys.executable, __file__, "--first-step", *words, "--models-dir", models]
            start = time.time()
            logged = subprocess.run(child, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True)
            seconds.append(float(logged.stdout.split()[-1]) - start)
    return spread(seconds)


def new_trainer(config: Config, pixels):
    """A trainer on these pixels that has made two steps."""
    from magnet.run.session import build

    trainer = build(config, pixels)[0]
    for _ in range(2):  # in the first the replay buffer is empty
        trainer.step()
    return trainer


def mapped(folder: Path, count: int, config: Config):
    """Random pixels (count, 3, S, S), mapped from a file; every thousandth image is the same one."""
    import numpy as np

    block = np.random.default_rng(0).integers(0, 256, (FEW, *config.shape), np.uint8)
    pixels = np.lib.format.open_memmap(folder / f"{count}.npy", "w+", np.uint8, (count, *config.shape))
    for start in range(0, count, FEW):
        pixels[start : start + FEW] = block
    pixels.flush()
    del pixels
    return np.load(folder / f"{count}.npy", mmap_mode="r")


def measure_steps(folder: Path, config: Config, options: argparse.Namespace) -> dict:
    """Steps on few and on many images, and after many steps; what a step's images cost, by where the array is."""
    import numpy as np
    import torch

    from benchmarks.floor import period, steps
    from benchmarks.measure import in_turns, new_clock, ratios, spread
    from magnet.data.image_dataset import ImageDataset

    few, many = mapped(folder, FEW, config), mapped(folder, MANY, config)
    first, grown, late = (new_trainer(config, pixels) for pixels in (few, many, few))
    for _ in range(options.steps_done - late.steps):
        late.step()
    device, count = first.device, 2 * config.batch_size  # a step looks at states and at real next states
    clock, random = new_clock(device, options.cpu_time), torch.Generator().manual_seed(0)
    indices = torch.randint(2 * MANY, (64, count), generator=random).to(device)
    arrays = {"mapped": many, "in memory": np.array(many)} if device.type == "cpu" else {"on the GPU": many}
    places = {name: ImageDataset(pixels, device) for name, pixels in arrays.items()}
    if device.type != "cpu":
        places["page-locked"] = ImageDataset(many, device)
        places["page-locked"]._pixels = torch.from_numpy(np.array(many))  # as if the GPU had no room for them
    trainers = {"few": first, "many": grown, "late": late}
    works = {name: lambda trainer=trainer: steps(trainer) for name, trainer in trainers.items()}
    for name, faces in places.items():
        rows = itertools.cycle(indices)
        works[name] = lambda faces=faces, rows=rows: faces.batch(next(rows))
    spent = in_turns(works, clock, options.repeats)
    for name in trainers:  # a step is the mean over those of which one has R1
        spent[name] = [seconds / period(config) for seconds in spent[name]]
    return {
        "step_seconds": spread(spent["few"]),
        "many_against_few": ratios(spent["many"], spent["few"]),
        "late_against_early": ratios(spent["late"], spent["few"]), "steps_done": options.steps_done,
        "batches": {
            name: {"seconds": spread(spent[name]), "share_of_step": ratios(spent[name], spent["few"])}
            for name in places
        },
    }  # fmt: skip


def print_tables(result: dict, config: Config, cpu_time: bool) -> None:
    """All that was measured, for people."""
    from benchmarks.measure import in_mebibytes, shown

    making, steps, unit = result["making"], result["steps"], " of one core's time" if cpu_time else ""
    one, all_cores, decode = (shown(making["images_per_second"][name], digits=0) for name in ("one", "all", "decode"))
    print(f"{making['files']} files of {making['bytes_per_file']:,.0f} bytes, images a second{unit}")
    print(f"  decoding alone        {decode}")
    print(f"  the array, 1 worker   {one}: {shown(making['ratio_spread'])} of it")
    print(f"  the array, {making['cores']} cores    {all_cores}: {shown(making['all_against_one'])} times one worker")
    print(f"  its making takes {in_mebibytes(making['peak_memory'])} of memory")
    print(f"the first step is made {shown(result['first_step_seconds'])} s after the program's start")
    print(f"step on {FEW:,} images     {shown(steps['step_seconds'], 1e-3)} ms")
    print(f"  on {MANY:,} images    {shown(steps['many_against_few'], digits=3)} of it")
    print(f"  after {steps['steps_done']:,} steps      {shown(steps['late_against_early'], digits=3)} of it")
    for place, cost in steps["batches"].items():
        share = shown(cost["share_of_step"], 1e-2)
        print(
            f"  its {2 * config.batch_size} images, {place:<12} {shown(cost['seconds'], 1e-3, 3)} ms: {share} % of it"
        )


@as_program
def main(arguments: list[str] | None = None) -> int:
    """The program; returns its exit status."""
    parser = new_parser(__doc__, repeats=5)
    parser.add_argument("--files", type=int, default=1000, help="of images to be decoded (default 1000)")
    parser.add_argument("--steps-done", type=int, default=300, help="by the late trainer (default 300)")
    parser.add_argument("--make", type=user_path, help=argparse.SUPPRESS)  # what child processes are for
    parser.add_argument("--first-step", action="store_true", help=argparse.SUPPRESS)
    arguments = sys.argv[1:] if arguments is None else arguments
    if "--first-step" in arguments:  # before anything that train.py does not do
        until_first_step([word for word in arguments if word != "--first-step"])
    try:
        options, words, config = parse(parser, arguments)
        if config.points:
            raise UserError(f"--data {config.data} are points, which nobody decodes: name images.")
        if options.files < 1:
            raise UserError("--files must be at least 1.")
    except UserError as error:
        print(f"data.py: {error}", file=sys.stderr)
        return 2
    import torch

    from benchmarks.measure import peak_memory
    from benchmarks.pictures import write_pictures
    from magnet.run.logger import describe_environment

    if options.make:
        print(json.dumps(peak_memory(torch.device("cpu"), lambda: make_array(options.make, config))))
        return 0
    if options.threads:
        torch.set_num_threads(options.threads)
    machine = describe_environment(torch.device(config.device))
    print(", ".join(f"{name} {value}" for name, value in machine.items()))
    try:
        with tempfile.TemporaryDirectory() as folder:
            pictures = Path(folder, "pictures")
            pictures.mkdir()
            write_pictures(config.data, options.files, pictures)
            making = measure_making(pictures, config, options.repeats, options.cpu_time)
            result = {"ratio": making["ratio"], "making": making}
            result["first_step_seconds"] = measure_first_step(config, words, options.repeats)
            result["steps"] = measure_steps(Path(folder), config, options)
    except UserError as error:
        print(f"data.py: {error}", file=sys.stderr)
        return 2
    print_tables(result, config, options.cpu_time)
    print(json.dumps({"benchmark": "data", **result, "machine": machine, "config": dataclasses.asdict(config)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())

#!/usr/bin/env python3
"""Compares MAGNET with the programs that a user could take instead, at equal CPU time on the same pictures of 64x64.

    python3 experiments/peers.py --data FOLDER --seconds 1200 --seeds 0 1 --dcgan PATH_OF_examples/dcgan
    python3 experiments/peers.py --table peers.jsonl

All further words are train.py's flags, for magnet and gan; by default `--preset cpu --image-size 64 --nz 100
--precision fp32`. A training is a child process with one thread. It ends after --seconds of CPU time, counted from its
first step. The same networks score --count samples of each against the same pictures; the ImageNet network scores at
most 2,000. A line of the output is a training. Finished trainings are kept; failed ones are repeated. Nothing is
installed: missing programs are named.
Exit status: 0 done, 2 a mistake in the settings, said in one sentence, 130 stopped. It needs Linux or macOS.
"""

import argparse
import importlib.metadata
import json
import random
import signal
import subprocess
import sys
import tempfile
import types
from collections.abc import Callable
from pathlib import Path
from unittest import mock

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import torch  # noqa: E402
from PIL import Image  # noqa: E402
from torch.utils.data import DataLoader  # noqa: E402

from experiments import ablation  # noqa: E402
from magnet.config import check, complete  # noqa: E402
from magnet.data.image_dataset import fingerprint, to_uint8  # noqa: E402
from magnet.evaluation import metrics, sampling  # noqa: E402
from magnet.evaluation.feature_networks import load_exported_network, load_imagenet  # noqa: E402
from magnet.run import logger, session  # noqa: E402
from magnet.support import devices, random_streams  # noqa: E402
from magnet.support.errors import UserError  # noqa: E402
from magnet.support.output import as_program  # noqa: E402
from magnet.support.paths import user_path  # noqa: E402

BASE = ["--preset", "cpu", "--image-size", "64", "--nz", "100", "--precision", "fp32"]
ONE_THREAD = {"device": "cpu", "threads": "1"}
CPU, TIME_UP = torch.device("cpu"), "The time is up."
MAX_SAMPLES = {"face": None, "ImageNet": 2000}  # samples that a network scores
COLUMNS = {"images": 0, "face frechet": 2, "face recall": 3}  # of the table: keys of a line, and digits
COLUMNS |= {"ImageNet frechet": 1, "ImageNet precision": 3, "ImageNet recall": 3}


def repeat(step: Callable[[], object]) -> None:
    """Makes steps until the time is up."""
    try:
        while True:
            step()
    except SystemExit as end:
        if end.code != TIME_UP:  # the program has ended itself
            raise
    signal.setitimer(signal.ITIMER_PROF, 0)


def train_magnet(job: dict, seen: list[int]) -> Callable:
    """train.py's game, without its grids and checkpoints."""
    config = devices.settle(complete(job["flags"] | {"seed": job["seed"]}))
    trainer, _ = session.build(config, session.load_pixels(config))
    _ = [agent.optimizers for agent in trainer.agents]  # their import takes seconds
    signal.setitimer(signal.ITIMER_PROF, job["seconds"], 1.0)
    repeat(trainer.step)
    seen.append(trainer.images_seen)
    samplers = [sampling.Sampler(agent, None) for agent in trainer.generators]
    return lambda n: torch.cat([one.generate(one.draw_noise(n)) for one in samplers])


def train_dcgan(job: dict, seen: list[int]) -> Callable:
    """main.py of pytorch/examples with its defaults, but without workers, whose CPU time would not count."""
    script = Path(job["checkout"], "main.py")
    sys.argv = [str(script), "--dataset", "folder", "--dataroot", job["pictures"], "--imageSize", "64"]
    sys.argv += ["--niter", "1000000", "--workers", "0", "--outf", job["work"], "--manualSeed", str(job["seed"])]
    program, names = compile(script.read_text(encoding="utf-8"), script, "exec"), {"__name__": "__main__"}
    repeat(lambda: exec(program, names))
    return lambda n: names["netG"](torch.randn(n, names["nz"], 1, 1))


def train_lightweight_gan(job: dict, seen: list[int]) -> Callable:
    """The Trainer of lightweight-gan with its defaults. It insists on a GPU: what it puts there stays on the CPU."""
    with mock.patch("torch.cuda.is_available", lambda: True):
        from lightweight_gan import lightweight_gan as package
    torch.Tensor.cuda = torch.nn.Module.cuda = lambda self, *_: self
    package.torch = types.SimpleNamespace(**vars(torch) | {"device": lambda name: CPU})
    trainer = package.Trainer(base_dir=job["work"], image_size=64, num_workers=0, use_aim=False)
    trainer.set_data_src(job["pictures"])
    repeat(trainer.train)
    network = (trainer.GAN.GE if trainer.steps > 20_000 else trainer.GAN.G).eval()  # it begins to average there
    return lambda n: 2 * network(torch.randn(n, trainer.latent_dim)) - 1


def train_mimicry(job: dict, seen: list[int]) -> Callable:
    """torch_mimicry's SNGAN as in its README, at a quarter of its width and without decay of the learning rate."""
    from torchvision import datasets, transforms

    package = sys.modules["torch_mimicry"] = types.ModuleType("torch_mimicry")
    package.__path__ = [str(Path(job["checkout"], "torch_mimicry"))]  # its own __init__ imports TensorFlow
    sys.modules["skimage"] = types.SimpleNamespace(io=None)  # imported, but not used by what is used here
    from torch_mimicry.nets import sngan
    from torch_mimicry.training import Trainer

    pixels = transforms.Compose([transforms.ToTensor(), transforms.Normalize((0.5,), (0.5,))])
    loader = DataLoader(datasets.ImageFolder(job["pictures"], pixels), batch_size=64, shuffle=True)
    nets = [sngan.SNGANDiscriminator64(ndf=256), sngan.SNGANGenerator64(ngf=256)]
    adams = [torch.optim.Adam(net.parameters(), 2e-4, betas=(0.0, 0.9)) for net in nets]
    repeat(Trainer(*nets, *adams, loader, num_steps=10**9, log_dir=job["work"], n_dis=5, device=CPU).train)
    return nets[1].eval().generate_images


PROGRAMS = {  # the training, a file of the checkout, where to get it
    "magnet": (train_magnet, "", ""), "gan": (train_magnet, "", ""),
    "dcgan": (train_dcgan, "main.py", "`git clone https://github.com/pytorch/examples` and --dcgan examples/dcgan"),
    "lightweight-gan": (train_lightweight_gan, "", "`pip3 install lightweight-gan`"),
    "mimicry": (train_mimicry, "torch_mimicry", "`git clone https://github.com/kwotsin/mimicry` and --mimicry mimicry"),
}  # fmt: skip


def find_version(program: str, checkout: Path | None) -> str | None:
    """The version of a package, or the commit of a checkout, "unknown" outside git; None: the program is missing."""
    if program == "lightweight-gan":
        return next((found.version for found in importlib.metadata.distributions(name=program)), None)
    if (file := PROGRAMS[program][1]) and not (checkout and (checkout / file).exists()):
        return None
    git = ["git", "-C", str(checkout or ROOT), "rev-parse", "HEAD"]
    return subprocess.run(git, capture_output=True, text=True).stdout.strip() or "unknown"


def train(job: dict) -> int:
    """The child process: trains, and writes the samples and how many images it saw; returns the exit status."""
    torch.set_num_threads(1)
    for set_seed in (random.seed, np.random.seed, torch.manual_seed):
        set_seed(job["seed"])
    signal.signal(signal.SIGPROF, lambda number, frame: sys.exit(TIME_UP))  # no program here catches it
    seen, read = [], DataLoader.__iter__

    def watched(loader: DataLoader):
        if not seen:
            signal.setitimer(signal.ITIMER_PROF, job["seconds"], 1.0)  # again each second, should an exception get lost
        for batch in read(loader):
            yield batch
            seen.append(len(batch if isinstance(batch, torch.Tensor) else batch[0]))  # the step on it has ended

    DataLoader.__iter__ = watched
    draw = PROGRAMS[job["program"]][0](job, seen)  # n -> at least n samples (N, 3, 64, 64) in [-1, 1]
    if not sum(seen):
        sys.exit(f"Its first step did not end within {job['seconds']:g} seconds of CPU time.")
    with torch.no_grad():  # 64 at a time: dcgan's BatchNorm normalises over them as over a batch of its training
        samples = torch.cat([to_uint8(draw(64)) for _ in range(-(-job["count"] // 64))])[: job["count"]]
    np.save(Path(job["work"], f"{sum(seen)}.npy"), samples.numpy())
    return 0


def run_child(job: dict) -> tuple[int, np.ndarray]:
    """Trains in a child process: the images seen, and uint8 samples (count, 3, 64, 64). Raises UserError on failure."""
    with tempfile.TemporaryDirectory() as work:
        command = [sys.executable, __file__, "--child", json.dumps(job | {"work": work})]
        child = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
        if child.returncode:
            raise UserError((child.stdout.strip().splitlines() or [f"It ended with status {child.returncode}."])[-1])
        (samples,) = Path(work).glob("*.npy")
        return int(samples.stem), np.load(samples)


def read_lines(path: Path) -> dict[tuple, dict]:
    """The last line of each (program, seed, seconds). Raises UserError if the file holds other lines."""
    lines = ablation.read_lines(path, "program", "seed", "seconds")
    return {(line["program"], line["seed"], line["seconds"]): line for line in lines}


def measure(options: argparse.Namespace, base: dict) -> None:
    """Makes the lines that options.out lacks. Raises UserError."""
    if any(base.get(key, value) != value for key, value in ONE_THREAD.items()):
        raise UserError("Each program trains for equal CPU time in one thread: leave out --threads and --device.")
    base = base | ONE_THREAD
    config = devices.settle(complete(base))
    check(config)
    if config.init:
        raise UserError("All programs here begin with new networks: leave out --init.")
    if config.points or config.image_size != 64:
        raise UserError("All programs here learn pictures of 64x64: give --data FOLDER, and no other --image-size.")
    checkouts = {"dcgan": options.dcgan, "mimicry": options.mimicry}
    versions = {name: find_version(name, checkouts.get(name)) for name in options.only or PROGRAMS}
    missing = [f"{name} is missing: get it with {PROGRAMS[name][2]}." for name in versions if not versions[name]]
    if missing and options.only:
        raise UserError(missing[0])
    sys.stdout.writelines(f"{sentence}\n" for sentence in missing)
    pixels = session.load_pixels(config)
    networks = {
        "face": load_exported_network(ROOT / "experiments/face_features.pt2", CPU),
        "ImageNet": load_imagenet(CPU),
    }

    def embed(images: np.ndarray) -> dict:
        return {
            key: metrics.compute_features(network, torch.from_numpy(images[: MAX_SAMPLES[key]]))
            for key, (network, _) in networks.items()
        }

    chosen = torch.randperm(len(pixels), generator=random_streams.stream(0, "reference"))[: options.count].numpy()
    protocol = {
        "data": fingerprint(pixels),
        "count": len(chosen),
        "most": MAX_SAMPLES,
        **{key: name for key, (_, name) in networks.items()},
    }
    protocol["flags"] = {key: value for key, value in base.items() if key not in ("data", "models_dir")}
    there = read_lines(options.out) if options.out.exists() else {}
    if any(line.get("protocol") != protocol for line in there.values()):
        raise UserError(f"{options.out} was made with other pictures, networks or flags: name another --out.")
    reals = embed(pixels[chosen])
    with tempfile.TemporaryDirectory() as pictures:
        Path(pictures, "all").mkdir()  # as torchvision's ImageFolder wants it
        for i, image in enumerate(pixels):
            Image.fromarray(image.transpose(1, 2, 0)).save(Path(pictures, "all", f"{i:07}.png"))
        for seed, name in ((seed, name) for seed in options.seeds for name in versions if versions[name]):
            if "images" in there.get((name, seed, options.seconds), {}):
                continue
            print(f"{name}, seed {seed}: training", flush=True)
            line = {"program": name, "seed": seed, "seconds": options.seconds, "version": versions[name]}
            job = {"count": len(chosen), "pictures": pictures, "checkout": str(checkouts.get(name))}
            job["flags"] = base | ({"algorithm": "gan"} if name == "gan" else {})
            try:
                line["images"], samples = run_child(line | job)
                for key, fakes in embed(samples).items():
                    line |= {f"{key} {kind}": n for kind, n in metrics.score_features(fakes, reals[key]).items()}
            except UserError as error:
                line["failed"] = str(error)
            line |= {"protocol": protocol, "machine": logger.describe_environment(CPU) | {"threads": 1}}
            ablation.append_line(options.out, line)


def table(lines: dict[tuple, dict]) -> str:
    """The Markdown table of lines: means over seeds, with the range in brackets; of a program that failed, why."""
    rows = [["program", "CPU seconds", "seeds", *COLUMNS], ["---"] * (3 + len(COLUMNS))]
    for name, seconds in sorted({key[::2] for key in lines}, key=lambda key: (key[1], list(PROGRAMS).index(key[0]))):
        mine = [line for key, line in lines.items() if key[::2] == (name, seconds)]
        good = [line for line in mine if "images" in line]
        cells = [([line[key] for line in good], digits) for key, digits in COLUMNS.items() if good]
        cells = [f"{np.mean(some):,.{d}f} [{min(some):,.{d}f}, {max(some):,.{d}f}]" for some, d in cells]
        rows.append([name, f"{seconds:g}", str(len(good)), *(cells or [f"failed: {mine[-1]['failed']}", *"-----"])])
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in rows)


@as_program
def main(arguments: list[str] | None = None) -> int:
    """The program; returns its exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["--child"]:
        return train(json.loads(arguments[1]))
    parser = ablation.new_parser(__doc__, PROGRAMS, "peers.jsonl", [0, 1])
    parser.set_defaults(only=None)  # all that are there
    add = parser.add_argument
    add("--table", type=user_path, metavar="LINES", help="print the table of these lines, and stop")
    add("--seconds", type=float, default=1200.0, help="CPU time of a training (default %(default)g)")
    add("--dcgan", type=user_path, metavar="FOLDER", help="dcgan in a checkout of pytorch/examples")
    add("--mimicry", type=user_path, metavar="FOLDER", help="a checkout of kwotsin/mimicry")
    options, base = ablation.parse_base(parser, arguments, BASE, count=4, seconds=1)
    work = (lambda: print(table(read_lines(options.table)))) if options.table else lambda: measure(options, base)
    return ablation.finish("peers.py", work, options.table or options.out)


if __name__ == "__main__":
    sys.exit(main())

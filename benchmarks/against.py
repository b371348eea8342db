#!/usr/bin/env python3
"""MAGNET's program against what a user would write (textbook.py): its five networks in a plain loop, and a DCGAN.

    python3 benchmarks/against.py --image-size 64 --width 64 --batch-size 32 --device cpu --threads 2

All further words are train.py's flags; the images are the first of --data, of `--data synthetic` these faces as JPEG
files of CelebA's size. Same networks, batch and files for all, which take turns in one process. The program is the
trainer's step with its log, and its share of grids and checkpoints as often as a run on all of CelebA makes them. It
runs as the flags say; with the published hyperparameters, which are the plain loop's, and also in float32, as the loops
are; as a GAN with the same R1 and replay buffer; and as a plain GAN without either, as the DCGAN is. (Half of the
published batch comes from the program's replay buffer; both count the whole batch.) Printed are medians and, in
brackets, the lowest and the highest over the turns; the last line is JSON, whose `ratio` is of the images a second of
the program with the published hyperparameters and the plain loop. Its `step_ratios` are the program's own: its step, as
the flags say, over its step as either GAN, and its step with an extra reward over that without, all without grids and
checkpoints; a step is the mean over the k = --r1-every of which one has R1.
Exit status: 0 done, 2 a mistake in the settings, said in one sentence.
"""

import dataclasses
import json
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.options import new_parser, parse  # noqa: E402
from magnet.config import PRESETS, Config  # noqa: E402
from magnet.support.errors import UserError  # noqa: E402
from magnet.support.output import as_program  # noqa: E402

# What imports torch is imported where it is needed: --help is immediate.

CELEBA_IMAGES = 202_599
GAN = {"algorithm": "gan", "gamma": 0.0}
PLAIN_GAN = GAN | {"r1": 0.0, "replay_fraction": 0.0}


def forms(config: Config) -> dict[str, Config]:
    """The program's games, with the networks and the batch of `config`."""
    published = {key: value for key, value in PRESETS["original"].items() if key != "batch_size"}
    return {
        "MAGNET": config,
        "MAGNET, GAN": dataclasses.replace(config, **GAN),
        "MAGNET, plain GAN": dataclasses.replace(config, **PLAIN_GAN),
        "MAGNET, extra reward": dataclasses.replace(config, extra_reward="resemble"),
        "MAGNET, published": dataclasses.replace(config, **published),
        "MAGNET, published, float32": dataclasses.replace(config, **published, precision="fp32"),
    }


def program(config: Config, pixels, run: Path, owned: ExitStack, clock) -> tuple:
    """What train.py does in a period of steps, as a function; and the seconds that grids and checkpoints add to each.

    owned: where the log stays open.
    """
    from benchmarks.floor import period
    from benchmarks.measure import timed
    from magnet.evaluation.sampling import FixedGrids
    from magnet.run import checkpoint
    from magnet.run.logger import RunLogger, create_run
    from magnet.run.session import build, load_reward

    trainer = build(config, pixels, extra=load_reward(config, {}))[0]
    run = create_run(run)
    logger = owned.enter_context(RunLogger(run, 0, config.batch_size))
    grids = FixedGrids(trainer.generators, trainer.dataset, config.seed)

    def steps() -> None:
        for _ in range(period(config)):
            logger.add(trainer.step(), None)

    def draw() -> None:
        for kind, images in grids.draw().items():
            logger.save_grid(kind, images)

    def save() -> None:
        checkpoint.save(run / "checkpoints" / "000000.pt", {"trainer": trainer.state_dict()})

    steps()
    steps_between = config.checkpoint_every * (CELEBA_IMAGES // trainer.environment.batch)
    return steps, timed(clock, draw, 3) / config.sample_every + timed(clock, save) / steps_between


def measure(config: Config, folder: Path, repeats: int, workers: int, cpu_time: bool) -> dict:
    """Images a second of the program's games and of both loops, and their ratios, over the turns."""
    import torch

    from benchmarks.floor import period
    from benchmarks.measure import flops, in_turns, new_clock, ratios, spread
    from benchmarks.textbook import dcgan, five_networks
    from magnet.data.image_dataset import load_faces

    clock = new_clock(torch.device(config.device), cpu_time)
    pixels = load_faces(str(folder), config.image_size, cache_dir=folder.parent / "cache")
    plain = dataclasses.replace(config, precision="fp32")
    with ExitStack() as owned:
        games = forms(config)
        made = {name: program(one, pixels, folder.parent, owned, clock) for name, one in games.items()}
        works = {name: steps for name, (steps, _) in made.items()}
        works |= {
            "five networks": five_networks(folder, plain, workers),
            "DCGAN": dcgan(folder, dataclasses.replace(plain, **PLAIN_GAN), workers),
        }
        counts = {name: period(games[name]) if name in games else 1 for name in works}  # of steps in a call
        # What the workers decoded while others had their turn is used up before a loop's time counts.
        spent = in_turns(works, clock, repeats, before={"five networks": 2 * workers, "DCGAN": 2 * workers})
        needed = {name: flops(work).total() / counts[name] for name, work in works.items()}
    spent = {name: [seconds / counts[name] for seconds in values] for name, values in spent.items()}
    step_ratios = {
        "GAN": ratios(spent["MAGNET"], spent["MAGNET, GAN"]),
        "plain GAN": ratios(spent["MAGNET"], spent["MAGNET, plain GAN"]),
        "extra reward": ratios(spent["MAGNET, extra reward"], spent["MAGNET"]),
    }
    step_seconds = {name: spread(values) for name, values in spent.items()}
    for name, (_, beside) in made.items():
        spent[name] = [seconds + beside for seconds in spent[name]]
    rates = {name: [config.batch_size / seconds for seconds in values] for name, values in spent.items()}
    operations = {name: [needed[name] / seconds for seconds in values] for name, values in spent.items()}
    against = {
        "published": (rates["MAGNET, published"], rates["five networks"]),
        "published, float32": (rates["MAGNET, published, float32"], rates["five networks"]),
        "as given": (rates["MAGNET"], rates["five networks"]),
        "plain GAN": (rates["MAGNET, plain GAN"], rates["DCGAN"]),
        "per operation": (operations["MAGNET"], operations["DCGAN"]),
    }
    figures = {name: ratios(*pair) for name, pair in against.items()}
    return {
        "ratio": figures["published"]["median"], "ratios": figures, "flops": needed,
        "step_ratios": step_ratios, "step_seconds": step_seconds,
        "images_per_second": {name: spread(values) for name, values in rates.items()},
        "flops_per_second": {name: spread(values) for name, values in operations.items()},
        "beside_the_steps": {name: beside for name, (_, beside) in made.items()},
    }  # fmt: skip


def print_tables(result: dict) -> None:
    """All that was measured, for people."""
    from benchmarks.measure import shown

    print(f"{'':<28}{'images/s':>24}{'GFLOP a step':>14}{'GFLOP/s':>24}")
    for name, rate in result["images_per_second"].items():
        speed = shown(result["flops_per_second"][name], 1e9, 0)
        print(f"{name:<28}{shown(rate, digits=1):>24}{result['flops'][name] / 1e9:>14.1f}{speed:>24}")
    ratio = {name: shown(figure) for name, figure in result["ratios"].items()}
    print(f"\nMAGNET, published / five networks  {ratio['published']}, in float32 {ratio['published, float32']}")
    print(f"MAGNET / five networks             {ratio['as given']}")
    print(f"MAGNET, plain GAN / DCGAN          {ratio['plain GAN']}")
    print(f"MAGNET / DCGAN, by operations      {ratio['per operation']}")
    same, plain, extra = (shown(figure, digits=3) for figure in result["step_ratios"].values())
    print(f"\nThe step of MAGNET lasts {same} times that of a GAN with the same R1 and replay buffer,")
    print(f"and {plain} times that of a plain GAN; with the extra reward `resemble`, {extra} times MAGNET's.")


@as_program
def main(arguments: list[str] | None = None) -> int:
    """The program; returns its exit status."""
    parser = new_parser(__doc__, repeats=5)
    parser.add_argument("--files", type=int, default=1000, help="of images to learn from (default 1000)")
    parser.add_argument("--workers", type=int, default=2, help="of each DataLoader (default 2)")
    try:
        options, _, config = parse(parser, sys.argv[1:] if arguments is None else arguments)
        if config.points or config.algorithm == "gan" or (config.generators, config.discriminators) != (1, 1):
            raise UserError("MAGNET with one agent of each kind is compared, on images: leave out what asks for else.")
        if options.files < 2 * config.batch_size or options.workers < 0:
            raise UserError(f"give --files of at least {2 * config.batch_size}, two batches, and no --workers below 0.")
        import torch

        from benchmarks.pictures import write_pictures
        from magnet.run.logger import describe_environment

        if options.threads:
            torch.set_num_threads(options.threads)
        machine = describe_environment(torch.device(config.device))
        print(", ".join(f"{name} {value}" for name, value in machine.items()))
        with tempfile.TemporaryDirectory() as folder:
            pictures = Path(folder, "pictures", "faces")  # ImageFolder looks for folders, one for each class
            pictures.mkdir(parents=True)
            write_pictures(config.data, options.files, pictures)
            result = measure(config, pictures.parent, options.repeats, options.workers, options.cpu_time)
    except UserError as error:
        print(f"against.py: {error}", file=sys.stderr)
        return 2
    print_tables(result)
    print(json.dumps({"benchmark": "against", **result, "machine": machine, "config": dataclasses.asdict(config)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())

#!/usr/bin/env python3
"""Times the trainer's step for several games, which take turns in one process.

    python3 benchmarks/step.py --preset cpu --threads 1 --cpu-time
    python3 benchmarks/step.py --preset cpu --teams 2x1 4x1 1x2 2x2 4x4

The games are MAGNET, the GAN with the same R1 and replay buffer, the plain GAN without either, and MAGNET with the
extra reward `resemble`; --teams adds MAGNET with N generators and M discriminators. All further words are train.py's
flags. The images are random. A step is the mean over a period: the 40 or more steps after which R1, the metrics and
the targets' updates repeat. The table has the median over the turns and, in brackets, the lowest and the highest. The
last column is the ratio to the first game, turn by turn. The last line is JSON.
Exit status: 0 done, 2 a mistake in the settings, said in one sentence.
"""

import dataclasses
import functools
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch  # noqa: E402

from benchmarks import measure  # noqa: E402
from magnet.config import Config, check  # noqa: E402
from magnet.run.logger import describe_environment  # noqa: E402
from magnet.support.devices import settle  # noqa: E402
from magnet.support.errors import UserError  # noqa: E402
from magnet.support.output import as_program  # noqa: E402

GAN = {"algorithm": "gan", "gamma": 0.0}
GAMES = {
    "MAGNET": {},
    "GAN": GAN,
    "plain GAN": GAN | {"r1": 0.0, "replay_fraction": 0.0},
    "MAGNET, resemble": {"extra_reward": "resemble"},
}


def make_configs(config: Config, teams: list[str]) -> dict[str, Config]:
    """The config of each game, by name. Raises UserError for a bad team."""
    games = dict(GAMES)
    if config.points:  # extra rewards judge images
        del games["MAGNET, resemble"]
    for team in teams:
        try:
            generators, discriminators = map(int, team.split("x"))
        except ValueError:
            raise UserError(f"--teams {team} is no team: give numbers such as 4x1.") from None
        games[f"MAGNET, {team}"] = {"generators": generators, "discriminators": discriminators}
    configs = {name: dataclasses.replace(config, **changes) for name, changes in games.items()}
    for one in configs.values():
        check(one)
    return configs


def step_flops(trainer) -> float:
    """Floating-point operations of a step, the mean over a period, without CUDA graphs."""
    graphs, trainer.graphs = trainer.graphs, None
    trainer.step()  # has no replayed rows
    work = measure.count_flops(lambda: measure.make_period(trainer))
    trainer.graphs = graphs
    return work / measure.period(trainer.config)


def measure_games(configs: dict[str, Config], repeats: int, cpu_time: bool) -> dict[str, dict]:
    """Seconds and floating-point operations of a step of each game, and the ratio of its time to the first one's."""
    trainers = {name: measure.new_trainer(config) for name, config in configs.items()}
    flops = {name: step_flops(trainer) for name, trainer in trainers.items()}
    for trainer in trainers.values():
        measure.warm_up(trainer)
    clock = measure.new_clock(next(iter(trainers.values())).device, cpu_time)
    works = {name: functools.partial(measure.make_period, trainer) for name, trainer in trainers.items()}
    results, first = {}, None
    for name, blocks in measure.in_turns(works, clock, repeats).items():
        seconds = [block / measure.period(configs[name]) for block in blocks]
        first = first or seconds
        results[name] = {
            "step_seconds": measure.spread(seconds),
            "images_per_second": measure.spread([configs[name].batch_size / one for one in seconds]),
            "step_flops": flops[name],
            "ratio": measure.spread([one / other for one, other in zip(seconds, first, strict=True)]),
        }
    return results


def print_table(results: dict[str, dict]) -> None:
    """Prints a row for each game."""
    print(f"{'game':<20}{'ms a step':>26}{'images/s':>26}{'GFLOP':>10}{'ratio to the first':>22}")
    for name, one in results.items():
        time = measure.shown(one["step_seconds"], 1e-3)
        rate, ratio = measure.shown(one["images_per_second"], digits=1), measure.shown(one["ratio"])
        print(f"{name:<20}{time:>26}{rate:>26}{one['step_flops'] / 1e9:>10.3f}{ratio:>22}")


@as_program
def main(arguments: list[str] | None = None) -> int:
    """The program; returns its exit status."""
    parser = measure.new_parser(__doc__, repeats=7)
    parser.add_argument("--teams", nargs="+", default=[], metavar="NxM", help="generators x discriminators to add")
    try:
        options, _, config = measure.parse(parser, sys.argv[1:] if arguments is None else arguments)
        config = settle(config)
        configs = make_configs(config, options.teams)
    except UserError as error:
        print(f"step.py: {error}", file=sys.stderr)
        return 2
    torch.set_num_threads(int(config.threads))
    machine = describe_environment(torch.device(config.device))
    print(", ".join(f"{name} {value}" for name, value in machine.items()))
    print(
        f"{'x'.join(map(str, config.shape))}, batch {config.batch_size}, width {config.width}, {config.precision}, "
        f"{config.threads} threads, {'CPU' if options.cpu_time else 'wall'} time, {options.repeats} turns\n"
    )
    results = measure_games(configs, options.repeats, options.cpu_time)
    print_table(results)
    print(json.dumps({"benchmark": "step", "games": results, "machine": machine, "config": vars(config)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())

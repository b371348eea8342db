#!/usr/bin/env python3
"""The trainer's step against its floor: the bare passes through its networks that the algorithm needs (floor.py).

    python3 benchmarks/step.py --image-size 64 --width 64 --batch-size 32 --device cpu --threads 2
    python3 benchmarks/step.py --preset cpu --teams 1x1 2x1 4x1 1x2 2x2 4x4

All further words are train.py's flags; the images are random. Blocks of steps and blocks of the floor take turns in
one process, so that what else the machine does meets both. A step is the mean over the k = --r1-every steps of which
one has R1, and so is the floor. Printed are medians and, in brackets, the lowest and the highest; the last line is
JSON, whose `ratio` is the median of step / floor over the turns. With --teams, trainers of N generators and M
discriminators take turns: `ratio` is then the largest of theirs, and `growth` the largest of a team's step over the
first team's, divided by the same of their numbers of networks.
Exit status: 0 done, 2 a mistake in the settings, said in one sentence.
"""

import argparse
import collections
import dataclasses
import functools
import itertools
import json
import statistics
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.options import new_parser, parse  # noqa: E402
from magnet.config import Config, check  # noqa: E402
from magnet.support.errors import UserError  # noqa: E402
from magnet.support.output import as_program  # noqa: E402

# What imports torch is imported where it is needed: --help is immediate.


def sized(config: Config, team: str) -> Config:
    """`config` with the N generators and M discriminators of "NxM". Raises UserError if that is no team."""
    try:
        generators, discriminators = map(int, team.split("x"))
    except ValueError:
        raise UserError(f"--teams {team} is no team: give numbers such as 4x1.") from None
    config = dataclasses.replace(config, generators=generators, discriminators=discriminators)
    check(config)
    return config


def new_trainer(config: Config):
    """A trainer of `config` on random images, or on points, that has made two steps, so that its targets differ."""
    import numpy as np

    from magnet.data.gaussians import draw_points
    from magnet.run.session import build

    if config.points:
        pixels = draw_points(config.data)
    else:
        pixels = np.random.default_rng(0).integers(0, 256, (8 * config.batch_size, *config.shape), np.uint8)
    trainer = build(config, pixels)[0]
    for _ in range(2):  # in the first the replay buffer is empty
        trainer.step()
    return trainer


def run(floors: list[list]) -> None:
    """All passes of the floors."""
    for use in itertools.chain(*floors):
        collections.deque(use.passes(), maxlen=0)


def time_passes(floors: list[list], clock) -> dict[tuple, float]:
    """Seconds of the floor's passes in a step, the mean over the period: by network, end, rows and kind."""
    spent = collections.Counter()
    for use in itertools.chain(*floors):
        since = clock()
        for kind in use.passes():
            now = clock()
            spent[use.network, use.end, use.rows, kind] += (now - since) / len(floors)
            since = now
    return spent


def time_phases(trainer, clock) -> dict[str, float]:
    """Seconds of a step by phase, the mean over a period, measured around the trainer's own methods."""

    from benchmarks.floor import steps

    spent = collections.Counter()
    watched = [(trainer, "act", "act"), (trainer, "play", "play")]
    watched += [(agent, "update", "update of discriminators") for agent in trainer.discriminators]
    watched += [(agent, "update", "update of generators") for agent in trainer.generators]

    def watch(owner, method: str, phase: str) -> None:
        work = getattr(owner, method)

        def noted(*arguments):
            since = clock()
            result = work(*arguments)
            spent[phase] += clock() - since
            return result

        setattr(owner, method, noted)  # of this one object, in front of its class's

    for each in watched:
        watch(*each)
    since = clock()
    count = steps(trainer)
    spent["the rest"] = clock() - since - spent.total()
    for owner, method, _ in watched:
        delattr(owner, method)
    return {phase: seconds / count for phase, seconds in spent.items()}


def measure_step(config: Config, repeats: int, cpu_time: bool) -> dict:
    """The step of one trainer against its floor, by phases and by passes."""
    from benchmarks.floor import floors, period, steps
    from benchmarks.measure import flops, in_turns, matrix_peak, new_clock, ratios, spread
    from magnet.agents.networks import convolution_dtype

    trainer, count = new_trainer(config), period(config)
    clock, needed, passes, phases = new_clock(trainer.device, cpu_time), floors(trainer), [], []
    works = {
        "step": lambda: steps(trainer), "floor": lambda: run(needed),
        "passes": lambda: passes.append(time_passes(needed, clock)),
        "phases": lambda: phases.append(time_phases(trainer, clock)),
    }  # fmt: skip
    spent = {name: [s / count for s in seconds] for name, seconds in in_turns(works, clock, repeats).items()}
    step, ratio = spread(spent["step"]), ratios(spent["step"], spent["floor"])
    uses = collections.Counter((use.network, use.end, use.rows) for use in itertools.chain(*needed))
    peak = matrix_peak(trainer.device, convolution_dtype(config), clock)
    work = flops(works["step"]).total() / count
    return {
        "ratio": ratio["median"], "ratio_spread": ratio, "step_seconds": step, "floor_seconds": spread(spent["floor"]),
        "images_per_second": config.batch_size / step["median"],
        "step_flops": work, "floor_flops": flops(works["floor"]).total() / count, "steps_in_a_period": count,
        "matrix_peak": peak, "share_of_matrix_peak": work / step["median"] / peak,
        "phases": {name: statistics.median(one[name] for one in phases) for name in phases[0]},
        "passes": [
            {"network": key[0], "end": key[1], "rows": key[2], "kind": key[3], "uses": uses[key[:3]] / count,
             "seconds": statistics.median(one[key] for one in passes)} for key in passes[0]
        ],
    }  # fmt: skip


def print_step(result: dict) -> None:
    """The tables of `measure_step`."""
    from benchmarks.floor import KINDS
    from benchmarks.measure import in_mebibytes, shown

    table = collections.defaultdict(dict)
    for one in result["passes"]:
        table[one["network"], one["end"], one["uses"], one["rows"]][one["kind"]] = f"{1e3 * one['seconds']:.2f}"
    print(f"{'the floor, milliseconds':<28}{'uses':>6}{'rows':>6}" + "".join(f"{kind:>17}" for kind in KINDS))
    for (network, end, uses, rows), cells in table.items():
        print(f"{network:<6}{end:<22}{uses:>6.4g}{rows:>6}" + "".join(f"{cells.get(kind, ''):>17}" for kind in KINDS))
    whole = sum(result["phases"].values())
    print(f"\n{'phases of the step':<28}{'ms':>12}{'share':>9}")
    for phase, seconds in result["phases"].items():
        print(f"{phase:<28}{1e3 * seconds:>12.2f}{seconds / whole:>9.1%}")
    work, needed = result["step_flops"], result["floor_flops"]
    print(f"\nstep   {shown(result['step_seconds'], 1e-3)} ms, {work / 1e9:.3f} GFLOP")
    print(f"floor  {shown(result['floor_seconds'], 1e-3)} ms, {needed / 1e9:.3f} GFLOP, 1 / {work / needed:.3f} of it")
    print(f"ratio  {shown(result['ratio_spread'], digits=3)}")
    print(
        f"{result['images_per_second']:.1f} images/s, peak memory {in_mebibytes(result['peak_memory'])}, "
        f"{result['share_of_matrix_peak']:.0%} of the {result['matrix_peak'] / 1e9:,.0f} GFLOP/s of a matrix product"
    )


def measure_teams(configs: dict[str, Config], repeats: int, cpu_time: bool) -> dict:
    """The steps of trainers of several sizes against their floors, and against the number of networks."""
    from benchmarks.floor import floors, period, steps
    from benchmarks.measure import in_turns, new_clock, ratios, spread

    works, networks = {}, {}
    for team, config in configs.items():
        trainer = new_trainer(config)
        works[team, "step"] = functools.partial(steps, trainer)
        works[team, "floor"] = functools.partial(run, floors(trainer))
        networks[team] = sum(len(agent.networks) for agent in trainer.agents)
    spent = in_turns(works, new_clock(trainer.device, cpu_time), repeats)
    spent = {key: [s / period(config) for s in seconds] for key, seconds in spent.items()}
    first, rows = next(iter(configs)), []
    for team, count in networks.items():
        step, floor_growth = (
            ratios(spent[team, what], spent[first, what])["median"] / (count / networks[first])
            for what in ("step", "floor")
        )
        rows.append({
            "team": team, "networks": count, "ratio": ratios(spent[team, "step"], spent[team, "floor"]),
            "step_seconds": spread(spent[team, "step"]), "floor_seconds": spread(spent[team, "floor"]),
            "growth": step, "floor_growth": floor_growth,
        })  # fmt: skip
    worst = {"ratio": max(row["ratio"]["median"] for row in rows), "growth": max(row["growth"] for row in rows)}
    return worst | {"teams": rows}


def print_teams(result: dict) -> None:
    """The table of `measure_teams`."""
    from benchmarks.measure import in_mebibytes, shown

    print(
        f"{'N x M':<7}{'networks':>9}{'step, ms':>26}{'floor, ms':>26}{'step / floor':>21}{'growth':>8}{'floor':>7}"
        "  peak memory"
    )
    for row in result["teams"]:
        times = "".join(f"{shown(row[f'{what}_seconds'], 1e-3, 1):>26}" for what in ("step", "floor"))
        print(
            f"{row['team']:<7}{row['networks']:>9}{times}{shown(row['ratio']):>21}{row['growth']:>8.2f}"
            f"{row['floor_growth']:>7.2f}  {in_mebibytes(row['peak_memory'])}"
        )
    print("growth: of step and floor over the first team's, by that of the number of networks; 1 is in proportion")


def peak_memory_apart(config: Config, words: list[str]) -> int | None:
    """Bytes that a trainer, its images and two steps take at their peak; on a CPU in a process with nothing else."""
    import torch

    from benchmarks.measure import peak_memory

    if config.device != "cpu":
        return peak_memory(torch.device(config.device), lambda: new_trainer(config))
    team = ["--generators", str(config.generators), "--discriminators", str(config.discriminators)]
    child = [sys.executable, __file__, "--peak-memory", *words, *team]
    return json.loads(subprocess.run(child, stdout=subprocess.PIPE, check=True).stdout)


@as_program
def main(arguments: list[str] | None = None) -> int:
    """The program; returns its exit status."""
    parser = new_parser(__doc__, repeats=7)
    parser.add_argument("--teams", nargs="+", metavar="NxM", help="generators x discriminators, to be compared")
    parser.add_argument("--peak-memory", action="store_true", help=argparse.SUPPRESS)  # what a child process is for
    try:
        options, words, config = parse(parser, sys.argv[1:] if arguments is None else arguments)
        teams = {team: sized(config, team) for team in options.teams or []}
    except UserError as error:
        print(f"step.py: {error}", file=sys.stderr)
        return 2
    import torch

    from benchmarks.measure import peak_memory
    from magnet import maddpg  # noqa: F401  (imported here, its size counts as taken before)
    from magnet.run.logger import describe_environment

    if options.threads:
        torch.set_num_threads(options.threads)
    if options.peak_memory:
        print(json.dumps(peak_memory(torch.device("cpu"), lambda: new_trainer(config))))
        return 0
    machine = describe_environment(torch.device(config.device))
    print(", ".join(f"{name} {value}" for name, value in machine.items()))
    print(
        f"{config.algorithm}, {'x'.join(map(str, config.shape))}, batch {config.batch_size}, width {config.width}, "
        f"{config.precision}, {'CPU' if options.cpu_time else 'wall'} time, {options.repeats} turns\n"
    )
    if teams:
        memory = [peak_memory_apart(one, words) for one in teams.values()]
        result = measure_teams(teams, options.repeats, options.cpu_time)
        for row, size in zip(result["teams"], memory, strict=True):
            row["peak_memory"] = size
        print_teams(result)
    else:
        memory = {"peak_memory": peak_memory_apart(config, words)}
        result = measure_step(config, options.repeats, options.cpu_time) | memory
        print_step(result)
    print(json.dumps({"benchmark": "step", **result, "machine": machine, "config": dataclasses.asdict(config)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())

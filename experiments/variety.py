#!/usr/bin/env python3
"""Trains N generators and M discriminators where variety can be counted, and counts it: do several cover more?

    python3 experiments/variety.py --world gaussians-25 --list
    python3 experiments/variety.py --world gaussians-25 --seeds 0 1 2 --jobs 2
    python3 experiments/variety.py --world synthetic --only 1x1 4x1 --steps 6000 --width 16
    python3 experiments/variety.py --world gaussians-25 --report        no training: the lines that there are

Modes are the Gaussians of a mixture (data/gaussians.py), or combinations of the factors of synthetic faces, which a
network reads off them (factors.py); it is trained first, and kept beside the lines. All further words are flags of
train.py, for every run. A line of the output is a run. Stop it at any time: the same command goes on, and leaves
finished lines alone. At the end, a table in Markdown and a figure beside the lines (it needs matplotlib).
Exit status: 0 done, 2 a mistake in the settings or a run that failed, said in one sentence, 130 stopped.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from experiments import figures, runs  # noqa: E402
from magnet.config import Config, complete  # noqa: E402
from magnet.support.errors import UserError  # noqa: E402
from magnet.support.output import as_program  # noqa: E402
from magnet.support.paths import user_path  # noqa: E402

# name: steps, and the base.
WORLDS = {
    "gaussians-8": (6000, ["--preset", "gaussians"]),
    "gaussians-25": (6000, ["--preset", "gaussians"]),
    "synthetic": (6000, ["--preset", "cpu", "--precision", "fp32", "--width", "16"]),
}
LARGE = "1x1-large"
SETTINGS = {
    "gan": ("how many does the plain GAN cover?", {"algorithm": "gan"}),
    "1x1": ("what the others are compared with", {}),
    LARGE: ("does one of four's size do? (its --width is found; D has it too)", {}),
    "2x1": ("do two generators cover more?", {"generators": 2}),
    "4x1": ("and four?", {"generators": 4}),
    "4x1-specialise": ("with a reward for being classified rightly?", {"generators": 4, "specialise": 1.0}),
    "1x2": ("do two discriminators see more?", {"discriminators": 2}),
    "2x2": ("and two of each?", {"generators": 2, "discriminators": 2}),
    "4x4": ("and four of each?", {"generators": 4, "discriminators": 4}),
}
FACES = 5000  # samples that are counted; of points as many as in the literature
POINTS = 500  # of them that stand in a line, for the figure
SHOWN = ("gan", "1x1", "4x1", "4x1-specialise", "4x4")  # in scatter plots
COLUMNS = (  # of the table: score, title, digits after the point
    ("modes", "modes", 1), ("kl", "KL", 3), ("high_quality", "high quality", 3), ("swd", "SWD", 1),
)  # fmt: skip


def size_of_generator(config: Config) -> int:
    """The parameters of one G."""
    import torch

    from magnet.agents.networks import generator_networks

    with torch.device("meta"):
        return sum(p.numel() for p in generator_networks(config)["generator"]().parameters())


def width_of_four(flags: dict) -> int:
    """The --width with which one G has most nearly as many parameters as four with that of `flags`."""
    small = complete(flags)
    wanted = 4 * size_of_generator(small)
    widths = range(small.width, 4 * small.width + 1)
    return min(widths, key=lambda width: abs(size_of_generator(complete(flags | {"width": width})) - wanted))


class Counter(NamedTuple):
    """How a world's samples are scored."""

    samples: int  # that are taken
    count: Callable  # samples -> the modes that they cover
    quality: Callable  # all generators' samples -> how near the data they are, if `count` does not say so
    facts: dict  # for every line: what is said of the data
    protocol: dict  # what two lines must have in common to be compared


def counter(world: str, factors: Path) -> Counter:
    """How `world` is scored. factors: the file of the network that reads factors. Raises UserError."""
    import torch

    if world != "synthetic":
        from magnet.data import gaussians

        points = torch.from_numpy(gaussians.draw_points(world, gaussians.SHOWN, seed=1))
        data = gaussians.count_modes(points, world)
        return Counter(
            len(points), lambda found: gaussians.count_modes(found, world), lambda found: {},
            {"data": data}, {"count": len(points)},
        )  # fmt: skip

    from experiments.factors import count_combinations, drawn, trained_reader
    from magnet.evaluation.feature_networks import digest
    from magnet.evaluation.metrics import sliced_wasserstein
    from magnet.support.random_streams import stream

    reader, known = trained_reader(factors)
    faces, others = (drawn(FACES, seed)[0] for seed in (2, 3))

    def quality(images: torch.Tensor) -> dict:
        return {"swd": sliced_wasserstein(images, faces, stream(0, "projections"))["swd"]}

    data = count_combinations(reader(others)) | quality(others)
    return Counter(
        FACES, lambda images: count_combinations(reader(images)), quality,
        {"data": data, "reader": known}, {"count": FACES, "factors": digest(factors)},
    )  # fmt: skip


def scored(run: Path, d_a: Counter) -> dict:
    """What the last checkpoint's generators cover, an equal share of the samples from each, and each by itself.

    Prior samples of the running averages; the sizes of all G and of all D_a, in parameters.
    """
    from magnet.evaluation.drawing import draw
    from magnet.evaluation.sampling import Sampler
    from magnet.run.saved_runs import load_agents, load_checkpoint

    generators, discriminators, config = load_agents(*load_checkpoint(run), "cpu")
    samplers = [Sampler(agent, None) for agent in generators]
    together, _ = draw(samplers, "prior", d_a.samples)
    alone = [draw([sampler], "prior", d_a.samples)[0] for sampler in samplers]
    result = {"together": d_a.count(together) | d_a.quality(together), "alone": [d_a.count(a) for a in alone]}
    shares = [part[: POINTS // len(alone)] for part in alone] if config.points else []
    result["points"] = [[[round(x, 3) for x in point] for point in share.tolist()] for share in shares]
    for kind, agents, key in (("G", generators, "generator"), ("D", discriminators, "actor")):
        result[f"size_{kind}"] = sum(p.numel() for agent in agents for p in agent.networks[key].parameters())
    minutes = runs.minutes_at(run)
    return result | {"step": max(minutes, default=0), "minutes": round(max(minutes.values(), default=0), 2)}


def compare(options: argparse.Namespace, base: dict) -> None:
    """Trains and counts what options.out lacks; `base`: parameters of all runs. Raises UserError."""
    games = {}
    for seed in options.seeds:
        for setting in options.only:
            flags = base | SETTINGS[setting][1] | {"seed": seed}
            if setting == LARGE:
                flags["width"] = width_of_four(flags)
            games[setting, seed] = runs.game(flags, options.steps)
    d_a = counter(options.world, options.out.with_suffix(".factors.pt"))
    runs.measure(options, games, d_a.protocol, lambda run: scored(run, d_a) | d_a.facts)


def table(found: dict[str, list[dict]]) -> str:
    """Markdown: for each setting the mean over the seeds, and the lowest and highest; below, the data themselves."""
    some = next(iter(found.values()))[0]["data"]
    columns = [column for column in COLUMNS if column[0] in some]
    rows = [["setting", "seeds", *(title for _, title, _ in columns), "modes of one G", "G", "D_a", "minutes"]]
    for name, lines in found.items():
        diverged = sum(line["diverged"] for line in lines)
        row = [name, f"{len(lines)}, {diverged} diverged" if diverged else str(len(lines))]
        row += [figures.cell([line["together"] for line in lines], key, digits) for key, _, digits in columns]
        row.append(figures.cell([alone for line in lines for alone in line["alone"]], "modes", 1))
        row += [f"{lines[0][key] / 1000:,.0f} k" for key in ("size_G", "size_D")]
        rows.append([*row, figures.cell(lines, "minutes", 1)])
    data = [figures.cell([some], key, digits) for key, _, digits in columns]
    return figures.markdown([*rows, ["the data", "", *data, "", "", "", ""]])


def scatter(axis, name: str, points: list[list[list[float]]]) -> None:
    """Points of each generator in its colour."""
    for part, colour in zip(points, figures.COLOURS * len(points), strict=False):
        axis.scatter(*zip(*part, strict=True), s=3, color=colour, linewidth=0)
    axis.set(title=name, xlim=(-1.4, 1.4), ylim=(-1.4, 1.4), aspect="equal", xticks=[], yticks=[])


def dots(axis, found: dict[str, list[dict]], key: str, title: str) -> None:
    """A setting a row: a dot for each seed, a small one for each of several generators by itself, and what is real."""
    for row, lines in enumerate(found.values()):
        alone = [alone[key] for line in lines for alone in line["alone"] if len(line["alone"]) > 1]
        axis.plot(alone, [row + 0.2] * len(alone), ".", color=figures.COLOURS[1], alpha=0.5, markersize=4)
        together = [line["together"][key] for line in lines]
        axis.plot(together, [row] * len(together), "o", color=figures.COLOURS[0], alpha=0.6)
    axis.axvline(next(iter(found.values()))[0]["data"][key], color="0.4", linestyle="--", linewidth=1)
    axis.set_title(title, fontsize="medium")
    axis.set(yticks=range(len(found)), yticklabels=list(found), ylim=(len(found) - 0.5, -0.5))
    axis.set_xlim(left=0)
    axis.grid(alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)


def draw(found: dict[str, list[dict]], path: Path) -> None:
    """The figure, as a PNG: scatter plots of points (the first seed of some settings), modes covered, and KL."""
    from matplotlib.figure import Figure

    shown = {name: found[name][0]["points"] for name in SHOWN if name in found and found[name][0]["points"]}
    height = 1 + 0.3 * len(found)
    figure = Figure(figsize=(10, height + 2.3 * bool(shown)), layout="constrained")
    if shown:
        top, bottom = figure.subfigures(2, 1, height_ratios=[2.3, height])
        for axis, (name, points) in zip(top.subplots(1, len(shown), squeeze=False)[0], shown.items(), strict=True):
            scatter(axis, name, points)
    else:
        bottom = figure
    left, right = bottom.subplots(1, 2, sharey=True)
    dots(left, found, "modes", "modes covered (orange: by one generator; dashed: data)")
    dots(right, found, "kl", "KL to the data's distribution (lower is better)")
    figure.savefig(path, dpi=110)


def report(out: Path) -> None:
    """Prints the table of the lines in `out`, and draws their figure beside it. Raises UserError."""
    found = figures.read(out, "variety.py", "together")
    if not found:
        raise UserError(f"{out} has no lines: without --report they are measured.")
    found = {name: found[name] for name in (*SETTINGS, *found) if name in found}
    print(table(found))
    try:
        draw(found, out.with_suffix(".png"))
        print(out.with_suffix(".png"))
    except ImportError:
        print("no figure: it needs matplotlib, `pip3 install -r requirements-dev.txt`", file=sys.stderr)


def parse(arguments: list[str]) -> tuple[argparse.Namespace, dict]:
    """The command line: what is this program's, and the parameters of all runs. Exits with 2 on a bad word."""
    parser = runs.new_parser(__doc__, SETTINGS)
    parser.add_argument("--world", choices=WORLDS, required=True, help="where variety is counted")
    parser.add_argument("--steps", type=int, help="of every run (default: 6000)")
    parser.add_argument(
        "--out", type=user_path, help="the lines (default variety-WORLD.jsonl); the figure ends in .png"
    )
    parser.add_argument("--models-dir", type=user_path, help="default models/variety-WORLD")
    parser.add_argument("--report", action="store_true", help="train nothing: table and figure of the lines")
    options, rest = parser.parse_known_args(arguments)
    steps, base = WORLDS[options.world]
    base = runs.base_of(parser, [*base, "--data", options.world, *rest])
    if base["data"] != options.world or base.get("image_size", 32) != 32:
        parser.error("the world says --data, and factors are read off faces at --image-size 32: leave them out")
    options.steps = steps if options.steps is None else options.steps
    options.out = options.out or Path(f"variety-{options.world}.jsonl")
    options.models_dir = options.models_dir or Path(f"models/variety-{options.world}")
    runs.at_least(parser, options, jobs=1, steps=1)
    return options, base


@as_program
def main(arguments: list[str] | None = None) -> int:
    """The program; returns its exit status."""
    options, base = parse(sys.argv[1:] if arguments is None else arguments)
    if options.list:
        runs.show(SETTINGS)
        return 0

    def work() -> None:
        if not options.report:
            compare(options, base)
        report(options.out)

    return runs.finish("variety.py", work, options.out)


if __name__ == "__main__":
    sys.exit(main())

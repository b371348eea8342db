#!/usr/bin/env python3
"""Draws the curves of experiments/ablation.py's results, and prints their table in Markdown.

    python3 experiments/figures.py results.jsonl --out docs/ --draw default no-critics gan
    python3 experiments/figures.py results.jsonl --out docs/ --images 239360      the table at up to so many images

scores-over-images.png and scores-over-minutes.png: Frechet distance and recall, the mean over the seeds and the band
from the lowest to the highest. Solid: prior samples; dashed, without a band: policy samples. Needs matplotlib
(requirements-dev.txt). Exit status 2: a mistake in the words or the file, said in one sentence.
"""

import argparse
import json
import math
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from magnet.support.errors import UserError  # noqa: E402
from magnet.support.output import as_program  # noqa: E402
from magnet.support.paths import user_path  # noqa: E402

# Of Okabe and Ito's palette, which differ whatever their colour vision; without yellow, too pale for lines.
COLOURS = ("#0072B2", "#D55E00", "#000000", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
COLUMNS = (  # of the table: score, title, digits after the point
    ("swd", "SWD", 2), ("fd", "FD", 2), ("kid_x1000", "KID x 1000", 1), ("precision", "precision", 3),
    ("recall", "recall", 3), ("minutes", "minutes", 0),
)  # fmt: skip
KINDS = ("prior", "policy")


def read(path: Path, program: str = "ablation.py", holds: str = "curve") -> dict[str, list[dict]]:
    """The runs of each setting, in the order of the file.

    Raises UserError if they are not those of `program`, whose lines have what `holds` says.
    """
    try:
        runs = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        for run in runs:
            run["setting"], run["diverged"], run[holds]  # or it is no such file
        return {name: [r for r in runs if r["setting"] == name] for name in dict.fromkeys(r["setting"] for r in runs)}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} cannot be read ({error!r}); `python3 experiments/{program}` makes it.") from error


def by_step(runs: list[dict], kind: str) -> list[list[dict]]:
    """The runs' points for one kind of sample: for each step, in order, those of the runs that got there."""
    steps = {}
    for run in runs:
        for point in run["curve"]:
            if point["kind"] == kind:
                steps.setdefault(point["step"], []).append(point)
    return [steps[step] for step in sorted(steps)]


def mean(points: list[dict], key: str) -> float:
    """The mean of one number of the points."""
    return sum(point[key] for point in points) / len(points)


def cell(points: list[dict], key: str, digits: int) -> str:
    """The mean, and of several points the lowest and the highest: "6.20 (5.91-6.44)"."""
    values = [point[key] for point in points]
    extent = f" ({min(values):.{digits}f}-{max(values):.{digits}f})" if len(values) > 1 else ""
    return f"{mean(points, key):.{digits}f}{extent}"


def table(found: dict[str, list[dict]], images: float = math.inf) -> str:
    """Markdown: for each setting and kind of sample the scores where its runs ended, the mean and extent over seeds.

    images: take the last scores at up to so many images seen instead.
    """
    rows = [["setting", "z from", "seeds", "images", *(title for _, title, _ in COLUMNS)]]
    for name, runs in found.items():
        diverged = sum(run["diverged"] for run in runs)
        seeds = f"{len(runs)}, {diverged} diverged" if diverged else str(len(runs))
        for kind in KINDS:
            curves = [[p for p in run["curve"] if p["kind"] == kind and p["images"] <= images] for run in runs]
            ends = [curve[-1] for curve in curves if curve]
            if ends:
                cells = [cell(ends, key, digits) for key, _, digits in COLUMNS]
                rows.append([name, kind, seeds, f"{mean(ends, 'images'):,.0f}", *cells])
    return markdown(rows)


def markdown(rows: list[list[str]]) -> str:
    """A table, of which the first row is the head."""
    rows = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def draw(found: dict[str, list[dict]], over: str, path: Path) -> None:
    """Frechet distance and recall over "images" or "minutes" (of the seeds' mean, at each step), as a PNG."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullLocator

    unit, label = (1e6, "images seen, millions") if over == "images" else (1, "minutes of training")
    figure = Figure(figsize=(10, 3.8), layout="constrained")
    distance, recall = figure.subplots(1, 2)
    for axis, key in ((distance, "fd"), (recall, "recall")):
        for (name, runs), colour in zip(found.items(), COLOURS, strict=False):
            prior, policy = (by_step(runs, kind) for kind in KINDS)
            x = [mean(points, over) / unit for points in prior]
            low, high = ([extreme(p[key] for p in points) for points in prior] for extreme in (min, max))
            axis.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
            axis.plot(x, [mean(points, key) for points in prior], color=colour, label=name)
            x = [mean(points, over) / unit for points in policy]
            axis.plot(x, [mean(points, key) for points in policy], "--", color=colour, linewidth=1)
        axis.set_xlabel(label)
        axis.set_xlim(left=0)
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    distance.set_title("Frechet distance (lower is better)", fontsize="medium")
    distance.set_yscale("log")
    distance.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 4, 5, 6, 8)))
    distance.yaxis.set_major_formatter("{x:g}")
    distance.yaxis.set_minor_locator(NullLocator())
    distance.plot([], [], "--", color="0.4", linewidth=1, label="policy samples")
    distance.legend(frameon=False)
    recall.set_title("recall (higher is better)", fontsize="medium")
    figure.savefig(path, dpi=110)


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line. Exits with 2 on a bad word."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=user_path, help="the lines of experiments/ablation.py")
    parser.add_argument("--out", type=user_path, required=True, metavar="FOLDER", help="for the two figures")
    parser.add_argument("--images", type=int, default=math.inf, help="of the table: scores at up to so many images")
    about = f"settings to draw (default: the first {len(COLOURS)} of the file); the table has all"
    parser.add_argument("--draw", nargs="+", metavar="NAME", help=about)
    return parser.parse_args(arguments)


@as_program
def main(arguments: list[str] | None = None) -> int:
    """The program; returns its exit status."""
    options = parse(sys.argv[1:] if arguments is None else arguments)
    try:
        found = read(options.results)
        drawn = options.draw or list(found)[: len(COLOURS)]
        unknown = [name for name in drawn if name not in found]
        if unknown or not 0 < len(drawn) <= len(COLOURS):
            raise UserError(
                f"{options.results} has the settings {', '.join(found) or '(none)'}: "
                f"`--draw NAME ...` takes 1 to {len(COLOURS)} of them."
            )
        for over in ("images", "minutes"):
            draw({name: found[name] for name in drawn}, over, options.out / f"scores-over-{over}.png")
    except ImportError:
        print("figures.py: it needs matplotlib: `pip3 install -r requirements-dev.txt`.", file=sys.stderr)
        return 2
    except (UserError, OSError) as error:
        print(f"figures.py: {error}", file=sys.stderr)
        return 2
    print(table(found, options.images))
    return 0


if __name__ == "__main__":
    sys.exit(main())

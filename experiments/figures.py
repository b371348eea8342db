#!/usr/bin/env python3
"""Draws Frechet distance and recall over a training: for the documents, or for experiments/ablation.py's results.

    python3 experiments/figures.py                                     docs/scores-32.png and docs/scores-long.png
    python3 experiments/figures.py results.jsonl --out FOLDER --draw default no-critics gan
    python3 experiments/figures.py results.jsonl --out FOLDER --images 239360     the table at up to so many images

Without a file the lines are those in docs/*.jsonl (experiments/README.md). With ablation.py's file it writes
scores-over-images.png and scores-over-minutes.png, and prints a table in Markdown. A line is the mean over the seeds,
its band reaches from the lowest to the highest. Needs matplotlib (requirements-dev.txt).
Exit status 2: a mistake in the words or the file, said in one sentence.
"""

import argparse
import io
import math
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from PIL import Image  # noqa: E402

from experiments.tables import (  # noqa: E402
    FACE,
    IMAGENET,
    POLICY,
    PRIOR,
    TRAINING,
    markdown,
    mean_and_range,
    read_lines,
    read_scores,
    select,
)
from magnet.support.errors import UserError  # noqa: E402
from magnet.support.output import as_program  # noqa: E402
from magnet.support.paths import user_path  # noqa: E402

# Of Okabe and Ito's palette, which differ whatever their colour vision; without yellow, too pale for lines.
COLOURS = ("#0072B2", "#D55E00", "#000000", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
MARKERS = "os^Dv<>"
COLUMNS = (  # of the table: score, title, digits after the point
    ("swd", "SWD", 2), ("fd", "FD", 2), ("kid_x1000", "KID x 1000", 1), ("precision", "precision", 3),
    ("recall", "recall", 3), ("minutes", "minutes", 0),
)  # fmt: skip
KINDS = ("prior", "policy")
AXES = {"images": (1000, "images seen, thousands"), "minutes": (1, "minutes of training")}  # unit, label
DISTANCE, RECALL = "Frechet distance (lower is better)", "recall (higher is better)"
SETTINGS = ("MAGNET", "without critics", "plain GAN")  # have the same colours in all figures of the documents


@dataclass(frozen=True)
class Panel:
    """A diagram: a number `key` of the points over "images" or "minutes".

    solid, dashed: what selects the points of a setting's solid line, which has a band, and of its dashed line.
    """

    title: str
    over: str
    key: str
    solid: dict
    dashed: dict | None = None


# The documents' figures: the table whose lines they show, the meaning of the dashed lines, the panels.
FIGURES = {
    "scores-32.png": ("32x32", "", [
        Panel(title, over, key, {"kind": "prior"})
        for over in AXES for title, key in ((DISTANCE, "fd"), (RECALL, "recall"))
    ]),
    "scores-long.png": ("long trainings", "policy samples", [
        Panel(f"Frechet distance, network {network}", "images", "fd", where | PRIOR, where | POLICY)
        for network, where in (("face", FACE | TRAINING), ("ImageNet", IMAGENET | TRAINING))
    ]),
}  # fmt: skip


def read(path: Path) -> dict[str, list[dict]]:
    """The runs of each setting, in the order of the file. Raises UserError if they are not those of ablation.py."""
    runs = read_lines(path)
    if any(not {"setting", "diverged", "curve"} <= run.keys() for run in runs):
        raise UserError(f"{path} holds other lines than `python3 experiments/ablation.py` writes: name another file.")
    return {name: select(runs, {"setting": name}) for name in dict.fromkeys(run["setting"] for run in runs)}


def by_images(points: list[dict]) -> list[list[dict]]:
    """The points in groups, one for each number of images, in order: those of the runs that got there."""
    groups = {}
    for point in points:
        groups.setdefault(point.get("checkpoint", point["images"]), []).append(point)
    return [groups[images] for images in sorted(groups)]


def mean(points: list[dict], key: str) -> float:
    """The mean of one number of the points."""
    return sum(point[key] for point in points) / len(points)


def cell(points: list[dict], key: str, digits: int) -> str:
    """The mean, and of several points the lowest and the highest: "6.20 (5.91-6.44)"."""
    return mean_and_range([point[key] for point in points], digits)


def table(found: dict[str, list[dict]], images: float = math.inf) -> str:
    """Markdown: for each setting and kind of sample the scores where its runs ended, the mean and range over seeds.

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


def draw_panel(axis, points: dict[str, list[dict]], panel: Panel) -> None:
    """Draws the lines of all settings."""
    from matplotlib.ticker import LogLocator, NullLocator

    unit, label = AXES[panel.over]
    for (name, own), colour, marker in zip(points.items(), COLOURS, MARKERS, strict=False):
        own = [point for point in own if panel.over in point]
        for where, style, width in ((panel.solid, "-", 1.6), (panel.dashed, "--", 1)):
            if where is None or not (groups := by_images(select(own, where))):
                continue
            x, y = [mean(group, panel.over) / unit for group in groups], [mean(group, panel.key) for group in groups]
            if style == "-":
                low, high = ([extreme(p[panel.key] for p in group) for group in groups] for extreme in (min, max))
                axis.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
                axis.vlines(x, low, high, color=colour, alpha=0.4, linewidth=2)  # a band of one point is not visible
            label_once = name if style == "-" else None
            axis.plot(x, y, style, color=colour, marker=marker, markersize=4, linewidth=width, label=label_once)
    if panel.key == "fd":
        axis.set_yscale("log")
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 4, 5, 6, 8)))
        axis.yaxis.set_major_formatter("{x:g}")
        axis.yaxis.set_minor_locator(NullLocator())
    axis.set_title(panel.title, fontsize="medium")
    axis.set_xlabel(label)
    axis.set_xlim(left=0)
    axis.grid(alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)


def draw(points: dict[str, list[dict]], panels: list[Panel], dashed: str, path: Path) -> None:
    """Draws panels, two in a row, as a PNG. points: of each setting; dashed: the meaning of the dashed lines."""
    from matplotlib.figure import Figure

    rows = len(panels) // 2
    figure = Figure(figsize=(9, 0.5 + 3 * rows), layout="constrained")
    axes = figure.subplots(rows, 2, squeeze=False).flat
    for axis, panel in zip(axes, panels, strict=True):
        draw_panel(axis, points, panel)
    if dashed:
        axes[0].plot([], [], "--", color="0.4", linewidth=1, label=dashed)
    axes[0].legend(frameon=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=150)
    with Image.open(buffer) as image:  # with a palette it has a third of the bytes
        image.convert("RGB").quantize(128, Image.Quantize.FASTOCTREE).save(path, optimize=True)


def draw_results(found: dict[str, list[dict]], out: Path) -> None:
    """Draws scores-over-images.png and scores-over-minutes.png of ablation.py's runs."""
    points = {name: [point for run in runs for point in run["curve"]] for name, runs in found.items()}
    kinds = [{"kind": kind} for kind in KINDS]
    for over in AXES:
        panels = [Panel(DISTANCE, over, "fd", *kinds), Panel(RECALL, over, "recall", *kinds)]
        draw(points, panels, "policy samples", out / f"scores-over-{over}.png")


def draw_documents(root: Path, out: Path) -> None:
    """Draws the documents' figures from the lines in docs/*.jsonl. Raises UserError."""
    lines = read_scores(root)
    for name, (title, dashed, panels) in FIGURES.items():
        own = select(lines, {"table": title})
        settings = dict.fromkeys([*SETTINGS, *(line["setting"] for line in own)])
        draw({setting: select(own, {"setting": setting}) for setting in settings}, panels, dashed, out / name)


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line. Exits with 2 on a bad word."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=user_path, nargs="?", help="the lines of experiments/ablation.py")
    parser.add_argument("--out", type=user_path, default=ROOT / "docs", metavar="FOLDER", help="default docs/")
    parser.add_argument("--images", type=int, default=math.inf, help="of the table: scores at up to so many images")
    about = f"settings to draw (default: the first {len(COLOURS)} of the file); the table has all"
    parser.add_argument("--draw", nargs="+", metavar="NAME", help=about)
    return parser.parse_args(arguments)


@as_program
def main(arguments: list[str] | None = None) -> int:
    """The program; returns its exit status."""
    options = parse(sys.argv[1:] if arguments is None else arguments)
    try:
        if options.results is None:
            draw_documents(ROOT, options.out)
            return 0
        found = read(options.results)
        names = options.draw or list(found)[: len(COLOURS)]
        unknown = [name for name in names if name not in found]
        if unknown or not 0 < len(names) <= len(COLOURS):
            raise UserError(
                f"{options.results} has the settings {', '.join(found) or '(none)'}: "
                f"`--draw NAME ...` takes 1 to {len(COLOURS)} of them."
            )
        draw_results({name: found[name] for name in names}, options.out)
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

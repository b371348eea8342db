#!/usr/bin/env python3
"""Writes the tables of scores in the documents anew, from the lines in docs/*.jsonl.

    python3 experiments/tables.py

In a document each of these tables follows a comment with its name. A cell is the mean over its lines and, if they
differ, the lowest and the highest. experiments/README.md describes the lines.
Exit status 2: a line or a comment is missing, said in one sentence.
"""

import json
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from magnet.support.errors import UserError  # noqa: E402
from magnet.support.output import as_program  # noqa: E402


@dataclass(frozen=True)
class Column:
    """The numbers `key` of those lines of a row that have the values of `where`.

    digits: after the point; None: text.
    """

    title: str
    key: str
    digits: int | None = None
    where: dict = field(default_factory=dict)


@dataclass(frozen=True)
class Table:
    """A table of `document`, made of the lines that have the values of `where`.

    rows: the settings and their names in the table; None: all settings, with their own names. by_images: each number
    of images has rows of its own. title: of the column of settings.
    """

    document: str
    where: dict
    columns: list[Column]
    rows: dict[str, str] | None = None
    by_images: bool = False
    title: str = ""


def distance(title: str, digits: int = 2, **where) -> Column:
    """A column of Frechet distances."""
    return Column(title, "fd", digits, where)


def share(key: str, **where) -> Column:
    """A column of precision or recall."""
    return Column(key, key, 3, where)


FACE, IMAGENET, PRIOR, POLICY, ANSWERS = (
    {"network": "face"}, {"network": "ImageNet"}, {"kind": "prior"}, {"kind": "policy"}, {"kind": "answers"}
)  # fmt: skip
TRAINING, HELD_OUT = {"references": "training"}, {"references": "held out"}
IMAGES, SEEDS = Column("images", "images", 0), Column("seeds", "seed")
SPECTRUM = [Column(f"spectrum at {cycles}", f"spectrum_{cycles}", 2) for cycles in (8, 16, 24, 28, 32)]
FACES_64 = [IMAGES, distance("FD, face", **FACE), share("recall", **FACE), distance("FD, ImageNet", 0, **IMAGENET)]
FACES_64 += [share("precision", **IMAGENET), share("recall", **IMAGENET)]
PRIOR_AND_POLICY = [distance("prior FD", **PRIOR), share("recall", **PRIOR)]
PRIOR_AND_POLICY += [distance("policy FD", **POLICY), share("recall", **POLICY)]
DCGAN = "DCGAN of pytorch/examples, its defaults"
GAN, NO_CRITICS = "plain GAN (`--algorithm gan`)", "MAGNET without critics (`--critics none`)"
FOLLOWED = {
    "critic": "**Q_r, the reward critic** (the default)",
    "critic, epsilon 0.5": "Q_r, and half of the actions are noise: `--epsilon 0.5`",
    "critic, epsilon 0.5, weight 2": "the same with `--extra-weight 2`",
    "true gradient": "the true gradient of `resemble`, from step 500 on: a black box has none",
    "weight 0": "nothing: `--extra-weight 0`",
    "G_a without its critic's gradient": "Q_r, but G_a does not: `--diversity-weight 1e6`",
    "policy": "Q_r, but G does not: `--extra-to policy` (commit 545ed0c)",
    "score function": "no critic: REINFORCE on z, with as many calls of the reward",
    "best of 4": "nothing, best of 4 prior samples",
    "best of 16": "nothing, best of 16 prior samples",
    "best of 64": "nothing, best of 64 prior samples",
    "nearest real face": "(the best of 500 other real faces)",
}

TABLES = {
    "rewards": Table(
        "README.md", {"table": "resemble"},
        [Column("gap", "gap", 3), Column("first of 100", "firsts", 3), distance("FD, prior", **PRIOR),
         distance("FD, answers", **ANSWERS)],
        {key: FOLLOWED[key] for key in (
            "critic", "true gradient", "weight 0", "G_a without its critic's gradient", "score function", "best of 16"
        )},
        title="what the generators follow beside log D_a",
    ),
    "faces": Table(
        "README.md", {"table": ("64x64 at equal CPU time", "weights")} | TRAINING, FACES_64,
        {"MAGNET": "MAGNET", "plain GAN": GAN, "DCGAN": DCGAN,
         "celeba-64.pt of commit cffcd40": "the weights shipped before, with `--architecture dcgan`",
         "celeba-64.pt": "**the shipped weights** (`models/celeba-64.pt`, seed 0, bfloat16)",
         "real faces": "real faces against others, 2,000 each"},
    ),
    "64x64 at equal CPU time": Table(
        "docs/results.md", {"table": "64x64 at equal CPU time"},
        [*FACES_64[:2], share("precision", **FACE), *FACES_64[2:], SEEDS],
        {"MAGNET": "**MAGNET**", "plain GAN": GAN, "MAGNET, dcgan": "MAGNET of commit cffcd40, `--architecture dcgan`",
         "plain GAN, dcgan": "plain GAN, `--architecture dcgan`", "DCGAN": DCGAN},
    ),
    "long trainings": Table(
        "docs/results.md",
        {"table": "long trainings", "checkpoint": (270_000, 540_000, 1_080_000, 1_620_000, 2_160_000, 3_000_000)},
        [Column(f"{kind['kind']} {title}, {network['network']}", key, digits, network | kind | TRAINING)
         for kind, network, digits in ((PRIOR, FACE, 2), (PRIOR, IMAGENET, 0), (POLICY, FACE, 2))
         for title, key, digits in (("FD", "fd", digits), ("recall", "recall", 3))]
        + [distance(f"held out: prior FD, {network['network']}", digits, **network | PRIOR | HELD_OUT)
           for network, digits in ((FACE, 2), (IMAGENET, 0))] + [SEEDS],
        {"MAGNET": "**MAGNET**", "plain GAN": GAN, "MAGNET, dcgan": "MAGNET, `--architecture dcgan`",
         "plain GAN, dcgan": "plain GAN, `--architecture dcgan`"}, by_images=True, title="setting",
    ),
    "batch size": Table(
        "docs/performance.md",
        {"table": ("long trainings", "batch size"), "checkpoint": (270_000, 384_000), "seed": (0, 1)} | TRAINING,
        [IMAGES, distance("prior FD, face", **FACE, **PRIOR), distance("policy FD, face", **FACE, **POLICY),
         distance("prior FD, ImageNet", 0, **IMAGENET, **PRIOR), share("recall", **IMAGENET, **PRIOR), SEEDS],
        {"MAGNET": "16,875 steps at batch 16", "batch 32": "12,000 steps at batch 32"}, title="setting",
    ),
    "noise in the actions": Table(
        "docs/results.md",
        {"table": ("long trainings", "noise in the actions"), "checkpoint": (270_000, 540_000, 1_080_000)} | TRAINING,
        [distance("prior FD, face", **FACE, **PRIOR), distance("policy FD, face", **FACE, **POLICY),
         share("recall", **FACE, **POLICY), distance("prior FD, ImageNet", 0, **IMAGENET, **PRIOR), SEEDS],
        {"MAGNET, dcgan": "`--epsilon 0.5`", "MAGNET, dcgan, epsilon 0.1": "`--epsilon 0.1`",
         "MAGNET before 9ff5901": "before commit 9ff5901, `--epsilon 0.1`"}, by_images=True, title="MAGNET",
    ),
    "the policy's z": Table(
        "docs/results.md", {"table": "the policy's z"},
        [Column("old objective, one batch", "one_batch", 2), Column("old objective, two batches", "two_batches", 2),
         Column("effective directions", "directions", 0)],
        {"before 9ff5901": "MAGNET before commit 9ff5901", "MAGNET": "MAGNET, `--architecture dcgan`",
         "epsilon 0.1": "MAGNET, `--architecture dcgan --epsilon 0.1`",
         "running mean": "tried: a running mean of the covariance"},
        by_images=True, title="setting",
    ),
    "32x32, what G_c sees": Table(
        "docs/results.md", {"table": ("32x32", "32x32, what G_c sees"), "checkpoint": 120_000}, PRIOR_AND_POLICY,
        {"MAGNET": "D_a's features (by tau alone)", "D_a's logit": "D_a's logit (`--average 0.05`)",
         "D_a's logit, z kept uncorrelated":
             "tried: D_a's logit, and a running mean of z's covariance (commit c8daa69)"},
        title="G_c sees",
    ),
    "64x64, what G_c sees": Table(
        "docs/results.md", {"table": "64x64, what G_c sees"}, FACES_64[:4],
        {"D_a's features": "D_a's features, as at commit ee5bb3f",
         "D_a's features, five times the learning rate": "D_a's features, learned with five times the learning rate",
         "D_a's features and logit": "D_a's features, which teach nobody, and its logit",
         "D_a's logit": "**D_a's logit**", "without critics": "(no critics)", "plain GAN": "(plain GAN)"},
        title="G_c sees",
    ),
    "texture": Table(
        "docs/results.md", {"table": ("texture", "64x64, what G_c sees")},
        [distance("FD, ImageNet", 0, **IMAGENET), *SPECTRUM[2:], Column("verdict", "verdict")],
        {"3x3 convolution to RGB":
             "the transposed convolution to 16 maps, then a 3x3 convolution to RGB (without critics)",
         "no BatchNorm in D_a": "no BatchNorm in D_a",
         "D_a's features, five times the learning rate": "five times the learning rate for critics on D_a's features",
         "--lr 4e-4": "`--lr 4e-4` (stopped after 150 seconds)"},
        title="tried",
    ),
    "kernels of G": Table(
        "docs/results.md", {"table": "kernels of G"},
        [*FACES_64[:2], share("precision", **FACE), *FACES_64[2:], SEEDS],
        title="setting",
    ),
    "32x32": Table(
        "docs/results.md", {"table": "32x32"},
        [Column("minutes, computed", "minutes", 1), PRIOR_AND_POLICY[0], share("precision", **PRIOR),
         *PRIOR_AND_POLICY[1:], SEEDS],
        {"MAGNET": "MAGNET", "without critics": NO_CRITICS, "plain GAN": GAN}, by_images=True,
    ),
    "25 Gaussians": Table(
        "docs/results.md", {"table": "25 Gaussians"},
        [*(Column(f"{title}, {steps:,} steps", key, digits, {"steps": steps})
           for steps in (3000, 6000)
           for title, key, digits in (("modes", "modes", 1), ("high quality", "high_quality", 2))),
         Column("cosine of G_c in the point", "cosine_of_G_c_in_the_point", 3, {"steps": 6000})],
        {"plain GAN": GAN, "MAGNET without critics": NO_CRITICS,
         "MAGNET, half of the actions noise": "**MAGNET** (commit 07d009b)",
         "MAGNET": "MAGNET with `--epsilon 0.1`",
         "MAGNET, epsilon 1": "MAGNET, `--epsilon 1`: all actions are noise",
         "four steps of G_c at a time, after D_a's step, on the actor's own rows":
             "tried: four steps of G_c after D_a's step, on the actor's own rows"},
    ),
    "resemble": Table(
        "docs/extra-rewards.md", {"table": "resemble"},
        [SEEDS, Column("reward of the answers", "extra_reward", 3, {"kind": ("answers", "real")}),
         Column("gap", "gap", 3), Column("first of 100", "firsts", 3), distance("FD, prior", **PRIOR),
         share("recall", **PRIOR), distance("FD, answers", **ANSWERS), share("recall", **ANSWERS)],
        FOLLOWED, title="what the generators follow beside log D_a",
    ),
    "answers from trained weights": Table(
        "docs/extra-rewards.md", {"table": "answers from trained weights"},
        [IMAGES, Column("gap", "gap", 3), Column("first of 100", "firsts", 2), distance("FD, prior", **PRIOR),
         share("recall", **PRIOR), distance("FD, policy", **POLICY), share("recall", **POLICY)],
        {"celeba-64.pt of commit ee5bb3f": "the weights as they are",
         "--extra-to policy": "`--extra-to policy` ([models/celeba-64-answers.pt](../models/README.md))",
         "--extra-to both": "the default, `--extra-to both`"},
        title="setting",
    ),
    "smile": Table(
        "docs/extra-rewards.md", {"table": "smile"},
        [Column("reward of the answers", "extra_reward", 2, ANSWERS), distance("FD, answers", **ANSWERS),
         share("recall", **ANSWERS), Column("reward of prior samples", "extra_reward", 2, PRIOR),
         distance("FD, prior", **PRIOR)],
        {"weight 0": "nobody follows Q_r: `--extra-weight 0`"}
        | {f"weight {weight}": f"`--extra-weight {weight}`" for weight in ("0.1", "0.3", "1", "3")}
        | {f"best of {k}": f"weight 0, best of {k} prior samples" for k in (4, 16, 64)},
        title="setting",
    ),
}  # fmt: skip


def read_lines(path: Path) -> list[dict]:
    """The objects of a file of JSON lines. Raises UserError."""
    try:
        return [dict(json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{path} holds no JSON lines ({error}): name a file that an experiment wrote.") from error


def read_scores(root: Path) -> list[dict]:
    """The lines in docs/*.jsonl, each with a `checkpoint`. Raises UserError."""
    lines = [line for path in sorted(root.glob("docs/*.jsonl")) for line in read_lines(path)]
    return [{"checkpoint": line.get("images")} | line for line in lines]


def select(lines: list[dict], where: dict) -> list[dict]:
    """The lines that have the values of `where`; a tuple there holds several that will do."""
    allowed = {key: value if isinstance(value, tuple) else (value,) for key, value in where.items()}
    return [line for line in lines if all(line.get(key) in values for key, values in allowed.items())]


def mean_and_range(values: list[float], digits: int) -> str:
    """The mean, and of several values the lowest and the highest: "6.20 (5.91-6.44)"."""
    mean, low, high = (f"{x:,.{digits}f}" for x in (sum(values) / len(values), min(values), max(values)))
    return f"{mean} ({low}{' to ' if min(values) < 0 else '-'}{high})" if len(values) > 1 else mean


def cell(lines: list[dict], column: Column) -> str:
    """The cell of a row that these lines make."""
    own = [line for line in select(lines, column.where) if column.key in line]
    values = [line[column.key] for line in own]
    if not values or column.digits is None:
        return ", ".join(dict.fromkeys(map(str, values)))
    digits = min([column.digits, *(line["digits"] for line in own if "digits" in line)])
    alike = len({f"{value:.{digits}f}" for value in values}) == 1
    return mean_and_range(values[:1] if alike else values, digits)


def markdown(rows: list[list[str]]) -> str:
    """A table, of which the first row is the head."""
    rows = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def render(table: Table, lines: list[dict]) -> str:
    """The Markdown of a table. Raises UserError if a row has no line."""
    lines = select(lines, table.where)
    names = table.rows or {line["setting"]: line["setting"] for line in lines}
    if missing := sorted(names.keys() - {line["setting"] for line in lines}):
        raise UserError(f"A table of {table.document} needs lines of {', '.join(missing)}: add them to docs/*.jsonl.")
    rows = [[*(["images"] if table.by_images else []), table.title, *(column.title for column in table.columns)]]
    for images in sorted({line["checkpoint"] for line in lines}) if table.by_images else [None]:
        for setting, name in names.items():
            own = select(lines, {"setting": setting} | ({"checkpoint": images} if table.by_images else {}))
            if own:
                head = [f"{images:,}", name] if table.by_images else [name]
                rows.append([*head, *(cell(own, column) for column in table.columns)])
    return markdown(rows)


def replace(text: str, name: str, rendered: str) -> str:
    """The text of a document with its table `name` replaced. Raises UserError if there is no comment with this name."""
    place = re.compile(rf"(<!-- table: {re.escape(name)} -->\n)(?:\|.*\n)*")
    text, count = place.subn(lambda match: f"{match[1]}{rendered}\n", text)
    if count != 1:
        raise UserError(f"{TABLES[name].document} has {count} comments `<!-- table: {name} -->` instead of one.")
    return text


def write_tables(root: Path) -> list[str]:
    """Writes all tables below `root`; returns the documents that have changed. Raises UserError."""
    lines = read_scores(root)
    changed = []
    for document in dict.fromkeys(table.document for table in TABLES.values()):
        old = new = (root / document).read_text(encoding="utf-8")
        for name, table in TABLES.items():
            if table.document == document:
                new = replace(new, name, render(table, lines))
        if new != old:
            (root / document).write_text(new, encoding="utf-8")
            changed.append(document)
    return changed


@as_program
def main() -> int:
    """The program; returns its exit status."""
    try:
        changed = write_tables(ROOT)
    except (UserError, OSError) as error:
        print(f"tables.py: {error}", file=sys.stderr)
        return 2
    print(f"Changed: {', '.join(changed) or 'nothing'}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())

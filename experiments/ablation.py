#!/usr/bin/env python3
"""Trains a named table of settings, over seeds, and scores every checkpoint: what is each part of the game worth?

    python3 experiments/ablation.py --list
    python3 experiments/ablation.py --out results.jsonl --seeds 0 1 2
    python3 experiments/ablation.py --out results.jsonl --only default gan --jobs 2 --images 1200000 --nz 32

All further words are train.py's flags, for every run: the base, on which a setting has its say. All runs see equally
many images. A line of the output is a run: its flags, its scores by checkpoint, the minutes that train.py took, and
where. Stop it at any time: the same command goes on with the runs in progress, and leaves finished lines alone. Of a
finished run the last checkpoint stays.
Exit status: 0 done, 2 a mistake in the settings or a run that failed, said in one sentence, 130 stopped.
"""

import argparse
import functools
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from experiments import runs  # noqa: E402
from magnet.config import PRESETS, Config, complete  # noqa: E402
from magnet.support.devices import settle  # noqa: E402
from magnet.support.errors import UserError  # noqa: E402
from magnet.support.output import as_program  # noqa: E402
from magnet.support.paths import user_path  # noqa: E402

BASE = ["--preset", "cpu", "--precision", "fp32", "--checkpoint-every", "5"]
OF_IMAGES = ("data", "skip_bad_images", "hold_out", "image_size")
IMAGES = 598_400  # 50 epochs of the base over 9,000 faces
GAN = {"algorithm": "gan"}

# name: the question, and the flags that differ from the base. Adam does not see the scale of a loss: in "deaf" G_a's
# gradient from its critic is nothing beside that of the diversity, so it is the control of whether G_a learns by it.
SETTINGS = {
    "default": ("what the others are compared with", {}),
    "no-critics": ("do actors learn as well by critics as by the reward itself?", {"critics": "none"}),
    "no-generator-critic": ("does the generator agent alone?", {"critics": "discriminator"}),
    "no-discriminator-critic": ("does the discriminator agent alone?", {"critics": "generator"}),
    "deaf": ("does G_a learn by its critic? (here it cannot)", {"diversity_weight": 1e6}),
    "gan": ("is the game worth its price?", GAN),
    "gan-plain": ("and beside a GAN without R1 and replay?", GAN | {"r1": 0.0, "replay_fraction": 0.0}),
    "r1-0": ("must D_a's gradients be penalised?", {"r1": 0.0}),
    "r1-every-1": ("is R1 in every step better than in every eighth?", {"r1_every": 1}),
    "gamma-0.95": ("do later returns help or harm?", {"gamma": 0.95}),
    "diversity-0": ("must z be kept uncorrelated?", {"diversity_weight": 0.0}),
    "epsilon-0.5": ("do more random actions help?", {"epsilon": 0.5}),
    "replay-0": ("do old fakes help?", {"replay_fraction": 0.0}),
    "replay-0.9": ("and if nearly all are old?", {"replay_fraction": 0.9}),
    "tau-0.01": ("may the targets follow faster?", {"tau": 0.01}),
    "batch-64": ("do larger batches help?", {"batch_size": 64}),
    "spectral-norm": ("does spectral normalisation help?", {"spectral_norm": True}),
    "gradient-penalty": ("does the gradient penalty, in place of R1?", {"r1": 0.0, "gradient_penalty": 10.0}),
    "original": ("how do the published hyperparameters fare?", PRESETS["original"]),
}


def scorer(features: Path, count: int) -> Callable[[Path], list[dict]]:
    """A function that scores a checkpoint as evaluate.py does: a dict of scores for each kind of sample.

    Up to `count` samples against as many of the images of training, whose features are taken once for all checkpoints.
    Raises UserError.
    """
    import torch

    from magnet.evaluation.comparison import collect_set, compare, pick
    from magnet.evaluation.drawing import draw_pieces
    from magnet.evaluation.feature_networks import load_exported_network
    from magnet.evaluation.sampling import Sampler
    from magnet.run.saved_runs import load_agents, load_checkpoint, load_states
    from magnet.support.random_streams import stream

    device = settle(Config()).device
    embed, _ = load_exported_network(features, torch.device(device))

    @functools.cache
    def real(config: Config) -> tuple:
        faces = load_states(config, None)
        order = torch.randperm(len(faces), generator=stream(0, "reference"))
        return faces, collect_set(pick(faces, order[:count]), min(count, len(order)), embed)

    def score(path: Path) -> list[dict]:
        generators, _, config = load_agents(*load_checkpoint(path), device)
        faces, reals = real(Config(device=device, **{name: getattr(config, name) for name in OF_IMAGES}))
        kinds = {"prior": None} if config.algorithm == "gan" else {"prior": None, "policy": faces}
        found = []
        for kind, states in kinds.items():
            drawn = draw_pieces([Sampler(agent, states) for agent in generators], kind, reals["count"])
            fakes = collect_set((images for images, _ in drawn), reals["count"], embed)
            found.append({"kind": kind} | compare(fakes, reals, "fd", torch.device(device)))
        return found

    return score


def curve(run: Path, score: Callable[[Path], list[dict]]) -> list[dict]:
    """The scores of a run's checkpoints but that before step 1, by checkpoint and kind of sample."""
    from magnet.run.checkpoint import list_checkpoints
    from magnet.run.session import read_parameters

    minutes, batch = runs.minutes_at(run), read_parameters(run / "config.json")["batch_size"]
    points = []
    for path in list_checkpoints(run / "checkpoints"):
        if step := int(path.stem):
            place = {"step": step, "images": step * batch, "minutes": round(minutes[step], 3)}
            points += [place | scores for scores in score(path)]
    return points


def ablate(options: argparse.Namespace, base: dict) -> None:
    """Trains and scores what options.out lacks; `base`: parameters of all runs. Raises UserError."""
    from magnet.evaluation.feature_networks import digest

    if not options.features.is_file():
        raise UserError(f"There is no network {options.features}; make it with `python3 experiments/face_features.py`.")
    protocol = {"count": options.count, "features": f"{options.features.name} {digest(options.features)}"}
    games = {}
    for seed in options.seeds:
        for setting in options.only:
            flags = base | SETTINGS[setting][1] | {"seed": seed}
            games[setting, seed] = runs.game(flags, -(-options.images // complete(flags).batch_size))
    score = scorer(options.features, options.count)
    runs.measure(options, games, protocol, lambda run: {"curve": curve(run, score)})


def parse(arguments: list[str]) -> tuple[argparse.Namespace, dict]:
    """The command line: what is this program's, and the parameters of all runs. Exits with 2 on a bad word."""
    parser = runs.new_parser(__doc__, SETTINGS)
    parser.add_argument("--out", type=user_path, default=Path("results.jsonl"), help="the lines (default %(default)s)")
    parser.add_argument(
        "--images", type=int, default=IMAGES, help="that each run sees, as train.py counts them (default %(default)s)"
    )
    parser.add_argument("--count", type=int, default=5000, help="samples that are scored (default %(default)s)")
    parser.add_argument(
        "--features", type=user_path, default=ROOT / "experiments" / "face_features.pt2", metavar="NET.pt2",
        help="the network of the scores (default: the one beside this program)",
    )  # fmt: skip
    parser.add_argument("--models-dir", type=user_path, default=Path("models/ablation"), help="default %(default)s")
    options, rest = parser.parse_known_args(arguments)
    base = runs.base_of(parser, [*BASE, *rest])
    runs.at_least(parser, options, jobs=1, count=4, images=1)
    return options, base


@as_program
def main(arguments: list[str] | None = None) -> int:
    """The program; returns its exit status."""
    options, base = parse(sys.argv[1:] if arguments is None else arguments)
    if options.list:
        runs.show(SETTINGS)
        return 0
    return runs.finish("ablation.py", lambda: ablate(options, base), options.out)


if __name__ == "__main__":
    sys.exit(main())

"""Random combinations of settings: each is trained, sampled in every kind, scored with every flag, and resumed.

A combination that check() refuses is drawn anew. All others must end without a traceback, a warning (an error in all
tests) or a number that is not finite. Each case is a test of its own, so that pytest-xdist can spread them.
"""

import json
import math
import random

import numpy as np
import pytest
from conftest import SEED
from PIL import Image

import evaluate
import sample
import train
from magnet.config import GAUSSIANS, check, complete
from magnet.evaluation.equilibrium import report_equilibrium
from magnet.game.rewards import REWARD_FUNCTIONS
from magnet.support.errors import UserError

CHOICES = {
    "algorithm": ["magnet", "magnet", "gan"], "reward_function": list(REWARD_FUNCTIONS),
    "generators": [1, 1, 2], "discriminators": [1, 1, 2], "specialise": [0.0, 0.0, 0.5], "gamma": [0.0, 0.0, 0.9],
    "critics": ["both", "both", "generator", "discriminator", "none"], "diversity_weight": [0.0, 1.0],
    "exploration": [0.0, 0.1, 1.0], "epsilon": [0.0, 0.5, 1.0], "r1": [0.0, 0.1], "r1_every": [1, 2], "r2": [0.0, 0.1],
    "gradient_penalty": [0.0, 1.0], "spectral_norm": [False, True], "replay_fraction": [0.0, 0.25, 0.5],
    "batch_size": [4, 8, 10], "episode_length": [1, 2, 25], "hold_out": [0.0, 0.5], "evaluate_every": [0, 2],
    "patience": [0, 1], "precision": ["fp32", "auto", "fp16"],
    "data": ["faces", "faces", "faces", "gaussians-8", "gaussians-25"],
}  # fmt: skip
FEW, MANY = 12, 300  # cases: those of `make test`, and of both `make test` and `make test-long`
SMALL = {"image_size": 32, "width": 4, "nz": 6, "replay_size": 20, "device": "cpu"}


def combine(draw: random.Random) -> dict:
    """Parameters of a run that check() takes."""
    while True:
        flags = SMALL | {name: draw.choice(values) for name, values in CHOICES.items()}
        try:
            check(complete(flags))
        except UserError:
            continue
        return flags


def words(flags: dict) -> list[str]:
    """The flags as a command line."""
    given = [(f"--{name.replace('_', '-')}", value) for name, value in flags.items() if value is not False]
    return [word for flag, value in given for word in ([flag] if value is True else [flag, str(value)])]


def list_programs(flags: dict):
    """The programs that run with these settings, each with its arguments."""
    yield train, [*words(flags), "--steps", "3", "--name", "run"]
    if flags["data"] not in GAUSSIANS:
        for kind in ("prior", "guided", "interpolation", *(["policy"] if flags["algorithm"] == "magnet" else [])):
            yield sample, ["models/run", "--kind", kind, "--count", "9"]
        held_out = [["--held-out"]] if flags["hold_out"] else []
        for more in (["--guided"], ["--equilibrium"], *held_out):
            yield evaluate, ["models/run", "--no-features", "--count", "32", *more]
    yield train, ["--resume", "models/run", "--steps", "5"]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A folder of 90 small images."""
    folder, draw = tmp_path_factory.mktemp("faces"), np.random.default_rng(0)
    for i in range(90):
        Image.fromarray(draw.integers(0, 256, (32, 32, 3), np.uint8)).save(folder / f"{i:02d}.png")
    return folder


@pytest.mark.parametrize("case", [pytest.param(i, marks=[pytest.mark.long] * (i >= FEW)) for i in range(MANY)])
def test_a_random_combination_of_settings_trains_samples_scores_and_goes_on(tmp_path, monkeypatch, images, case):
    monkeypatch.setattr("magnet.evaluation.sampling.BATCHES", 2)  # how well is not what is tested here
    monkeypatch.setattr("magnet.evaluation.drawing.POINTS", 2)
    monkeypatch.setitem(report_equilibrium.__kwdefaults__, "steps", 2)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "faces").symlink_to(images)
    flags = combine(random.Random(f"{SEED}/{case}"))
    for program, arguments in list_programs(flags):
        assert program.main(arguments) == 0, (flags, arguments)
    lines = [json.loads(line) for line in (tmp_path / "models" / "run" / "metrics.jsonl").read_text().splitlines()]
    assert all(math.isfinite(value) for line in lines for value in line.values()), flags
    ended_early = flags["patience"] and flags["evaluate_every"]
    assert lines[-1]["step"] == 5 or ended_early, flags

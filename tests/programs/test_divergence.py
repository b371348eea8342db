"""Numbers that are not finite, in every loss, gradient, weight and optimizer: the run stops, its files stay good."""

import dataclasses
import json
import random

import numpy as np
import pytest
import torch
from conftest import SEED, cases
from test_train import TINY

import train
from magnet.agents import generator, losses
from magnet.evaluation.sampling import FixedGrids
from magnet.game.rewards import REWARD_FUNCTIONS
from magnet.maddpg import MADDPG
from magnet.run import checkpoint
from magnet.run.logger import RunLogger
from magnet.support.errors import Diverged

STEP, GOOD, LAST = 8, 6, 12  # where it strikes; the checkpoint before it; where the run would have ended
TEAM = ["--generators", "2", "--discriminators", "2", "--specialise", "1"]
NUMBERS = [float("nan"), float("inf"), float("-inf")]
NETWORKS = [
    ("generator", "actor"), ("generator", "generator"), ("generator", "critic"),
    ("discriminator", "actor"), ("discriminator", "critic"),
]  # fmt: skip
PARTS = ["weight", "target", "gradient", "exp_avg", "exp_avg_sq"]
LOSSES = [
    "real", "fake", "generator", "classification_reward", "td_target", "diversity_objective", "gradient_penalty",
    "explore",
]  # fmt: skip
PLACES = [(part, *network) for part in PARTS for network in NETWORKS] + [("loss", loss, None) for loss in LOSSES]


def strike(trainer, place: tuple, number: float, monkeypatch) -> None:
    """Puts `number` into one part of `trainer`; into a gradient or a loss at the next step."""
    part, kind, net = place
    if part == "loss":
        if hasattr(record := REWARD_FUNCTIONS["log"], kind):
            reward = getattr(record, kind)
            struck = dataclasses.replace(record, **{kind: lambda *logits: reward(*logits) * number})
            monkeypatch.setitem(REWARD_FUNCTIONS, "log", struck)
            return
        module = losses if hasattr(losses, kind) else generator
        honest = getattr(module, kind)
        monkeypatch.setattr(module, kind, lambda *args, **kwargs: honest(*args, **kwargs) * number)
        return
    agent = trainer.generators[-1] if kind == "generator" else trainer.discriminators[-1]
    weight = list(agent.networks[net].parameters())[-1]
    if part == "gradient":
        weight.register_hook(lambda gradient: gradient.index_fill(0, torch.tensor([0]), number))
    else:
        moments = agent.optimizers[net].state[weight]
        target = list(agent.targets[net].parameters())[-1]
        {"weight": weight.data, "target": target.data, **moments}[part][0] = number


def struck(place: tuple, number: float, monkeypatch) -> None:
    """From here on a trainer is struck when it is about to make step STEP."""
    honest = MADDPG.step

    def step(trainer):
        if trainer.steps == STEP - 1:
            strike(trainer, place, number, monkeypatch)
        return honest(trainer)

    monkeypatch.setattr(MADDPG, "step", step)


@pytest.fixture
def without_grids(monkeypatch):
    """They take longer than all the steps here; the last test is about them."""
    monkeypatch.setattr(FixedGrids, "draw", lambda self: {})


@cases(short=3, long=len(NUMBERS) * len(PLACES))
@pytest.mark.parametrize("team", [[], TEAM], ids=["one of each", "a team"])
def test_what_is_not_finite_stops_the_run_and_its_last_checkpoint_goes_on(place, capsys, without_grids, team, count):
    every = [(where, number) for where in PLACES for number in NUMBERS]
    for i, (where, number) in enumerate(random.Random(SEED).sample(every, count)):
        if where[1] == "classification_reward" and not team:
            continue
        run = place / "models" / f"run{i}"
        with pytest.MonkeyPatch.context() as monkeypatch:
            struck(where, number, monkeypatch)
            status = train.main([*TINY, *team, "--steps", str(LAST), "--name", run.name])
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert status == 3 and f"--resume models/{run.name} --lr 0.0001" in error, (where, number, error)
        assert "not finite" in error or "was nan" in error or "inf at step" in error, error
        steps = [int(path.stem) for path in checkpoint.list_checkpoints(run / "checkpoints")]
        assert steps == [0, GOOD], (where, number)
        for line in (run / "metrics.jsonl").read_text().splitlines():
            assert all(np.isfinite(value) for value in json.loads(line).values())
        assert train.main(["--resume", f"models/{run.name}", "--lr", "0.0001", "--steps", str(GOOD + 2)]) == 0
        saved = checkpoint.load(run / "checkpoints" / f"{GOOD + 2:06d}.pt")
        assert saved["config"]["lr"] == 0.0001 and checkpoint.find_non_finite(saved) is None


def test_a_lower_learning_rate_is_taken_over_by_every_optimizer(place, without_grids):
    assert train.main([*TINY, "--steps", "6", "--name", "run"]) == 0
    rates, honest = set(), MADDPG.step

    def step(trainer):
        every = [one for agent in trainer.agents for one in agent.optimizers.values()]
        rates.update(group["lr"] for one in every for group in one.param_groups)
        return honest(trainer)

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(MADDPG, "step", step)
        assert train.main(["--resume", "models/run", "--lr", "5e-5", "--steps", "7"]) == 0
    assert rates == {5e-5}
    assert json.loads((place / "models" / "run" / "config.json").read_text())["lr"] == 5e-5


def test_pictures_and_scores_that_are_not_finite_are_not_written(tmp_path):
    (tmp_path / "samples").mkdir()
    with RunLogger(tmp_path, step=4, batch=8, every=3) as book:
        with pytest.raises(Diverged, match="prior.*step 4"):
            book.save_grid("prior", torch.full((64, 3, 4, 4), float("nan")))
        with pytest.raises(Diverged, match="swd was nan at step 5"):
            book.add({"x": torch.tensor(1.0)}, {"swd": float("nan")})
    assert list((tmp_path / "samples").iterdir()) == [] and not (tmp_path / "metrics.jsonl").exists()

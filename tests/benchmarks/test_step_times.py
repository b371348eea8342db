"""benchmarks/step.py and what benchmarks share: which games are measured, what is counted. Times are not asked here."""

import json
from types import SimpleNamespace

import pytest
import torch
from conftest import new_trainer, small_config

from benchmarks import measure, step
from magnet.maddpg import MEASURE_EVERY, TARGETS_EVERY

TINY = "--image-size 32 --width 4 --nz 6 --batch-size 8 --precision fp32 --device cpu --r1-every 2 --threads 1".split()


@pytest.fixture
def short_periods(every_step, monkeypatch):
    """A period lasts as long as R1's."""
    monkeypatch.setattr(measure, "MEASURE_EVERY", 1)
    monkeypatch.setattr(measure, "TARGETS_EVERY", 1)


def test_a_period_has_every_kind_of_step_equally_often():
    made = []
    trainer = SimpleNamespace(config=small_config(r1=0.1, r1_every=8), step=lambda: made.append(len(made)))
    measure.make_period(trainer)
    assert len(made) == 40 and MEASURE_EVERY == 5 and TARGETS_EVERY == 8
    assert measure.period(small_config(r1=0.1, r1_every=3)) == 120
    assert measure.period(small_config(r1=0.0, r1_every=3)) == 40


def test_operations_are_counted_as_by_hand():
    layer, x = torch.nn.Conv2d(3, 5, 4, stride=2, padding=1), torch.randn(2, 3, 8, 8)
    forward = 2 * 2 * 5 * 4 * 4 * 3 * 4 * 4  # two each of B, maps, places, and what one place sums over
    assert measure.count_flops(lambda: layer(x)) == forward
    x.requires_grad_()
    assert measure.count_flops(lambda: layer(x).sum().backward()) == 3 * forward
    assert measure.count_flops(lambda: torch.autograd.grad(layer(x).sum(), x)) == 2 * forward


def test_operations_are_counted_without_cuda_graphs(short_periods):
    trainer = new_trainer(r1=0.1, r1_every=2)
    expected = step.step_flops(trainer)
    trainer.graphs = graphs = object()  # has no method: a step with it would fail
    assert step.step_flops(trainer) == expected > 0 and trainer.graphs is graphs


def test_blocks_take_turns():
    made, now = [], [0.0]

    def work(name, seconds):
        made.append(name)
        now[0] += seconds

    seconds = {"fast": measure.BLOCK_SECONDS / 3, "slow": 5 * measure.BLOCK_SECONDS}
    works = {name: lambda name=name, lasts=lasts: work(name, lasts) for name, lasts in seconds.items()}
    spent = measure.in_turns(works, lambda: now[0], repeats=2)
    assert made == ["fast", "slow", *["fast", "fast", "fast", "slow"] * 2]
    assert spent == {name: pytest.approx([lasts] * 2) for name, lasts in seconds.items()}


def test_the_games_take_turns_and_the_last_line_has_all(short_periods, capsys, monkeypatch):
    monkeypatch.setattr(measure, "in_turns", lambda works, clock, repeats: {
        name: [4.0 * (i + 1), 2.0, 2.0 * (i + 2)] for i, name in enumerate(works)
    })  # fmt: skip
    assert step.main([*TINY, "--teams", "2x1"]) == 0
    *table, last = capsys.readouterr().out.splitlines()
    logged = json.loads(last)
    games = logged["games"]
    assert list(games) == ["MAGNET", "GAN", "plain GAN", "MAGNET, resemble", "MAGNET, 2x1"]
    assert games["MAGNET"]["ratio"] == {"median": 1.0, "low": 1.0, "high": 1.0}
    assert games["GAN"]["ratio"] == {"median": 1.5, "low": 1.0, "high": 2.0}  # of 8, 2, 6 to 4, 2, 4
    assert games["GAN"]["step_seconds"] == {"median": 3.0, "low": 1.0, "high": 4.0}
    assert games["GAN"]["images_per_second"] == {"median": pytest.approx(8 / 3), "low": 2.0, "high": 8.0}
    flops = [games[name]["step_flops"] for name in ("plain GAN", "GAN", "MAGNET", "MAGNET, resemble", "MAGNET, 2x1")]
    assert flops == sorted(flops) and len(set(flops)) == 5
    assert logged["machine"]["torch"] == torch.__version__
    assert (logged["config"]["width"], logged["config"]["threads"]) == (4, "1")
    assert any(line.startswith("GAN ") and "3000.00 (1000.00-4000.00)" in line for line in table)


def test_each_game_differs_from_the_flags_in_what_its_name_says():
    config = small_config(reward_function="hinge", gamma=0.9, r1=0.1, replay_fraction=0.25)
    games = step.make_configs(config, ["3x2"])
    gan = {"reward_function": "hinge", "algorithm": "gan", "gamma": 0.0}
    assert games == {
        "MAGNET": config,
        "GAN": small_config(**gan, r1=0.1, replay_fraction=0.25),
        "plain GAN": small_config(**gan, r1=0.0, replay_fraction=0.0),
        "MAGNET, resemble": small_config(**vars(config) | {"extra_reward": "resemble"}),
        "MAGNET, 3x2": small_config(**vars(config) | {"generators": 3, "discriminators": 2}),
    }
    assert "MAGNET, resemble" not in step.make_configs(small_config(data="gaussians-8"), [])


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--teams", "2y1"], "--teams 2y1 is no team: give numbers such as 4x1."),
        (["--teams", "0x1"], "--generators is 0, but must be from 1 to 64."),
        (["--dry-run"], "A benchmark begins with fresh weights: leave out --resume, --config and --dry-run."),
        (["--init", "x"], "A benchmark chooses its rewards and weights itself: leave out --extra-reward and --init."),
        (["--algorithm", "gan"], "The plain GAN is measured beside MAGNET: leave out --algorithm gan."),
        (["--repeats", "0"], "--repeats is 0, but must be at least 1."),
        (["--threads", "0"], "--threads is '0', but must be auto or a number from 1 to 9999."),
        (["--r1", "-1"], "--r1 is -1.0, but must be from 0 to 1e+06."),
    ],
)
def test_mistakes_are_told_in_a_sentence(words, sentence, capsys):
    assert step.main([*TINY, *words]) == 2
    assert capsys.readouterr().err == f"step.py: {sentence}\n"

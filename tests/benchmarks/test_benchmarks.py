"""benchmarks/: what is counted and told is so. How long anything takes is not asked here."""

import itertools
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import differing, new_trainer, small_config, weights

from benchmarks import gains, measure, step
from benchmarks.floor import DOUBLE, FORWARD, TO_INPUTS, TO_PARAMETERS, floor, floors, steps
from magnet import maddpg

ROOT = Path(__file__).resolve().parents[2]
TINY = "--image-size 32 --width 4 --nz 6 --batch-size 8 --precision fp32 --device cpu --r1-every 2".split()
GAME = {"replay_fraction": 0.25, "r1": 0.1, "r1_every": 3}  # B = 8 rows, of which 6 are fresh


def after_two_steps(**changes):
    """A trainer whose replay buffer is filled; its next step is the last of a period, without R1."""
    trainer = new_trainer(**(GAME | changes))
    for _ in range(2):
        trainer.step()
    return trainer


def convolutions(work):
    counted = measure.flops(work)
    return counted["convolution"] + counted["convolution_backward"]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"algorithm": "gan"},
        {"gamma": 0.9},
        {"algorithm": "gan", "replay_fraction": 0.0},
        {"critics": "none"},
        {"generators": 2, "discriminators": 3, "gamma": 0.9, "specialise": 1.0},
        {"spectral_norm": True, "r2": 0.1, "gradient_penalty": 10.0},
        {"reward_function": "relativistic", "replay_fraction": 0.0},
        {"precision": "bf16"},
    ],
    ids=str,
)
def test_the_step_makes_the_floors_convolutions_and_no_more(changes, monkeypatch):
    monkeypatch.setattr(maddpg, "MEASURE_EVERY", 1000)
    trainer = after_two_steps(**changes)
    both, whole = [floor(trainer, r1) for r1 in (False, True)], floors(trainer)
    plain, penalised = (convolutions(lambda uses=uses: step.run([uses])) for uses in both)
    assert [convolutions(trainer.step) for _ in range(4)] == [plain, penalised, plain, plain]
    assert penalised > plain > 0
    period = convolutions(lambda: step.run(whole))
    assert period == penalised + 2 * plain == convolutions(lambda: steps(trainer))


def test_without_r1_a_period_is_one_step():
    trainer = after_two_steps(r1=0.0)
    assert [use.end for use in floors(trainer)[0]].count("real") == 1 == len(floors(trainer))
    assert steps(trainer) == 1 and trainer.steps == 3


def test_operations_are_counted_as_by_hand():
    layer, x = torch.nn.Conv2d(3, 5, 4, stride=2, padding=1), torch.randn(2, 3, 8, 8)
    forward = 2 * 2 * 5 * 4 * 4 * 3 * 4 * 4  # two each of B, maps, places, and what one place sums over
    assert measure.flops(lambda: layer(x)) == {"convolution": forward}
    x.requires_grad_()
    assert measure.flops(lambda: layer(x).sum().backward())["convolution_backward"] == 2 * forward
    assert measure.flops(lambda: torch.autograd.grad(layer(x).sum(), x))["convolution_backward"] == forward


def test_uses_are_counted_as_by_hand():
    """Two generators, three discriminators: on the 8 rows each network makes a pass for one end, or two."""
    trainer = after_two_steps(generators=2, discriminators=3, gamma=0.9)
    learns, teaches = (FORWARD, TO_PARAMETERS), (FORWARD, TO_INPUTS)
    always = (
        [("G_a", 8, learns), ("G", 8, learns), ("G_c", 8, learns), ("G_c", 8, teaches)] * 2
        + [("D_a", 8, learns), ("D_a", 8, teaches)] * 6  # of each pair: on fakes, and for G
        + [("D_c", 24, learns), ("D_c", 24, teaches)] * 3  # real images, and two generators'
        + [("G_a'", 8, (FORWARD,)), ("G'", 8, (FORWARD,)), ("G_c'", 8, (FORWARD,))] * 2
        + [("D_a'", 8, (FORWARD,))] * 9
        + [("D_c'", 24, (FORWARD,))] * 3
    )
    for r1, real in ((False, learns), (True, (FORWARD, TO_INPUTS, DOUBLE))):
        found = [(use.network, use.rows, tuple(use.passes())) for use in floor(trainer, r1)]
        assert sorted(found) == sorted(always + [("D_a", 8, real)] * 3)


def test_the_floor_teaches_nobody():
    trainer = after_two_steps(r2=0.1, gradient_penalty=1.0, gamma=0.9)
    before = weights(trainer.agents)
    step.run(floors(trainer))
    assert not differing(before, weights(trainer.agents))
    assert all(p.grad is None for agent in trainer.agents for net in agent.networks.values() for p in net.parameters())


def test_phases_are_those_of_a_step_on_average_over_a_period():
    trainer, clock = after_two_steps(generators=2, discriminators=3), itertools.count().__next__
    phases = step.time_phases(trainer, clock)  # on this clock a call lasts one tick
    rest = (1 + 3 * 2 * (1 + 1 + 5)) / 3 - 7  # the clock is read before and after each of the calls
    assert phases == pytest.approx({
        "act": 1, "play": 1, "update of discriminators": 3, "update of generators": 2, "the rest": rest
    })  # fmt: skip
    assert trainer.steps == 5
    assert "act" not in vars(trainer) and not any("update" in vars(agent) for agent in trainer.agents)


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


def test_calls_before_a_block_take_no_time():
    now = [0.0]

    def work():
        now[0] += 3.0

    calls = []
    works = {"one": lambda: (calls.append("one"), work()), "other": lambda: (calls.append("other"), work())}
    spent = measure.in_turns(works, lambda: now[0], repeats=1, before={"other": 2})
    assert calls == ["one", "other", "one", *["other"] * 3]
    assert spent == {"one": [3.0], "other": [3.0]}


def test_a_ratio_is_the_median_over_the_turns():
    assert measure.ratios([2.0, 9.0, 4.0], [1.0, 3.0, 4.0]) == {"median": 2.0, "low": 1.0, "high": 3.0}


def test_the_last_line_tells_all(capsys, monkeypatch):
    monkeypatch.setattr(measure, "BLOCK_SECONDS", 0.0)
    assert step.main([*TINY, "--repeats", "2"]) == 0
    *table, last = capsys.readouterr().out.splitlines()
    logged = json.loads(last)
    assert logged["ratio"] == logged["ratio_spread"]["median"] > 0
    assert logged["ratio_spread"]["low"] <= logged["ratio"] <= logged["ratio_spread"]["high"]
    assert logged["images_per_second"] * logged["step_seconds"]["median"] == pytest.approx(8)
    assert {one["network"] for one in logged["passes"]} == {"G_a", "G", "G_c", "D_a", "D_c"}
    real = {(one["end"], one["kind"]): one["uses"] for one in logged["passes"] if one["end"].startswith("real")}
    assert real == {("real, R1", kind): 1 / 2 for kind in (FORWARD, TO_INPUTS, DOUBLE)} | {
        ("real", FORWARD): 1 / 2, ("real", TO_PARAMETERS): 1 / 2
    }  # fmt: skip
    assert logged["steps_in_a_period"] == 2
    assert all(one["seconds"] > 0 for one in logged["passes"])
    assert set(logged["phases"]) >= {"act", "play", "update of discriminators", "update of generators"}
    assert logged["step_flops"] >= logged["floor_flops"] > 0
    assert logged["peak_memory"] is None or logged["peak_memory"] > 0
    assert logged["machine"]["torch"] == torch.__version__ and logged["config"]["width"] == 4
    assert any(line.startswith("D_a   real, R1") for line in table)


def test_passes_are_timed_as_their_share_of_a_step():
    trainer, clock = after_two_steps(), itertools.count().__next__
    passes = step.time_passes(floors(trainer), clock)
    assert passes["D_a", "real, R1", 8, DOUBLE] == pytest.approx(1 / 3)
    assert passes["D_a", "real", 8, TO_PARAMETERS] == pytest.approx(2 / 3)
    assert passes["G", "makes images", 8, TO_PARAMETERS] == pytest.approx(1)


def test_teams_are_compared_with_the_first(capsys, monkeypatch):
    monkeypatch.setattr(measure, "BLOCK_SECONDS", 0.0)
    monkeypatch.setattr(step, "peak_memory_apart", lambda config, words: config.generators * 2**20)
    assert step.main([*TINY, "--repeats", "1", "--teams", "1x1", "2x1"]) == 0
    *table, last = capsys.readouterr().out.splitlines()
    logged = json.loads(last)
    one, two = logged["teams"]
    assert (one["team"], one["networks"], one["growth"], one["floor_growth"]) == ("1x1", 5, 1.0, 1.0)
    assert (two["team"], two["networks"]) == ("2x1", 8)
    grown = two["step_seconds"]["median"] / one["step_seconds"]["median"]
    assert two["growth"] == pytest.approx(grown * 5 / 8)
    assert logged["growth"] == max(1.0, two["growth"]) and logged["ratio"] == max(
        one["ratio"]["median"], two["ratio"]["median"]
    )
    assert any(line.startswith("2x1") and line.endswith("2 MiB") for line in table)


def test_peak_memory_sees_what_was_freed():
    work = "measure.peak_memory(torch.device('cpu'), lambda: torch.ones(2**26))"  # 256 MiB
    child = [sys.executable, "-c", f"import torch; from benchmarks import measure; print({work})"]
    taken = subprocess.run(child, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    assert taken == "None" or int(taken) == pytest.approx(2**28, rel=0.1)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--teams", "2y1"], "--teams 2y1 is no team: give numbers such as 4x1."),
        (["--teams", "0x1"], "--generators is 0, but must be from 1 to 64."),
        (["--dry-run"], "a benchmark begins with fresh weights: leave out --resume, --config and --dry-run."),
        (["--repeats", "0"], "--repeats and --threads must be at least 1."),
        (["--r1", "-1"], "--r1 is -1.0, but must be from 0 to 1e+06."),
    ],
)
def test_mistakes_are_told_in_a_sentence(words, sentence, capsys):
    assert step.main([*TINY, *words]) == 2
    assert capsys.readouterr().err == f"step.py: {sentence}\n"


def test_a_team_is_the_same_game_with_other_numbers():
    assert step.sized(small_config(reward_function="hinge"), "3x2") == small_config(
        reward_function="hinge", generators=3, discriminators=2
    )


def test_the_gains_are_measured_on_trainers_that_still_learn(capsys, monkeypatch):
    monkeypatch.setattr(measure, "BLOCK_SECONDS", 0.0)
    assert gains.main([*TINY, "--repeats", "1"]) == 0
    logged = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert logged["without"].keys() == gains.WITHOUT.keys() - {"as it is"}
    assert logged["ratio"] == logged["without"]["none of these means"]["median"] > 0
    trainer = after_two_steps()
    gains.all_of_these(trainer)
    before = weights(trainer.agents)
    trainer.step()
    assert differing(before, weights(trainer.agents)) == {name for name in before if not name.endswith("target")}

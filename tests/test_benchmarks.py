"""benchmarks/: what is counted and told is so. How long anything takes is not asked here."""

import itertools
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import differing, new_trainer, small_config, weights
from PIL import Image

from benchmarks import against, data, measure, pictures, step, textbook
from benchmarks.floor import DOUBLE, FORWARD, TO_INPUTS, TO_PARAMETERS, floor

ROOT = Path(__file__).resolve().parents[1]
TINY = "--image-size 32 --width 4 --nz 6 --batch-size 8 --precision fp32 --device cpu".split()
GAME = {"answers": 2, "latent_step": 0.9, "replay_fraction": 0.25}  # B = 8 rows, of which F = 6 are fresh: C = 14


def after_two_steps(**changes):
    """A trainer whose ring is filled."""
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
        {"lambda_generator": 0.0, "lambda_discriminator": 0.0, "gamma": 0.9},
        {"generators": 2, "discriminators": 3, "critic": "joint"},
        {"generators": 3, "share": True, "spectral_norm": True},
        {"discriminator_steps": 3, "latent_step": 0.0},
        {"updates": "simultaneous", "answers": 1, "replay_fraction": 0.0},
        {"precision": "bf16"},
    ],
    ids=str,
)
def test_the_step_makes_the_floors_convolutions_and_no_more(changes):
    trainer = after_two_steps(**changes)
    uses = floor(trainer)
    assert convolutions(trainer.step) == convolutions(lambda: step.run(uses)) > 0


def test_operations_are_counted_as_by_hand():
    layer, x = torch.nn.Conv2d(3, 5, 4, stride=2, padding=1), torch.randn(2, 3, 8, 8)
    forward = 2 * 2 * 5 * 4 * 4 * 3 * 4 * 4  # two each of B, maps, places, and what one place sums over
    assert measure.flops(lambda: layer(x)) == {"convolution": forward}
    x.requires_grad_()
    assert measure.flops(lambda: layer(x).sum().backward())["convolution_backward"] == 2 * forward
    assert measure.flops(lambda: torch.autograd.grad(layer(x).sum(), x))["convolution_backward"] == forward


def test_uses_are_counted_as_by_hand():
    trainer = after_two_steps(generators=2, discriminators=3, r1=0.1, gamma=0.9, lambda_discriminator=0.5)
    found = sorted((use.network, use.rows, tuple(use.passes())) for use in floor(trainer))
    slope, learning, judging = (FORWARD, TO_INPUTS, DOUBLE), (FORWARD, TO_PARAMETERS), (FORWARD, TO_INPUTS)
    assert found == sorted(
        [("G_a", 6, learning), ("G", 12, judging), ("G", 14, learning), ("G_c", 8, slope)] * 2
        + [("D_a", 12, judging), ("D_a", 14, learning), ("D_a", 14, judging)] * 6  # of each pair
        + [("D_a", 8, slope), ("D_c", 36, slope), ("D_c", 36, judging)] * 3
        + [("G_a'", 8, (FORWARD,)), ("G'", 8, (FORWARD,)), ("G_c'", 8, (FORWARD,))] * 2
        + [("D_a'", 8, (FORWARD,))] * 9
        + [("D_c'", 24, (FORWARD,))] * 3
    )


def test_the_floor_teaches_nobody():
    trainer = after_two_steps(r1=0.1, r2=0.1, gradient_penalty=1.0)
    before = weights(trainer.agents)
    step.run(floor(trainer))
    assert not differing(before, weights(trainer.agents))
    assert all(p.grad is None for agent in trainer.agents for net in agent.networks.values() for p in net.parameters())


def test_phases_are_those_of_one_step():
    trainer, clock = after_two_steps(generators=2, discriminators=3), itertools.count().__next__
    phases = step.time_phases(trainer, clock)  # on this clock a call lasts one tick
    rest = 1 + 2 * (1 + 1 + 5 + 5) - 12  # the clock is read before and after each of the calls
    assert phases == {
        "act": 1, "play": 1, "update of discriminators": 3, "update of generators": 2, "targets": 5, "the rest": rest
    }  # fmt: skip
    assert trainer.steps == 3
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
    told = json.loads(last)
    assert told["ratio"] == told["ratio_spread"]["median"] > 0
    assert told["ratio_spread"]["low"] <= told["ratio"] <= told["ratio_spread"]["high"]
    assert told["images_per_second"] * told["step_seconds"]["median"] == pytest.approx(8)
    assert {one["network"] for one in told["passes"]} == {"G_a", "G", "G_c", "D_a", "D_c"}
    assert all(one["seconds"] > 0 for one in told["passes"])
    assert set(told["phases"]) >= {"act", "play", "update of discriminators", "update of generators", "targets"}
    assert told["step_flops"] >= told["floor_flops"] > 0
    assert told["peak_memory"] is None or told["peak_memory"] > 0
    assert told["machine"]["torch"] == torch.__version__ and told["config"]["width"] == 4
    assert any(line.startswith("D_a   real, R1") for line in table)


def test_teams_are_compared_with_the_first(capsys, monkeypatch):
    monkeypatch.setattr(measure, "BLOCK_SECONDS", 0.0)
    monkeypatch.setattr(step, "peak_memory_apart", lambda config, words: config.generators * 2**20)
    assert step.main([*TINY, "--repeats", "1", "--teams", "1x1", "2x1"]) == 0
    *table, last = capsys.readouterr().out.splitlines()
    told = json.loads(last)
    one, two = told["teams"]
    assert (one["team"], one["networks"], one["growth"], one["floor_growth"]) == ("1x1", 5, 1.0, 1.0)
    assert (two["team"], two["networks"]) == ("2x1", 8)
    grown = two["step_seconds"]["median"] / one["step_seconds"]["median"]
    assert two["growth"] == pytest.approx(grown * 5 / 8)
    assert told["growth"] == max(1.0, two["growth"]) and told["ratio"] == max(
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
        (["--dry-run"], "a benchmark begins with fresh weights: leave out --resume and --dry-run."),
        (["--repeats", "0"], "--repeats and --threads must be at least 1."),
        (["--r1", "-1"], "--r1 is -1.0, but must be from 0 to 1e+06."),
    ],
)
def test_mistakes_are_told_in_a_sentence(words, sentence, capsys):
    assert step.main([*TINY, *words]) == 2
    assert capsys.readouterr().err == f"step.py: {sentence}\n"


def test_a_team_is_the_same_game_with_other_numbers():
    assert step.sized(small_config(returns="hinge"), "3x2") == small_config(
        returns="hinge", generators=3, discriminators=2
    )


# The data, and what a user would write


def test_drawn_files_have_celebas_size_and_others_are_copied(tmp_path):
    for name in ("drawn", "copied"):
        (tmp_path / name).mkdir()
    pictures.write_pictures("synthetic", 3, tmp_path / "drawn")
    assert [Image.open(path).size for path in sorted((tmp_path / "drawn").iterdir())] == [(178, 218)] * 3
    pictures.write_pictures(str(tmp_path / "drawn"), 2, tmp_path / "copied")
    assert {path.read_bytes() for path in (tmp_path / "copied").iterdir()} == {
        path.read_bytes() for path in sorted((tmp_path / "drawn").iterdir())[:2]
    }


def test_the_data_are_measured_to_the_first_step(capfd, monkeypatch):
    monkeypatch.setattr(measure, "BLOCK_SECONDS", 0.0)
    monkeypatch.setattr(data, "MANY", 2 * data.FEW)
    words = ["--data", "synthetic", "--files", "40", "--repeats", "1", "--steps-done", "3"]
    assert data.main([*TINY, *words]) == 0
    told = json.loads(capfd.readouterr().out.splitlines()[-1])
    making, steps = told["making"], told["steps"]
    assert making["files"] == 40 and making["bytes_per_file"] > 1000
    assert told["ratio"] == pytest.approx(
        making["images_per_second"]["one"]["median"] / making["images_per_second"]["decode"]["median"]
    )
    assert making["peak_memory"] is None or making["peak_memory"] >= 0
    assert told["first_step_seconds"]["median"] > 0
    assert set(steps["batches"]) == {"mapped", "in memory"} and steps["steps_done"] == 3
    assert steps["late_against_early"]["median"] > 0 and steps["many_against_few"]["median"] > 0


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "pictures" / "faces").mkdir(parents=True)
    pictures.write_pictures("synthetic", 16, tmp_path / "pictures" / "faces")
    return tmp_path / "pictures"


@pytest.mark.parametrize("loop", [textbook.dcgan, textbook.five_networks])
def test_the_loops_teach_all_their_networks(folder, loop, monkeypatch):
    made = []
    for name in ("generator_networks", "discriminator_networks"):
        build = getattr(textbook, name)
        monkeypatch.setattr(textbook, name, lambda config, build=build: made.append(build(config)) or made[-1])
    step_ = loop(folder, small_config(device="cpu", algorithm="gan" if loop is textbook.dcgan else "magnet"), 0)
    networks = [net for part in made for net in part.values()]
    before = [[p.clone() for p in net.parameters()] for net in networks]
    losses = [step_(), step_()]
    assert len(networks) == (2 if loop is textbook.dcgan else 5)
    assert torch.tensor(losses).isfinite().all() and losses[0] != losses[1]
    for net, old in zip(networks, before, strict=True):
        assert not any(torch.equal(a, b) for a, b in zip(net.parameters(), old, strict=True))


def test_the_program_is_compared_at_the_same_game(capfd, monkeypatch):
    monkeypatch.setattr(measure, "BLOCK_SECONDS", 0.0)
    words = ["--data", "synthetic", "--files", "16", "--repeats", "1", "--workers", "0"]
    assert against.main([*TINY, *words]) == 0
    told = json.loads(capfd.readouterr().out.splitlines()[-1])
    rates = {name: rate["median"] for name, rate in told["images_per_second"].items()}
    assert told["ratio"] == pytest.approx(rates["MAGNET, published"] / rates["five networks"])
    assert told["ratios"]["plain GAN"]["median"] == pytest.approx(rates["MAGNET, plain GAN"] / rates["DCGAN"])
    assert all(seconds > 0 for seconds in told["beside_the_steps"].values())
    assert told["flops"]["five networks"] > told["flops"]["DCGAN"] > 0


@pytest.mark.parametrize(
    ("program", "words", "sentence"),
    [
        (data, ["--files", "0"], "data.py: --files must be at least 1."),
        (data, ["--data", "gaussians-8"], "data.py: --data gaussians-8 are points, which nobody decodes: name images."),
        (data, ["--data", "nowhere"], "data.py: there is no folder nowhere: "),
        (against, ["--files", "15"], "against.py: give --files of at least 16, two batches, and no --workers below 0."),
        (against, ["--algorithm", "gan"], "against.py: MAGNET with one agent of each kind is compared, on images: "),
    ],
)
def test_mistakes_of_the_other_two_are_told_in_a_sentence(program, words, sentence, capsys):
    assert program.main([*TINY, *words]) == 2
    assert capsys.readouterr().err.startswith(sentence)

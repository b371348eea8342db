"""benchmarks/ of data, and against what a user would write: what is counted and told is so, not how long it takes."""

import contextlib
import io
import json

import pytest
import torch
from conftest import small_config
from PIL import Image
from test_benchmarks import TINY

from benchmarks import against, data, measure, pictures, textbook
from magnet.maddpg import MADDPG


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
    logged = json.loads(capfd.readouterr().out.splitlines()[-1])
    making, steps = logged["making"], logged["steps"]
    assert making["files"] == 40 and making["bytes_per_file"] > 1000
    assert logged["ratio"] == pytest.approx(
        making["images_per_second"]["one"]["median"] / making["images_per_second"]["decode"]["median"]
    )
    assert making["peak_memory"] is None or making["peak_memory"] >= 0
    assert logged["first_step_seconds"]["median"] > 0
    assert set(steps["batches"]) == {"mapped", "in memory"} and steps["steps_done"] == 3
    assert steps["late_against_early"]["median"] > 0 and steps["many_against_few"]["median"] > 0


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "pictures" / "faces").mkdir(parents=True)
    pictures.write_pictures("synthetic", 16, tmp_path / "pictures" / "faces")
    return tmp_path / "pictures"


@pytest.mark.parametrize(("loop", "count"), [(textbook.dcgan, 2), (textbook.five_networks, 5)])
def test_the_loops_teach_all_their_networks(folder, loop, count, monkeypatch):
    networks, adam = [], textbook.adam
    monkeypatch.setattr(textbook, "adam", lambda network, config: networks.append(network) or adam(network, config))
    step_ = loop(folder, small_config(device="cpu", algorithm="gan" if loop is textbook.dcgan else "magnet"), 0)
    before = [[p.clone() for p in net.parameters()] for net in networks]
    losses = [step_(), step_()]
    assert len(networks) == count
    assert torch.tensor(losses).isfinite().all() and losses[0] != losses[1]
    for net, old in zip(networks, before, strict=True):
        assert not any(torch.equal(a, b) for a, b in zip(net.parameters(), old, strict=True))


def test_the_textbooks_critics_have_convolutions_of_their_own_and_see_image_and_action():
    critic = textbook.Critic(small_config(), actions=6)
    assert any(isinstance(layer, torch.nn.Conv2d) for layer in critic.modules())
    images, actions = torch.randn(8, 3, 32, 32, requires_grad=True), torch.randn(8, 6, requires_grad=True)
    values = critic(images, actions)
    assert values.shape == (8,)
    assert all(found.any() for found in torch.autograd.grad(values.sum(), (images, actions)))


@pytest.fixture(scope="module")
def compared():
    """What against.py prints, the tables' lines and the JSON, and the config of each step that its trainers made."""
    calls, step, said = [], MADDPG.step, io.StringIO()
    words = ["--data", "synthetic", "--files", "16", "--repeats", "1", "--workers", "0", "--gamma", "0.5"]
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(said):
        patch.setattr(measure, "BLOCK_SECONDS", 0.0)
        patch.setattr(MADDPG, "step", lambda trainer: calls.append(trainer.config) or step(trainer))
        assert against.main([*TINY, *words]) == 0
    *table, last = said.getvalue().splitlines()
    return table, json.loads(last), calls


def test_the_program_is_compared_at_the_same_game(compared):
    _, logged, _ = compared
    rates = {name: rate["median"] for name, rate in logged["images_per_second"].items()}
    assert logged["ratio"] == pytest.approx(rates["MAGNET, published"] / rates["five networks"])
    assert logged["ratios"]["plain GAN"]["median"] == pytest.approx(rates["MAGNET, plain GAN"] / rates["DCGAN"])
    assert all(seconds > 0 for seconds in logged["beside_the_steps"].values())
    for name, seconds in logged["beside_the_steps"].items():
        assert rates[name] == pytest.approx(8 / (logged["step_seconds"][name]["median"] + seconds))
    assert logged["flops"]["five networks"] > logged["flops"]["DCGAN"] > 0


def test_magnets_step_is_compared_with_that_of_a_gan_with_r1_and_replay_and_of_a_plain_one(compared):
    table, logged, calls = compared
    magnet, same, plain, *_ = dict.fromkeys(calls)
    assert (magnet.algorithm, same.algorithm, plain.algorithm) == ("magnet", "gan", "gan")
    assert (same.r1, same.r1_every, same.replay_fraction) == (magnet.r1, 2, magnet.replay_fraction) and magnet.r1 > 0
    assert (plain.r1, plain.replay_fraction, plain.batch_size) == (0, 0, magnet.batch_size)
    assert calls.count(same) == calls.count(magnet) == 2 * calls.count(plain), "whole periods of R1"
    seconds = {name: spread["median"] for name, spread in logged["step_seconds"].items()}
    for name in ("GAN", "plain GAN"):
        ratio = logged["step_ratios"][name]["median"]
        assert ratio == pytest.approx(seconds["MAGNET"] / seconds[f"MAGNET, {name}"])
        assert any(f"{ratio:.3f}" in line for line in table)
    ratio = logged["step_ratios"]["extra reward"]["median"]
    assert ratio == pytest.approx(seconds["MAGNET, extra reward"] / seconds["MAGNET"])
    assert logged["flops"]["MAGNET, extra reward"] > logged["flops"]["MAGNET"]
    assert logged["flops"]["MAGNET"] > logged["flops"]["MAGNET, GAN"] > logged["flops"]["MAGNET, plain GAN"] > 0


@pytest.mark.parametrize(
    ("program", "words", "sentence"),
    [
        (data, ["--files", "0"], "data.py: --files must be at least 1."),
        (data, ["--data", "gaussians-8"], "data.py: --data gaussians-8 are points, which nobody decodes: name images."),
        (data, ["--data", "nowhere"], "data.py: there is no folder nowhere: "),
        (against, ["--files", "15"], "against.py: give --files of at least 16, two batches, and no --workers below 0."),
        (against, ["--init", "x"], "against.py: a benchmark plays without --extra-reward and --init: leave them out."),
        (against, ["--algorithm", "gan"], "against.py: MAGNET with one agent of each kind is compared, on images: "),
    ],
)
def test_mistakes_of_the_other_two_are_told_in_a_sentence(program, words, sentence, capsys):
    assert program.main([*TINY, *words]) == 2
    assert capsys.readouterr().err.startswith(sentence)

"""The whole program through its command line: settings, a tiny run and what it leaves."""

import dataclasses
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import sample
import train
from magnet import maddpg
from magnet.config import PRESETS, Config, complete
from magnet.data.held_out import is_held_out
from magnet.data.image_dataset import fingerprint
from magnet.run import checkpoint, command_line

ROOT = Path(train.__file__).parent
PER_EPOCH = 6  # 40 images, 6 fresh rows a step
TINY = [
    *("--data", "faces", "--image-size", "32", "--width", "4", "--nz", "4", "--batch-size", "8", "--device", "cpu"),
    *("--replay-fraction", "0.25", "--replay-size", "20", "--episode-length", "4", "--gamma", "0.5"),
    *("--precision", "fp32"),
    *("--sample-every", "5", "--checkpoint-every", "1", "--keep", "100"),
]


def start(place, *arguments):
    """train.py in a process of its own, one thread."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "train.py"), *arguments]
    return subprocess.Popen(
        command, cwd=place, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finish(process):
    """Its exit status and what it printed."""
    output, _ = process.communicate(timeout=120)
    return process.returncode, output


def wait_for(path, process):
    deadline = time.monotonic() + 60
    while not path.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert path.exists(), finish(process)


def differences(a, b, name=""):
    """Dotted names at which two nested states differ, bit for bit."""
    if isinstance(a, torch.Tensor):
        return [] if a.dtype == b.dtype and torch.equal(a, b) else [name]
    if isinstance(a, dict):
        assert a.keys() == b.keys(), name
        return [result for key in a for result in differences(a[key], b[key], f"{name}.{key}")]
    if isinstance(a, (list, tuple)):
        assert len(a) == len(b), name
        return [result for i in range(len(a)) for result in differences(a[i], b[i], f"{name}.{i}")]
    return [] if a == b else [name]


def metrics(run):
    """What a run has logged so far. With its times in it no two makings are alike: a step made again would show."""
    return (run / "metrics.jsonl").read_bytes()


def state(run):
    return checkpoint.load_newest(run / "checkpoints")[1]["trainer"]


def test_every_parameter_has_a_flag_and_its_default(capsys):
    with pytest.raises(SystemExit) as stopped:
        train.main(["--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    for field in dataclasses.fields(Config):
        assert re.search(rf"--{field.name.replace('_', '-')}[ ,\n]", text)
    given, _ = command_line.parse(["--replay-fraction", "0.5", "--nz", "7"])
    assert given == {"replay_fraction": 0.5, "nz": 7}  # nothing else is set by the command line


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_trains_and_flags_come_before_it(place, preset):
    small = ["--data", "faces", "--image-size", "32", "--width", "4", "--batch-size", "12", "--device", "cpu"]
    assert train.main(["--preset", preset, *small, "--steps", "2", "--name", "preset"]) == 0
    config = json.loads((place / "models" / "preset" / "config.json").read_text())
    given = {"data": "faces", "image_size": 32, "width": 4, "batch_size": 12, "device": "cpu"}
    expected = PRESETS[preset] | given
    assert {name: config[name] for name in expected} == expected


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--data", "nowhere"], ["nowhere", "download_celeba.py"]),
        (["--data", ""], ["--data is empty", "download_celeba.py"]),
        (["--batch-size", "3"], ["--batch-size is 3", "from 4 to 65536"]),
        (["--lr", "nan"], ["--lr is nan"]),
        (["--gamma", "1"], ["--gamma is 1.0"]),
        (["--tau", "-0.1"], ["--tau is -0.1"]),
        (["--tau", "0"], ["--tau is 0.0", "from 1e-06 to 1"]),
        (["--patience", "3"], ["--patience 3", "--evaluate-every"]),
        (["--hold-out", "0.6"], ["--hold-out is 0.6", "from 0 to 0.5"]),
        (["--hold-out", "1e-9"], ["--hold-out 1e-09", "0 of 40 images"]),
        (["--steps", "-1"], ["--steps is -1"]),
        (["--name", "../x"], ["--name is '../x'"]),
        (["--name", ".."], ["--name is '..'"]),
        (["--device", "cuda:99"], ["cuda:99", "--device cpu"]),
        (["--device", "tpu"], ["'tpu'"]),
        (["--replay-fraction", "0.9", "--batch-size", "8"], ["--replay-fraction 0.9"]),
        (["--replay-size", "5"], ["--replay-size is 5"]),
        (["--batch-size", "64", "--replay-size", "64"], ["faces", "too few", "--batch-size"]),
        (["--algorithm", "gan", "--gamma", "0.5"], ["--gamma 0.5", "give --gamma 0"]),
        (["--critics", "none"], ["--gamma 0.5", "give --gamma 0"]),
        (["--r1-every", "0"], ["--r1-every is 0", "from 1 to 1000"]),
        (["--resume", "models/none"], ["models/none", "no run"]),
        (["--resume", "faces/00.png"], ["no checkpoint", "`python3 train.py --init faces/00.png`"]),
    ],
)
def test_a_mistake_is_one_sentence_and_status_2(place, capsys, arguments, words):
    assert train.main([*TINY, *arguments]) == 2
    *bars, error = capsys.readouterr().err.strip().splitlines()
    assert error.startswith("train.py: ") and all(word in error for word in words)
    assert all("images/s" in bar or "image/s" in bar for bar in bars)  # nothing else, no traceback
    assert not (place / "models").exists()


@pytest.mark.parametrize(
    "arguments",
    [["--image-size", "48"], ["--epochs", "two"], ["--no-such-flag", "1"], ["--preset", "cpu", "--resume", "models/a"]],
)
def test_words_that_argparse_does_not_know_have_status_2(arguments):
    with pytest.raises(SystemExit) as stopped:
        train.main(arguments)
    assert stopped.value.code == 2


def test_a_dry_run_counts_and_leaves_nothing(place, capsys):
    assert train.main([*TINY, "--dry-run"]) == 0
    output = capsys.readouterr().out
    assert all(name in output for name in ("G_a", "G_c", "D_a", "D_c", "Memory in all"))
    assert re.search("^Steps: 300, 50 epochs of 40 images at 32x32: (about|less than) ", output, re.MULTILINE)
    assert not (place / "models").exists()


def test_the_start_of_a_run_is_short_and_tells_its_length(place, capsys):
    assert train.main([*TINY, "--spectral-norm", "--steps", "2", "--name", "short"]) == 0
    lines = capsys.readouterr().out.splitlines()
    settings = "--data faces --image-size 32"
    assert lines[0].startswith(f"Settings other than the defaults: {settings} ") and " --spectral-norm " in lines[0]
    assert "--lr" not in lines[0] and "--replay-fraction" not in lines[0]
    assert lines[1].startswith("Networks: ") and len(lines) == 5
    assert lines[2:4] == ["Steps: 2, 0.333 epochs of 40 images at 32x32", "Run folder: models/short"]
    assert train.main(["--resume", "short", "--steps", "30", "--dry-run"]) == 0
    assert "Steps: 30, 5 epochs of 40 images at 32x32; 2 are made: " in capsys.readouterr().out


def test_a_run_leaves_what_the_readme_says(place, monkeypatch):
    monkeypatch.setattr(maddpg, "TARGETS_EVERY", 1)  # in progress.gif a grid that is like the one before is no frame
    assert train.main([*TINY, "--steps", "13", "--name", "first"]) == 0
    run = place / "models" / "first"
    assert json.loads((run / "config.json").read_text())["nz"] == 4
    assert json.loads((run / "environment.json").read_text())["torch"] == torch.__version__
    assert [int(path.stem) for path in checkpoint.list_checkpoints(run / "checkpoints")] == [0, 6, 12, 13]

    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [6, 12, 13]  # read back at each checkpoint
    assert sum(line["steps"] for line in lines) == 13 and lines[-1]["images"] == 13 * 8
    for name in (
        "generator/reward", "generator/critic_loss", "generator/gradient_cosine", "generator/z_deviation",
        "generator/z_correlation", "generator/actor_gradient", "generator/generator_gradient",
        "discriminator/reward", "discriminator/critic_loss", "discriminator/gradient_cosine",
        "discriminator/accuracy_real", "discriminator/accuracy_fake", "discriminator/critic_gradient",
        "images_per_second",
    ):  # fmt: skip
        assert np.isfinite(lines[1][name]), name
    assert "generator/reward" in lines[-1] and "generator/gradient_cosine" not in lines[-1], "of steps 1, 6 and 11"
    assert ["discriminator/r1" in line for line in lines] == [True, True, False], "R1 is of steps 1 and 9"

    events = EventAccumulator(str(run)).Reload()
    assert [e.step for e in events.Scalars("generator/reward")] == [6, 12, 13]
    assert [e.step for e in events.Images("prior")] == [0, 5, 10, 13]

    grids = sorted(p.name for p in (run / "samples").iterdir())
    assert grids == sorted(f"{step:06d}{kind}.png" for step in (0, 5, 10, 13) for kind in ("", "-policy"))
    assert Image.open(run / "samples" / "000013.png").size == (8 * 34 + 2, 8 * 34 + 2)
    assert (run / "samples" / "000000.png").read_bytes() != (run / "samples" / "000013.png").read_bytes()
    assert Image.open(run / "progress.gif").n_frames == 4


def test_the_policy_grid_shows_real_states_beside_the_answers(place):
    assert train.main([*TINY, "--steps", "1", "--name", "grid"]) == 0
    grid = np.asarray(Image.open(place / "models" / "grid" / "samples" / "000001-policy.png"))
    real = {np.asarray(Image.open(p)).tobytes() for p in (place / "faces").iterdir()}
    cells = [[grid[2 + 34 * r : 34 + 34 * r, 2 + 34 * c : 34 + 34 * c].tobytes() for c in range(8)] for r in range(8)]
    assert all((cells[r][c] in real) == (c % 2 == 0) for r in range(8) for c in range(8))


def test_several_agents_train_go_on_and_are_sampled(place):
    team = ["--generators", "2", "--discriminators", "2", "--specialise", "1"]
    assert train.main([*TINY, *team, "--steps", "4", "--name", "team"]) == 0
    assert train.main(["--resume", "models/team", "--steps", "6"]) == 0
    line = json.loads((place / "models" / "team" / "metrics.jsonl").read_text().splitlines()[-1])
    agents = {"generator_0", "generator_1", "discriminator_0", "discriminator_1"}
    assert {name.split("/")[0] for name in line if "/" in name} == agents
    assert sample.main(["models/team", "--count", "6", "--npz", "six.npz"]) == 0
    with np.load("six.npz") as six:
        assert len(np.unique(six["arr_0"].reshape(6, -1), axis=0)) == 6


def test_a_plain_gan_trains_and_has_no_policy(place, capsys):
    assert train.main([*TINY, "--algorithm", "gan", "--gamma", "0", "--steps", "6", "--name", "gan"]) == 0
    assert "G_c" not in capsys.readouterr().out
    grids = {path.name for path in (place / "models" / "gan" / "samples").iterdir()}
    assert grids == {"000000.png", "000005.png", "000006.png"}
    assert sample.main(["models/gan", "--out", "prior.png"]) == 0
    assert sample.main(["models/gan", "--kind", "guided", "--out", "guided.png"]) == 0
    assert (place / "guided.png").read_bytes() != (place / "prior.png").read_bytes()
    assert sample.main(["models/gan", "--kind", "policy"]) == 2
    assert "no policy" in capsys.readouterr().err


def test_a_resumed_run_keeps_its_game(place, capsys):
    assert train.main([*TINY, "--steps", "2", "--name", "game"]) == 0
    capsys.readouterr()
    assert train.main(["--resume", "models/game", "--nz", "5", "--tau", "0.1"]) == 2
    error = capsys.readouterr().err
    assert "--nz (was 4)" in error and "--tau (was 0.003)" in error
    for path in (place / "faces").iterdir():
        os.utime(path, (1, 1))  # copied: the same images
    assert train.main(["--resume", "models/game", "--steps", "2", "--precision", "auto"]) == 0
    (place / "faces" / "00.png").unlink()
    assert train.main(["--resume", "models/game", "--steps", "3"]) == 2
    assert "not those" in capsys.readouterr().err
    assert state(place / "models" / "game")["steps"] == 2


def test_held_out_images_are_shown_to_no_agent_and_stay_apart(place, capsys):
    assert train.main([*TINY, "--hold-out", "0.2", "--steps", "6", "--name", "apart"]) == 0
    run = place / "models" / "apart"
    every = {p.name: np.asarray(Image.open(p)) for p in (place / "faces").iterdir()}
    training = np.stack([every[n] for n in sorted(every) if not is_held_out(n, 0.2)]).transpose(0, 3, 1, 2)
    assert 0 < len(training) < 40 and checkpoint.load_newest(run / "checkpoints")[1]["faces"] == fingerprint(training)
    assert train.main(["--resume", "models/apart", "--steps", "7", "--hold-out", "0.3"]) == 2
    assert "--hold-out (was 0.2)" in capsys.readouterr().err
    assert train.main(["--resume", "models/apart", "--steps", "7"]) == 0
    assert sample.main(["models/apart", "--kind", "policy", "--out", "pairs.png"]) == 0
    pairs = np.asarray(Image.open("pairs.png"))
    states = {pairs[y : y + 32, x : x + 32].tobytes() for y in range(2, 274, 34) for x in range(2, 274, 68)}
    known = [image for name, image in every.items() if not is_held_out(name, 0.2)]
    assert states <= {turned.tobytes() for image in known for turned in (image, image[:, ::-1])}


def test_a_finished_run_is_left_as_it_is(place, capsys):
    assert train.main([*TINY, "--steps", "2", "--name", "done"]) == 0
    before = {path: path.stat().st_mtime_ns for path in (place / "models" / "done").rglob("*")}
    assert train.main(["--resume", "models/done"]) == 0
    assert "Nothing to do" in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in (place / "models" / "done").rglob("*")}


def test_a_run_begins_with_another_runs_parameters_and_flags_win(place, capsys):
    assert train.main([*TINY, "--steps", "1", "--name", "first", "--gamma", "0.5"]) == 0
    assert train.main(["--config", "models/first/config.json", "--name", "second", "--seed", "3"]) == 0
    first, second = (json.loads((place / "models" / name / "config.json").read_text()) for name in ("first", "second"))
    assert {name for name in first if first[name] != second[name]} == {"name", "seed"}
    assert train.main(["--config", "models/first/config.json"]) == 0  # the name is not taken over
    assert len(list((place / "models").iterdir())) == 3

    (place / "list.json").write_text("[]")
    (place / "other.json").write_text(json.dumps(first | {"unheard_of": 1}))
    for path, words in (
        ("nowhere.json", "cannot be read"),
        ("list.json", "no parameters"),
        ("other.json", "unheard_of"),
    ):
        assert train.main(["--config", path]) == 2
        assert words in capsys.readouterr().err.splitlines()[-1]


def test_a_run_goes_on_by_its_name(place, capsys):
    assert train.main([*TINY, "--steps", "1", "--name", "named"]) == 0
    assert train.main(["--resume", "named", "--steps", "2"]) == 0
    assert state(place / "models" / "named")["steps"] == 2
    assert train.main(["--resume", "unnamed"]) == 2
    assert "unnamed is no run of MAGNET" in capsys.readouterr().err


def test_parameters_in_the_program_hold_for_new_runs_and_the_command_line_wins(place, monkeypatch):
    monkeypatch.setattr(train, "PARAMETERS", {"nz": 7, "lr": 1, "r1": 0, "spectral_norm": True, "image_size": 64})
    place_of_nz = TINY.index("--nz")
    words = TINY[:place_of_nz] + TINY[place_of_nz + 2 :]
    assert train.main([*words, "--preset", "cpu", "--steps", "1", "--name", "own", "--lr", "0.1"]) == 0
    config = json.loads((place / "models" / "own" / "config.json").read_text())
    assert {name: config[name] for name in ("nz", "lr", "r1", "spectral_norm", "image_size")} == {
        "nz": 64, "lr": 0.1, "r1": 0.0, "spectral_norm": True, "image_size": 32,
    }  # fmt: skip
    assert train.main([*words, "--no-spectral-norm", "--steps", "1", "--name", "flags"]) == 0
    config = json.loads((place / "models" / "flags" / "config.json").read_text())
    assert (config["nz"], config["lr"], config["spectral_norm"]) == (7, 1.0, False)
    assert train.main(["--resume", "models/own", "--steps", "2"]) == 0
    assert json.loads((place / "models" / "own" / "config.json").read_text())["nz"] == 64


def test_returns_on_the_command_line_bring_what_they_ask_for_over_a_preset():
    config = complete({"reward_function": "wasserstein"}, PRESETS["gaussians"])
    assert (config.r1, config.gradient_penalty, config.lr) == (0.0, 10.0, 1e-3)
    assert complete({"reward_function": "wasserstein", "r1": 0.3}, PRESETS["gaussians"]).r1 == 0.3

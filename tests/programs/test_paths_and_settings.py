"""What users and other programs write: a `~` in any path, whole numbers where floats are meant."""

import dataclasses
import json
import random

import pytest
import torch
from conftest import SEED
from test_train import TINY, state

import evaluate
import export
import magnet
import sample
import train
from experiments import ablation
from magnet.config import Config, complete, convert
from magnet.run import checkpoint
from magnet.run.session import read_parameters

REWARD = "def reward(states, images):\n    return images.mean(axis=(1, 2, 3))\n"


@pytest.fixture
def home(place, monkeypatch):
    """A home folder with the photos and an extra reward in it, apart from the working folder."""
    folder = place / "home"
    folder.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setenv("USERPROFILE", str(folder))
    (place / "faces").rename(folder / "faces")
    (folder / "my_reward.py").write_text(REWARD)
    return folder


def test_a_home_folder_is_expanded_in_every_path(place, home, monkeypatch):
    game = [*TINY, "--data=~/faces", "--extra-reward=~/my_reward.py", "--steps=2"]
    assert train.main([*game, "--models-dir=~/runs", "--name=a"]) == 0
    run = home / "runs" / "a"
    assert json.loads((run / "config.json").read_text())["data"] == str(home / "faces")
    assert train.main(["--resume=~/runs/a", "--data=~/faces", "--extra-reward=~/my_reward.py", "--steps=7"]) == 0
    assert train.main(["--resume=a", "--models-dir=~/runs", "--extra-reward=~/my_reward.py", "--steps=8"]) == 0
    file = "--resume=~/runs/a/checkpoints/000006.pt"
    assert train.main([file, "--extra-reward=~/my_reward.py", "--steps=7"]) == 0
    assert train.main([*game, "--init=~/runs/a", "--models-dir=~/runs", "--name=b"]) == 0
    config = ["--config=~/runs/a/config.json", "--extra-reward=~/my_reward.py", "--steps=2", "--name=c"]
    assert train.main(config) == 0 and (home / "runs" / "c").is_dir()
    words = ["--no-features", "--count=32", "--extra-reward=~/my_reward.py", "--nearest=~/nearest.png"]
    assert evaluate.main(["~/runs/a", "--data=~/faces", *words]) == 0
    assert export.main(["~/runs/a", "--out=~/a.pt", "--data=~/faces"]) == 0
    assert sample.main(["~/a.pt", "--out=~/a.png", "--images=~/a", "--npz=~/a.npz"]) == 0
    assert sample.main(["~/runs/a", "--kind=policy", "--data=~/faces", "--out=~/policy.png"]) == 0
    assert torch.equal(magnet.load("~/a.pt").sample(3), magnet.load(home / "a.pt").sample(3))
    assert {path.name for path in place.iterdir()} == {"home", "data"}
    assert {"a.png", "a.npz", "a", "nearest.png", "policy.png"} <= {path.name for path in home.iterdir()}


def test_a_home_folder_is_expanded_in_the_programs_own_parameters(place, home, monkeypatch):
    own = {"data": "~/faces", "models_dir": "~/runs", "extra_reward": "~/my_reward.py", "lr": 1, "batch_size": 8.0}
    monkeypatch.setattr(train, "PARAMETERS", own)
    at = TINY.index("--batch-size")
    assert train.main([*TINY[2:at], *TINY[at + 2 :], "--steps=2", "--name=a"]) == 0  # without --data and --batch-size
    assert train.main(["--resume=a", "--steps=3"]) == 0 and state(home / "runs" / "a")["steps"] == 3
    config = json.loads((home / "runs" / "a" / "config.json").read_text())
    assert (config["lr"], config["batch_size"]) == (1.0, 8) and type(config["lr"]) is float


@pytest.mark.parametrize("path", ["~nobody-of-this-name/x", "x/~", "~\0", "~\udcff/x"])
def test_what_is_no_home_folder_stays(path):
    assert convert({"data": path}) == {"data": path}


def rewritten(config: dict) -> dict:
    """As programs write it that have one kind of number: 0 for 0.0 and 8.0 for 8."""
    return {
        name: value
        if type(value) not in (int, float)
        else int(value)
        if type(value) is float and value.is_integer()
        else float(value)
        for name, value in config.items()
    }


def test_a_config_that_another_program_rewrote_is_taken_on_every_path(place, monkeypatch):
    assert train.main([*TINY, "--steps", "2", "--name", "a", "--r1", "1"]) == 0
    path = place / "models" / "a" / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(rewritten(config)), encoding="utf-8-sig")  # and with a mark before it
    assert '"r1": 1,' in path.read_text("utf-8-sig") and '"batch_size": 8.0,' in path.read_text("utf-8-sig")
    for result in (read_parameters(path), dataclasses.asdict(complete(rewritten(config)))):
        assert result | {"name": "a", "threads": config["threads"]} == config  # threads are of the machine
        assert [type(value) for value in result.values()] == [type(value) for value in config.values()]
    assert train.main(["--config", "models/a/config.json", "--name", "b"]) == 0
    file = place / "models" / "a" / "checkpoints" / "000002.pt"
    saved = checkpoint.load(file)
    checkpoint.save(file, saved | {"config": rewritten(saved["config"])})
    assert sample.main(["models/a", "--out", "a.png"]) == 0 and magnet.load("models/a").config.batch_size == 8
    assert ablation.curve(place / "models" / "a", lambda path: [{}])[0]["images"] == 16
    assert train.main(["--resume", "models/a", "--steps", "3"]) == 0
    assert train.main([*TINY, "--init", "models/a", "--steps", "1"]) == 0


@pytest.mark.parametrize(
    "value", [10**400, -(10**400), 16.5, float("nan"), float("inf"), 1e300, True, "16", None, [16]]
)
def test_what_is_no_such_number_is_refused_in_a_sentence(place, capsys, value):
    (place / "config.json").write_text(json.dumps(dataclasses.asdict(Config()) | {"batch_size": value}))
    assert train.main(["--config", "config.json"]) == 2
    assert "--batch-size is" in capsys.readouterr().err.splitlines()[-1]
    pick = random.Random(SEED).choice([field.name for field in dataclasses.fields(Config) if field.type is float])
    if type(value) is not float:
        (place / "config.json").write_text(json.dumps(dataclasses.asdict(Config()) | {pick: value}))
        assert train.main(["--config", "config.json"]) == 2
        assert f"--{pick.replace('_', '-')} is" in capsys.readouterr().err.splitlines()[-1]

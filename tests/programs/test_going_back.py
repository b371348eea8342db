"""`--resume RUN/checkpoints/FILE.pt`: a run goes back to an earlier checkpoint, and no later one is lost."""

import json
import os

import pytest
from test_train import TINY, differences, state

import sample
import train
from magnet.run import checkpoint

# With these layers a run of 18 steps gets better.
SCORED = ["--evaluate-every", "2", "--hold-out", "0.1", "--architecture", "dcgan"]


def log(run):
    """The steps of the lines of a run's log."""
    return [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture
def trained(place):
    """A run of 18 steps, with checkpoints at 0, 6, 12 and 18."""
    assert train.main([*TINY, "--steps", "18", "--name", "r"]) == 0
    return place / "models" / "r"


def names(run):
    return sorted(path.name for path in (run / "checkpoints").iterdir() if path.is_file())


@pytest.mark.parametrize(("folder", "prefix"), [(".", "models/r/checkpoints/"), ("models/r/checkpoints", "")])
def test_a_run_goes_back_to_a_checkpoint_and_plays_the_same_game(trained, capsys, monkeypatch, folder, prefix):
    whole, later = state(trained), (trained / "checkpoints" / "000018.pt").read_bytes()
    faces = [f"--data={trained.parent.parent / 'faces'}"]
    monkeypatch.chdir(folder)
    assert train.main(["--resume", f"{prefix}000006.pt", "--steps", "8", *faces]) == 0
    output = capsys.readouterr().out
    assert "Going on from" in output and "000018.pt is set aside as 000018.later." in output
    assert names(trained) == ["000000.pt", "000006.pt", "000008.pt", "000012.later", "000018.later"]
    assert (trained / "checkpoints" / "000018.later").read_bytes() == later
    assert log(trained)[-1] == 8 and not (trained / "samples" / "000010.png").exists()
    assert train.main(["--resume", str(trained), "--steps", "18", *faces]) == 0
    assert differences(state(trained), whole) == []


def test_going_back_twice_overwrites_nothing(trained):
    later = {(trained / "checkpoints" / "000018.pt").read_bytes()}
    for lr in ("1e-4", "1e-5"):
        assert train.main(["--resume", "r/checkpoints/000012.pt", "--lr", lr, "--steps", "18"]) == 0
        later.add((trained / "checkpoints" / "000018.pt").read_bytes())
    assert names(trained)[-3:] == ["000018.later", "000018.later-2", "000018.pt"] and len(later) == 3
    assert {path.read_bytes() for path in (trained / "checkpoints").glob("000018*")} == later
    assert sample.main([str(trained / "checkpoints" / "000018.later"), "--out", "old.png"]) == 0


def test_a_dry_run_and_a_refused_one_set_nothing_aside(trained, capsys):
    before = names(trained)
    assert train.main(["--resume", "r/checkpoints/000006.pt", "--dry-run"]) == 0
    assert train.main(["--resume", "r/checkpoints/000006.pt", "--nz", "9"]) == 2
    (trained / "checkpoints" / "000006.pt").write_bytes(b"damaged")
    assert train.main(["--resume", "r/checkpoints/000006.pt"]) == 2
    assert "000006.pt cannot be read" in capsys.readouterr().err and names(trained) == before


def test_a_best_checkpoint_that_lies_later_is_set_aside_and_forgotten(place):
    assert train.main([*TINY, *SCORED, "--steps", "18", "--name", "r"]) == 0
    folder = place / "models" / "r" / "checkpoints"
    best = checkpoint.load(folder / "best.pt")
    reached = best["trainer"]["steps"]
    assert reached > 6, "the test needs a run that gets better"
    assert train.main(["--resume", str(folder / "000006.pt"), "--steps", "7"]) == 0
    assert not (folder / "best.pt").exists() and checkpoint.load(folder / "best.later")["best"] == best["best"]
    assert checkpoint.load(folder / "000007.pt")["best"]["step"] == 0
    assert train.main(["--resume", str(folder.parent), "--steps", "18"]) == 0
    assert differences(checkpoint.load(folder / "best.pt")["trainer"], best["trainer"]) == []


def test_a_run_goes_on_from_its_best_checkpoint_also_when_it_is_killed_before_the_next(place, capsys, monkeypatch):
    assert train.main([*TINY, *SCORED, "--steps", "18", "--name", "r", "--keep", "1"]) == 0
    folder = place / "models" / "r" / "checkpoints"
    best = checkpoint.load(folder / "best.pt")["trainer"]["steps"]
    os.rename(folder / "best.pt", folder.parent / "best.pt")  # one that is earlier than all others
    assert train.main([*TINY, *SCORED, "--steps", "4", "--name", "q"]) == 0
    os.replace(place / "models" / "q" / "checkpoints" / "best.pt", folder / "best.pt")
    first = checkpoint.load(folder / "best.pt")["trainer"]["steps"]
    assert first <= 4 < best

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("magnet.run.recorder.Recorder.begin", killed)
        assert train.main(["--resume", "models/r/checkpoints/best.pt", "--steps", "18"]) == 130
    assert [name for name in names(folder.parent) if name.endswith(".pt")] == ["best.pt"]
    capsys.readouterr()
    assert train.main(["--resume", "models/r", "--steps", "18"]) == 0
    assert "best.pt." in capsys.readouterr().out and state(folder.parent)["steps"] == 18


@pytest.mark.parametrize("name", ["000006.later", "copy.pt", "../000006.pt"])
def test_a_file_that_is_no_checkpoint_of_a_run_is_refused_with_what_works(trained, capsys, monkeypatch, name):
    path = trained / "checkpoints" / name
    path.write_bytes((trained / "checkpoints" / "000006.pt").read_bytes())
    assert train.main(["--resume", str(path)]) == 2
    sentence = capsys.readouterr().err.splitlines()[-1]
    assert f"`python3 train.py --init {path}`" in sentence
    assert train.main(["--init", str(path), *TINY[:4], "--batch-size", "8", "--steps", "1"]) == 0

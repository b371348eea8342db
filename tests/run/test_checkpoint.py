"""Checkpoints: whole or absent, loaded without executing anything, the newest good one found."""

import os

import pytest
import torch

from magnet.run import checkpoint
from magnet.support import atomic_files as files
from magnet.support.errors import Diverged, UserError

CONTENTS = {"trainer": {"a": torch.arange(6.0).reshape(2, 3)}, "config": {"lr": 0.1}, "faces": "f00d", "best": None}


def save_steps(folder, *steps):
    for step in steps:
        checkpoint.save(folder / f"{step:06d}.pt", CONTENTS | {"trainer": CONTENTS["trainer"] | {"steps": step}})


def test_what_was_saved_is_loaded(tmp_path):
    save_steps(tmp_path, 3)
    loaded = checkpoint.load(tmp_path / "000003.pt")
    assert torch.equal(loaded["trainer"]["a"], CONTENTS["trainer"]["a"])
    assert loaded["trainer"]["steps"] == 3 and loaded["config"] == {"lr": 0.1}


class Unwritable:
    """Fails in the middle of a file, as an object that cannot be pickled does."""

    def __reduce__(self):
        raise ZeroDivisionError


def test_an_exception_inside_the_writing_leaves_the_old_file_and_nothing_else(tmp_path):
    save_steps(tmp_path, 3)
    before = (tmp_path / "000003.pt").read_bytes()
    with pytest.raises(ZeroDivisionError):
        checkpoint.save(tmp_path / "000003.pt", {"large": torch.zeros(100_000), "bad": Unwritable()})
    assert os.listdir(tmp_path) == ["000003.pt"]
    assert (tmp_path / "000003.pt").read_bytes() == before


def test_a_full_disk_is_one_sentence_and_leaves_nothing(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match="000003.pt could not be written.*No space left"):
        save_steps(tmp_path, 3)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("spoiled", [float("nan"), float("inf")])
def test_what_is_not_finite_is_not_saved(tmp_path, spoiled):
    contents = {"agents": [{"weight": torch.tensor([1.0, spoiled])}]}
    with pytest.raises(Diverged, match="agents.0.weight"):
        checkpoint.save(tmp_path / "000001.pt", contents)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("share", [0, 0.5, 0.99])
def test_a_truncated_file_is_named_and_the_one_before_it_is_used(tmp_path, capsys, share):
    save_steps(tmp_path, 2, 10)
    whole = (tmp_path / "000010.pt").read_bytes()
    (tmp_path / "000010.pt").write_bytes(whole[: int(share * len(whole))])
    path, contents = checkpoint.load_newest(tmp_path)
    assert path.name == "000002.pt" and contents["trainer"]["steps"] == 2
    assert "000010.pt" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"version": 99}, "version 99"),
        ({"faces": 3}, "faces is of type int, not str"), ({"config": []}, "config is of type list, not dict"),
        ({"best": 3}, "best is no dict"), ({"trainer": {}}, "trainer has no steps"), ({"more": 1}, "key 'more'"),
        ({"version": torch.ones(3)}, "version is of type Tensor, not int"),
        ({"format": torch.ones(3)}, "not a checkpoint"),
    ],
)  # fmt: skip
def test_the_outermost_items_have_their_types(tmp_path, change, fault):
    torch.save([1, 2], tmp_path / "x.pt")
    with pytest.raises(UserError, match="x.pt is not a checkpoint"):
        checkpoint.load(tmp_path / "x.pt")
    version = checkpoint.VERSIONS[checkpoint.FORMAT]
    whole = {"format": checkpoint.FORMAT, "version": version} | CONTENTS | {"trainer": {"steps": 1}}
    torch.save(whole | change, tmp_path / "x.pt")
    with pytest.raises(UserError, match=fault):
        checkpoint.load(tmp_path / "x.pt")
    for key in whole:
        torch.save({name: value for name, value in whole.items() if name != key}, tmp_path / "x.pt")
        with pytest.raises(UserError, match=f"{key} is missing" if key != "format" else "not a checkpoint"):
            checkpoint.load(tmp_path / "x.pt")


def test_half_written_files_go_and_what_could_not_be_read_is_not_counted_among_the_last_ones(tmp_path):
    save_steps(tmp_path, 6, 12)
    (tmp_path / "000018.pt").write_bytes(b"damaged")
    (tmp_path / f"000024.pt.123{files.TEMPORARY}").write_bytes(b"half")
    path, _ = checkpoint.load_newest(tmp_path)
    checkpoint.set_aside(tmp_path, int(path.stem))
    save_steps(tmp_path, 13)
    checkpoint.prune(tmp_path, keep=1)
    assert sorted(os.listdir(tmp_path)) == ["000013.pt", "000018.damaged"]
    assert checkpoint.load_newest(tmp_path)[1]["trainer"]["steps"] == 13


def test_the_last_ones_stay(tmp_path):
    save_steps(tmp_path, 5, 999_999, 1_000_000)  # in the order of numbers, not of letters
    (tmp_path / "notes.txt").write_text("mine")
    checkpoint.prune(tmp_path, keep=2)
    assert sorted(os.listdir(tmp_path)) == ["1000000.pt", "999999.pt", "notes.txt"]
    assert checkpoint.load_newest(tmp_path)[0].name == "1000000.pt"

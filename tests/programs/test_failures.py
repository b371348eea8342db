"""Failures of the machine, checkpoints of another release: a sentence and a status."""

import dataclasses
import os

import pytest
import torch
from test_train import TINY, state

import evaluate
import sample
import train
from magnet.config import Config, parameter
from magnet.maddpg import MADDPG
from magnet.run import checkpoint, checkpoint_validation


def test_more_memory_than_there_is_is_refused_before_any_work(place, capsys):
    assert train.main([*TINY, "--replay-size", "1000000000000", "--name", "large"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "memory" in error and "--replay-size" in error
    assert sorted(p.name for p in place.iterdir()) == ["faces"]


def test_memory_that_runs_out_is_a_sentence_that_names_what_helps(place, capsys, monkeypatch):
    monkeypatch.setattr("magnet.run.summary.refuse_too_large", lambda config: None)  # as if its estimate were too low
    assert train.main([*TINY, "--replay-size", "1000000000000", "--name", "large"]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert "memory" in error and "--replay-size" in error


def test_a_gpu_without_memory_left_is_a_sentence_and_status_1(place, capsys, monkeypatch):
    def full(trainer):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")

    monkeypatch.setattr(MADDPG, "step", full)
    assert train.main([*TINY, "--steps", "3", "--name", "full"]) == 1
    assert "out of memory" in (error := capsys.readouterr().err.splitlines()[-1]) and "--batch-size" in error


def test_a_folder_that_takes_no_checkpoint_is_a_sentence_and_status_1(place, capsys, monkeypatch):
    assert train.main([*TINY, "--steps", "6", "--name", "full"]) == 0
    replace = os.replace

    def refuse(source, target):
        if target.suffix == ".pt":
            raise PermissionError(13, "Permission denied")
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr("magnet.support.atomic_files.os.replace", refuse)
        assert train.main(["--resume", "models/full", "--steps", "8"]) == 1
    assert "Permission denied" in (sentence := capsys.readouterr().err.splitlines()[-1]) and "--resume" in sentence
    assert list((place / "models").rglob("*.tmp")) == [] and state(place / "models" / "full")["steps"] == 6


@pytest.mark.parametrize("change", [{"r1_every": None}, {"unheard_of": 1}])
def test_a_checkpoint_with_other_parameters_than_this_release_is_refused(place, capsys, change):
    assert train.main([*TINY, "--steps", "2", "--name", "older"]) == 0
    path = place / "models" / "older" / "checkpoints" / "000002.pt"
    saved = checkpoint.load(path)
    for name, value in change.items():
        saved["config"].pop(name, None)
        saved["config"] |= {name: value} if value else {}
    checkpoint.save(path, saved)
    for program, words in ((train, ["--resume", "models/older"]), (sample, ["models/older"])):
        assert program.main(words) == 2
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert str(path.name) in error and next(iter(change)) in error


def test_a_run_from_before_a_parameter_was_added_goes_on_as_it_was(place, capsys, monkeypatch):
    assert train.main([*TINY, "--steps", "2", "--name", "older"]) == 0

    @dataclasses.dataclass(frozen=True)
    class Newer(Config):
        sharpness: float = parameter(0.7, "a new idea", low=0, high=1, old=0.1)

    monkeypatch.setattr(checkpoint_validation, "Config", Newer)
    for program, words, says in (
        (sample, ["models/older"], False),  # what is learned by does not change what was learned
        (evaluate, ["models/older", "--no-features", "--count", "32"], False),
        (train, ["--resume", "models/older", "--steps", "4"], True),
    ):
        capsys.readouterr()
        assert program.main(words) == 0
        output = capsys.readouterr()
        assert ("is older than --sharpness 0.1" in output.out + output.err) == says
    path = place / "models" / "older" / "checkpoints" / "000004.pt"
    assert checkpoint.load(path)["config"]["sharpness"] == 0.1
    capsys.readouterr()
    assert sample.main(["models/older"]) == 0 and "older than" not in capsys.readouterr().out

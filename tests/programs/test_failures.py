"""Failures of the machine and its disks, checkpoints of another release: a sentence, a status, and nothing lost."""

import dataclasses
import errno
import os
import re
import stat

import pytest
import torch
from test_train import TINY, state

import download_celeba
import evaluate
import export
import sample
import train
from magnet.config import Config, parameter
from magnet.maddpg import MADDPG
from magnet.run import checkpoint, checkpoint_validation, logger
from magnet.support import atomic_files


def test_more_memory_than_there_is_is_refused_before_any_work_or_named_when_it_runs_out(place, capsys, monkeypatch):
    for status in (2, 1):
        assert train.main([*TINY, "--replay-size", "1000000000000", "--name", "large"]) == status
        error = capsys.readouterr().err.splitlines()[-1]
        assert "memory" in error and "--replay-size" in error
        if status == 2:
            assert sorted(path.name for path in place.iterdir()) == ["faces"]
        monkeypatch.setattr("magnet.run.summary.refuse_too_large", lambda config: None)  # as if it estimated too little


def test_a_gpu_without_memory_left_is_a_sentence_and_status_1(place, capsys, monkeypatch):
    def full(trainer):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")

    monkeypatch.setattr(MADDPG, "step", full)
    assert train.main([*TINY, "--steps", "3", "--name", "full"]) == 1
    assert "out of memory" in (error := capsys.readouterr().err.splitlines()[-1]) and "--batch-size" in error


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


@pytest.fixture(params=["folders alone", "folders and files"])
def no_sync(request, monkeypatch):
    """A file system without fsync, of folders or at all."""
    fsync, reason = os.fsync, errno.EINVAL if request.param == "folders alone" else errno.ENOSYS

    def refuse(descriptor):
        if reason == errno.ENOSYS or stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(reason, os.strerror(reason))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", refuse)


def test_where_nothing_can_be_synced_all_programs_work(place, no_sync):
    assert train.main([*TINY, "--steps", "3", "--name", "r"]) == 0
    assert train.main(["--resume", "models/r", "--steps", "5"]) == 0 and state(place / "models" / "r")["steps"] == 5
    assert export.main(["models/r", "--out", "weights.pt"]) == 0
    assert sample.main(["weights.pt", "--out", "samples.png"]) == 0
    assert not list(place.rglob("*.tmp"))


def test_a_folder_that_cannot_be_opened_to_sync_it_is_no_failure(tmp_path, monkeypatch):
    real = os.open

    def refuse(path, flags, *others, **named):
        if flags & os.O_DIRECTORY:
            raise PermissionError(errno.EACCES, "Permission denied")
        return real(path, flags, *others, **named)

    monkeypatch.setattr(os, "open", refuse)
    atomic_files.write_atomically(tmp_path / "a", lambda file: file.write(b"whole"))
    assert (tmp_path / "a").read_bytes() == b"whole"


@pytest.mark.parametrize(
    ("broken", "named"),
    [("config.json", "models/r/config.json"), (".png", "models/r/samples/000000.png"), (".pt", "000000.pt")],
)
def test_without_a_checkpoint_none_is_promised(place, capsys, monkeypatch, broken, named):
    fsync = os.fsync

    def refuse(descriptor):
        if re.search(rf"{re.escape(broken)}\.\d+\.tmp$", os.readlink(f"/proc/self/fd/{descriptor}")):
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", refuse)
    assert train.main([*TINY, "--steps", "9", "--name", "r"]) == 1
    sentence = capsys.readouterr().err.splitlines()[-1]
    assert named in sentence and "No space left" in sentence
    assert "--resume" not in sentence and "no checkpoint yet" in sentence


@pytest.mark.parametrize("name", ["metrics.jsonl", "samples/000005.png", "checkpoints/000006.pt", "progress.gif"])
def test_the_file_that_cannot_be_written_is_named_and_the_promised_command_goes_on(place, capsys, monkeypatch, name):
    path = f"models/my-run/{name}"

    def full(module):
        def opened(file, *words, **more):
            if str(file).startswith(path):
                return real(os.path.join("/dev", "full"), *words, **more)
            return real(file, *words, **more)

        real = open
        patch.setattr(module, "open", opened, raising=False)

    with monkeypatch.context() as patch:
        full(logger)
        full(atomic_files)
        patch.setattr(os, "fsync", lambda descriptor: None)
        assert train.main([*TINY, "--steps", "9", "--name", "my-run"]) == 1
    sentence = capsys.readouterr().err.splitlines()[-1]
    assert path in sentence and "No space left" in sentence and ".tmp" not in sentence and "None" not in sentence
    (command,) = re.findall(r"`python3 train.py (--resume \S+)`", sentence)
    assert command == "--resume models/my-run"
    assert train.main(command.split()) == 0 and state(place / "models" / "my-run")["steps"] == 9


@pytest.mark.parametrize("reason", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL])
def test_runs_and_downloads_work_where_the_disk_has_no_locks(place, capsys, monkeypatch, reason):
    def refuse(*_):
        raise OSError(reason, os.strerror(reason))

    monkeypatch.setattr("fcntl.flock", refuse)
    assert train.main([*TINY, "--steps", "3", "--name", "r"]) == 0
    assert train.main(["--resume", "models/r", "--steps", "5"]) == 0
    sentences = [line for line in capsys.readouterr().err.splitlines() if "no locks" in line]
    advice = f"has no locks ({os.strerror(reason)}): start no other program there."
    assert sentences == [f"{folder} {advice}" for folder in ("data/cache", "models/r", "models/r")]

    (place / "x.zip").write_bytes(b"no archive")
    assert download_celeba.main(["--from-zip", "x.zip", "--data-dir", "celeba"]) == 1
    error = capsys.readouterr().err.splitlines()
    assert "celeba has no locks" in error[0] and "x.zip is not" in error[-1] and len(error) == 2

"""Disks that lack what is optional, sync of folders and locks, and what is said when a disk fails."""

import errno
import os
import re
import stat

import pytest
from test_train import TINY, state

import download_celeba
import export
import sample
import train
from magnet.support.atomic_files import write_atomically


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
    write_atomically(tmp_path / "a", lambda file: file.write(b"whole"))
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
    from magnet.run import logger
    from magnet.support import atomic_files

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


NO_LOCKS = pytest.mark.parametrize("reason", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL])


def refuse_locks(monkeypatch, reason):
    def refuse(*_):
        raise OSError(reason, os.strerror(reason))

    monkeypatch.setattr("fcntl.flock", refuse)


@NO_LOCKS
def test_a_run_is_trained_where_the_disk_has_no_locks(place, capsys, monkeypatch, reason):
    refuse_locks(monkeypatch, reason)
    assert train.main([*TINY, "--steps", "3", "--name", "r"]) == 0
    assert train.main(["--resume", "models/r", "--steps", "5"]) == 0
    sentences = [line for line in capsys.readouterr().err.splitlines() if "no locks" in line]
    advice = f"has no locks ({os.strerror(reason)}): start no other program there."
    assert sentences == [f"{folder} {advice}" for folder in ("data/cache", "models/r", "models/r")]


@NO_LOCKS
def test_a_download_works_where_the_disk_has_no_locks(place, capsys, monkeypatch, reason):
    refuse_locks(monkeypatch, reason)
    (place / "x.zip").write_bytes(b"no archive")
    assert download_celeba.main(["--from-zip", "x.zip", "--data-dir", "celeba"]) == 1
    error = capsys.readouterr().err.splitlines()
    assert "celeba has no locks" in error[0] and "x.zip is not" in error[-1] and len(error) == 2

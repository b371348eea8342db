"""Runs that are stopped, killed, resumed or begun twice: what they go on with, and who may train them."""

import os
import signal
import subprocess
import sys

import pytest
from test_train import PER_EPOCH, ROOT, TINY, differences, finish, metrics, start, state, wait_for

import train
from magnet.run import checkpoint
from magnet.run.logger import lock_run
from magnet.run.signals import SIGNALS, Stop


@pytest.mark.parametrize("k", [1, PER_EPOCH, 10])
def test_k_steps_and_the_rest_are_all_steps_bit_for_bit(place, k):
    total = 14  # the ring of 20 wraps, episodes of 4 end, epochs of 6 end
    assert train.main([*TINY, "--steps", str(total), "--name", "straight"]) == 0
    assert finish(start(place, *TINY, "--steps", str(k), "--name", "parts"))[0] == 0
    first_part = metrics(place / "models" / "parts")
    status, output = finish(start(place, "--resume", "models/parts", "--steps", str(total)))
    assert status == 0, output

    straight, parts = place / "models" / "straight", place / "models" / "parts"
    assert first_part and metrics(parts).startswith(first_part), "the first steps are not made again"
    assert differences(state(straight), state(parts)) == []
    assert differences(state(straight), checkpoint.load(straight / "checkpoints" / "000012.pt")["trainer"])
    grid = f"samples/{total:06d}.png"
    assert (straight / grid).read_bytes() == (parts / grid).read_bytes()


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)])
def test_a_signal_finishes_the_step_saves_and_goes_on_bit_for_bit(place, number, status):
    process = start(place, *TINY, "--epochs", "1000", "--name", "stopped")
    wait_for(place / "models" / "stopped" / "samples" / "000005.png", process)
    process.send_signal(number)
    got, output = finish(process)
    assert got == status and "--resume models/stopped" in output
    assert "Traceback" not in output
    reached = state(place / "models" / "stopped")["steps"]
    assert 5 <= reached
    first_part = metrics(place / "models" / "stopped")
    total = str(reached + 5)
    assert finish(start(place, "--resume", "models/stopped", "--steps", total))[0] == 0
    assert first_part and metrics(place / "models" / "stopped").startswith(first_part)
    assert train.main([*TINY, "--epochs", "1000", "--steps", total, "--name", "straight"]) == 0
    assert differences(state(place / "models" / "stopped"), state(place / "models" / "straight")) == []


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_of_either_kind_ends_the_program_at_once(first):
    stop = Stop()
    signal.raise_signal(first)
    assert stop.signal == first
    assert [signal.getsignal(number) for number in SIGNALS] == [signal.SIG_DFL] * 3


def test_a_locked_run_is_refused_before_anything_of_it_is_read_or_renamed(place, capsys):
    assert train.main([*TINY, "--steps", "2", "--name", "busy"]) == 0
    run = place / "models" / "busy"
    (run / "checkpoints" / "000004.pt").write_bytes(b"just being looked at")
    with lock_run(run):
        before = sorted(run.rglob("*"))
        assert train.main(["--resume", "models/busy", "--steps", "9"]) == 2
        assert f"another process, {os.getpid()};" in capsys.readouterr().err
        assert sorted(run.rglob("*")) == before
    assert train.main(["--resume", "models/busy", "--steps", "9", "--dry-run"]) == 0
    assert (run / "checkpoints" / "000004.pt").exists(), "a dry run renames nothing"
    assert train.main(["--resume", "models/busy", "--steps", "3"]) == 0
    assert (run / "checkpoints" / "000004.damaged").exists()


def test_a_run_goes_on_when_nobody_reads_its_output_any_more(place):
    command = [sys.executable, str(ROOT / "train.py"), *TINY, "--steps", "13", "--name", "unread"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    process = subprocess.Popen(command, cwd=place, env=os.environ | {"OMP_NUM_THREADS": "1"}, **pipes)
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(timeout=120) == 0
    assert state(place / "models" / "unread")["steps"] == 13


def test_where_standard_error_is_no_terminal_progress_is_plain_lines(place, capsys, monkeypatch):
    monkeypatch.setattr("magnet.run.progress.LINE_EVERY", 0)
    assert train.main([*TINY, "--steps", "8", "--name", "lines"]) == 0
    error = capsys.readouterr().err
    lines = [line for line in error.splitlines() if line.startswith("step ")]
    assert "\r" not in error and [line.split(",")[0] for line in lines] == [f"step {i}/8" for i in range(1, 9)]
    assert all(part in lines[-1] for part in ("epoch 2/2", "images/s", "reward G", "0 min left"))


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="there are no hangups")
def test_an_ignored_hangup_stays_ignored_but_not_an_ignored_interrupt():
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as under nohup
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # as of a job that a shell started in the background
    stop = Stop()
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    assert signal.getsignal(signal.SIGINT) == signal.getsignal(signal.SIGTERM) == stop.note

"""The fastest threads and precision: when they are measured, and which are chosen."""

import dataclasses
import json
import os
import time

import pytest
import torch
from conftest import small_config
from test_train import TINY

import train
from magnet.config import Config
from magnet.evaluation.sampling import FixedGrids
from magnet.run import tuning
from magnet.support.devices import settle

SECONDS = {(4, "bf16"): 0.3, (4, "fp32"): 0.2, (2, "bf16"): 0.1, (2, "fp32"): 0.4, (1, "bf16"): 0.5, (1, "fp32"): 0.6}


@pytest.fixture
def measurements(monkeypatch):
    """A machine of four cores with bfloat16, with the times above: the numbers of settings that were measured."""
    counts_of_settings = []

    def measure(config, counts, precisions):
        counts_of_settings.append(len(counts) * len(precisions))
        return {(count, precision): SECONDS[count, precision] for count in counts for precision in precisions}

    monkeypatch.setattr(tuning, "measure_steps", measure)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    return counts_of_settings


@pytest.mark.parametrize(
    ("given", "fastest", "count"),
    [
        ({}, ("2", "bf16"), 6),
        ({"precision": "fp32"}, ("4", "fp32"), 3),
        ({"threads": "1"}, ("1", "bf16"), 2),
        ({"threads": "1", "precision": "fp32"}, ("1", "fp32"), 0),
    ],
    ids=str,
)
def test_the_fastest_setting_is_taken_of_those_left_open_and_named(measurements, capsys, given, fastest, count):
    requested = Config(device="cpu", **given)
    config = dataclasses.replace(requested, **({"threads": "4", "precision": "bf16"} | given))
    assert tuning.tune(config, requested) == dataclasses.replace(config, threads=fastest[0], precision=fastest[1])
    assert measurements == [count] * (count > 0)
    words = f"Fastest here: --threads {fastest[0]} --precision {fastest[1]}"
    assert [line.partition(" (")[0] for line in capsys.readouterr().out.splitlines()] == [words] * (count > 0)


def test_omp_num_threads_and_a_gpu_leave_the_threads_as_they_are(measurements, monkeypatch):
    config = Config(threads="4", precision="fp32", device="cpu")
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    assert tuning.tune(config, Config()) == config
    monkeypatch.delenv("OMP_NUM_THREADS")
    on_gpu = dataclasses.replace(config, device="cuda", precision="bf16")
    assert tuning.tune(on_gpu, Config()) == on_gpu
    assert not measurements


@pytest.mark.parametrize("changes", [{"extra_reward": "resemble"}, {"data": "gaussians-8"}], ids=["faces", "points"])
def test_steps_of_the_game_are_measured_and_no_longer_than_said(changes, monkeypatch):
    config = small_config(threads="1", device="cpu", **changes)
    precisions = ["fp32"] if config.points else ["fp32", "bf16"]
    monkeypatch.setattr(tuning, "MAX_SECONDS", 60.0)  # beside other programs as well
    monkeypatch.setattr(tuning, "MAX_STEPS", 1)
    threads, since = torch.get_num_threads(), time.perf_counter()
    result = tuning.measure_steps(config, [2, 1], precisions)
    assert set(result) == {(count, precision) for count in (2, 1) for precision in precisions}
    assert all(0 < seconds < time.perf_counter() - since for seconds in result.values())
    monkeypatch.setattr(tuning, "MAX_SECONDS", 0.0)
    assert set(tuning.measure_steps(config, [2, 1], precisions)) == {(2, precision) for precision in precisions}
    torch.set_num_threads(threads)


def test_a_run_keeps_its_threads_when_it_goes_on_and_takes_others_if_told(place, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    monkeypatch.setattr(FixedGrids, "draw", lambda self: {})  # they take longer than the steps
    threads = torch.get_num_threads()
    try:
        assert train.main([*TINY, "--threads", "2", "--steps", "1", "--name", "run"]) == 0
        assert torch.get_num_threads() == 2
        torch.set_num_threads(1)
        assert train.main(["--resume", "models/run", "--threads", "auto", "--steps", "2"]) == 0
        assert torch.get_num_threads() == 2
        assert train.main(["--resume", "models/run", "--threads", "1", "--steps", "3"]) == 0
        assert torch.get_num_threads() == 1
        assert json.loads((place / "models" / "run" / "config.json").read_text())["threads"] == "1"
        monkeypatch.setattr(os, "cpu_count", lambda: 1)  # another machine
        assert train.main(["--resume", "models/run", "--threads", "2", "--steps", "4"]) == 0
        torch.set_num_threads(1)
        assert train.main(["--resume", "models/run", "--steps", "5"]) == 0
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(threads)


def test_auto_is_settled_as_pytorchs_own_number():
    assert settle(Config(device="cpu")).threads == str(torch.get_num_threads())

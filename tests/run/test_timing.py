"""The time of a run: what counts, how an estimate is made of measured steps, and what is said of it."""

import json

import pytest
import torch
from conftest import CPU, small_config, small_faces, trainer_on

from magnet.config import PRESETS, complete
from magnet.evaluation.scores import Evaluation
from magnet.run.logger import RunLogger, create_run
from magnet.run.recorder import Recorder
from magnet.run.timing import ENOUGH, Pace, StepClock, described, estimate, in_words, run_seconds, shorter


class Clock:
    """A clock that a test moves."""

    def __init__(self):
        self.time = 0.0

    def __call__(self) -> float:
        return self.time


@pytest.fixture
def clock():
    return Clock()


@pytest.mark.parametrize(
    ("first", "total", "seconds"),
    [(0, 8, 3 + 7), (0, 9, 3 + 7 + 3), (1, 8, 7), (8, 9, 3), (0, 80, 10 * 10), (5, 85, 10 * 10), (80, 80, 0)],
)
def test_steps_with_r1_are_counted_where_they_fall(first, total, seconds):
    config = small_config(r1=0.1, r1_every=8)
    assert run_seconds(config, first, total, plain=1.0, with_r1=3.0) == seconds
    assert run_seconds(small_config(r1=0.0), first, total, plain=1.0, with_r1=3.0) == total - first


def test_grids_and_scores_are_counted_where_they_fall():
    config = small_config(sample_every=500, evaluate_every=300)
    assert run_seconds(config, 0, 1000, 0, 0, grid=7, score=0) == 14  # the last step's is due anyway
    assert run_seconds(config, 0, 1001, 0, 0, grid=7, score=0) == 21
    assert run_seconds(config, 600, 1000, 0, 0, grid=0, score=5) == 5
    assert run_seconds(small_config(), 0, 1000, 0, 0, score=5) == 0


def measured(config, clock, seconds_of, steps=ENOUGH, first=0):
    pace = Pace(config, StepClock(CPU, clock))
    for step in range(first + 1, first + steps + 1):
        clock.time += seconds_of(step)
        pace.note(step)
    return pace


def test_an_estimate_leaves_out_the_warm_up_and_weighs_the_period_of_r1(clock):
    config = small_config(r1=0.1, r1_every=16)  # the steps 1, in the warm-up, and 17 have R1
    pace = measured(config, clock, lambda step: 100 if step <= 2 else 3 if step == 17 else 1)
    assert pace.seconds(20, 20 + 16_000) == 15_000 * 1 + 1000 * 3


@pytest.mark.parametrize(("every", "first", "expected"), [(1000, 0, 5), (1000, 7, 1), (1, 0, 5)])
def test_where_no_late_step_has_r1_an_early_one_or_a_plain_one_stands_for_it(clock, every, first, expected):
    config = small_config(r1=0.1, r1_every=every)
    pace = measured(config, clock, lambda step: 5 if (step - 1) % every == 0 else 1, first=first)
    assert pace.typical(True) == expected


def test_the_rate_in_the_log_leaves_out_grids_scores_and_checkpoints(tmp_path, clock, monkeypatch):
    config = small_config(evaluate_every=10, sample_every=4)
    trainer = trainer_on(config, small_faces())
    evaluation = Evaluation(trainer.generators, trainer.dataset, config)
    run = create_run(tmp_path, "run")

    def takes(seconds, result):
        def work(*_):
            clock.time += seconds
            return result

        return work

    with Recorder(run, trainer, evaluation, total=60) as recorder:
        recorder.clock.now = clock
        recorder.logger.since = clock()
        monkeypatch.setattr(recorder.grids, "draw", takes(50, {}))
        monkeypatch.setattr(evaluation, "after", takes(70, {"swd": 1.0}))
        monkeypatch.setattr("magnet.run.checkpoint.save", takes(90, None))
        metrics = trainer.step()
        recorder.begin()
        for step in range(1, 61):
            trainer.steps = step
            clock.time += 0.5
            assert recorder.log(metrics) == ({"swd": 1.0} if step % 10 == 0 else {})
            if step % 4 == 0:
                recorder.draw()
            if step % 25 == 0:
                recorder.save()
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert len(lines) > 6 and {line["images_per_second"] for line in lines} == {8 / 0.5}


def test_what_a_clock_leaves_out_it_leaves_out_also_when_it_fails(clock):
    steps = StepClock(CPU, clock)
    clock.time = 1.0
    with pytest.raises(OSError), steps.paused():
        clock.time = 5.0
        raise OSError
    assert steps() == 1.0
    assert steps.seconds(lambda: setattr(clock, "time", 8.0)) == 3.0 and steps() == 1.0


def test_a_logger_takes_the_time_of_the_clock_that_it_is_given(tmp_path, clock):
    with RunLogger(create_run(tmp_path, "run"), step=0, batch=8, every=1, clock=clock) as book:
        clock.time = 4.0
        assert book.add({"x": torch.tensor(1.0)})["images_per_second"] == 2.0


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "less than 10 seconds"),
        (42.4, "about 42 seconds"),
        (100, "about 2 minutes"),
        (3600, "about 60 minutes"),
        (9000, "about 2.5 hours"),
        (288_000, "about 80 hours"),
        (5e6, "about 1,389 hours"),
    ],
)
def test_times_in_words(seconds, words):
    assert in_words(seconds) == words


FACES, PER_EPOCH = 202_599, 16_883  # CelebA, 12 new rows a step


def test_a_run_is_described_by_what_it_does():
    config = complete({})
    assert described(config, FACES, PER_EPOCH, 0) == "Steps: 844,150, 50 epochs of 202,599 images at 64x64"
    assert described(complete({"steps": 4000}), 10_000, 833, 500) == (
        "Steps: 4,000, 4.8 epochs of 10,000 images at 64x64; 500 are made"
    )
    assert described(complete({}, PRESETS["gaussians"]), 100_000, 1041, 0) == "Steps: 6,246, 6 epochs of 100,000 points"


CPU_PRESET = complete({}, PRESETS["cpu"])


@pytest.mark.parametrize(
    ("config", "flags", "first", "expected"),
    [
        (complete({}), {}, 0, "`--preset cpu` or `--epochs 1`"),
        (complete({"epochs": 1}), {"epochs": 1}, 0, "`--preset cpu`"),
        (complete({"steps": 100}), {"steps": 100}, 0, "`--preset cpu`"),
        (complete({"width": 64, "image_size": 32}), {"width": 64, "image_size": 32}, 0, "`--epochs 1`"),  # flags win
        (complete({"width": 16, "image_size": 64}), {"width": 16}, 0, "`--preset cpu` or `--epochs 1`"),
        (complete({"width": 16, "image_size": 32}), {}, 0, "`--epochs 1`"),  # the preset's are wider
        (CPU_PRESET, None, 0, "`--epochs 1`"),
        (CPU_PRESET, {}, 0, "`--epochs 1`"),
        (complete({}), None, 3 * PER_EPOCH, "`--epochs 4`"),  # a run that goes on
        (complete({"epochs": 4}), None, 3 * PER_EPOCH + 1, ""),
        (complete({}, PRESETS["gaussians"]), {}, 0, "`--epochs 1`"),
    ],
)
def test_only_what_takes_less_and_is_not_used_yet_is_suggested(config, flags, first, expected):
    assert shorter(config, flags, PER_EPOCH, first) == expected


def test_a_long_run_on_a_cpu_has_a_hint_and_others_none():
    less = "`--preset cpu` or `--epochs 1`"
    on_cpu, on_gpu = (complete({"device": device}) for device in ("cpu", "cuda"))
    assert estimate(on_cpu, 288_000, less) == f"about 80 hours on this CPU; {less} takes less"
    assert estimate(on_cpu, 288_000, "") == estimate(on_gpu, 288_000, less) == "about 80 hours"
    assert estimate(on_cpu, 7200, less) == "about 2.0 hours"

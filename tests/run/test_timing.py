"""The time of a run: what counts, how an estimate is made of measured times, and how it is described."""

import json

import pytest
from conftest import CPU, small_config, small_faces, trainer_on

from magnet.config import PRESETS, complete
from magnet.evaluation.scores import Evaluation
from magnet.run.logger import create_run
from magnet.run.recorder import Recorder
from magnet.run.timing import StepClock, describe_run, describe_time, estimate_seconds


class Clock:
    """A clock that a test moves."""

    def __init__(self):
        self.time = 0.0

    def __call__(self) -> float:
        return self.time


@pytest.fixture
def clock():
    return Clock()


def test_steps_grids_and_scores_are_counted_where_they_fall():
    config = small_config(sample_every=500, evaluate_every=300)
    assert estimate_seconds(config, 600, 1000, step=2, grid=0) == 800
    assert estimate_seconds(config, 0, 1000, step=0, grid=7) == 14  # the last step's is due anyway
    assert estimate_seconds(config, 0, 1001, step=0, grid=7) == 21
    assert estimate_seconds(config, 600, 1000, step=0, score=5) == 5
    assert estimate_seconds(small_config(), 0, 1000, step=0, score=5) == 0


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
        monkeypatch.setattr(evaluation, "score", takes(70, {"swd": 1.0}))
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
    with pytest.raises(OSError), steps.pause():
        clock.time = 5.0
        raise OSError
    assert steps() == 1.0
    assert steps.measure(lambda: setattr(clock, "time", 8.0)) == 3.0 and steps() == 1.0


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "less than 10 seconds"), (42.4, "about 42 seconds"), (100, "about 2 minutes"), (3600, "about 60 minutes"),
     (9000, "about 2.5 hours"), (288_000, "about 80 hours"), (5e6, "about 1,389 hours")],
)  # fmt: skip
def test_times_in_words(seconds, words):
    assert describe_time(complete({"device": "cuda"}), seconds) == words
    hint = " on this CPU; fewer `--epochs` or `--preset cpu` shorten it"
    assert describe_time(complete({"device": "cpu"}), seconds) == words + hint * (seconds > 3 * 3600)


def test_a_run_is_described_by_what_it_does():
    config = complete({})
    assert describe_run(config, 202_599, 16_883, 0) == "Steps: 844,150, 50 epochs of 202,599 images at 64x64"
    assert describe_run(complete({"steps": 4000}), 10_000, 833, 500) == (
        "Steps: 4,000, 4.8 epochs of 10,000 images at 64x64; 500 are made"
    )
    points = complete({}, PRESETS["gaussians"])
    assert describe_run(points, 100_000, 1041, 0) == "Steps: 6,246, 6 epochs of 100,000 points"

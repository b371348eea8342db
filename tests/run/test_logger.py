"""The run's folder, metrics that are never doubled or silently wrong, and pictures."""

import json
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from threading import Barrier

import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from magnet.run.logger import RunLogger, create_run, lock_run, write_progress
from magnet.support.errors import Diverged, UserError


@pytest.fixture
def run(tmp_path):
    return create_run(tmp_path / "models", "run")


@pytest.fixture
def new_book(run):
    """Logbooks of the run; closed at the end, for a thread of TensorBoard's writes into the folder until then."""
    with ExitStack() as books:
        yield lambda **settings: books.enter_context(RunLogger(run, batch=8, **settings))


def lines(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_eight_runs_of_one_name_at_the_same_moment_get_eight_folders(tmp_path):
    together = Barrier(8)

    def begin(_):
        together.wait()
        return create_run(tmp_path / "models", "a").name

    with ThreadPoolExecutor(8) as pool:
        names = sorted(pool.map(begin, range(8)))
    assert names == ["a", *(f"a-{i}" for i in range(2, 9))] == sorted(os.listdir(tmp_path / "models"))
    assert not set(create_run(tmp_path).name) & set('<>:"/\\|?*'), "a default name suits Windows"


def test_a_file_in_the_place_of_the_models_folder_is_named(tmp_path):
    (tmp_path / "models").write_text("")
    with pytest.raises(UserError, match="models"):
        create_run(tmp_path / "models", "a")


def test_a_run_has_one_owner_at_a_time(run):
    with lock_run(run):
        with pytest.raises(UserError, match=f"another process, {os.getpid()};"), lock_run(run):
            pass
    (run / ".owner").write_text("1")  # as a killed process leaves it, whose lock has ended with it
    with lock_run(run):
        assert (run / ".owner").read_text() == str(os.getpid())
    assert not (run / ".owner").exists()


def test_a_line_holds_the_means_over_its_steps(run, new_book):
    book = new_book(step=0, every=3)
    due = [book.add({"x": torch.tensor(v)}) for v in [1.0, 2.0, 6.0]]
    book.add({"x": torch.tensor(5.0)})
    book.flush()
    assert due[:2] == [None, None]
    assert [(x["step"], x["steps"], x["images"], x["x"]) for x in lines(run)] == [(3, 3, 24, 3), (4, 1, 32, 5)]
    assert book.flush() is None


def test_a_metric_that_not_every_step_has_is_averaged_over_those_that_have_it(run, new_book):
    book = new_book(step=8, every=4)
    for r1 in (None, 3.0, None, 5.0, None, None):
        book.add({"x": torch.tensor(1.0)} | ({} if r1 is None else {"r1": torch.tensor(r1)}))
    book.flush()
    book.tensorboard.close()
    assert [(line["step"], line["x"], line.get("r1")) for line in lines(run)] == [(12, 1, 4), (14, 1, None)]
    assert [(e.step, e.value) for e in EventAccumulator(str(run)).Reload().Scalars("r1")] == [(12, 4)]
    book.add({"x": torch.tensor(1.0)})
    book.add({"x": torch.tensor(1.0), "r1": torch.tensor(float("nan"))})
    with pytest.raises(Diverged, match="r1 was nan at step 16"):
        book.flush()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_the_first_value_that_is_not_finite_is_named_with_its_step(run, new_book, value):
    book = new_book(step=40, every=3)
    book.add({"a": torch.tensor(1.0), "b": torch.tensor(1.0)})
    book.add({"a": torch.tensor(1.0), "b": torch.tensor(value)})
    with pytest.raises(Diverged, match="b was (nan|inf|-inf) at step 42"):
        book.add({"a": torch.tensor(value), "b": torch.tensor(value)})
    assert not (run / "metrics.jsonl").exists()


def test_what_a_killed_process_wrote_past_its_checkpoint_is_taken_back(run, new_book):
    book = new_book(step=0, every=1)
    for step in range(1, 6):
        book.add({"x": torch.tensor(float(step))})
        book.save_grid("prior", torch.zeros(64, 3, 4, 4))
        book.save_grid("policy", torch.zeros(64, 3, 4, 4))
    book.tensorboard.close()
    (run / "samples" / "best.png").write_bytes(b"somebody's own")
    with open(run / "metrics.jsonl", "a") as file:
        file.write('{"step": 6, "ste')  # cut off in the middle
    for name in ("config.json.1.tmp", "samples/000005.png.1.tmp"):
        (run / name).write_bytes(b"half")

    book = new_book(step=3, every=1)
    book.add({"x": torch.tensor(40.0)})
    book.tensorboard.close()
    assert [(line["step"], line["x"]) for line in lines(run)] == [(1, 1), (2, 2), (3, 3), (4, 40)]
    assert sorted(p.stem for p in (run / "samples").iterdir() if p.stem.isdigit()) == ["000001", "000002", "000003"]
    assert len(list((run / "samples").glob("*-policy.png"))) == 3 and not list(run.rglob("*.tmp"))
    shown = EventAccumulator(str(run)).Reload().Scalars("x")
    assert [(event.step, event.value) for event in shown] == [(1, 1), (2, 2), (3, 3), (4, 40)]


def test_progress_shows_the_prior_grids_in_order(run, new_book):
    assert write_progress(run) is None
    book = new_book(step=0, every=1)
    for book.step, value in [(999_999, 0.0), (1_000_000, 1.0), (5, -1.0)]:
        book.save_grid("prior", torch.full((64, 3, 4, 4), value))
        book.save_grid("policy", torch.full((64, 3, 4, 4), 0.5))
    film = Image.open(write_progress(run))
    shown = []
    for frame in range(film.n_frames):
        film.seek(frame)
        shown.append(film.convert("RGB").getpixel((4, 4))[0])
    assert shown == pytest.approx([0, 128, 255], abs=2)

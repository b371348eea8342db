"""Scores while training: what is logged, the best checkpoint, and when patience ends a run."""

import json
import re

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_train import TINY, differences, state

import sample
import train
from magnet.data.image_dataset import load_faces
from magnet.run import checkpoint
from magnet.run.saved_runs import load_checkpoint


def scored(run):
    """The log's lines that hold a score, as (step, score)."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["swd"]) for line in lines if "swd" in line]


def test_scores_are_logged_and_the_best_checkpoint_stays_while_training_is_what_it_was(place, capsys):
    assert train.main([*TINY, "--steps", "25", "--name", "plain"]) == 0
    assert train.main([*TINY, "--steps", "25", "--keep", "1", "--evaluate-every", "4", "--name", "scored"]) == 0
    plain, run = place / "models" / "plain", place / "models" / "scored"
    assert differences(state(plain), state(run)) == []
    scores = scored(run)
    assert [step for step, _ in scores] == [4, 8, 12, 16, 20, 24] and all(score > 0 for _, score in scores)
    best_step, best = min(scores, key=lambda pair: pair[1])
    kept = checkpoint.load(run / "checkpoints" / "best.pt")
    assert kept["best"] == {"swd": best, "step": best_step, "worse_since": 0} and kept["trainer"]["steps"] == best_step
    assert f"{best:.2f} at step {best_step}" in capsys.readouterr().out
    events = EventAccumulator(str(run)).Reload()
    assert [e.step for e in events.Scalars("swd_16")] == [step for step, _ in scores]
    assert sorted(p.name for p in (run / "checkpoints").iterdir()) == ["000025.pt", "best.pt"]
    (place / "mine.pt").write_bytes((run / "checkpoints" / "best.pt").read_bytes())
    assert sample.main(["mine.pt", "--out", "best.png"]) == 0


@pytest.mark.parametrize("k", [4, 11])
def test_scores_go_on_with_a_run(place, k):
    scoring = [*TINY, "--evaluate-every", "4"]
    assert train.main([*scoring, "--steps", "17", "--name", "straight"]) == 0
    assert train.main([*scoring, "--steps", str(k), "--name", "parts"]) == 0
    assert train.main(["--resume", "models/parts", "--steps", "17"]) == 0
    straight, parts = place / "models" / "straight", place / "models" / "parts"
    assert scored(straight) == scored(parts) and len(scored(parts)) == 4
    for name in ("000017.pt", "best.pt"):
        ends = [checkpoint.load(run / "checkpoints" / name) for run in (straight, parts)]
        assert ends[0]["best"]["step"] == min(scored(straight), key=lambda pair: pair[1])[0]
        assert ends[0]["best"] == ends[1]["best"] and differences(ends[0]["trainer"], ends[1]["trainer"]) == []


def test_a_run_killed_after_its_best_goes_on_from_there(place, capsys):
    """With no checkpoint at its step: what goes on must not lie behind the best, or that would be of no run at all."""
    seldom = [*TINY, "--checkpoint-every", "1000", "--evaluate-every", "5"]
    run, straight = place / "models" / "killed", place / "models" / "straight"
    assert train.main([*seldom, "--steps", "7", "--name", "killed"]) == 0
    (run / "checkpoints" / "000007.pt").unlink()  # as if it was killed before
    assert load_checkpoint(run)[0].name == "best.pt"  # what is sampled and scored is what would go on
    assert train.main(["--resume", "models/killed", "--steps", "12"]) == 0
    assert re.search("Going on from .*best.pt", capsys.readouterr().out)
    assert train.main([*seldom, "--steps", "12", "--name", "straight"]) == 0
    assert differences(state(run), state(straight)) == [] and scored(run) == scored(straight)


def test_a_best_checkpoint_that_cannot_be_read_is_made_anew(place, capsys):
    assert train.main([*TINY, "--evaluate-every", "3", "--steps", "7", "--name", "torn"]) == 0
    best = place / "models" / "torn" / "checkpoints" / "best.pt"
    best.write_bytes(best.read_bytes()[:1000])
    assert train.main(["--resume", "models/torn", "--steps", "9"]) == 0
    assert "best.pt cannot be read" in capsys.readouterr().out
    assert checkpoint.load(best)["best"]["step"] == 9


def test_patience_ends_a_run_that_gets_no_better(place, capsys, monkeypatch):
    scores = iter([9.0, 5.0, 6.0, 5.0, 4.0, 8.0, 8.0, 7.0, 1.0])
    monkeypatch.setattr("magnet.evaluation.scores.sliced_wasserstein", lambda *_: {"swd": next(scores)})
    patient = ["--evaluate-every", "2", "--patience", "3"]
    assert train.main([*TINY, *patient, "--epochs", "100", "--name", "patient"]) == 0
    run = place / "models" / "patient"
    assert state(run)["steps"] == 16
    assert checkpoint.load(run / "checkpoints" / "best.pt")["trainer"]["steps"] == 10
    assert (run / "progress.gif").exists() and (run / "samples" / "000016.png").exists()
    assert "Ended early: no better score in 3 evaluations than 4.00 at step 10" in capsys.readouterr().out
    assert train.main(["--resume", "models/patient"]) == 0
    assert "Nothing to do" in capsys.readouterr().out and state(run)["steps"] == 16
    assert train.main(["--resume", "models/patient", "--patience", "4", "--steps", "18"]) == 0
    assert checkpoint.load(run / "checkpoints" / "best.pt")["best"] == {"swd": 1.0, "step": 18, "worse_since": 0}


def test_the_best_checkpoint_is_chosen_on_held_out_images(place, monkeypatch):
    from magnet.evaluation import scores

    seen, distance = [], scores.sliced_wasserstein
    monkeypatch.setattr(scores, "sliced_wasserstein", lambda a, b, random: seen.append(b) or distance(a, b, random))
    apart = ["--hold-out", "0.4", "--replay-fraction", "0.5", "--evaluate-every", "2"]
    assert train.main([*TINY, *apart, "--steps", "2", "--name", "apart"]) == 0
    config = json.loads((place / "models" / "apart" / "config.json").read_text())
    pixels = {held: load_faces("faces", 32, hold_out=0.4, held_out=held, cache_dir=place / "cache") for held in (0, 1)}
    assert config["hold_out"] == 0.4 and len(pixels[1]) >= 10
    known = {held: {image.tobytes() for image in images} for held, images in pixels.items()}
    (real,) = seen
    images = {image.tobytes() for image in real.numpy()} | {image.flip(2).numpy().tobytes() for image in real}
    assert images & known[1] and not images & known[0]

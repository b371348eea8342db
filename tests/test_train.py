"""The whole program through its command line: settings, a tiny run and what it leaves, stops, kills and resumes."""

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import sample
import train
from magnet import checkpoint
from magnet.config import PRESETS, Config
from magnet.faces import fingerprint, is_held_out
from magnet.logbook import sole_owner
from magnet.maddpg import MADDPG
from magnet.runs import load_checkpoint

ROOT = Path(train.__file__).parent
PER_EPOCH = 6  # 40 images, 6 fresh rows a step
TINY = [
    *("--data", "faces", "--image-size", "32", "--width", "4", "--nz", "4", "--batch-size", "8", "--device", "cpu"),
    *("--replay-fraction", "0.25", "--replay-size", "20", "--episode-length", "4", "--gamma", "0.5"),
    *("--sample-every", "5", "--checkpoint-every", "1", "--keep", "100"),
]


def start(place, *arguments):
    """train.py in a process of its own, one thread."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "train.py"), *arguments]
    return subprocess.Popen(
        command, cwd=place, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finish(process):
    """Its exit status and what it printed."""
    output, _ = process.communicate(timeout=120)
    return process.returncode, output


def wait_for(path, process):
    deadline = time.monotonic() + 60
    while not path.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert path.exists(), finish(process)


def differences(a, b, name=""):
    """Dotted names at which two nested states differ, bit for bit."""
    if isinstance(a, torch.Tensor):
        return [] if a.dtype == b.dtype and torch.equal(a, b) else [name]
    if isinstance(a, dict):
        assert a.keys() == b.keys(), name
        return [found for key in a for found in differences(a[key], b[key], f"{name}.{key}")]
    if isinstance(a, (list, tuple)):
        assert len(a) == len(b), name
        return [found for i in range(len(a)) for found in differences(a[i], b[i], f"{name}.{i}")]
    return [] if a == b else [name]


def metrics(run):
    """What a run has logged so far. With its times in it no two makings are alike: a step made again would show."""
    return (run / "metrics.jsonl").read_bytes()


def state(run):
    return checkpoint.newest(run / "checkpoints")[1]["trainer"]


def test_every_parameter_has_a_flag_and_its_default(capsys):
    with pytest.raises(SystemExit) as stopped:
        train.main(["--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    for field in dataclasses.fields(Config):
        assert f"--{field.name.replace('_', '-')} " in text.replace("\n", " ")
    given, _ = train.parse(["--replay-fraction", "0.5", "--nz", "7"])
    assert given == {"replay_fraction": 0.5, "nz": 7}  # nothing else is set by the command line


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_trains_and_flags_come_before_it(place, preset):
    small = ["--data", "faces", "--image-size", "32", "--width", "4", "--batch-size", "12", "--device", "cpu"]
    assert train.main(["--preset", preset, *small, "--steps", "2", "--name", "preset"]) == 0
    config = json.loads((place / "models" / "preset" / "config.json").read_text())
    given = {"data": "faces", "image_size": 32, "width": 4, "batch_size": 12, "device": "cpu"}
    expected = PRESETS[preset] | given
    assert {name: config[name] for name in expected} == expected


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--data", "nowhere"], ["nowhere", "download_celeba.py"]),
        (["--batch-size", "3"], ["--batch-size is 3", "from 4 to 65536"]),
        (["--lr", "nan"], ["--lr is nan"]),
        (["--gamma", "1"], ["--gamma is 1.0"]),
        (["--tau", "-0.1"], ["--tau is -0.1"]),
        (["--patience", "3"], ["--patience 3", "--evaluate-every"]),
        (["--hold-out", "0.6"], ["--hold-out is 0.6", "from 0 to 0.5"]),
        (["--hold-out", "1e-9"], ["--hold-out 1e-09", "0 of 40 images"]),
        (["--steps", "-1"], ["--steps is -1"]),
        (["--name", "../x"], ["--name is '../x'"]),
        (["--name", ".."], ["--name is '..'"]),
        (["--device", "cuda:99"], ["cuda:99", "--device cpu"]),
        (["--device", "tpu"], ["'tpu'"]),
        (["--replay-fraction", "0.9", "--batch-size", "8"], ["--replay-fraction 0.9"]),
        (["--replay-size", "5"], ["--replay-size is 5"]),
        (["--batch-size", "64", "--replay-size", "64"], ["faces", "too few", "--batch-size"]),
        (["--algorithm", "gan", "--gamma", "0.5"], ["--algorithm gan", "--gamma 0"]),
        (["--resume", "models/none"], ["models/none", "no run"]),
    ],
)
def test_a_mistake_is_one_sentence_and_status_2(place, capsys, arguments, words):
    assert train.main([*TINY, *arguments]) == 2
    *bars, error = capsys.readouterr().err.strip().splitlines()
    assert error.startswith("train.py: ") and all(word in error for word in words)
    assert all("images/s" in bar or "image/s" in bar for bar in bars)  # nothing else, no traceback
    assert not (place / "models").exists()


@pytest.mark.parametrize(
    "arguments",
    [["--image-size", "48"], ["--epochs", "two"], ["--no-such-flag", "1"], ["--preset", "cpu", "--resume", "models/a"]],
)
def test_words_that_argparse_does_not_know_have_status_2(arguments):
    with pytest.raises(SystemExit) as stopped:
        train.main(arguments)
    assert stopped.value.code == 2


def test_a_dry_run_counts_and_leaves_nothing(place, capsys):
    assert train.main([*TINY, "--dry-run"]) == 0
    output = capsys.readouterr().out
    assert all(name in output for name in ("G_a", "G_c", "D_a", "D_c", "memory in all"))
    assert not (place / "models").exists()


def test_a_run_leaves_what_the_readme_says(place):
    assert train.main([*TINY, "--steps", "13", "--name", "first"]) == 0
    run = place / "models" / "first"
    assert json.loads((run / "config.json").read_text())["nz"] == 4
    assert json.loads((run / "environment.json").read_text())["torch"] == torch.__version__
    assert [p.stem for p in checkpoint.listed(run / "checkpoints")] == ["000000", "000006", "000012", "000013"]

    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [6, 12, 13]  # read back at each checkpoint
    assert sum(line["steps"] for line in lines) == 13 and lines[-1]["images"] == 13 * 8
    for name in (
        "generator/return", "generator/td_error", "generator/slope_cosine", "generator/z_deviation",
        "generator/z_correlation", "generator/actor_gradient", "generator/generator_gradient",
        "discriminator/return", "discriminator/td_error", "discriminator/slope_cosine", "discriminator/accuracy_real",
        "discriminator/accuracy_fake", "discriminator/from_equilibrium", "discriminator/critic_gradient",
        "images_per_second",
    ):  # fmt: skip
        assert np.isfinite(lines[-1][name]), name
    assert lines[-1]["discriminator/from_equilibrium"] == pytest.approx(lines[-1]["discriminator/return"] + np.log(4))

    events = EventAccumulator(str(run)).Reload()
    assert [e.step for e in events.Scalars("generator/return")] == [6, 12, 13]
    assert [e.value for e in events.Scalars("generator/return")] == pytest.approx(
        [x["generator/return"] for x in lines]
    )
    assert [e.step for e in events.Images("prior")] == [0, 5, 10, 13]

    grids = sorted(p.name for p in (run / "samples").iterdir())
    assert grids == sorted(f"{step:06d}{kind}.png" for step in (0, 5, 10, 13) for kind in ("", "-policy"))
    assert Image.open(run / "samples" / "000013.png").size == (8 * 34 + 2, 8 * 34 + 2)
    assert (run / "samples" / "000000.png").read_bytes() != (run / "samples" / "000013.png").read_bytes()
    assert Image.open(run / "progress.gif").n_frames == 4


def test_the_policy_grid_shows_real_states_beside_the_answers(place):
    assert train.main([*TINY, "--steps", "1", "--name", "grid"]) == 0
    grid = np.asarray(Image.open(place / "models" / "grid" / "samples" / "000001-policy.png"))
    real = {np.asarray(Image.open(p)).tobytes() for p in (place / "faces").iterdir()}
    cells = [[grid[2 + 34 * r : 34 + 34 * r, 2 + 34 * c : 34 + 34 * c].tobytes() for c in range(8)] for r in range(8)]
    assert all((cells[r][c] in real) == (c % 2 == 0) for r in range(8) for c in range(8))


def test_several_agents_train_go_on_and_are_sampled(place, capsys):
    team = ["--generators", "2", "--discriminators", "2", "--specialise", "1", "--share", "--pool", "softmax"]
    assert train.main([*TINY, *team, "--steps", "4", "--name", "team"]) == 0
    assert train.main(["--resume", "models/team", "--steps", "6"]) == 0
    line = json.loads((place / "models" / "team" / "metrics.jsonl").read_text().splitlines()[-1])
    agents = {"generator_0", "generator_1", "discriminator_0", "discriminator_1"}
    assert {name.split("/")[0] for name in line if "/" in name} == agents
    with np.load(samples("models/team")) as both, np.load(samples("models/team", "--generator", "1")) as second:
        assert np.array_equal(both["arr_0"][3:], second["arr_0"][:3])
        assert not np.array_equal(both["arr_0"][:3], second["arr_0"][:3])
    assert sample.main(["models/team", "--generator", "2"]) == 2
    assert "models/team has 2" in capsys.readouterr().err


def samples(run, *flags):
    """The file of six samples."""
    assert sample.main([run, *flags, "--count", "6", "--npz", f"six{len(flags)}.npz"]) == 0
    return f"six{len(flags)}.npz"


def test_a_plain_gan_trains_and_has_no_policy(place, capsys):
    assert train.main([*TINY, "--algorithm", "gan", "--gamma", "0", "--steps", "6", "--name", "gan"]) == 0
    assert "G_c" not in capsys.readouterr().out
    assert sorted(p.name for p in (place / "models" / "gan" / "samples").iterdir()) == [
        "000000.png",
        "000005.png",
        "000006.png",
    ]
    assert sample.main(["models/gan", "--out", "prior.png"]) == 0
    assert sample.main(["models/gan", "--kind", "guided", "--out", "guided.png"]) == 0
    assert (place / "guided.png").read_bytes() != (place / "prior.png").read_bytes()
    assert sample.main(["models/gan", "--kind", "policy"]) == 2
    assert "no policy" in capsys.readouterr().err


def test_only_the_last_checkpoints_stay(place):
    assert train.main([*TINY, "--steps", "25", "--keep", "2", "--name", "kept"]) == 0
    assert [p.stem for p in checkpoint.listed(place / "models" / "kept" / "checkpoints")] == ["000024", "000025"]


def test_a_name_is_never_used_twice(place):
    for _ in range(2):
        assert train.main([*TINY, "--steps", "1", "--name", "same"]) == 0
    assert sorted(p.name for p in (place / "models").iterdir()) == ["same", "same-2"]


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
    assert differences(
        state(straight), checkpoint.load(straight / "checkpoints" / "000012.pt")["trainer"]
    )  # not frozen
    grid = f"samples/{total:06d}.png"
    assert (straight / grid).read_bytes() == (parts / grid).read_bytes()


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
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
    stop = train.Stop()
    signal.raise_signal(first)
    assert stop.signal == first
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == [signal.SIG_DFL] * 2


@pytest.mark.parametrize("moment", ["checkpoints/000000.pt", "samples/000010.png"])
def test_a_killed_run_goes_on_from_its_last_checkpoint(place, moment):
    run = place / "models" / "killed"
    process = start(place, *TINY, "--epochs", "1000", "--name", "killed")
    wait_for(run / moment, process)
    process.kill()
    finish(process)
    total = 6 * (state(run)["steps"] // 6) + 20
    status, output = finish(start(place, "--resume", "models/killed", "--steps", str(total)))
    assert status == 0, output
    assert train.main([*TINY, "--steps", str(total), "--name", "straight"]) == 0
    assert differences(state(run), state(place / "models" / "straight")) == []
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert sum(line["steps"] for line in lines) == total  # no gap, no step twice
    assert list(run.rglob("*.tmp")) == []
    steps = [e.step for e in EventAccumulator(str(run)).Reload().Scalars("generator/return")]
    assert steps == [line["step"] for line in lines]


def test_a_resumed_run_keeps_its_game(place, capsys):
    assert train.main([*TINY, "--steps", "2", "--name", "game"]) == 0
    capsys.readouterr()
    assert train.main(["--resume", "models/game", "--nz", "5", "--tau", "0.1"]) == 2
    error = capsys.readouterr().err
    assert "--nz (was 4)" in error and "--tau (was 0.003)" in error
    for path in (place / "faces").iterdir():
        os.utime(path, (1, 1))  # copied: the same images
    assert train.main(["--resume", "models/game", "--steps", "2", "--precision", "auto"]) == 0
    (place / "faces" / "00.png").unlink()
    assert train.main(["--resume", "models/game", "--steps", "3"]) == 2
    assert "not those" in capsys.readouterr().err
    assert state(place / "models" / "game")["steps"] == 2


def test_held_out_images_are_shown_to_no_agent_and_stay_apart(place, capsys):
    assert train.main([*TINY, "--hold-out", "0.2", "--steps", "6", "--name", "apart"]) == 0
    run = place / "models" / "apart"
    every = {p.name: np.asarray(Image.open(p)) for p in (place / "faces").iterdir()}
    training = np.stack([every[n] for n in sorted(every) if not is_held_out(n, 0.2)]).transpose(0, 3, 1, 2)
    assert 0 < len(training) < 40 and checkpoint.newest(run / "checkpoints")[1]["faces"] == fingerprint(training)
    assert train.main(["--resume", "models/apart", "--steps", "7", "--hold-out", "0.3"]) == 2
    assert "--hold-out (was 0.2)" in capsys.readouterr().err
    assert train.main(["--resume", "models/apart", "--steps", "7"]) == 0
    assert sample.main(["models/apart", "--kind", "policy", "--out", "pairs.png"]) == 0
    pairs = np.asarray(Image.open("pairs.png"))
    states = {
        pairs[2 + 34 * r : 34 + 34 * r, 2 + 34 * c : 34 + 34 * c].tobytes() for r in range(8) for c in (0, 2, 4, 6)
    }
    allowed = {
        np.ascontiguousarray(turned).tobytes()
        for n in every
        if not is_held_out(n, 0.2)
        for turned in (every[n], every[n][:, ::-1])
    }
    assert states <= allowed


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
    assert [(e.step, e.value) for e in events.Scalars("swd")] == [
        (step, pytest.approx(score)) for step, score in scores
    ]
    assert [e.step for e in events.Scalars("swd_16")] == [step for step, _ in scores]
    assert sorted(p.name for p in (run / "checkpoints").iterdir()) == ["000025.pt", "best.pt"]
    (place / "mine.pt").write_bytes((run / "checkpoints" / "best.pt").read_bytes())
    assert sample.main(["mine.pt", "--out", "best.png"]) == 0


@pytest.mark.parametrize("k", [4, 6, 11])
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


def test_a_run_killed_after_its_best_goes_on_from_there(place):
    """With no checkpoint at its step: what goes on must not lie behind the best, or that would be of no run at all."""
    seldom = [*TINY, "--checkpoint-every", "1000", "--evaluate-every", "5"]
    run = place / "models" / "killed"
    process = start(place, *seldom, "--epochs", "1000", "--name", "killed")
    wait_for(run / "checkpoints" / "best.pt", process)
    process.kill()
    finish(process)
    reached = checkpoint.load(run / "checkpoints" / "best.pt")["trainer"]["steps"]
    assert load_checkpoint(run)[0].name == "best.pt"  # what is sampled and scored is what would go on
    assert reached >= 5 and [p.stem for p in checkpoint.listed(run / "checkpoints")] == ["000000"]
    first_part = [line for line in metrics(run).splitlines() if json.loads(line)["step"] <= reached]
    total = str(reached + 7)
    status, output = finish(start(place, "--resume", "models/killed", "--steps", total))
    assert status == 0 and "Going on from" in output and "best.pt" in output, output
    assert metrics(run).splitlines()[: len(first_part)] == first_part
    assert train.main([*seldom, "--steps", total, "--name", "straight"]) == 0
    straight = place / "models" / "straight"
    assert differences(state(run), state(straight)) == [] and scored(run) == scored(straight)


def test_a_best_checkpoint_that_cannot_be_read_is_made_anew(place, capsys):
    assert train.main([*TINY, "--evaluate-every", "3", "--steps", "7", "--name", "torn"]) == 0
    best = place / "models" / "torn" / "checkpoints" / "best.pt"
    best.write_bytes(best.read_bytes()[:1000])
    assert train.main(["--resume", "models/torn", "--steps", "9"]) == 0
    assert "best.pt cannot be read" in capsys.readouterr().out
    assert checkpoint.load(best)["best"]["step"] == 9


def test_patience_ends_a_run_that_gets_no_better_and_says_how_near_to_equilibrium(place, capsys, monkeypatch):
    scores = iter([9.0, 5.0, 6.0, 5.0, 4.0, 8.0, 8.0, 7.0, 1.0])
    monkeypatch.setattr("magnet.evaluation.sliced_wasserstein", lambda *_: {"swd": next(scores)})
    patient = ["--evaluate-every", "2", "--patience", "3"]
    assert train.main([*TINY, *patient, "--epochs", "100", "--name", "patient"]) == 0
    run = place / "models" / "patient"
    assert state(run)["steps"] == 16
    assert checkpoint.load(run / "checkpoints" / "best.pt")["trainer"]["steps"] == 10
    assert (run / "progress.gif").exists() and (run / "samples" / "000016.png").exists()
    (said,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Ended early: ")]
    line = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    value, real, fake = (line[f"discriminator/{name}"] for name in ("return", "accuracy_real", "accuracy_fake"))
    assert "in 3 evaluations than 4.00 at step 10" in said and f"{value:.2f}, at equilibrium -1.39" in said
    assert f"{real:.0%} of the real" in said and f"{fake:.0%} of the fake" in said

    assert train.main(["--resume", "models/patient"]) == 0
    assert "Nothing to do" in capsys.readouterr().out and state(run)["steps"] == 16
    assert train.main(["--resume", "models/patient", "--patience", "4", "--steps", "18"]) == 0
    assert checkpoint.load(run / "checkpoints" / "best.pt")["best"] == {"swd": 1.0, "step": 18, "worse_since": 0}


def test_a_finished_run_is_left_as_it_is(place, capsys):
    assert train.main([*TINY, "--steps", "2", "--name", "done"]) == 0
    before = {path: path.stat().st_mtime_ns for path in (place / "models" / "done").rglob("*")}
    assert train.main(["--resume", "models/done"]) == 0
    assert "Nothing to do" in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in (place / "models" / "done").rglob("*")}


def test_a_run_that_another_process_trains_is_left_alone(place, capsys):
    process = start(place, *TINY, "--epochs", "1000", "--name", "owned")
    wait_for(place / "models" / "owned" / "samples" / "000005.png", process)
    run = place / "models" / "owned"
    before = len(list((run / "checkpoints").iterdir()))
    assert train.main(["--resume", "models/owned"]) == 2
    assert f"another process, {process.pid};" in capsys.readouterr().err
    assert len(list((run / "checkpoints").iterdir())) >= before and not list(run.rglob("*.damaged"))
    process.kill()
    finish(process)
    total = str(state(run)["steps"] + 3)
    assert train.main(["--resume", "models/owned", "--steps", total]) == 0, "a dead owner's lock holds nobody up"


def test_a_locked_run_is_refused_before_anything_of_it_is_read_or_renamed(place, capsys):
    assert train.main([*TINY, "--steps", "2", "--name", "busy"]) == 0
    run = place / "models" / "busy"
    (run / "checkpoints" / "000004.pt").write_bytes(b"just being looked at")
    with sole_owner(run):
        before = sorted(run.rglob("*"))
        assert train.main(["--resume", "models/busy", "--steps", "9"]) == 2
        assert f"another process, {os.getpid()};" in capsys.readouterr().err
        assert sorted(run.rglob("*")) == before
    assert train.main(["--resume", "models/busy", "--steps", "9", "--dry-run"]) == 0
    assert (run / "checkpoints" / "000004.pt").exists(), "a dry run renames nothing"
    assert train.main(["--resume", "models/busy", "--steps", "3"]) == 0
    assert (run / "checkpoints" / "000004.damaged").exists()


@pytest.mark.long
def test_eight_runs_started_at_once_share_a_cache_and_no_folder(place):
    processes = [start(place, *TINY, "--steps", "7") for _ in range(8)]  # each named by its time
    for process in processes:
        status, output = process.wait(500), process.stdout.read()
        assert status == 0, output
    runs = list((place / "models").iterdir())
    assert len(runs) == 8 and len(list((place / "data" / "cache").glob("*.npy"))) == 1
    assert all(differences(state(runs[0]), state(run)) == [] for run in runs[1:])
    assert not list(place.rglob("*.tmp"))


def test_a_failing_disk_is_a_sentence_and_status_1(place, capsys, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("magnet.logbook.Logbook.picture", full)
    assert train.main([*TINY, "--steps", "3", "--name", "full"]) == 1
    assert "No space left" in capsys.readouterr().err.splitlines()[-1]


def test_more_memory_than_there_is_is_refused_before_any_work(place, capsys):
    assert train.main([*TINY, "--replay-size", "1000000000000", "--name", "large"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "memory" in error and "--replay-size" in error
    assert sorted(p.name for p in place.iterdir()) == ["faces"]


def test_memory_that_runs_out_is_a_sentence_that_names_what_helps(place, capsys, monkeypatch):
    monkeypatch.setattr("magnet.summary.refuse_too_large", lambda config: None)  # as where its count is too low
    assert train.main([*TINY, "--replay-size", "1000000000000", "--name", "large"]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert "memory" in error and "--replay-size" in error


def test_a_gpu_without_memory_left_is_a_sentence_and_status_1(place, capsys, monkeypatch):
    def full(trainer):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")

    monkeypatch.setattr(MADDPG, "step", full)
    assert train.main([*TINY, "--steps", "3", "--name", "full"]) == 1
    assert "out of memory" in (error := capsys.readouterr().err.splitlines()[-1]) and "--batch-size" in error


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), PermissionError(13, "Permission denied")])
def test_a_disk_that_takes_no_checkpoint_is_a_sentence_and_status_1(place, capsys, monkeypatch, error):
    assert train.main([*TINY, "--steps", "6", "--name", "full"]) == 0

    replace = os.replace

    def refuse(source, target):
        if target.suffix == ".pt":
            raise error
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr("magnet.files.os.replace", refuse)
        assert train.main(["--resume", "models/full", "--steps", "8"]) == 1
    assert error.strerror in (sentence := capsys.readouterr().err.splitlines()[-1]) and "--resume" in sentence
    assert list((place / "models").rglob("*.tmp")) == [] and state(place / "models" / "full")["steps"] == 6


def test_the_commands_of_readme_and_makefile_are_understood():
    text = "".join((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "Makefile"))
    commands = re.findall(r"train\.py((?: +--?[a-z][\w-]*(?: [^\s`|#]+)?)*)", text)
    assert any("--preset" in command for command in commands)
    for command in commands:
        words = command.replace("FOLDER", "x").replace("RUN", "x").split()
        if "--help" not in words:
            train.parse(words)


def test_what_is_not_finite_stops_the_run_and_names_the_step(place, capsys, monkeypatch):
    step = MADDPG.step

    def poisoned(trainer):
        metrics = step(trainer)
        if trainer.steps == 9:
            metrics["generator/td_error"] = metrics["generator/td_error"] * float("nan")
        return metrics

    monkeypatch.setattr(MADDPG, "step", poisoned)
    assert train.main([*TINY, "--steps", "20", "--name", "nan"]) == 3
    error = capsys.readouterr().err
    assert "generator/td_error was nan at step 9" in error and "Traceback" not in error
    assert [p.stem for p in checkpoint.listed(place / "models" / "nan" / "checkpoints")] == ["000000", "000006"]


@pytest.mark.parametrize("change", [{"answers": None}, {"unheard_of": 1}])
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

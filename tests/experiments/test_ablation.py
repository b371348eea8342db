"""experiments/ablation.py: its settings are controls that lack what they ask about; a stopped table goes on."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from conftest import new_trainer, relative_error, watch_steps

from experiments import ablation
from magnet.agents.networks import discriminator_networks, generator_networks
from magnet.config import PRESETS, Config, check, complete
from magnet.run import command_line
from magnet.support.errors import UserError


@pytest.mark.parametrize("setting", ablation.SETTINGS)
def test_every_setting_is_a_run_of_train(setting):
    _, base = ablation.parse([])
    flags = base | ablation.SETTINGS[setting][1] | {"seed": 1}
    given, _ = command_line.parse(ablation.words(flags))
    assert given == flags
    check(Config(**given))


def test_the_controls_are_games_without_critics_or_without_what_is_asked_about():
    games = {name: complete(PRESETS["cpu"] | flags) for name, (_, flags) in ablation.SETTINGS.items()}
    critics = {
        name: [key for key, made in (("G", generator_networks), ("D", discriminator_networks)) if "critic" in made(one)]
        for name, one in games.items()
    }
    without = {"no-generator-critic": ["D"], "no-discriminator-critic": ["G"]}
    without |= dict.fromkeys(("no-critics", "gan", "gan-plain"), [])
    assert critics == dict.fromkeys(games, ["G", "D"]) | without
    assert all(game != games["default"] for name, game in games.items() if name != "default")
    same = {"r1", "r1_every", "replay_fraction", "batch_size", "tau"}
    assert all(getattr(games["gan"], name) == getattr(games["default"], name) for name in same)
    assert games["gan-plain"].r1 == games["gan-plain"].replay_fraction == 0


def gradients_of_a_generators_actor(diversity_weight):
    """By which G_a makes its first step, with a critic of large gradients and with one that says the opposite."""
    gradients = []
    for scale in (1000, -1000):
        trainer = new_trainer(diversity_weight=diversity_weight, lr=1e-8)
        agent = trainer.generators[0]
        with torch.no_grad():
            for p in agent.critic.head[-1].parameters():
                p.mul_(scale)
        seen = watch_steps(agent)
        trainer.step()
        gradients.append(seen["actor"])
    return gradients


def test_without_its_critics_gradient_g_a_cannot_learn_by_its_critic():
    first, second = gradients_of_a_generators_actor(ablation.SETTINGS["no-gradient-to-ga"][1]["diversity_weight"])
    assert relative_error(first, second) < 1e-4
    first, second = gradients_of_a_generators_actor(Config().diversity_weight)
    assert relative_error(first, second) > 0.01, "else the test says nothing"
    first, second = gradients_of_a_generators_actor(0.0)
    assert relative_error(first, -second) < 1e-3


def test_the_base_is_the_preset_with_the_flags_of_all_runs():
    options, base = ablation.parse(["--only", "gan", "--nz", "7", "--seeds", "3"])
    assert (options.only, options.seeds) == (["gan"], [3])
    assert base == PRESETS["cpu"] | {"precision": "fp32", "checkpoint_every": 5, "nz": 7}
    assert "image_size" not in ablation.parse(["--preset", "default"])[1]


@pytest.mark.parametrize("words", ["--seed 1", "--steps 1", "--keep 1", "--dry-run", "--only x", "--count 3"])
def test_what_a_run_gets_from_the_program_is_no_flag(words):
    with pytest.raises(SystemExit, match="2"):
        ablation.parse(words.split())


TINY = [
    *("--data", "faces", "--width", "4", "--nz", "4", "--batch-size", "8", "--precision", "fp32", "--episode-length"),
    *("4", "--sample-every", "1000", "--checkpoint-every", "8", "--replay-size", "20"),
]


def ablate(features, *arguments):
    """ablation.py in a process of its own, one thread."""
    command = [sys.executable, ablation.__file__, "--out", "results.jsonl", "--count", "20", "--features", features]
    command += ["--models-dir", "models", "--seeds", "0", *arguments, *TINY]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def results(place):
    return [json.loads(line) for line in (place / "results.jsonl").read_text().splitlines()]


def test_a_stopped_table_goes_on_and_makes_nothing_twice(place, thumbnail):
    pytest.importorskip("torch_fidelity")
    words = [thumbnail, "--only", "gan", "default", "--images", "960"]
    process = ablate(*words)
    run, deadline = place / "models" / "default-seed0", time.monotonic() + 300
    while not (run / "metrics.jsonl").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 130 and "the same command goes on" in said, said
    [gan] = results(place)
    assert gan["setting"] == "gan"
    begun = (run / "metrics.jsonl").read_bytes()
    left = {path: path.stat().st_mtime_ns for path in (place / "models" / "gan-seed0").rglob("*")}

    process = ablate(*words)
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    first, default = results(place)
    assert first == gan and default["setting"] == "default"
    assert left == {path: path.stat().st_mtime_ns for path in (place / "models" / "gan-seed0").rglob("*")}
    metrics = (run / "metrics.jsonl").read_bytes()
    assert begun and metrics.startswith(begun)  # with its times in it: no step was made again
    lines = [json.loads(line) for line in metrics.splitlines()]
    assert sum(line["steps"] for line in lines) == lines[-1]["step"] == 120

    assert {point["kind"] for point in gan["curve"]} == {"prior"}
    for kind in ("prior", "policy"):
        points = [point for point in default["curve"] if point["kind"] == kind]
        assert {48, 120} <= {point["step"] for point in points}  # 6 steps an epoch
        assert points[-1]["images"] == 960 and points[-1]["samples"] == 20
        assert 0 < points[0]["minutes"] < points[-1]["minutes"]
        scores = ("swd", "fd", "kid_x1000", "precision", "recall")
        assert all(np.isfinite(point[key]) for point in points for key in scores)
    assert default["flags"].items() >= {"steps": 120, "r1_every": 8, "r1": 0.1}.items()  # the defaults too
    assert default["environment"]["torch"] == torch.__version__
    assert [path.name for path in (run / "checkpoints").glob("*.pt")] == ["000120.pt"]


def test_a_line_that_was_measured_otherwise_is_named(tmp_path):
    wanted = {("gan", 0): {"flags": {"nz": 4}, "protocol": {"count": 20}}}
    line = {"setting": "gan", "seed": 0, "flags": {"nz": 5}, "protocol": {"count": 20}}
    out = tmp_path / "results.jsonl"
    assert ablation.read_finished(out, wanted) == set()
    ablation.append_line(out, line)
    with pytest.raises(UserError, match="gan of seed 0 with other flags"):
        ablation.read_finished(out, wanted)
    ablation.append_line(out, line | {"flags": {"nz": 4}})
    assert ablation.read_finished(out, wanted) == {("gan", 0)}
    for text in ('{"setting": "gan"}\n', "[1]\n", "1\n", "{\n"):
        out.write_text(text)
        with pytest.raises(UserError, match="other lines"):
            ablation.read_finished(out, wanted)


def test_a_run_that_diverged_is_a_result_and_one_that_failed_is_none(tmp_path, monkeypatch):
    monkeypatch.setattr(ablation, "ROOT", tmp_path)
    (tmp_path / "train.py").write_text("import sys; print('bad', 'luck'); sys.exit(int(sys.argv[-3]))")
    assert ablation.train(tmp_path / "a", {"status": 0}) and not ablation.train(tmp_path / "b", {"status": 3})
    with pytest.raises(UserError, match=r"ended with 1 \(bad luck\); see .*c.log"):
        ablation.train(tmp_path / "c", {"status": 1})


def test_minutes_are_those_that_the_log_counts(tmp_path):
    assert ablation.minutes_at(tmp_path) == {}
    lines = [
        {"step": 20, "steps": 20, "images": 160, "images_per_second": 4.0},  # 160 images in 40 s
        {"step": 30, "steps": 10, "images": 240, "images_per_second": 8.0},  # 80 in 10 s
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert ablation.minutes_at(tmp_path) == pytest.approx({20: 40 / 60, 30: 50 / 60})

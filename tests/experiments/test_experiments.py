"""The programs of experiments/: runs of a few steps on made-up images, networks and lists; what stops or fails."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image

from experiments import ablation, face_features, figures, runs
from magnet.support.errors import UserError

# Face features

ATTRIBUTES = ["Bald", "Smiling", "Young"]


def official(rows):
    """A list of attributes as CelebA's is written: {name: row of booleans}."""
    lines = [str(len(rows)), " ".join(ATTRIBUTES) + " "]
    lines += [f"{name} " + " ".join(" 1" if value else "-1" for value in row) for name, row in rows.items()]
    return "\r\n".join(lines) + "\r\n"


@pytest.fixture
def faces(tmp_path, monkeypatch):
    """A working folder with 100 small images in faces/, light ones and dark ones, and what the official list says."""
    random, rows = np.random.default_rng(0), {}
    (tmp_path / "faces").mkdir()
    for i in range(100):
        light = bool(random.integers(2))
        pixels = (random.integers(0, 128, (64, 64, 3)) + 128 * light).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / "faces" / f"{i:06d}.jpg")
        rows[f"{i:06d}.jpg"] = (light, not light, True)
    monkeypatch.chdir(tmp_path)
    return rows


def learn(rows, *options):
    with open("list.txt", "w", newline="") as file:
        file.write(official(rows) if isinstance(rows, dict) else rows)
    return face_features.main(["--data", "faces", "--attributes", "list.txt", "--out", "net.pt2", *options])


def exported():
    return torch.export.load("net.pt2").module()


def test_features_are_learned_and_exported_for_any_number_of_images(faces, capsys):
    faces["absent.jpg"] = (True, True, True)
    del faces["000000.jpg"], faces["000001.jpg"]
    assert learn(faces, "--epochs", "4") == 0
    said = capsys.readouterr().out
    assert "98 images with attributes; left out: 2 images, 1 rows" in said
    right, commonest = (float(part.split("%")[0]) for part in said.splitlines()[-2].split(": ")[1:])
    assert commonest < 90 and right > commonest + 5  # light and dark are told apart

    pixels = torch.randint(256, (7, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    features = exported()(pixels)
    assert features.shape == (7, 128) and features.dtype == torch.float32
    assert torch.allclose(exported()(pixels[:1]), features[:1], atol=1e-3)  # each image for itself


def test_the_network_depends_on_the_seed_and_not_on_held_out_faces(faces):
    """Whatever the list says of them, it is the same, bit for bit."""
    from magnet.data.held_out import is_held_out

    pixels = torch.zeros(2, 3, 64, 64, dtype=torch.uint8)
    assert learn(faces, "--epochs", "1") == 0
    before = exported()(pixels)
    held_out = [name for name in faces if is_held_out(name, 0.1)]
    assert 3 <= len(held_out) <= 25
    changed = {name: tuple(not v for v in row) if name in held_out else row for name, row in faces.items()}
    assert learn(changed, "--epochs", "1") == 0
    assert torch.equal(exported()(pixels), before)
    assert learn(faces, "--epochs", "1", "--seed", "1") == 0
    assert not torch.allclose(exported()(pixels), before, atol=1e-2)


def test_standardised_features_have_mean_0_and_keep_their_proportions():
    torch.manual_seed(0)
    features, _ = face_features.build(3)
    light = torch.linspace(0.1, 1, 30)[:, None, None, None]
    pixels = (torch.randint(256, (30, 3, 64, 64)) * light).to(torch.uint8)
    before = face_features.applied(features, pixels, "cpu")
    face_features.standardise(features, pixels, "cpu")
    after = face_features.applied(features, pixels, "cpu")
    assert torch.allclose(after.mean(0), torch.zeros(128), atol=2e-3)
    assert after.square().mean().item() == pytest.approx(1, rel=1e-3)
    distances = torch.pdist(after) / torch.pdist(before)
    assert torch.allclose(distances, distances[0], rtol=1e-3)  # one factor for all


def test_moved_faces_are_mirrored_or_not_and_shifted_with_edges_repeated():
    pixels = torch.arange(12 * 12).view(12, 12).expand(50, 3, 12, 12)
    moved = face_features.moved(pixels, torch.Generator().manual_seed(0))
    padded = torch.nn.functional.pad(pixels[:1].float(), (4, 4, 4, 4), mode="replicate")[0].long()
    windows = [padded[:, y : y + 12, x : x + 12] for y in range(9) for x in range(9)]
    allowed = {tuple(w.flatten().tolist()) for window in windows for w in (window, window.flip(2))}
    seen = {tuple(image.flatten().tolist()) for image in moved}
    assert seen <= allowed and len(seen) > 20


BAD_LISTS = {
    "cut short": (lambda rows: official(rows)[:-20], "1 or -1"),
    "rows missing": (lambda rows: "\n".join(official(rows).splitlines()[:-3]), "97 names in 97 rows, not 100"),
    "a name twice": (lambda rows: official(rows).replace("000007", "000008"), "99 names in 100 rows"),
    "another number": (lambda rows: official(rows).replace("-1", " 0", 1), "000000.jpg"),
    "no list": (lambda rows: "<html>\nQuota exceeded", "invalid literal"),
    "empty": (lambda rows: "", "list.txt"),
    "other faces": (lambda rows: official({f"x{name}": row for name, row in rows.items()}), "Too few images in faces"),
}


@pytest.mark.parametrize(("make", "said"), BAD_LISTS.values(), ids=BAD_LISTS.keys())
def test_a_damaged_list_is_one_sentence_and_status_2(faces, capsys, make, said):
    assert learn(make(faces)) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("face_features.py: ") and "list.txt" in error and said in error
    assert "download_celeba.py --attributes" in error
    assert not os.path.exists("net.pt2")


@pytest.mark.parametrize("words", [["--attributes", "none.txt"], ["--device", "tpu"], ["--data", "nowhere"]])
def test_other_mistakes_are_one_sentence_too(faces, capsys, words):
    assert learn(faces, *words) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("face_features.py: ") and words[-1] in error


# The table of settings

TINY = [
    *("--data", "faces", "--width", "4", "--nz", "4", "--batch-size", "8", "--precision", "fp32", "--episode-length"),
    *("4", "--sample-every", "1000", "--checkpoint-every", "8", "--replay-size", "20"),
]


def ablate(*arguments):
    """ablation.py in a process of its own, one thread."""
    command = [sys.executable, ablation.__file__, "--out", "results.jsonl", "--count", "20", "--features", "net.pt2"]
    command += ["--models-dir", "models", "--seeds", "0", *arguments, *TINY]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def results(place):
    return [json.loads(line) for line in (place / "results.jsonl").read_text().splitlines()]


@pytest.fixture
def network(tmp_path):
    """net.pt2: the mean colours of a 4x4 grid, as features."""
    pytest.importorskip("torch_fidelity")

    class Colours(torch.nn.Module):
        def forward(self, pixels):
            return torch.nn.functional.avg_pool2d(pixels.float(), 16).flatten(1)

    face_features.export(Colours(), tmp_path / "net.pt2")


def test_a_stopped_table_goes_on_and_makes_nothing_twice(faces, network, tmp_path):
    images = ["--only", "gan", "default", "--images", "1600"]
    process = ablate(*images)
    run, deadline = tmp_path / "models" / "default-seed0", time.monotonic() + 300
    while not (run / "metrics.jsonl").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 130 and "the same command goes on" in said, said
    [gan] = results(tmp_path)
    assert gan["setting"] == "gan"
    begun = (run / "metrics.jsonl").read_bytes()
    left = {path: path.stat().st_mtime_ns for path in (tmp_path / "models" / "gan-seed0").rglob("*")}

    process = ablate(*images)
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    first, default = results(tmp_path)
    assert first == gan and default["setting"] == "default"
    assert left == {path: path.stat().st_mtime_ns for path in (tmp_path / "models" / "gan-seed0").rglob("*")}
    metrics = (run / "metrics.jsonl").read_bytes()
    assert begun and metrics.startswith(begun)  # with its times in it: no step was made again
    lines = [json.loads(line) for line in metrics.splitlines()]
    assert sum(line["steps"] for line in lines) == lines[-1]["step"] == 200

    assert {point["kind"] for point in gan["curve"]} == {"prior"}
    for kind in ("prior", "policy"):
        points = [point for point in default["curve"] if point["kind"] == kind]
        assert {128, 200} <= {point["step"] for point in points}  # 16 steps an epoch
        assert points[-1]["images"] == 1600 and points[-1]["samples"] == 20
        assert 0 < points[0]["minutes"] < points[-1]["minutes"]
        assert all(np.isfinite(point[key]) for point in points for key, *_ in figures.COLUMNS)
    assert default["flags"].items() >= {"steps": 200, "r1_every": 8, "r1": 0.1}.items()  # the defaults too
    assert default["environment"]["torch"] == torch.__version__
    assert [path.name for path in (run / "checkpoints").glob("*.pt")] == ["000200.pt"]


def test_a_line_that_was_measured_otherwise_is_named(tmp_path):
    wanted = {("gan", 0): {"flags": {"nz": 4}, "protocol": {"count": 20}}}
    line = {"setting": "gan", "seed": 0, "flags": {"nz": 5}, "protocol": {"count": 20}}
    out = tmp_path / "results.jsonl"
    assert runs.finished(out, wanted) == set()
    out.write_text(json.dumps(line) + "\n")
    with pytest.raises(UserError, match="gan of seed 0 with other flags"):
        runs.finished(out, wanted)
    out.write_text(json.dumps(line | {"flags": {"nz": 4}}) + "\n")
    assert runs.finished(out, wanted) == {("gan", 0)}
    out.write_text('{"setting": "gan"}\n')
    with pytest.raises(UserError, match="other lines"):
        runs.finished(out, wanted)


def test_a_run_that_diverged_is_a_result_and_one_that_failed_is_none(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "ROOT", tmp_path)
    (tmp_path / "train.py").write_text("import sys; print('bad', 'luck'); sys.exit(int(sys.argv[-3]))")
    wanted = {tmp_path / "a": {"status": 0}, tmp_path / "b": {"status": 3}}
    assert dict(runs.trained(wanted, jobs=2)) == {tmp_path / "a": True, tmp_path / "b": False}
    with pytest.raises(UserError, match=r"ended with 1 \(bad luck\); see .*c.log"):
        list(runs.trained({tmp_path / "c": {"status": 1}}, jobs=1))


def test_minutes_are_those_that_the_log_counts(tmp_path):
    assert runs.minutes_at(tmp_path) == {}
    lines = [
        {"step": 20, "steps": 20, "images": 160, "images_per_second": 4.0},  # 160 images in 40 s
        {"step": 30, "steps": 10, "images": 240, "images_per_second": 8.0},  # 80 in 10 s
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert runs.minutes_at(tmp_path) == pytest.approx({20: 40 / 60, 30: 50 / 60})

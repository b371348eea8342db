"""evaluate.py as a whole: what it scores, on which images, what it says and writes."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import CPU
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import evaluate
import sample
import train
from magnet import maddpg
from magnet.data.image_dataset import ImageDataset, fingerprint, load_faces
from magnet.data.synthetic import draw_faces
from magnet.evaluation.drawing import draw
from magnet.evaluation.equilibrium import discriminate, report_equilibrium
from magnet.evaluation.feature_networks import load_exported_network
from magnet.evaluation.metrics import compute_features, score_features, sliced_wasserstein
from magnet.evaluation.sampling import Sampler
from magnet.run.saved_runs import load_agents, load_checkpoint, load_states
from magnet.support.random_streams import stream

TINY = [
    *("--data", "faces", "--image-size", "32", "--width", "4", "--nz", "4", "--batch-size", "8", "--device", "cpu"),
    *("--steps", "2", "--replay-size", "20"),
]
KINDS = {
    "default": [], "original": ["--preset", "original"], "cpu": ["--preset", "cpu"], "gan": ["--algorithm", "gan"],
    "apart": ["--hold-out", "0.5"],
    "team": ["--generators", "2", "--discriminators", "2", "--reward-function", "hinge"],
}  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A working folder with 90 images in faces/, and a tiny run of each of KINDS in models/."""
    place = tmp_path_factory.mktemp("evaluated")
    (place / "faces").mkdir()
    for i, pixels in enumerate(draw_faces(90, 32, seed=0)[0]):
        Image.fromarray(pixels.transpose(1, 2, 0)).save(place / "faces" / f"{i:02d}.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setattr(maddpg, "TARGETS_EVERY", 1)  # else two steps leave them as they were
        for name, flags in KINDS.items():
            assert train.main([*TINY, *flags, "--name", name]) == 0
    return place


@pytest.fixture
def place(runs, monkeypatch):
    monkeypatch.setitem(report_equilibrium.__kwdefaults__, "steps", 5)
    monkeypatch.chdir(runs)
    return runs


def report(capsys, *arguments):
    """What evaluate.py --json prints: one line."""
    capsys.readouterr()
    assert evaluate.main([*arguments, "--json"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    return json.loads(line)


def samples(run, kind):
    """90 samples of a run, made by sample.py: (90, 3, 32, 32) uint8."""
    assert sample.main([run, "--kind", kind, "--count", "90", "--npz", "samples.npz"]) == 0
    return torch.from_numpy(np.load("samples.npz")["arr_0"]).permute(0, 3, 1, 2).contiguous()


def real(**part):
    return load_faces("faces", 32, **part)


def test_the_scores_are_those_of_sample_py_against_all_images(place, thumbnail, capsys):
    pytest.importorskip("torch_fidelity")
    result = report(capsys, "models/default", "--features", str(thumbnail))["scores"]
    embed, _ = load_exported_network(thumbnail, CPU)
    pixels = torch.from_numpy(real().copy())
    shuffled = pixels[torch.randperm(90, generator=stream(0, "reference"))]
    pairs = {kind: (samples("models/default", kind), shuffled) for kind in ("prior", "policy")}
    pairs["real"] = shuffled[:45], shuffled[45:]
    assert result.keys() == pairs.keys()
    for kind, (fakes, reals) in pairs.items():
        assert result[kind]["samples"] == len(fakes) and result[kind]["references"] == len(reals)
        expected = score_features(compute_features(embed, fakes), compute_features(embed, reals))
        expected = {"fd": expected.pop("frechet")} | expected | sliced_wasserstein(fakes, reals, stream(0, "patches"))
        assert {key: result[kind][key] for key in expected} == pytest.approx(expected, rel=1e-4), kind


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_run_has_a_table(place, thumbnail, capsys, kind):
    pytest.importorskip("torch_fidelity")
    assert evaluate.main([f"models/{kind}", "--features", str(thumbnail), "--count", "32"]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split() == ["samples", "against", "SWD", "FD", "KID", "x", "1000", "precision", "recall"]
    end = lines.index("")
    table = {line.split()[0]: [float(number) for number in line.split()[1:]] for line in lines[:end]}
    policy = [] if kind == "gan" else ["policy"]
    assert list(table) == ["prior", *policy, "real/real"]
    assert all(row[0] == row[1] <= 32 and len(row) == 7 for row in table.values())
    assert table["real/real"][2] < table["prior"][2] and table["real/real"][3] < table["prior"][3]
    protocol = ("step            2", "images seen     16", "seed 0", "32x32", "thumbnail.pt2", "reference set   tr")
    for words in protocol:
        assert any(words in line for line in lines[end:]), words


def test_the_protocol_and_what_stays_in_the_run_folder(place, capsys):
    result = report(capsys, "models/default", "--no-features", "--count", "40")
    protocol = result["protocol"]
    assert protocol["reference"] == "faces" and protocol["reference_set"] == "training, 90 images"
    assert protocol["fingerprint"] == fingerprint(real())
    assert protocol["checkpoint"].endswith("000002.pt") and protocol["features"] is None
    assert (protocol["step"], protocol["images_seen"]) == (2, 16)
    assert result["scores"]["prior"].keys() == {"samples", "references", "swd_32", "swd_16", "swd"}
    assert result["scores"]["prior"]["samples"] == 40 and result["scores"]["real"]["samples"] == 40
    board = EventAccumulator("models/default").Reload()
    for kind in ("prior", "policy", "real"):
        last = board.Scalars(f"evaluate-count-40/{kind}/swd")[-1]
        assert last.step == 2 and last.value == pytest.approx(result["scores"][kind]["swd"])


@pytest.mark.parametrize(
    ("words", "name"),
    [(["--count", "5000", "--seed", "0", "--guided", "--no-features"], "evaluate"),
     (["--data", "other/faces", "--count", "1000", "--seed", "1"], "evaluate-data-faces-count-1000-seed-1"),
     (["--held-out", "--features", "nets/thumbnail.pt2"], "evaluate-held-out-features-thumbnail")],
)  # fmt: skip
def test_evaluations_that_differ_have_tags_of_their_own(tmp_path, words, name):
    evaluate.log_scores(evaluate.parse([str(tmp_path), *words]), 7, {"prior": {"swd": 3.0}})
    board = EventAccumulator(str(tmp_path)).Reload()
    assert board.Tags()["scalars"] == [f"{name}/prior/swd"]
    assert [(event.step, event.value) for event in board.Scalars(f"{name}/prior/swd")] == [(7, 3.0)]


def test_the_equilibrium_is_reported_of_the_trained_generator_and_the_held_out_images(place, capsys):
    result = report(capsys, "models/apart", "--no-features", "--count", "40", "--equilibrium", "--guided")
    assert list(result["scores"]) == ["prior", "policy", "guided", "real"]
    assert result["scores"]["guided"] != result["scores"]["prior"]
    equilibrium = result["equilibrium"]
    (generator,), (discriminator,), _ = load_agents(*load_checkpoint(Path("models/apart")), "cpu")
    fakes = draw([Sampler(generator, None, averaged=False)], "prior", 40)[0]
    assert equilibrium["accuracy_fake"] == (discriminate(discriminator, fakes) <= 0).float().mean().item()
    assert {"accuracy_real", "accuracy_held_out", "value", "fresh_accuracy"} <= equilibrium.keys()
    assert evaluate.main(["models/gan", "--no-features", "--count", "40", "--equilibrium"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("fresh accuracy") and line.endswith("(0.500 at equilibrium)") for line in lines)
    assert any(line.startswith("value") and line.endswith("(-1.386 at equilibrium)") for line in lines)
    assert not any("held out" in line for line in lines)


def test_held_out_images_are_the_reference_and_training_images_the_nearest(place, capsys, tmp_path):
    apart, pixels = real(hold_out=0.5, held_out=True), real(hold_out=0.5)
    assert len(apart) + len(pixels) == 90
    picture = tmp_path / "near.png"
    result = report(capsys, "models/apart", "--no-features", "--held-out", "--nearest", str(picture))
    assert result["protocol"]["reference_set"] == f"held out, {len(apart)} images"
    assert result["protocol"]["fingerprint"] == fingerprint(apart) != fingerprint(pixels)
    assert result["scores"]["prior"]["references"] == len(apart)
    assert result["scores"]["real"]["references"] == len(apart) // 2
    training = report(capsys, "models/apart", "--no-features")
    assert training["protocol"]["fingerprint"] == fingerprint(pixels)
    assert result["scores"]["prior"]["swd"] != training["scores"]["prior"]["swd"]
    tags = EventAccumulator("models/apart").Reload().Tags()["scalars"]
    assert {"evaluate/prior/swd", "evaluate-held-out/prior/swd"} <= set(tags)

    grid = np.asarray(Image.open(picture))
    assert grid.shape == (4 * 34 + 2, 8 * 34 + 2, 3)
    cells = [grid[2 + 34 * y :, 2 + 34 * x :][:32, :32].transpose(2, 0, 1) for y in range(4) for x in range(8)]
    both = ImageDataset(pixels, CPU).batch(torch.arange(2 * len(pixels)))
    known = {image.tobytes() for image in ((both + 1) * 127.5).round().to(torch.uint8).numpy()}
    assert all(cell.tobytes() in known for cell in cells[1::2]), "on the right what training saw"
    assert not any(cell.tobytes() in known for cell in cells[::2])


def test_images_that_moved_are_known_and_of_others_none_is_held_out(place, capsys, tmp_path):
    pixels, apart = real(hold_out=0.5), real(hold_out=0.5, held_out=True)
    moved, others = str(shutil.copytree("faces", tmp_path / "moved")), tmp_path / "others"
    result = report(capsys, "models/apart", "--no-features", "--count", "32", "--data", moved)["protocol"]
    assert result["reference_set"] == f"training, {len(pixels)} images" and result["fingerprint"] == fingerprint(pixels)
    path, saved = load_checkpoint(Path("models/apart"))
    config = load_agents(path, saved, "cpu")[-1]
    assert load_states(config, moved, held_out=True).fingerprint == fingerprint(apart)
    assert len(load_states(config, None)) == len(load_states(config, "faces")) == len(pixels)

    others.mkdir()
    for i in range(40):
        shutil.copy(f"faces/{i:02d}.png", others)
    assert (
        len(load_states(config, str(others))) == len(load_states(config, str(others), fingerprint=saved["faces"])) == 40
    )
    assert evaluate.main(["models/apart", "--no-features", "--data", str(others), "--held-out"]) == 2
    assert "is not what models/apart learned from" in capsys.readouterr().err
    for image in sorted(others.iterdir())[1:]:
        image.unlink()  # none of one image can be held out
    assert (
        len(load_states(config, str(others))) == len(load_states(config, str(others), fingerprint=saved["faces"])) == 1
    )
    assert capsys.readouterr().err == ""


def test_a_bare_checkpoint_elsewhere(place, tmp_path, monkeypatch, capsys):
    shutil.copy("models/default/checkpoints/000002.pt", tmp_path / "mine.pt")
    before, first = (
        report(capsys, run, "--no-features", "--count", "32")["scores"]
        for run in ("models/default", "models/default/checkpoints/000000.pt")
    )
    assert before["prior"] != first["prior"], "the checkpoint that is named is scored"
    monkeypatch.chdir(tmp_path)
    result = report(capsys, "mine.pt", "--no-features", "--count", "32", "--data", str(place / "faces"))
    assert result["scores"] == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "mine.pt", "nearest.png"]


def test_the_seed_is_used_and_reproduces(place, capsys):
    def scored(seed):
        result = report(capsys, "models/gan", "--no-features", "--count", "32", "--seed", seed)
        return result["scores"], (place / result["nearest"]).read_bytes()

    (first, drawn), (again, drawn_again), (other, drawn_otherwise) = map(scored, "112")
    assert first == again and drawn == drawn_again
    assert first["real"] != other["real"], "other real images"
    assert drawn != drawn_otherwise, "other samples"


def test_other_images_than_those_of_training_are_named_so(place, tmp_path, capsys):
    shutil.copytree("faces", tmp_path / "others")
    (tmp_path / "others" / "00.png").unlink()
    result = report(capsys, "models/gan", "--no-features", "--data", str(tmp_path / "others"))
    assert result["protocol"]["reference_set"] == "not those of training, 89 images"
    assert evaluate.main(["models/gan", "--no-features", "--equilibrium", "--data", str(tmp_path / "others")]) == 2
    assert "is not what models/gan learned from" in capsys.readouterr().err  # D_a would be asked about strangers


def test_damaged_checkpoints_are_told_on_stderr(place, tmp_path, capsys):
    shutil.copytree("models/gan", tmp_path / "damaged")
    (tmp_path / "damaged" / "checkpoints" / "000009.pt").write_text("cut off")
    result = report(capsys, str(tmp_path / "damaged"), "--no-features", "--count", "32")
    assert result["protocol"]["step"] == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere", "--no-features"], "ls models"),
        (["models/default", "--no-features", "--held-out"], "`python3 train.py --hold-out 0.1`"),
        (["models/default", "--no-features", "--data", "gone"], "gone"),
        (["models/default", "--no-features", "--data", "few"], "too few"),
        (["models/apart", "--no-features", "--data", "few", "--held-out"], "--data"),
        (["models/default", "--no-features", "--device", "tpu"], "tpu"),
        (["models/default", "--no-features", "--nearest", "nowhere/a.png"], "nowhere"),
        (["models/default", "--features", "gone.pt2"], "gone.pt2"),
        (["models/default", "--features", "models/default/checkpoints/000002.pt"], "no file of torch.export"),
        (["models/default", "--features", "faces/00.png"], "not a zip file"),
        (["models/default", "--inception-weights", "gone.pth"], "gone.pth"),
    ],
)
def test_mistakes_are_a_sentence(place, capsys, caplog, arguments, words):
    pytest.importorskip("torch_fidelity")
    (place / "few").mkdir(exist_ok=True)
    for i in range(10):
        shutil.copy(f"faces/{i:02d}.png", "few")
    capsys.readouterr()
    assert evaluate.main(arguments) == 2
    shown = capsys.readouterr()
    assert words in shown.err.splitlines()[-1] and shown.err.splitlines()[-1].startswith("evaluate.py: ")
    assert shown.out == "" and not caplog.records  # PyTorch logs tracebacks


@pytest.mark.parametrize(
    "flags", [["--count", "3"], ["--nearest", "a.gif"], ["--features", "a", "--no-features"], ["--count", "many"]]
)
def test_bad_words_are_refused_before_any_work(flags):
    with pytest.raises(SystemExit) as stopped:
        evaluate.main(["nowhere", *flags])
    assert stopped.value.code == 2


def test_a_team_is_scored_together(place, thumbnail, capsys):
    result = report(capsys, "models/team", "--no-features", "--equilibrium", "--count", "40")
    generators, discriminators, _ = load_agents(*load_checkpoint(Path("models/team")), "cpu")
    both = draw([Sampler(agent, None) for agent in generators], "prior", 40)[0]
    pixels = torch.from_numpy(real().copy())
    shuffled = pixels[torch.randperm(90, generator=stream(0, "reference"))][:40]
    expected = sliced_wasserstein(both, shuffled, stream(0, "patches"))["swd"]
    assert len(generators) == len(discriminators) == 2
    assert result["scores"]["prior"]["swd"] == pytest.approx(expected, rel=1e-5)
    protocol = result["protocol"]
    assert (protocol["step"], protocol["images_seen"]) == (2, 16)
    assert (protocol["reward_function"], protocol["generators"]) == ("hinge", 2)
    assert evaluate.main(["models/team", "--no-features", "--equilibrium", "--count", "40"]) == 0
    assert "(-2.000 at equilibrium)" in capsys.readouterr().out

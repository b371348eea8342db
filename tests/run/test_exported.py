"""Exported weights: what they hold, that they sample as the run does, and what the programs refuse."""

import dataclasses
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import new_trainer
from PIL import Image

import evaluate
import export
import magnet
import sample
import train
from magnet.evaluation.drawing import draw
from magnet.evaluation.sampling import Sampler
from magnet.run import checkpoint
from magnet.run.exported import STATES
from magnet.run.exported import export as export_weights
from magnet.run.saved_runs import load_agents, load_checkpoint
from magnet.support.errors import UserError

ROOT = Path(train.__file__).parent
GAMES = {
    "magnet": {}, "no critics": {"critics": "none"}, "gan": {"algorithm": "gan"},
    "a team": {"generators": 2, "discriminators": 2, "specialise": 1.0, "architecture": "dcgan"},
    "spectral": {"spectral_norm": True},
}  # fmt: skip


def export_and_load(trainer, path):
    """The agents, written to `path` and read back."""
    faces = None if trainer.config.algorithm == "gan" else trainer.dataset
    export_weights(path, trainer.generators, trainer.discriminators, faces, trainer.steps, faces and "f" or "g")
    return load_agents(path, checkpoint.load(path, (checkpoint.WEIGHTS,)), "cpu")


@pytest.mark.parametrize("game", GAMES)
def test_they_sample_as_the_run_does_but_for_rounding(game, tmp_path):
    trainer = new_trainer(device="cpu", **GAMES[game])
    for _ in range(3):
        trainer.step()
    generators, discriminators, config = export_and_load(trainer, tmp_path / "w.pt")
    for kind in ("prior", *["policy"] * (game != "gan")):
        faces = trainer.dataset if kind == "policy" else None
        pairs = zip(trainer.generators, generators, strict=True)
        ours, theirs = zip(*[(Sampler(a, faces, seed=3), Sampler(b, faces, seed=3)) for a, b in pairs], strict=True)
        first, second = draw(list(ours), kind, 40)[0].float(), draw(list(theirs), kind, 40)[0].float()
        assert first.std() > 1 and (first - second).abs().max() <= 2  # grey levels
    images = trainer.dataset.batch(torch.arange(8))
    for ours, theirs in zip(trainer.discriminators, discriminators, strict=True):
        assert torch.allclose(ours.targets["actor"](images), theirs.targets["actor"](images), atol=0.02)


def test_they_hold_neither_what_trains_nor_paths(tmp_path):
    trainer = new_trainer(device="cpu", data="/home/somebody/faces", models_dir="/home/somebody/models", lr=1e-3)
    trainer.step()
    _, _, config = export_and_load(trainer, tmp_path / "w.pt")
    without_machine = {"data": "", "models_dir": "models", "threads": "auto"}
    assert dataclasses.replace(config, threads="auto") == dataclasses.replace(trainer.config, **without_machine)
    result = torch.load(tmp_path / "w.pt", weights_only=True)
    assert b"somebody" not in (tmp_path / "w.pt").read_bytes()
    assert set(result["trainer"]) == {"steps", "agents"}
    generator = result["trainer"]["agents"]["generator"]
    assert set(generator) == {"targets", "mid_episode"} and set(generator["targets"]) == {"generator", "actor"}
    assert len(generator["mid_episode"]) == STATES
    kinds = {name: x.dtype for name, x in generator["targets"]["generator"].items()}
    assert kinds["layers.0.weight"] == torch.float16 and kinds["layers.1.running_var"] == torch.float32


DAMAGES = {
    "infinite": lambda agent: agent["targets"]["generator"]["layers.0.weight"].fill_(torch.inf),
    "float32": lambda agent: agent["targets"].update(generator={"layers.0.weight": torch.zeros(1)}),
    "fewer states": lambda agent: agent.update(mid_episode=agent["mid_episode"][:1]),
    "an actor less": lambda agent: agent["targets"].pop("actor"),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_they_are_checked_as_checkpoints_are(damage, tmp_path):
    trainer, path = new_trainer(device="cpu"), tmp_path / "w.pt"
    trainer.step()
    export_and_load(trainer, path)
    result = torch.load(path, weights_only=True)
    damage(result["trainer"]["agents"]["generator"])
    torch.save(result, path)
    with pytest.raises(UserError, match="trainer.agents.generator"):
        load_agents(path, checkpoint.load(path, (checkpoint.WEIGHTS,)), "cpu")


@pytest.fixture
def run(exported_run, monkeypatch):
    """The name of a short run, in its working folder."""
    monkeypatch.chdir(exported_run)
    return "models/run"


def test_the_programs_take_them(run, capsys):
    assert sample.main(["w.pt", "--out", "w.png"]) == 0 and sample.main([run, "--out", "run.png"]) == 0
    first, second = (np.asarray(Image.open(path)).astype(int) for path in ("w.png", "run.png"))
    assert np.abs(first - second).max() <= 2
    assert sample.main(["w.pt", "--kind", "policy", "--data", "faces", "--out", "policy.png"]) == 0
    assert sample.main(["w.pt", "--kind", "guided", "--out", "guided.png"]) == 0
    assert evaluate.main(["w.pt", "--no-features", "--data", "faces", "--count", "32"]) == 0
    assert "policy" in capsys.readouterr().out


@pytest.mark.parametrize(
    "program, arguments, words",
    [
        (sample, ["w.pt", "--kind", "policy"], ["no images", "--data FOLDER"]),
        (evaluate, ["w.pt", "--no-features", "--data", "faces", "--equilibrium"], ["running averages alone"]),
        (evaluate, ["w.pt", "--no-features"], ["no images", "--data FOLDER"]),
        (export, ["w.pt", "--out", "again.pt"], ["already"]),
        (export, ["models/run", "--out", "v.pt", "--data", "others"], ["not what models/run learned from", "--data"]),
        (export, ["models/run", "--out", "nowhere/w.pt"], ["nowhere/w.pt"]),
        (export, ["nothing", "--out", "v.pt"], ["There is no run or checkpoint nothing"]),
        (train, ["--resume", "copy"], ["no run goes on"]),
    ],
)
def test_what_cannot_be_done_is_a_sentence(run, capsys, program, arguments, words):
    Path("copy/checkpoints").mkdir(parents=True, exist_ok=True)
    shutil.copy("w.pt", "copy/checkpoints/000004.pt")
    assert program.main(arguments) == 2
    output = "".join(capsys.readouterr())
    assert all(word in output for word in words), output


def test_sampling_imports_neither_a_compiler_nor_optimizers(run):
    """Their imports take as long as everything else: the first pictures would come twice as late."""
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import sample; sample.main(['w.pt', '--out', 'w.png'])"
    code += "; sys.exit(any(name in sys.modules for name in ('torch._dynamo', 'torchvision', 'tensorboard')))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_from_python(run, tmp_path, monkeypatch):
    assert sample.main([run, "--count", "10", "--seed", "5", "--npz", "run.npz"]) == 0
    expected = torch.from_numpy(np.load("run.npz")["arr_0"]).permute(0, 3, 1, 2)
    photos = [str(path.resolve()) for path in sorted(Path("faces").iterdir())[:3]]
    whole, weights = magnet.load(run), magnet.load("w.pt")
    answers = whole.answer(photos)
    monkeypatch.chdir(tmp_path)  # from here on nothing is found by a relative name
    for model in (whole, weights):
        faces = model.sample(10, seed=5)
        assert faces.dtype == torch.uint8 and (faces.int() - expected.int()).abs().max() <= 2
        assert torch.equal(faces, model.sample(10, seed=5)) and not torch.equal(faces, model.sample(10, seed=6))
        way = model.walk(5, 6, [0, 0.5, 1]).int()
        ends = torch.cat([model.sample(1, seed=seed) for seed in (5, 6)]).int()
        assert (way[::2] - ends).abs().max() <= 1
        assert all((way[1] - end).abs().max() > 4 for end in ends)
    again = weights.answer(photos)
    assert again.shape == (3, 3, 32, 32) and (again.int() - answers.int()).abs().max() <= 2
    pixels = torch.from_numpy(np.stack([np.asarray(Image.open(p)).transpose(2, 0, 1) for p in photos]))
    assert torch.equal(again, weights.answer(pixels))
    assert not torch.equal(again, weights.answer(255 - pixels))  # G_a looks at the states


def test_onnx_gives_our_pictures(run):
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    assert export.main([run, "--onnx", "g.onnx"]) == 0
    generators, _, config = load_agents(*load_checkpoint(Path(run)), "cpu")
    z = torch.randn(5, config.nz)
    (result,) = runtime.InferenceSession("g.onnx").run(None, {"z": z.numpy()})
    assert result.shape == (5, 3, 32, 32)
    assert np.abs(result - Sampler(generators[0], None).generate(z).numpy()).max() < 1e-3

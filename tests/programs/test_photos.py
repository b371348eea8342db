"""sample.py --kind policy --data FOLDER: each photo once, in the folder's order, as `Model.answer` answers it."""

import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import export
import magnet
import sample
from magnet.run.saved_runs import load_checkpoint
from magnet.support.errors import UserError


@pytest.fixture
def place(exported_run, tmp_path, monkeypatch):
    """A copy of the folder of a short run to work in."""
    shutil.copytree(exported_run, tmp_path / "place")
    monkeypatch.chdir(tmp_path / "place")
    return tmp_path / "place"


def answers(run: str, *words: str) -> torch.Tensor:
    """What sample.py answers to photos, (N, 3, S, S)."""
    assert sample.main([run, "--kind", "policy", "--npz", "found.npz", "--out", "found.png", *words]) == 0
    return torch.from_numpy(np.load("found.npz")["arr_0"]).permute(0, 3, 1, 2)


@pytest.mark.parametrize("run", ["models/run", "w.pt", "models/team"])
def test_each_photo_is_answered_once_in_order_as_from_python(place, run):
    photos = sorted(Path("photos").iterdir())
    expected = magnet.load(run).answer(photos)
    result = answers(run, "--data", "photos", "--seed", "3")
    assert torch.equal(result, expected)
    assert torch.equal(answers(run, "--data", "photos", "--count", "2"), magnet.load(run).answer(photos[:2]))
    assert torch.equal(answers(run, "--data", "photos", "--count", "99"), expected)
    cells = np.asarray(Image.open("found.png"))  # 5 photos, each with its answer to the right
    pairs = [cells[2 + 34 * (i // 8) :, 2 + 34 * (i % 8) :][:32, :32] for i in range(10)]
    shown = torch.from_numpy(np.stack(pairs)).permute(0, 3, 1, 2)
    assert torch.equal(shown[1::2], expected) and not cells[36:, 70:].any()
    assert torch.equal(magnet.load(run).answer(shown[::2].contiguous()), expected)  # what is shown was answered


def test_the_grid_alone_shows_the_first_32_pairs_with_the_same_bits(place):
    photos = sorted(Path("faces").iterdir())
    assert sample.main(["models/run", "--kind", "policy", "--data", "faces", "--out", "grid.png"]) == 0
    cells = np.asarray(Image.open("grid.png"))
    assert cells.shape[:2] == (8 * 34 + 2, 8 * 34 + 2)
    assert np.array_equal(cells[2:34, 36:68].transpose(2, 0, 1), magnet.load("models/run").answer(photos)[0])


def test_an_answer_does_not_depend_on_the_other_photos(place):
    whole = answers("models/run", "--data", "photos")
    for path in sorted(Path("photos").iterdir())[1:]:
        path.unlink()
    alone = answers("models/run", "--data", "photos")
    assert (alone[0].int() - whole[0].int()).abs().max() <= 1  # batches of other sizes are rounded otherwise


def test_without_data_states_are_drawn_from_the_images_of_the_run(place):
    assert len(answers("models/run")) == 64


def test_images_of_the_run_that_moved_answer_themselves(place):
    photos = [path.name for path in sorted(Path("faces").iterdir())]
    expected = magnet.load("models/run").answer([f"faces/{name}" for name in photos])
    Path("faces").rename("moved")
    assert torch.equal(answers("models/run", "--data", "moved"), expected)


@pytest.mark.parametrize("change", ["gone", "others"])
def test_without_the_images_of_the_run_a_sentence_says_what_works(place, capsys, change):
    before = answers("models/run", "--data", "photos")
    Path("models/run").rename("models/my run")
    Path("faces").rename("moved")
    if change == "others":
        shutil.copytree("photos", "faces")
    assert sample.main(["models/my run", "--kind", "policy", "--data", "photos"]) == 2
    output = capsys.readouterr().err.splitlines()[-1]
    assert "the run learned from" in output and "faces" in output
    command = re.search("`python3 export.py (.*?)`", output)[1].replace("FOLDER", "moved")
    assert export.main(shlex.split(command)) == 0
    assert (answers("faces.pt", "--data", "photos").int() - before.int()).abs().max() <= 2


def test_a_bad_photo_is_named(place, capsys):
    Path("photos/03.png").write_bytes(b"no image")
    assert sample.main(["models/run", "--kind", "policy", "--data", "photos"]) == 2
    output = capsys.readouterr().err
    assert "photos/03.png" in output and "--skip-bad-images" not in output
    Path("photos/03.png").unlink()
    assert sample.main(["models/run", "--kind", "policy", "--data", "photos"]) == 0


def test_from_python_one_name_is_one_image(place):
    model = magnet.load("models/run")
    for name in ("photos/01.png", Path("photos/01.png")):
        assert torch.equal(model.answer(name), model.answer([name])) and len(model.answer(name)) == 1


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda m: m.sample(0), "count is 0, but must be at least 1"),
        (lambda m: m.walk(0, 1, []), "at least one"),
        (lambda m: m.answer([]), "a list of such names"),
        (lambda m: m.answer([3]), "a list of such names"),
        (lambda m: m.answer(np.zeros((1, 3, 32, 32), np.uint8)), "must be a tensor"),
        (lambda m: m.answer(torch.zeros(0, 3, 32, 32, dtype=torch.uint8)), "N >= 1"),
    ],
)
def test_from_python_wrong_arguments_are_a_sentence(place, call, words):
    with pytest.raises(ValueError, match=words) as error:
        call(magnet.load("w.pt"))
    assert "--" not in str(error.value) and "\n" not in str(error.value)


def test_from_python_a_run_from_another_folder_says_what_works_in_python(place, tmp_path, monkeypatch):
    expected = magnet.load("models/run").answer("photos/01.png")
    Path("models/run").rename("models/my run")
    monkeypatch.chdir(tmp_path)
    model = magnet.load("place/models/my run")
    with pytest.raises(magnet.run.model.UserError, match=r"there is no folder faces.*data=FOLDER") as error:
        model.answer("place/photos/01.png")
    advice = str(error.value)
    assert "--data synthetic" not in advice and "download" not in advice
    call = re.search("`(magnet.load.*?)`", advice)[1].replace("FOLDER", "'place/faces'")
    assert torch.equal(eval(call).answer("place/photos/01.png"), expected)
    command = re.search("`python3 export.py (.*?)`", advice)[1].replace("FOLDER", "place/faces")
    assert export.main(shlex.split(command)) == 0
    assert (magnet.load("faces.pt").answer("place/photos/01.png").int() - expected.int()).abs().max() <= 2


@pytest.mark.parametrize(
    ("device", "words"),
    [("cuda", "device='cuda': PyTorch sees 0 GPUs; try `device='cpu'`"), ("cuda:1", "device='cuda:1': PyTorch"),
     ("tpu", "^device is 'tpu'")],
)  # fmt: skip
def test_from_python_a_device_that_is_not_there_is_named_as_in_python(place, device, words):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(UserError, match=words):
        magnet.load("w.pt", device=device)


@pytest.mark.parametrize("program", ["evaluate", "export", "sample"])
def test_programs_that_look_at_a_run_advise_what_they_take(place, capsys, program):
    """Images that are gone or damaged since the training: no flag of train.py is named."""
    import evaluate

    calls = {
        "evaluate": lambda *words: evaluate.main(["models/run", "--no-features", "--count", "32", *words]),
        "export": lambda *words: export.main(["models/run", "--out", "again.pt", *words]),
        "sample": lambda *words: sample.main(["models/run", "--kind", "policy", *words]),
    }
    shutil.copytree("faces", "good")
    Path("faces/03.png").write_bytes(b"no image")
    assert calls[program]() == 2
    output = capsys.readouterr().err.splitlines()[-1]
    assert "faces/03.png" in output and "--skip-bad-images" not in output
    shutil.rmtree("faces")
    assert calls[program]() == 2
    output = capsys.readouterr().err.splitlines()[-1]
    assert "there is no folder faces" in output and "synthetic" not in output and "`--data FOLDER`" in output
    assert calls[program]("--data", "good") == 0
    assert load_checkpoint(Path("models/run"))

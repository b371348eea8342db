"""examples/taste.py and lesson.py: a taste is learned from clicks, and a training by it makes more of what is liked."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import magnet
import sample
import train
from examples.lesson import Lesson
from examples.taste import FRAME, PAGE, ROW, Marking, Taste, measure_liked_share, select_best
from magnet.data.synthetic import draw_faces
from magnet.game.extra_rewards import load_extra_reward
from magnet.support.errors import UserError

WEIGHTS = Path(train.__file__).parent / "models" / "synthetic-32.pt"
LUMINANCE = torch.tensor([0.299, 0.587, 0.114])


def is_dark_haired(faces: torch.Tensor) -> torch.Tensor:
    """Whether the hair above the forehead is dark, of drawn faces uint8 (N, 3, 32, 32): (N,)."""
    return faces[:, :, 6:10, 11:21].float().mean(dim=(2, 3)) @ LUMINANCE < 75


def draw(count: int, seed: int) -> torch.Tensor:
    """Synthetic faces uint8 (count, 3, 32, 32)."""
    return torch.from_numpy(draw_faces(count, 32, seed)[0])


def mark_pages(pages: int = 7) -> Taste:
    """A taste for dark hair, of so many pages of drawn faces."""
    taste = Taste()
    for page in range(pages):
        faces = draw(PAGE, seed=100 + page)
        taste.add(faces, is_dark_haired(faces))
    return taste


def write_reward(taste: Taste, folder: Path):
    """The extra reward of a taste, by way of a file."""
    (folder / "reward.py").write_text(taste.format_source(), encoding="utf-8")
    return load_extra_reward(str(folder / "reward.py"))


def test_the_scripted_taste_is_for_dark_hair():
    pixels, factors = draw_faces(500, 32, seed=5)
    dark = (factors["hair_colour"] < 2) & (factors["hair_style"] > 0)  # black or dark brown, and not bald
    assert (is_dark_haired(torch.from_numpy(pixels)).numpy() == dark).mean() > 0.98


def test_a_taste_ranks_faces_that_it_has_not_seen(tmp_path):
    faces = draw(600, seed=5)
    dark, extra = is_dark_haired(faces), write_reward(mark_pages(), tmp_path)
    rewards = extra(faces, faces)
    assert (rewards[dark][:, None] > rewards[~dark]).float().mean() > 0.9  # AUC; chance: 0.5
    assert is_dark_haired(select_best(extra, faces, 4)[0]).float().mean() > dark.float().mean() + 0.3


def test_best_of_k_by_hand(tmp_path):
    extra = write_reward(mark_pages(), tmp_path)
    faces = draw(9, seed=1)
    rewards = extra(faces, faces)
    best, found = select_best(extra, faces, 4)
    assert torch.equal(found, torch.stack([rewards[:4].max(), rewards[4:8].max()]))
    assert torch.equal(best[1], faces[4 + rewards[4:8].argmax()])
    assert measure_liked_share(extra, faces) == (rewards.exp() > 0.5).float().mean()


def test_the_file_computes_the_fitted_model(tmp_path):
    taste, faces = mark_pages(), draw(50, seed=5)
    weights, extra = taste.fit(), write_reward(taste, tmp_path)
    cells = torch.nn.functional.adaptive_avg_pool2d(faces.double() / 255, 8).flatten(1)
    expected = torch.nn.functional.logsigmoid(cells @ torch.from_numpy(weights[:-1]).double() + weights[-1].item())
    assert torch.allclose(extra(draw(50, seed=6), faces).double(), expected, atol=1e-4)
    assert write_reward(mark_pages(), tmp_path).digest == extra.digest  # the fit is deterministic


def test_undo_forgets_the_last_page_alone():
    taste = mark_pages(3)
    before = taste.fit()
    faces = draw(PAGE, seed=9)
    taste.add(faces, ~is_dark_haired(faces))
    assert not np.array_equal(taste.fit(), before) and taste.count == 4 * PAGE
    assert torch.equal(taste.undo()[0], faces)
    assert np.array_equal(taste.fit(), before) and taste.count == 3 * PAGE
    for _ in range(4):
        taste.undo()
    assert taste.count == taste.liked_count == 0


def test_clicks_mark_the_faces_under_them():
    marking = Marking(draw)
    first, plain = marking.faces, marking.draw()
    for row, column in ((0, 1), (3, 2), (0, 1), (2, 0)):  # the second click on a face takes the first back
        marking.click((column + 0.5) / ROW, (row + 0.5) / ROW)
    marking.click(1.0, 1.0)  # beyond the picture
    assert marking.liked.nonzero().flatten().tolist() == [8, 14]
    side, picture = len(plain) // ROW, marking.draw()
    tops = picture[3::side, side // 2 :: side][:ROW].reshape(PAGE, 3)  # where a frame's upper edge would be
    assert (tops == FRAME).all(axis=1).nonzero()[0].tolist() == [8, 14]
    marking.turn_page()
    assert (marking.taste.count, marking.taste.liked_count) == (16, 2) and not marking.liked.any()
    assert not torch.equal(marking.faces, first)
    marking.undo()
    assert torch.equal(marking.faces, first) and marking.liked.sum() == 2 and marking.taste.count == 0
    marking.undo()
    assert torch.equal(marking.faces, first)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A working folder with 64 drawn faces in faces/."""
    (tmp_path / "faces").mkdir()
    for i, pixels in enumerate(draw(64, seed=0).permute(0, 2, 3, 1).numpy()):
        Image.fromarray(pixels).save(tmp_path / "faces" / f"{i:02d}.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_lesson_makes_more_of_what_is_liked_and_goes_on_as_a_run(place, capsys):
    lesson = Lesson(WEIGHTS, mark_pages(), "faces", "cpu", weight=12.0)
    before = lesson.draw()
    assert all(map(torch.equal, before, lesson.draw()))  # the same noise and states
    for _ in lesson.train(seconds=100, steps=150):
        pass
    after = lesson.draw()
    for old, new in zip(before, after, strict=True):
        assert measure_liked_share(lesson.extra, new) > measure_liked_share(lesson.extra, old) + 0.05
        assert is_dark_haired(new).float().mean() > is_dark_haired(old).float().mean() + 0.05

    run = lesson.save(Path("models"), "dark")
    file = str(run / "reward.py")
    assert json.loads((run / "config.json").read_text())["extra_reward"] == file
    assert torch.equal(magnet.load(run, "cpu").sample(8, seed=0), after[0][:8])  # and executes nothing
    saved = (run / "reward.py").read_bytes()
    (run / "reward.py").write_text("raise SystemExit('executed')")
    assert sample.main([str(run), "--count", "4", "--out", "s.png", "--device", "cpu"]) == 0
    (run / "reward.py").write_bytes(saved)
    goes_on = ["--resume", str(run), "--steps", "152"]
    assert train.main(goes_on) == 2 and "only if you name it" in capsys.readouterr().err
    assert train.main([*goes_on, "--extra-reward", file]) == 0
    assert (run / "checkpoints" / "000152.pt").exists()
    assert Lesson(run, mark_pages(3), "", "cpu").trainer.steps == 0  # and a lesson begins from it


def test_mistakes_are_a_sentence(place):
    with pytest.raises(UserError, match="0 of 0 marked faces"):
        Lesson(WEIGHTS, Taste(), "faces", "cpu")
    taste = Taste()
    taste.add(draw(PAGE, 1), torch.ones(PAGE, dtype=torch.bool))
    with pytest.raises(UserError, match="16 of 16 marked faces.*leave others"):
        Lesson(WEIGHTS, taste, "faces", "cpu")
    with pytest.raises(UserError, match="nowhere"):
        Lesson(WEIGHTS, mark_pages(1), "nowhere", "cpu")
    contents = torch.load(WEIGHTS, weights_only=True)
    contents["config"]["data"] = ""
    torch.save(contents, "w.pt")
    with pytest.raises(UserError, match="w.pt holds no images.*name a folder"):
        Lesson(Path("w.pt"), mark_pages(1), "", "cpu")
    with pytest.raises(UserError, match="--name"):
        Lesson(WEIGHTS, mark_pages(1), "faces", "cpu").save(Path("models"), "a/b")

"""The program that trains the classifier of the reward `smile`, on made-up images and lists."""

import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from experiments import smile as program
from magnet.data.held_out import is_held_out
from magnet.game.smile import load_classifier


@pytest.fixture
def faces(tmp_path, monkeypatch):
    """A working folder with 300 images in faces/; {name: is it light?}, which the list calls Smiling."""
    random, light = np.random.default_rng(0), {}
    (tmp_path / "faces").mkdir()
    for i in range(300):
        light[name := f"{i:06d}.jpg"] = bool(random.random() < 0.6)
        pixels = (random.integers(0, 160, (36, 32, 3)) + 80 * light[name]).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / "faces" / name)
    monkeypatch.chdir(tmp_path)
    write_list(light)
    return light


def write_list(smiling: dict[str, bool], attribute: str = "Smiling") -> None:
    """list.txt as CelebA's is written: Bald is the opposite."""
    rows = [f"{name} {'-1  1' if yes else ' 1 -1'}" for name, yes in smiling.items()]
    with open("list.txt", "w") as file:
        file.write("\n".join([str(len(rows)), f"Bald {attribute} ", *rows]) + "\n")


def train(out, *options):
    return program.main(["--data", "faces", "--attributes", "list.txt", "--out", str(out), "--epochs", "5", *options])


def test_it_learns_the_attribute_and_says_how_often_it_is_right(faces, tmp_path, capsys):
    assert train(tmp_path / "smile.pt") == 0
    held_out = [name for name in faces if is_held_out(name, 0.1)]
    saved = torch.load(tmp_path / "smile.pt", weights_only=True)
    assert saved["held_out"] == len(held_out) and saved["accuracy"] > 0.9
    assert f"{saved['accuracy']:.2%} of {len(held_out)} held-out faces right" in capsys.readouterr().out
    assert {t.dtype for t in saved["network"].values() if t.is_floating_point()} == {torch.float16}

    grey = torch.tensor([60, 180], dtype=torch.uint8)[:, None, None, None].expand(2, 3, 32, 32)
    dark, light = load_classifier(tmp_path / "smile.pt")(grey)
    assert dark < 0 < light


def test_held_out_faces_are_not_learned_from_and_a_zip_is_as_good_as_a_folder(faces, tmp_path):
    """Whatever the list says of them, the weights are the same, bit for bit; another seed gives others."""
    assert train(tmp_path / "one.pt") == 0
    with zipfile.ZipFile("faces.zip", "w") as archive:
        for name in faces:
            archive.write(f"faces/{name}", name)
    write_list({name: yes != is_held_out(name, 0.1) for name, yes in faces.items()})
    assert train(tmp_path / "two.pt", "--data", "faces.zip") == 0
    assert train(tmp_path / "three.pt", "--seed", "1") == 0
    one, two, three = (torch.load(tmp_path / f"{name}.pt", weights_only=True) for name in ("one", "two", "three"))
    assert all(torch.equal(one["network"][key], two["network"][key]) for key in one["network"])
    assert one["accuracy"] == pytest.approx(1 - two["accuracy"])
    assert not torch.equal(one["network"]["layers.0.weight"], three["network"]["layers.0.weight"])


def test_augmented_faces_are_blurred_and_noisy_and_keep_their_light():
    flat = torch.full((200, 3, 32, 32), 100, dtype=torch.uint8)
    images = program.augment(flat, torch.Generator().manual_seed(0))
    deviations = images.std(dim=(1, 2, 3))
    assert 0 < deviations.min() < 1 and program.NOISE - 1 < deviations.max() < program.NOISE + 0.5
    assert images.mean().item() == pytest.approx(100, abs=0.2)

    stripes = (torch.arange(32) % 2 * 200).to(torch.uint8).expand(200, 3, 32, 32)
    images = program.augment(stripes, torch.Generator().manual_seed(0))
    contrast = (images[..., ::2] - images[..., 1::2]).mean(dim=(1, 2, 3)).abs()  # the full filter removes stripes
    assert contrast.min() < 20 and contrast.max() > 170


@pytest.mark.parametrize("mistake", ["another attribute", "no list", "no images"])
def test_mistakes_are_one_sentence_and_status_2(faces, tmp_path, capsys, mistake):
    if mistake == "another attribute":
        write_list(faces, "Young")
    words = {"no list": ["--attributes", "none.txt"], "no images": ["--data", "nowhere"]}.get(mistake, [])
    assert train(tmp_path / "smile.pt", *words) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("smile.py: ") and (words or ["Smiling"])[-1] in error and "download_celeba.py" in error
    assert not (tmp_path / "smile.pt").exists()

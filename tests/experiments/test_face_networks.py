"""experiments/face_features.py and smile.py on made-up faces and lists."""

import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from experiments import face_features, smile
from magnet.data.held_out import is_held_out
from magnet.game.smile import load_classifier

ATTRIBUTES = ["Bald", "Smiling", "Young"]


def official(rows, attributes=ATTRIBUTES):
    """A list of attributes as CelebA's is written: {name: row of booleans}."""
    lines = [str(len(rows)), " ".join(attributes) + " "]
    lines += [f"{name} " + " ".join(" 1" if value else "-1" for value in row) for name, row in rows.items()]
    return "\r\n".join(lines) + "\r\n"


@pytest.fixture
def faces(tmp_path, monkeypatch):
    """A working folder with 150 small images in faces/; what the list says: dark ones are bald, light ones smile."""
    random, rows = np.random.default_rng(0), {}
    (tmp_path / "faces").mkdir()
    for i in range(150):
        light = bool(random.integers(2))
        pixels = (random.integers(0, 128, (64, 64, 3)) + 128 * light).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / "faces" / f"{i:06d}.jpg")
        rows[f"{i:06d}.jpg"] = (not light, light, True)
    monkeypatch.chdir(tmp_path)
    return rows


def learn(program, rows, *options):
    with open("list.txt", "w", newline="") as file:
        file.write(official(rows) if isinstance(rows, dict) else rows)
    return program.main(["--data", "faces", "--attributes", "list.txt", "--out", "net", *options])


def learned(program):
    """What the network is: some features, or the weights."""
    if program is smile:
        return torch.cat([t.flatten().float() for t in torch.load("net", weights_only=True)["network"].values()])
    return torch.export.load("net").module()(torch.zeros(2, 3, 64, 64, dtype=torch.uint8))


def test_features_are_learned_and_exported_for_any_number_of_images(faces, capsys):
    faces["absent.jpg"] = (True, True, True)
    del faces["000000.jpg"], faces["000001.jpg"]
    assert learn(face_features, faces, "--epochs", "4") == 0
    said = capsys.readouterr().out
    assert "148 images with attributes; left out: 2 images, 1 rows" in said
    right, commonest = (float(part.split("%")[0]) for part in said.splitlines()[-2].split(": ")[1:])
    assert commonest < 90 and right > commonest + 5  # light and dark are told apart

    pixels = torch.randint(256, (7, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    exported = torch.export.load("net").module()
    features = exported(pixels)
    assert features.shape == (7, 128) and features.dtype == torch.float32
    assert torch.allclose(exported(pixels[:1]), features[:1], atol=1e-3)  # each image for itself


def test_the_classifier_learns_and_says_how_often_it_is_right(faces, capsys):
    assert learn(smile, faces, "--epochs", "8") == 0
    saved = torch.load("net", weights_only=True)
    assert saved["held_out"] == sum(is_held_out(name, 0.1) for name in faces) and saved["accuracy"] > 0.9
    assert f"{saved['accuracy']:.2%} of {saved['held_out']} held-out faces right" in capsys.readouterr().out
    assert {t.dtype for t in saved["network"].values() if t.is_floating_point()} == {torch.float16}
    grey = torch.tensor([60, 180], dtype=torch.uint8)[:, None, None, None].expand(2, 3, 32, 32)
    dark, light = load_classifier(Path("net").resolve())(grey)
    assert dark < 0 < light


@pytest.mark.parametrize("program", [face_features, smile])
def test_a_network_depends_on_the_seed_and_not_on_held_out_faces(faces, program):
    """Whatever the list says of them, it is the same, bit for bit; and a .zip is as good as a folder."""
    assert learn(program, faces, "--epochs", "1") == 0
    before = learned(program)
    held_out = [name for name in faces if is_held_out(name, 0.1)]
    assert 3 <= len(held_out) <= 40
    changed = {name: tuple(not v for v in row) if name in held_out else row for name, row in faces.items()}
    with zipfile.ZipFile("faces.zip", "w") as archive:
        for name in faces:
            archive.write(f"faces/{name}", name)
    assert learn(program, changed, "--epochs", "1", "--data", "faces.zip") == 0
    assert torch.equal(learned(program), before)
    assert learn(program, faces, "--epochs", "1", "--seed", "1") == 0
    assert not torch.allclose(learned(program), before, atol=1e-2)


def test_standardised_features_have_mean_0_and_keep_their_proportions():
    torch.manual_seed(0)
    features = face_features.Features()
    light = torch.linspace(0.1, 1, 30)[:, None, None, None]
    pixels = (torch.randint(256, (30, 3, 64, 64)) * light).to(torch.uint8)
    before = face_features.evaluate(features, pixels)
    face_features.standardise(features, pixels)
    after = face_features.evaluate(features, pixels)
    assert torch.allclose(after.mean(0), torch.zeros(128), atol=2e-3)
    assert after.square().mean().item() == pytest.approx(1, rel=1e-3)
    distances = torch.pdist(after) / torch.pdist(before)
    assert torch.allclose(distances, distances[0], rtol=1e-3)  # one factor for all


def test_moved_faces_are_mirrored_or_not_and_shifted_with_edges_repeated():
    pixels = torch.arange(12 * 12).view(12, 12).expand(50, 3, 12, 12)
    moved = face_features.move(pixels, torch.Generator().manual_seed(0))
    padded = torch.nn.functional.pad(pixels[:1].float(), (4, 4, 4, 4), mode="replicate")[0].long()
    windows = [padded[:, y : y + 12, x : x + 12] for y in range(9) for x in range(9)]
    allowed = {tuple(w.flatten().tolist()) for window in windows for w in (window, window.flip(2))}
    seen = {tuple(image.flatten().tolist()) for image in moved}
    assert seen <= allowed and len(seen) > 20


def test_augmented_faces_are_blurred_and_noisy_and_keep_their_light():
    flat = torch.full((200, 3, 32, 32), 100, dtype=torch.uint8)
    images = smile.augment(flat, torch.Generator().manual_seed(0))
    deviations = images.std(dim=(1, 2, 3))
    assert 0 < deviations.min() < 1 and smile.NOISE - 1 < deviations.max() < smile.NOISE + 0.5
    assert images.mean().item() == pytest.approx(100, abs=0.2)

    stripes = (torch.arange(32) % 2 * 200).to(torch.uint8).expand(200, 3, 32, 32)
    images = smile.augment(stripes, torch.Generator().manual_seed(0))
    contrast = (images[..., ::2] - images[..., 1::2]).mean(dim=(1, 2, 3)).abs()  # the full filter removes stripes
    assert contrast.min() < 20 and contrast.max() > 170


BAD_LISTS = {
    "cut short": (lambda rows: official(rows)[:-20], "1 or -1"),
    "rows missing": (lambda rows: "\n".join(official(rows).splitlines()[:-3]), "147 names in 147 rows, not 150"),
    "a name twice": (lambda rows: official(rows).replace("000007", "000008"), "149 names in 150 rows"),
    "another number": (lambda rows: official(rows).replace("-1", " 0", 1), "000000.jpg"),
    "no list": (lambda rows: "<html>\nQuota exceeded", "invalid literal"),
    "empty": (lambda rows: "", "list.txt"),
    "other faces": (lambda rows: official({f"x{name}": row for name, row in rows.items()}), "Too few images in faces"),
    "another attribute": (lambda rows: official(rows, ["Bald", "Grim", "Young"]), "no attribute Smiling"),
}


@pytest.mark.parametrize(("make", "said"), BAD_LISTS.values(), ids=BAD_LISTS.keys())
def test_a_damaged_list_is_one_sentence_and_status_2(faces, capsys, make, said):
    assert learn(smile, make(faces)) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("smile.py: ") and "list.txt" in error and said in error
    assert "download_celeba.py --attributes" in error and not os.path.exists("net")


@pytest.mark.parametrize("program", [face_features, smile])
@pytest.mark.parametrize("words", [["--attributes", "none.txt"], ["--data", "nowhere"]])
def test_other_mistakes_are_one_sentence_too(faces, capsys, program, words):
    assert learn(program, faces, *words) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith(f"{program.__name__.split('.')[-1]}.py: ") and words[-1] in error

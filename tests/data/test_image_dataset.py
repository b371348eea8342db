"""From folders to batches: arrays are made once and whole, some images are held out, batches are rows."""

import os
import random
import re
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SEED, cases
from PIL import Image
from test_image_files import equal, folder_of, picture, pillow

from magnet.data import image_dataset, synthetic
from magnet.data.held_out import is_held_out
from magnet.data.image_dataset import ImageDataset, fingerprint, from_uint8, load_faces, to_uint8
from magnet.data.image_files import find_images, load_image
from magnet.support.errors import UserError

ROOT = Path(__file__).resolve().parents[2]


# The array file


def test_the_array_equals_pillow_image_by_image(tmp_path):
    count = 2 * image_dataset.CHUNK + 3
    images = folder_of(tmp_path / "images", count)
    for workers in (1, 3):
        cache = tmp_path / f"cache{workers}"
        pixels = load_faces(str(images), 16, cache_dir=cache, workers=workers)
        assert pixels.shape == (count, 3, 16, 16) and pixels.dtype == np.uint8
        assert isinstance(pixels, np.memmap) and not pixels.flags.writeable
        assert [len(path.name) for path in cache.glob("*.npy*")] == [16 + len(".npy")]
        for i in range(count):
            assert equal(pixels[i], pillow(Image.open(images / f"{i:06d}.jpg"), 16))


def test_a_change_of_the_images_gives_another_array(tmp_path):
    images, cache = folder_of(tmp_path / "images", 3), tmp_path / "cache"
    first, second, moment = images / "000001.jpg", images / "0000015.jpg", {"ns": (0, 1_000_000_001)}
    changes = [
        lambda: None, lambda: os.utime(first, **moment), lambda: first.rename(second),  # the time, the name alone
        lambda: (second.write_bytes(second.read_bytes() + b"\0"), os.utime(second, **moment)),  # the size alone
        lambda: folder_of(images, 1, start=3), lambda: picture(20, 24, seed=9).save(images / "000000.jpg"),
    ]  # fmt: skip
    for made, change in enumerate(changes, 1):
        change()
        pixels = load_faces(str(images), 16, cache_dir=cache)
        assert len(list(cache.glob("*.npy"))) == made
    assert len(pixels) == 4 and equal(pixels[0], pillow(Image.open(images / "000000.jpg"), 16))
    for made, options in enumerate(({"image_size": 8}, {"skip_bad_images": True}), len(changes) + 1):
        load_faces(str(images), **{"image_size": 16, "cache_dir": cache} | options)
        assert len(list(cache.glob("*.npy"))) == made


def test_a_killed_making_leaves_no_array_and_the_next_clears_up(tmp_path):
    images, cache = folder_of(tmp_path / "images", 2 * image_dataset.CHUNK), tmp_path / "cache"
    die = (
        "import os; from pathlib import Path; from magnet.data import image_dataset as data\n"
        "load = data.load_image\n"
        "data.load_image = lambda path, size: os._exit(9) if path.name > '000040' else load(path, size)\n"
        f"data.load_faces({str(images)!r}, 16, cache_dir=Path({str(cache)!r}), workers=1)"
    )
    assert subprocess.run([sys.executable, "-c", die], cwd=ROOT).returncode == 9
    assert len(list(cache.glob("*.tmp"))) == 1 and not list(cache.glob("*.npy"))
    assert len(load_faces(str(images), 16, cache_dir=cache)) == 2 * image_dataset.CHUNK
    assert len(list(cache.glob("*.npy"))) == 1 and not list(cache.glob("*.tmp"))


def test_a_damaged_array_is_named(tmp_path):
    images = folder_of(tmp_path / "images", 3)
    load_faces(str(images), 16, cache_dir=tmp_path / "cache")
    (array,) = (tmp_path / "cache").glob("*.npy")
    for size in (1000, 60, 0):
        os.truncate(array, size)
        with pytest.raises(UserError, match=f"{array.name}.*delete it"):
            load_faces(str(images), 16, cache_dir=tmp_path / "cache")


def test_two_at_once_and_a_third_after_them_make_the_array_once(tmp_path, monkeypatch, capsys):
    images, decoded, waits = folder_of(tmp_path / "images", 40), [], threading.Event()
    report = image_dataset._report_waiting

    def load(path, size):
        assert waits.wait(60)
        decoded.append(path)
        return load_image(path, size)

    monkeypatch.setattr(image_dataset, "load_image", load)
    monkeypatch.setattr(image_dataset, "_report_waiting", lambda: (report(), waits.set()))
    with ThreadPoolExecutor(2) as pool:
        both = [pool.submit(load_faces, str(images), 16, cache_dir=tmp_path / "cache") for _ in range(2)]
        arrays = [one.result() for one in both]
    arrays.append(load_faces(str(images), 16, cache_dir=tmp_path / "cache"))
    assert all(np.array_equal(array, arrays[0]) for array in arrays)
    assert len(decoded) == 40 and "Waiting for another program" in capsys.readouterr().err


def test_synthetic_faces_are_cached_and_held_out_by_their_index(tmp_path, monkeypatch):
    monkeypatch.setattr(image_dataset, "SYNTHETIC_FACES", 2 * image_dataset.CHUNK + 2)
    load = partial(load_faces, "synthetic", 16, cache_dir=tmp_path)
    pixels = load()
    assert np.array_equal(pixels, synthetic.draw_faces(len(pixels), 16, seed=0)[0])
    (array,) = tmp_path.glob("*.npy")
    assert f"v{synthetic.VERSION}-" in array.name and "-16" in array.name
    apart = np.array([is_held_out(str(i), 0.2) for i in range(len(pixels))])
    parts = [load(hold_out=0.2, held_out=part) for part in (False, True)]
    assert np.array_equal(parts[0], pixels[~apart]) and np.array_equal(parts[1], pixels[apart])
    assert len(load(hold_out=0.4)) < len(parts[0])
    monkeypatch.setattr(synthetic, "draw_faces", lambda *_, **__: pytest.fail("drawn again"))
    assert np.array_equal(load(), pixels)


# Images that training never sees


def test_what_is_held_out_is_a_share_of_names_and_a_larger_share_holds_out_more():
    names = [f"img_align_celeba/{i:06d}.jpg" for i in range(1, 20_001)]
    before = set()
    for share in (0.0, 0.1, 0.2, 0.5, 1.0):
        apart = {name for name in names if is_held_out(name, share)}
        assert before <= apart
        assert len(apart) == pytest.approx(share * len(names), abs=4 * (len(names) * share * (1 - share)) ** 0.5)
        before = apart
    # As `printf 11.jpg | b2sum -l 64` says: the first digits below a fifth of all. Runs rely on it ever after.
    assert [i for i in range(40) if is_held_out(f"{i}.jpg", 0.2)] == [11, 12, 30, 38]


def test_training_and_held_out_images_are_all_images_and_have_an_array_each(tmp_path, capsys):
    images, cache = folder_of(tmp_path / "images", 60), tmp_path / "cache"
    every = load_faces(str(images), 16, cache_dir=cache)
    assert capsys.readouterr().err.count("--hold-out") == 0
    apart = [is_held_out(path.name, 0.2) for path in find_images(images)]
    training = load_faces(str(images), 16, cache_dir=cache, hold_out=0.2)
    assert f"keeps {sum(apart)} of 60 images" in capsys.readouterr().err
    held_out = load_faces(str(images), 16, cache_dir=cache, hold_out=0.2, held_out=True)
    assert np.array_equal(training, every[~np.array(apart)]) and np.array_equal(held_out, every[apart])
    assert len(list(cache.glob("*.npy"))) == 3

    folder_of(images, 20, start=60)  # others beside them change nothing of where these fall
    more = load_faces(str(images), 16, cache_dir=cache, hold_out=0.2, held_out=True)
    assert np.array_equal(more[: len(held_out)], held_out)


@cases(short=100, long=3000)
def test_the_advised_share_holds_images_out(tmp_path, capsys, count):
    chance, advised = random.Random(SEED), 0
    for case in range(count):
        folder, options = tmp_path / f"{case}", {"cache_dir": tmp_path / "cache"}
        folder.mkdir()
        for _ in range(chance.choice((1, 2, 3, 6))):
            picture(9, 8).save(folder / f"{chance.random()}.png")
        try:
            load_faces(str(folder), 8, hold_out=chance.choice((1e-9, 0.01, 0.1, 0.5)), **options)
        except UserError as error:
            assert "more images" in str(error)
            if share := re.search(r"give `python3 train.py --hold-out (\S+)`", str(error)):
                advised += 1
                parts = [load_faces(str(folder), 8, hold_out=float(share[1]), held_out=x, **options) for x in (0, 1)]
                assert all(map(len, parts)) and float(share[1]) <= 0.5
        capsys.readouterr()
    assert advised > count / 4


# Batches


def test_batch_scales_and_mirrors():
    pixels = np.arange(2 * 3 * 2 * 2, dtype=np.uint8).reshape(2, 3, 2, 2)
    pixels[1, 0, 0] = 0, 255
    batch = ImageDataset(pixels, "cpu").batch(torch.tensor([1, 3, 0, 2]))
    assert batch.shape == (4, 3, 2, 2) and batch.dtype == torch.float32
    assert batch[0, 0, 0].tolist() == [-1.0, 1.0]
    assert batch[1, 0, 0].tolist() == [1.0, -1.0]
    assert torch.equal(batch[1], batch[0].flip(2))
    by_hand = torch.tensor([[[0, 1], [2, 3]], [[4, 5], [6, 7]], [[8, 9], [10, 11]]]) / 127.5 - 1
    assert torch.allclose(batch[2], by_hand, atol=1e-6) and torch.equal(batch[3], batch[2].flip(2))


def test_wrong_indices_and_arrays_are_refused():
    for index in (4, -1):
        with pytest.raises(IndexError):
            ImageDataset(np.zeros((2, 3, 2, 2), np.uint8), "cpu").batch(torch.tensor([index]))
    for wrong in (np.zeros((2, 3, 4, 4)), np.zeros((2, 4, 4, 3), np.uint8), np.zeros((0, 3, 4, 4), np.uint8)):
        with pytest.raises(ValueError, match="must be"):
            ImageDataset(wrong, "cpu")


def test_read_only_pixels_are_used_in_place_without_a_warning(tmp_path):
    np.save(tmp_path / "a.npy", np.full((2, 3, 4, 4), 7, np.uint8))
    pixels = np.load(tmp_path / "a.npy", mmap_mode="r")
    assert ImageDataset(pixels, "cpu")._pixels.data_ptr() == pixels.ctypes.data


def test_to_uint8_is_the_inverse_and_rounds_and_clamps():
    every = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_uint8(from_uint8(every)), every)
    assert from_uint8(every).min() == -1 and from_uint8(every).max() == 1
    near = to_uint8(torch.tensor([0.4, 0.6, 254.6, -50.0, 300.0, 127.6], requires_grad=True) / 127.5 - 1)
    assert near.tolist() == [0, 1, 255, 0, 255, 128] and near.dtype == torch.uint8


def test_a_fingerprint_tells_sets_of_images_apart_by_what_they_show(tmp_path):
    images = folder_of(tmp_path / "images", 3)
    assert fingerprint(np.zeros((1500, 3, 2, 2))) != fingerprint(np.zeros((1600, 3, 2, 2)))  # not all is read
    first = fingerprint(load_faces(str(images), 16, cache_dir=tmp_path / "cache"))
    elsewhere = images.rename(tmp_path / "moved")
    for path in elsewhere.iterdir():
        os.utime(path, (1, 1))
    assert fingerprint(load_faces(str(elsewhere), 16, cache_dir=tmp_path / "cache")) == first
    assert fingerprint(load_faces(str(elsewhere), 8, cache_dir=tmp_path / "cache")) != first
    next(elsewhere.iterdir()).unlink()
    assert fingerprint(load_faces(str(elsewhere), 16, cache_dir=tmp_path / "cache")) != first

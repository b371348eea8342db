"""From image files to batches: pixels equal Pillow's own, bad files are named, arrays are made once and whole."""

import os
import subprocess
import sys
import time
import warnings
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from magnet import faces, files, synthetic
from magnet.errors import UserError
from magnet.faces import Faces, find_images, from_uint8, load_faces, load_image, to_uint8

ROOT = Path(__file__).resolve().parent.parent
REAL_FACES = ROOT.parent / "shared" / "celeba" / "full_size_sample.zip"


def picture(width=40, height=48, seed=0):
    """A smooth coloured picture, no two corners alike."""
    noise = np.random.default_rng(seed).integers(0, 256, (5, 4, 3), np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


def pillow(image, size):
    """What load_image should give for a Pillow image, said another way: integers for the scale, numpy for the crop."""
    image = image.convert("RGB")
    w, h = image.size
    short = min(w, h)
    pixels = np.asarray(image.resize((round(w * size / short), round(h * size / short)), Image.Resampling.BILINEAR))
    top, left = (pixels.shape[0] - size) // 2, (pixels.shape[1] - size) // 2
    return pixels[top : top + size, left : left + size].transpose(2, 0, 1)


def equal(pixels, expected):
    """But for one grey level: load_image resamples the part that it keeps, whose places are rounded otherwise."""
    return pixels.shape == expected.shape and np.abs(pixels - expected.astype(int)).max() <= 1


def folder_of(path, count, start=0):
    path.mkdir(parents=True, exist_ok=True)
    for i in range(start, start + count):
        picture(20, 24, seed=i).save(path / f"{i:06d}.jpg")
    return path


# Finding images


def test_every_layout_of_celeba_is_found_in_order(tmp_path):
    for layout in ("", "img_align_celeba", "img_align_celeba/img_align_celeba", "Img/img_align_celeba"):
        root = tmp_path / f"root{layout.count('/')}{len(layout)}"
        folder_of(root / layout, 3)
        assert find_images(root) == [root / layout / f"00000{i}.jpg" for i in range(3)]


def test_images_are_sorted_by_relative_name_and_other_files_left_out(tmp_path):
    for name in ("b.JPG", "a/z.png", "a.jpeg", "c/d/e.Png", "notes.txt", "x.gif", "__MACOSX/._b.jpg", ".hidden/h.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = [path.relative_to(tmp_path).as_posix() for path in find_images(tmp_path)]
    assert found == ["a.jpeg", "a/z.png", "b.JPG", "c/d/e.Png"]


def test_links_to_folders_are_followed_and_cycles_end(tmp_path):
    folder_of(tmp_path / "elsewhere", 2)
    root = tmp_path / "root"
    root.mkdir()
    try:
        (root / "img_align_celeba").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
        (tmp_path / "elsewhere" / "loop").symlink_to(root, target_is_directory=True)
    except OSError:
        pytest.skip("this system lets the user make no symbolic links")
    assert len(find_images(root)) == 2


@pytest.mark.parametrize("make", [lambda p: None, lambda p: p.mkdir(), lambda p: p.write_text("x")])
def test_missing_or_empty_folder_is_named_with_the_remedy(tmp_path, make):
    folder = tmp_path / "celeba"
    make(folder)
    with pytest.raises(UserError) as error:
        load_faces(str(folder), 16, cache_dir=tmp_path / "cache")
    for word in (str(folder), "python3 download_celeba.py", "--data synthetic"):
        assert word in str(error.value)
    assert "\n" not in str(error.value)


# Decoding


@pytest.mark.parametrize("mode", ["RGB", "L", "LA", "P", "RGBA", "1"])
@pytest.mark.parametrize("size", [16, 64])
def test_png_modes_equal_pillow(tmp_path, mode, size):
    image = picture()
    if mode in ("LA", "RGBA"):
        image = image.convert(mode)
        image.putalpha(Image.linear_gradient("L").resize(image.size))
    image.convert(mode).save(tmp_path / "a.png")
    stored = Image.open(tmp_path / "a.png")
    assert stored.mode == mode
    assert equal(load_image(tmp_path / "a.png", size), pillow(stored, size))


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_jpeg_modes_equal_pillow(tmp_path, mode):
    original = picture().convert(mode)
    original.save(tmp_path / "a.jpg")
    stored = Image.open(tmp_path / "a.jpg")
    assert stored.mode == mode
    pixels = load_image(tmp_path / "a.jpg", 32)
    assert equal(pixels, pillow(stored, 32))
    assert np.abs(pixels - pillow(original, 32).astype(int)).mean() < 12  # CMYK is not inverted


@pytest.mark.parametrize("width, height", [(178, 218), (177, 219), (400, 130), (90, 333)])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_jpeg_that_is_decoded_smaller_is_the_same_picture(tmp_path, mode, width, height):
    picture(width, height).convert(mode).save(tmp_path / "a.jpg", quality=95)
    difference = load_image(tmp_path / "a.jpg", 32) - pillow(Image.open(tmp_path / "a.jpg"), 32).astype(int)
    assert np.abs(difference).mean() < 2 and np.abs(difference.mean(axis=(1, 2))).max() < 0.5


def test_palette_with_transparency_is_read_without_a_warning(tmp_path):
    picture().quantize(16).save(tmp_path / "a.png", transparency=bytes(range(0, 256, 16)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pixels = load_image(tmp_path / "a.png", 32)
    assert equal(pixels, pillow(Image.open(tmp_path / "a.png").convert("RGBA"), 32))


def test_16_bit_grey_keeps_its_upper_byte(tmp_path):
    ramp = np.linspace(0, 65535, 32 * 32).astype(np.uint16).reshape(32, 32)
    Image.fromarray(ramp).save(tmp_path / "a.png")
    assert np.array_equal(load_image(tmp_path / "a.png", 32), np.stack([(ramp // 256).astype(np.uint8)] * 3))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path, orientation):
    turns = {  # what a viewer does to the stored rows, from the EXIF standard, as numpy on (H, W, 3)
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, -1),
        7: lambda a: a.transpose(1, 0, 2)[::-1, ::-1],
        8: lambda a: np.rot90(a),
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture().save(tmp_path / "a.jpg", exif=exif)
    upright = np.ascontiguousarray(turns[orientation](np.asarray(Image.open(tmp_path / "a.jpg"))))
    assert equal(load_image(tmp_path / "a.jpg", 24), pillow(Image.fromarray(upright), 24))


@pytest.mark.parametrize("width, height", [(178, 218), (218, 178), (89, 109), (33, 33), (100, 10), (3, 5), (1, 1)])
def test_any_shape_is_resized_by_its_short_side_and_cut_out_of_the_middle(tmp_path, width, height):
    picture(width, height).save(tmp_path / "a.png")
    pixels = load_image(tmp_path / "a.png", 32)
    assert pixels.shape == (3, 32, 32) and pixels.dtype == np.uint8 and pixels.flags.c_contiguous
    assert equal(pixels, pillow(Image.open(tmp_path / "a.png"), 32))


# The array file


def test_the_array_equals_pillow_image_by_image(tmp_path):
    count = 2 * faces.CHUNK + 3
    images = folder_of(tmp_path / "images", count)
    for workers in (1, 3):
        cache = tmp_path / f"cache{workers}"
        pixels = load_faces(str(images), 16, cache_dir=cache, workers=workers)
        assert pixels.shape == (count, 3, 16, 16) and pixels.dtype == np.uint8
        assert isinstance(pixels, np.memmap) and not pixels.flags.writeable
        assert [len(path.name) for path in cache.glob("*.npy*")] == [16 + len(".npy")]
        for i in range(count):
            assert equal(pixels[i], pillow(Image.open(images / f"{i:06d}.jpg"), 16))


def test_the_array_is_made_once(tmp_path, monkeypatch):
    images = folder_of(tmp_path / "images", 3)
    first = load_faces(str(images), 16, cache_dir=tmp_path / "cache")
    monkeypatch.setattr(faces, "load_image", lambda *_: pytest.fail("decoded again"))
    second = load_faces(str(images), 16, cache_dir=tmp_path / "cache")
    assert np.array_equal(first, second)


def test_a_change_of_the_images_gives_another_array(tmp_path):
    images, cache, made = folder_of(tmp_path / "images", 3), tmp_path / "cache", 0

    def load(size=16, **options):
        nonlocal made
        pixels, made = load_faces(str(images), size, cache_dir=cache, **options), made + 1
        assert len(list(cache.glob("*.npy"))) == made
        return pixels

    load()
    load(size=8)
    load(skip_bad_images=True)
    os.utime(images / "000001.jpg", ns=(0, 1_000_000_001))  # the time alone
    load()
    (images / "000001.jpg").rename(images / "0000015.jpg")  # the name alone
    load()
    with open(images / "0000015.jpg", "ab") as file:  # the size alone
        file.write(b"\0")
    os.utime(images / "0000015.jpg", ns=(0, 1_000_000_001))
    load()
    folder_of(images, 1, start=3)
    assert len(load()) == 4
    picture(20, 24, seed=9).save(images / "000000.jpg")
    assert equal(load()[0], pillow(Image.open(images / "000000.jpg"), 16))


def test_a_killed_making_leaves_no_array_and_the_next_clears_up(tmp_path):
    images = folder_of(tmp_path / "images", 3 * faces.CHUNK)
    cache = tmp_path / "cache"
    slow = (
        "import time; from pathlib import Path; from magnet import faces; load = faces.load_image\n"
        "faces.load_image = lambda path, size: (time.sleep(60 if path.name > '000070' else 0), load(path, size))[1]\n"
        f"faces.load_faces({str(images)!r}, 16, cache_dir=Path({str(cache)!r}), workers=1)"
    )
    process = subprocess.Popen([sys.executable, "-c", slow], cwd=ROOT, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not list(cache.glob("*.tmp")) and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.02)
    process.kill()
    process.wait()
    assert len(list(cache.glob("*.tmp"))) == 1 and not list(cache.glob("*.npy"))
    pixels = load_faces(str(images), 16, cache_dir=cache)
    assert len(pixels) == 3 * faces.CHUNK
    assert len(list(cache.glob("*.npy"))) == 1 and not list(cache.glob("*.tmp"))


def test_a_failing_write_removes_its_file_and_is_a_user_error(tmp_path, monkeypatch):
    images = folder_of(tmp_path / "images", 3)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(UserError, match="No space left on device"):
        load_faces(str(images), 16, cache_dir=tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("*.npy*"))


def test_a_damaged_array_is_named(tmp_path):
    images = folder_of(tmp_path / "images", 3)
    load_faces(str(images), 16, cache_dir=tmp_path / "cache")
    (array,) = (tmp_path / "cache").glob("*.npy")
    for size in (1000, 60, 0):
        os.truncate(array, size)
        with pytest.raises(UserError, match=f"{array.name}.*delete it"):
            load_faces(str(images), 16, cache_dir=tmp_path / "cache")


@pytest.mark.skipif(os.name == "nt", reason="Windows has no lock here: both make the array")
def test_two_at_once_make_the_array_once(tmp_path, monkeypatch):
    images, decoded = folder_of(tmp_path / "images", 40), []
    monkeypatch.setattr(faces, "load_image", lambda path, size: (decoded.append(path), load_image(path, size))[1])
    with ThreadPoolExecutor(2) as pool:
        both = [pool.submit(load_faces, str(images), 16, cache_dir=tmp_path / "cache") for _ in range(2)]
    assert np.array_equal(both[0].result(), both[1].result())
    assert len(decoded) == 40


def test_synthetic_faces_are_cached(tmp_path, monkeypatch):
    monkeypatch.setattr(faces, "SYNTHETIC_FACES", faces.CHUNK + 2)
    pixels = load_faces("synthetic", 16, cache_dir=tmp_path)
    assert np.array_equal(pixels, synthetic.draw_faces(faces.CHUNK + 2, 16, seed=0)[0])
    monkeypatch.setattr(synthetic, "draw_faces", lambda *_, **__: pytest.fail("drawn again"))
    assert np.array_equal(load_faces("synthetic", 16, cache_dir=tmp_path), pixels)
    (array,) = tmp_path.glob("*.npy")
    assert f"v{synthetic.VERSION}-" in array.name and "-16" in array.name


@pytest.mark.parametrize("size", [32, 64, 128])
def test_real_faces_equal_pillow(tmp_path, size):
    if not REAL_FACES.exists():
        pytest.skip("no sample of CelebA beside the repository")
    with zipfile.ZipFile(REAL_FACES) as archive:
        archive.extractall(tmp_path / "celeba", sorted(n for n in archive.namelist() if n.endswith(".jpg"))[:50])
    pixels, differences = load_faces(str(tmp_path / "celeba"), size, cache_dir=tmp_path / "cache"), []
    paths = sorted((tmp_path / "celeba" / "img_align_celeba").glob("*.jpg"))
    assert len(pixels) == len(paths) == 50
    for path, row in zip(paths, pixels, strict=True):
        with Image.open(path) as image:
            assert image.size == (178, 218)
            differences.append(np.abs(row - pillow(image, size).astype(int)).mean())
    assert (0 < np.mean(differences) < 2) if size < 89 else max(differences) < 0.1  # decoded at half the size or less


# Images that training never sees


def test_what_is_held_out_is_a_share_of_names_and_a_larger_share_holds_out_more():
    names = [f"img_align_celeba/{i:06d}.jpg" for i in range(1, 20_001)]
    before = set()
    for share in (0.0, 0.1, 0.2, 0.5, 1.0):
        apart = {name for name in names if faces.is_held_out(name, share)}
        assert before <= apart
        assert len(apart) == pytest.approx(share * len(names), abs=4 * (len(names) * share * (1 - share)) ** 0.5)
        before = apart


def test_what_is_held_out_never_changes():
    """As `printf 11.jpg | b2sum -l 64` says: the first digits below a fifth of all. Runs rely on it ever after."""
    assert [i for i in range(40) if faces.is_held_out(f"{i}.jpg", 0.2)] == [11, 12, 30, 38]


def test_training_and_held_out_images_are_all_images_and_have_an_array_each(tmp_path, capsys):
    images, cache = folder_of(tmp_path / "images", 60), tmp_path / "cache"
    every = load_faces(str(images), 16, cache_dir=cache)
    assert capsys.readouterr().err.count("--hold-out") == 0
    apart = [faces.is_held_out(path.name, 0.2) for path in find_images(images)]
    training = load_faces(str(images), 16, cache_dir=cache, hold_out=0.2)
    assert f"keeps {sum(apart)} of 60 images" in capsys.readouterr().err
    held_out = load_faces(str(images), 16, cache_dir=cache, hold_out=0.2, held_out=True)
    assert np.array_equal(training, every[~np.array(apart)]) and np.array_equal(held_out, every[apart])
    assert len(list(cache.glob("*.npy"))) == 3

    folder_of(images, 20, start=60)  # others beside them change nothing of where these fall
    more = load_faces(str(images), 16, cache_dir=cache, hold_out=0.2, held_out=True)
    assert np.array_equal(more[: len(held_out)], held_out)
    elsewhere = images.rename(tmp_path / "moved")
    assert np.array_equal(load_faces(str(elsewhere), 16, cache_dir=cache, hold_out=0.2, held_out=True), more)


def test_drawn_faces_are_held_out_by_their_index(tmp_path, monkeypatch):
    monkeypatch.setattr(faces, "SYNTHETIC_FACES", 2 * faces.CHUNK + 2)
    every = load_faces("synthetic", 8, cache_dir=tmp_path)
    apart = np.array([faces.is_held_out(str(i), 0.2) for i in range(len(every))])
    parts = [load_faces("synthetic", 8, cache_dir=tmp_path, hold_out=0.2, held_out=part) for part in (False, True)]
    assert np.array_equal(parts[0], every[~apart]) and np.array_equal(parts[1], every[apart])
    assert load_faces("synthetic", 8, cache_dir=tmp_path, hold_out=0.4).shape < parts[0].shape


@pytest.mark.parametrize(("share", "held_out"), [(1e-9, False), (1e-9, True), (0.0, True)])
def test_a_part_without_an_image_is_named(tmp_path, share, held_out):
    images = folder_of(tmp_path / "images", 3)
    with pytest.raises(UserError, match=f"--hold-out {share} keeps 0 of 3 images in .*images from training"):
        load_faces(str(images), 16, cache_dir=tmp_path / "cache", hold_out=share, held_out=held_out)


# Batches

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]


@pytest.mark.parametrize("device", DEVICES)
def test_batch_scales_and_mirrors(device):
    pixels = np.arange(2 * 3 * 2 * 2, dtype=np.uint8).reshape(2, 3, 2, 2)
    pixels[1, 0, 0] = 0, 255
    batch = Faces(pixels, device).batch(torch.tensor([1, 3, 0, 2], device=device))
    assert batch.shape == (4, 3, 2, 2) and batch.dtype == torch.float32 and batch.device.type == device
    batch = batch.cpu()
    assert batch[0, 0, 0].tolist() == [-1.0, 1.0]
    assert batch[1, 0, 0].tolist() == [1.0, -1.0]
    assert torch.equal(batch[1], batch[0].flip(2))
    by_hand = torch.tensor([[[0, 1], [2, 3]], [[4, 5], [6, 7]], [[8, 9], [10, 11]]]) / 127.5 - 1
    assert torch.allclose(batch[2], by_hand, atol=1e-6) and torch.equal(batch[3], batch[2].flip(2))


@pytest.mark.parametrize("indices", [[4], [-1]])
def test_an_index_out_of_range_is_an_error(indices):
    with pytest.raises(IndexError):
        Faces(np.zeros((2, 3, 2, 2), np.uint8), "cpu").batch(torch.tensor(indices))


def test_read_only_pixels_are_used_in_place_without_a_warning(tmp_path):
    np.save(tmp_path / "a.npy", np.full((2, 3, 4, 4), 7, np.uint8))
    pixels = np.load(tmp_path / "a.npy", mmap_mode="r")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        some = Faces(pixels, "cpu")
    assert some._pixels.data_ptr() == pixels.ctypes.data
    assert len(some) == 2 and some.device == torch.device("cpu")


def test_other_arrays_are_refused():
    for wrong in (np.zeros((2, 3, 4, 4)), np.zeros((2, 4, 4, 3), np.uint8), np.zeros((0, 3, 4, 4), np.uint8)):
        with pytest.raises(ValueError, match="must be"):
            Faces(wrong, "cpu")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_pixels_lie_on_the_gpu_only_where_they_fit(monkeypatch):
    pixels = np.random.default_rng(0).integers(0, 256, (8, 3, 16, 16), np.uint8)
    fits = Faces(pixels, "cuda")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda *_: (2 * pixels.nbytes - 1, 10**9))
    too_large = Faces(pixels, "cuda")
    assert fits._pixels.is_cuda and not too_large._pixels.is_cuda
    indices = torch.randint(16, (32,))
    expected = Faces(pixels, "cpu").batch(indices)
    for some in (fits, too_large):
        for where in ("cpu", "cuda"):
            images = some.batch(indices.to(where))
            assert images.is_cuda and torch.allclose(images.cpu(), expected, atol=1e-6)  # a GPU rounds otherwise


def test_to_uint8_is_the_inverse_and_rounds_and_clamps():
    every = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_uint8(from_uint8(every)), every)
    assert from_uint8(every).min() == -1 and from_uint8(every).max() == 1
    near = to_uint8(torch.tensor([0.4, 0.6, 254.6, -50.0, 300.0, 127.6], requires_grad=True) / 127.5 - 1)
    assert near.tolist() == [0, 1, 255, 0, 255, 128] and near.dtype == torch.uint8


def test_a_fingerprint_counts_the_images_that_it_does_not_read():
    some, more = (np.zeros((count, 3, 2, 2), np.uint8) for count in (1500, 1600))
    assert faces.fingerprint(some) != faces.fingerprint(more)


def test_a_fingerprint_tells_sets_of_images_apart_by_what_they_show(tmp_path):
    images = folder_of(tmp_path / "images", 3)
    first = faces.fingerprint(load_faces(str(images), 16, cache_dir=tmp_path / "cache"))
    elsewhere = images.rename(tmp_path / "moved")
    for path in elsewhere.iterdir():
        os.utime(path, (1, 1))
    assert faces.fingerprint(load_faces(str(elsewhere), 16, cache_dir=tmp_path / "cache")) == first
    assert faces.fingerprint(load_faces(str(elsewhere), 8, cache_dir=tmp_path / "cache")) != first
    next(elsewhere.iterdir()).unlink()
    assert faces.fingerprint(load_faces(str(elsewhere), 16, cache_dir=tmp_path / "cache")) != first

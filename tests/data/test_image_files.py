"""Image files: every layout is found, and pixels equal Pillow's own."""

import io
import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

import train
from magnet.data import image_files
from magnet.data.image_files import MAX_SCANS, find_images, load_image
from magnet.support.errors import UserError

ROOT = Path(__file__).resolve().parents[2]


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


def test_images_are_sorted_by_relative_name_and_other_files_left_out(tmp_path):
    """Links to folders are followed, cycles of them end."""
    images = "a.jpeg a/z.png b.JPG c.WebP c/d/e.Png d.bmp e.GIF f.jfif link/h.jpg".split()
    for name in (*images[:-1], "notes.txt", "x.heic", "x.jpg.zip", "__MACOSX/b.jpg", "a/._b.jpg", ".hidden/h.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "link").symlink_to(".hidden", target_is_directory=True)
    (tmp_path / "link" / "loop").symlink_to(tmp_path, target_is_directory=True)
    assert [path.relative_to(tmp_path).as_posix() for path in find_images(tmp_path)] == images


def test_a_missing_folder_is_named_with_the_remedy(tmp_path):
    with pytest.raises(UserError, match=r"there is no folder .*nowhere: .*download_celeba\.py.*--data synthetic"):
        find_images(tmp_path / "nowhere")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "GIF"])
def test_an_image_without_an_ending_is_known_by_its_content(tmp_path, kind):
    for name in ("photo", "photo.", "photo.2"):
        picture().save(tmp_path / name, kind)
    (tmp_path / "BMW").write_bytes(b"BM" + bytes(30))
    (tmp_path / "empty").touch()
    (tmp_path / "loop").symlink_to("loop")
    assert find_images(tmp_path) == [tmp_path / "photo", tmp_path / "photo."]
    assert equal(load_image(tmp_path / "photo", 32), pillow(Image.open(tmp_path / "photo"), 32))


def test_what_is_left_out_is_counted_in_a_line_and_what_systems_drop_is_not(tmp_path, capsys):
    folder_of(tmp_path, 30)
    for name in (".DS_Store", "Thumbs.db", "desktop.ini", "._000001.jpg"):
        (tmp_path / name).touch()
    find_images(tmp_path, verbose=True)
    assert capsys.readouterr().err == ""
    for name in ("a.HEIC", "b.heic", "README", *(f"x.{i}\n" for i in range(9))):
        (tmp_path / name).touch()
    find_images(tmp_path, verbose=True)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("12 of 42 files left out: 2 .heic, 1 ") and line.endswith(", ...")


# What MAGNET wrote below --data is no image to learn from

FLAGS = "--preset cpu --width 4 --nz 6 --batch-size 8 --steps 2 --sample-every 1 --precision fp32".split()


def learned(run: Path) -> str:
    """The fingerprint of the images that a run learned from."""
    return torch.load(max((run / "checkpoints").glob("0*.pt")), weights_only=True)["faces"]


def make_run(folder: Path) -> None:
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    folder_of(folder / "samples", 3)


@pytest.mark.parametrize("flags", [[], ["--models-dir", "my/runs"]])
def test_a_second_run_within_a_folder_of_photos_learns_from_the_photos_alone(place, capsys, monkeypatch, flags):
    monkeypatch.chdir(place / "faces")
    names = [path.name for path in find_images(Path("."))]
    folder = Path(flags[-1] if flags else "models")
    for name in ("first", "second"):
        assert train.main([*FLAGS, "--data", ".", "--name", name, *flags]) == 0
        if name == "first":
            assert "left out" not in capsys.readouterr().err
            folder_of(folder / "loose", 2)  # as pictures that were sampled into the models folder
    assert learned(folder / "first") == learned(folder / "second")
    said = capsys.readouterr().err
    assert "that MAGNET wrote in data/cache" in said and f"that MAGNET wrote in {folder}" in said
    shutil.rmtree(folder / "loose")
    shutil.rmtree("data")
    assert [path.name for path in find_images(Path("."))] == names


@pytest.mark.parametrize("zipped", [False, True])
def test_run_folders_are_left_out_at_any_depth_and_counted(tmp_path, capsys, zipped):
    root = tmp_path / "photos"
    folder_of(root / "a", 4)
    folder_of(root / "settings", 1)
    (root / "settings" / "config.json").touch()  # somebody else's, without checkpoints
    folder_of(root / "b" / "checkpoints", 1)  # without a config.json
    for run in ("run", "a/old/run 2", "a/old/run 3/inner"):
        make_run(root / run)
        (root / run / "checkpoints" / "000001.pt").touch()
    source = Path(shutil.make_archive(str(tmp_path / "photos"), "zip", root)) if zipped else root
    found = [path.relative_to(source).as_posix() for path in find_images(source, verbose=True)]
    expected = [*(f"a/00000{i}.jpg" for i in range(4)), "b/checkpoints/000000.jpg", "settings/000000.jpg"]
    assert found == expected
    said = capsys.readouterr().err.removesuffix(", 1 .json\n").removeprefix("16 of 22 files left out: ")
    folders = ("run", "a/old/run 2", "a/old/run 3/inner")
    assert sorted(said.split(", ")) == sorted(f"5 that MAGNET wrote in {folder}" for folder in folders)


def test_a_folder_that_is_named_itself_is_read(tmp_path):
    make_run(tmp_path / "models" / "run")
    folder_of(tmp_path / "models" / "photos", 2)
    for folder, count in (("models/run/samples", 3), ("models/run", 3), ("models", 2)):
        assert len(find_images(tmp_path / folder, outputs=[tmp_path / "models"])) == count


# Decoding


@pytest.mark.parametrize("width, height", [(178, 218), (177, 219), (400, 130), (90, 333)])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_jpeg_that_is_decoded_smaller_is_the_same_picture(tmp_path, mode, width, height):
    picture(width, height).convert(mode).save(tmp_path / "a.jpg", quality=95)
    difference = load_image(tmp_path / "a.jpg", 32) - pillow(Image.open(tmp_path / "a.jpg"), 32).astype(int)
    assert np.abs(difference).mean() < 2 and np.abs(difference.mean(axis=(1, 2))).max() < 0.5


@pytest.mark.parametrize(
    ("orientation", "size", "decoded"), [(1, 64, (501, 376)), (6, 64, (376, 501)), (1, 200, (1001, 751))]
)
def test_a_photo_is_decoded_smaller_and_is_the_same_picture(tmp_path, monkeypatch, orientation, size, decoded):
    """Of 12 megapixels, with a film and another picture behind it, as phones make them."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture(4001, 3003).save(tmp_path / "a.jpg", exif=exif, quality=95)
    expected = pillow(ImageOps.exif_transpose(Image.open(tmp_path / "a.jpg")), size)
    with open(tmp_path / "a.jpg", "ab") as file:
        file.write((tmp_path / "a.jpg").read_bytes() + 1000 * b"\xff\xda")
    sizes = []
    monkeypatch.setattr(image_files, "_to_rgb", lambda image: sizes.append(image.size) or image)
    difference = load_image(tmp_path / "a.jpg", size) - expected.astype(int)
    assert sizes == [decoded]  # with twice the pixels on its short side
    assert np.abs(difference).mean() < 1 and np.abs(difference).max() < 12


def photo_of_200_megapixels(path):
    """14,208 x 14,080 pixels: 110 times the same rows, one after another, behind a header of all."""
    file = io.BytesIO()
    picture(14208, 128).save(file, "JPEG", quality=90, restart_marker_rows=1)
    data = file.getvalue()
    size, scan = data.index(b"\xff\xc0") + 5, data.index(b"\xff\xda") + 14
    head = data[:size] + struct.pack(">H", 110 * 128) + data[size + 2 : scan]
    path.write_bytes(head + b"\xff\xd7".join(110 * [data[scan:-2]]) + b"\xff\xd9")  # RST7: RST0 comes next
    with open(path, "ab") as film:
        film.truncate(60_000_000)


@pytest.mark.skipif(sys.platform != "linux", reason="tells no peak of the memory")
def test_photos_of_200_megapixels_take_little_memory(tmp_path):
    """A file of 60 MB and 3 megapixels: 74 MB; 147 if two were decoded at once, 866 at full size."""
    (tmp_path / "photos").mkdir()
    photo_of_200_megapixels(tmp_path / "photos" / "0.jpg")
    os.link(tmp_path / "photos" / "0.jpg", tmp_path / "photos" / "1.jpg")
    program = """if True:
        import sys
        from pathlib import Path
        from magnet.data import image_dataset
        from magnet.run.process_memory import read_resident_peak
        image_dataset.CHUNK, before = 1, read_resident_peak()  # a thread for each
        pixels = image_dataset.load_faces(sys.argv[1], 64, cache_dir=Path(sys.argv[2]), workers=2)
        print(read_resident_peak() - before, len(pixels), pixels[0].std() > 10)
    """
    words = [sys.executable, "-c", program, tmp_path / "photos", tmp_path / "cache"]
    found = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    assert int(found[0]) < 120e6 and found[1:] == ["2", "True"]


def test_palette_with_transparency_is_read_without_a_warning(tmp_path):
    picture().quantize(16).save(tmp_path / "a.png", transparency=bytes(range(0, 256, 16)))
    assert equal(load_image(tmp_path / "a.png", 32), pillow(Image.open(tmp_path / "a.png").convert("RGBA"), 32))


def test_a_png_that_holds_the_bytes_of_a_jpegs_scans_is_none(tmp_path):
    pixels = np.tile(np.array([255, 218], np.uint8), (100, 50))
    picture = Image.fromarray(pixels)
    picture.putpalette([i for i in range(256) for _ in range(3)])
    picture.save(tmp_path / "a.png", compress_level=0)
    assert (tmp_path / "a.png").read_bytes().count(b"\xff\xda") > MAX_SCANS
    assert equal(load_image(tmp_path / "a.png", 32), pillow(Image.open(tmp_path / "a.png"), 32))


def test_16_bit_grey_keeps_its_upper_byte(tmp_path):
    ramp = np.linspace(0, 65535, 32 * 32).astype(np.uint16).reshape(32, 32)
    Image.fromarray(ramp).save(tmp_path / "a.png")
    assert np.array_equal(load_image(tmp_path / "a.png", 32), np.stack([(ramp // 256).astype(np.uint8)] * 3))


@pytest.mark.parametrize("width, height", [(178, 218), (218, 178), (89, 109), (33, 33), (100, 10), (3, 5), (1, 1)])
def test_any_shape_is_resized_by_its_short_side_and_cut_out_of_the_middle(tmp_path, width, height):
    picture(width, height).save(tmp_path / "a.png")
    pixels = load_image(tmp_path / "a.png", 32)
    assert pixels.shape == (3, 32, 32) and pixels.dtype == np.uint8 and pixels.flags.c_contiguous
    assert equal(pixels, pillow(Image.open(tmp_path / "a.png"), 32))

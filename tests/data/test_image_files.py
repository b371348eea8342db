"""Image files: every layout is found, and pixels equal Pillow's own."""

import io
import os
import struct
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

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


def test_every_layout_of_celeba_is_found_in_order(tmp_path):
    for layout in ("", "img_align_celeba", "img_align_celeba/img_align_celeba", "Img/img_align_celeba"):
        root = tmp_path / f"root{layout.count('/')}{len(layout)}"
        folder_of(root / layout, 3)
        assert find_images(root) == [root / layout / f"00000{i}.jpg" for i in range(3)]


def test_images_are_sorted_by_relative_name_and_other_files_left_out(tmp_path):
    images = "a.jpeg a/z.png b.JPG c.WebP c/d/e.Png d.bmp e.GIF f.jfif".split()
    for name in (*images, "notes.txt", "x.heic", "x.jpg.zip", "__MACOSX/b.jpg", "a/._b.jpg", ".hidden/h.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert [path.relative_to(tmp_path).as_posix() for path in find_images(tmp_path)] == images


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "GIF"])
def test_an_image_without_an_ending_is_known_by_its_content(tmp_path, kind):
    picture().save(tmp_path / "photo", kind)
    picture().save(tmp_path / "photo.", kind)
    picture().save(tmp_path / "photo.2", kind)
    (tmp_path / "BMW").write_bytes(b"BM" + bytes(30))
    (tmp_path / "LICENSE").write_text("no image")
    (tmp_path / "empty").touch()
    (tmp_path / "loop").symlink_to("loop")
    assert find_images(tmp_path) == [tmp_path / "photo", tmp_path / "photo."]
    assert equal(load_image(tmp_path / "photo", 32), pillow(Image.open(tmp_path / "photo"), 32))


def test_what_is_left_out_is_counted_in_a_line_and_what_systems_drop_is_not(tmp_path, capsys):
    folder_of(tmp_path, 30)
    for name in (".DS_Store", "Thumbs.db", "desktop.ini", "._000001.jpg", ".git/config", "__MACOSX/x.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    find_images(tmp_path, verbose=True)
    assert capsys.readouterr().err == ""
    (tmp_path / "a.HEIC").touch()
    (tmp_path / "notes.txt").touch()
    find_images(tmp_path)
    assert capsys.readouterr().err == ""
    find_images(tmp_path, verbose=True)
    assert capsys.readouterr().err == "2 of 32 files left out: 1 .heic, 1 .txt\n"
    for name in ("b.heic", "README", *(f"x.{i}\n" for i in range(9))):
        (tmp_path / name).touch()
    find_images(tmp_path, verbose=True)
    said = capsys.readouterr().err
    assert said.startswith("13 of 43 files left out: 2 .heic, 1 ") and said.endswith(", ...\n")
    assert said.count("\n") == 1


def test_a_folder_of_other_files_alone_tells_which(tmp_path):
    (tmp_path / "a.heic").touch()
    with pytest.raises(UserError, match=r"no \.jpg, .* file in .* \(but 1 .heic\): get CelebA"):
        find_images(tmp_path)


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
        find_images(folder)
    for word in (str(folder), "python3 download_celeba.py", "--data synthetic"):
        assert word in str(error.value)
    assert "\n" not in str(error.value)


# Decoding


def test_a_cmyk_jpeg_is_not_inverted(tmp_path):
    original = picture().convert("CMYK")
    original.save(tmp_path / "a.jpg")
    assert np.abs(load_image(tmp_path / "a.jpg", 32) - pillow(original, 32).astype(int)).mean() < 12


@pytest.mark.parametrize("width, height", [(178, 218), (177, 219), (400, 130), (90, 333)])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_jpeg_that_is_decoded_smaller_is_the_same_picture(tmp_path, mode, width, height):
    picture(width, height).convert(mode).save(tmp_path / "a.jpg", quality=95)
    difference = load_image(tmp_path / "a.jpg", 32) - pillow(Image.open(tmp_path / "a.jpg"), 32).astype(int)
    assert np.abs(difference).mean() < 2 and np.abs(difference.mean(axis=(1, 2))).max() < 0.5


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("size", [32, 64])
def test_a_photo_is_decoded_smaller_and_is_the_same_picture(tmp_path, monkeypatch, size, orientation):
    """Of 12 megapixels, with a film and another picture behind it, as phones make them."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture(4001, 3003).save(tmp_path / "a.jpg", exif=exif, quality=95)
    expected = pillow(ImageOps.exif_transpose(Image.open(tmp_path / "a.jpg")), size)
    with open(tmp_path / "a.jpg", "ab") as file:
        file.write((tmp_path / "a.jpg").read_bytes() + 1000 * b"\xff\xda")
    decoded = []
    monkeypatch.setattr(image_files, "_to_rgb", lambda image: decoded.append(image.size) or image)
    difference = load_image(tmp_path / "a.jpg", size) - expected.astype(int)
    assert decoded == [(501, 376) if orientation == 1 else (376, 501)]
    assert np.abs(difference).mean() < 1 and np.abs(difference).max() < 12


@pytest.mark.parametrize(("width", "height", "size", "side"), [(3400, 3000, 128, 375), (10200, 1020, 128, 510)])
def test_a_photo_keeps_twice_the_pixels_on_its_short_side(tmp_path, monkeypatch, width, height, size, side):
    picture(width, height).save(tmp_path / "a.jpg")
    decoded = []
    monkeypatch.setattr(image_files, "_to_rgb", lambda image: decoded.append(image.height) or image)
    load_image(tmp_path / "a.jpg", size)
    assert decoded == [side]


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
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pixels = load_image(tmp_path / "a.png", 32)
    assert equal(pixels, pillow(Image.open(tmp_path / "a.png").convert("RGBA"), 32))


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

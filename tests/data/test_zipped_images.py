"""A .zip of images as the data of a run: the same images as in a folder, read where they are; bad ones are named."""

import io
import os
import random
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
from conftest import SEED
from garbling import garble
from test_image_files import folder_of, picture
from test_train import TINY

import train
from magnet.data import image_dataset
from magnet.data.image_dataset import load_faces
from magnet.data.image_files import BadImage, find_images, load_image
from magnet.support.errors import UserError

SIDE = 16


def zipped(path, files, packing=zipfile.ZIP_DEFLATED):
    """An archive of `files`, by name."""
    with zipfile.ZipFile(path, "w", packing) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def pictures(count, folder="img_align_celeba/"):
    """JPEG files by name."""
    files = {}
    for i in range(count):
        file = io.BytesIO()
        picture(20, 24, seed=i).save(file, "JPEG")
        files[f"{folder}{i:06d}.jpg"] = file.getvalue()
    return files


@pytest.mark.parametrize(("packing", "hold_out"), [(zipfile.ZIP_STORED, 0.3), (zipfile.ZIP_DEFLATED, 0.0)])
def test_an_archive_gives_what_its_folder_gives(tmp_path, packing, hold_out):
    """In the same order, with the same ones held out; by several threads at once."""
    files = pictures(3 * image_dataset.CHUNK + 5) | pictures(3, "more/a/") | pictures(2, "")
    shuffled = random.Random(SEED).sample(list(files.items()), len(files))
    archive = zipped(tmp_path / "images.zip", dict(shuffled), packing)
    with zipfile.ZipFile(archive) as source:
        source.extractall(tmp_path / "images")
    options = {"cache_dir": tmp_path / "cache", "hold_out": hold_out, "workers": 8}
    for held_out in (False, True) if hold_out else (False,):
        expected = load_faces(str(tmp_path / "images"), SIDE, held_out=held_out, **options)
        assert np.array_equal(load_faces(str(archive), SIDE, held_out=held_out, **options), expected)


def test_hidden_members_are_left_out_and_others_counted(tmp_path, capsys):
    files = dict.fromkeys(("__MACOSX/x.jpg", "a/._b.jpg", ".c/d.jpg", "a/Thumbs.db", "notes.txt", "b.heic"), b"")
    (photo,) = pictures(1).values()
    archive = zipped(tmp_path / "a.zip", files | {"z/": b"", "z/photo": photo, "z/b.JPEG": photo, "LICENSE": b"none"})
    found = find_images(archive, verbose=True)
    assert [str(image) for image in found] == [f"{archive}/z/b.JPEG", f"{archive}/z/photo"]
    assert capsys.readouterr().err == "3 of 5 files left out: 1 without an ending, 1 .heic, 1 .txt\n"
    assert np.array_equal(load_image(found[0], SIDE), load_image(found[1], SIDE))


def test_a_change_of_a_member_gives_another_array(tmp_path):
    cache, good = tmp_path / "cache", pictures(3)
    (first, a), (second, b), (third, c) = good.items()
    changes = [
        good, {first: a, second: b}, good | {third: c + b"\0"}, {first: a, second: b, "x.jpg": c},
        good | {first: a[:-40] + b[-40:]},
    ]  # fmt: skip
    for count, files in enumerate(changes, 1):
        load_faces(str(zipped(tmp_path / "a.zip", files)), SIDE, cache_dir=cache)
        assert len(list(cache.glob("*.npy"))) == count
    (tmp_path / "a.zip").rename(tmp_path / "b.zip")
    os.utime(tmp_path / "b.zip", (1, 1))
    load_faces(str(tmp_path / "b.zip"), SIDE, cache_dir=cache)
    assert len(list(cache.glob("*.npy"))) == count


def patched(path, offset, change):
    """Overwrites a field in the central directory's record of the last member; its local header stays."""
    data = bytearray(path.read_bytes())
    at = data.rindex(b"PK\x01\x02") + offset
    data[at : at + len(change)] = change
    path.write_bytes(data)


BAD = {
    "encrypted": (8, struct.pack("<H", 1), "is encrypted, password required"),
    "packed in a rare way": (10, struct.pack("<H", 14), "packed with method 14"),
    "another checksum": (16, bytes(4), "Bad CRC-32"),
    "a bomb": (24, struct.pack("<I", 4_000_000_000), "4,000,000,000 bytes, more than 100,000,000"),
    "longer than it says": (24, struct.pack("<I", 300), "Bad CRC-32"),
    "empty": (24, bytes(4), "the file is empty"),
    "elsewhere": (42, struct.pack("<I", 5), "Bad magic number for file header"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_member_is_named_or_left_out(tmp_path, capsys, kind):
    archive, cache = zipped(tmp_path / "a.zip", pictures(120)), tmp_path / "cache"
    whole = load_faces(str(archive), SIDE, cache_dir=tmp_path / "before")
    offset, change, reason = BAD[kind]
    patched(archive, offset, change)
    with pytest.raises(UserError) as error:
        load_faces(str(archive), SIDE, cache_dir=cache)
    assert str(error.value).startswith(f"bad image {archive}/img_align_celeba/000119.jpg: ")
    assert reason in str(error.value) and str(error.value).endswith("with `--skip-bad-images`")
    assert np.array_equal(load_faces(str(archive), SIDE, cache_dir=cache, skip_bad_images=True), whole[:-1])
    assert f"1 of 120 images in {archive} are left out" in capsys.readouterr().err


def test_what_is_no_archive_is_named(tmp_path):
    (tmp_path / "a.zip").write_bytes(zipped(tmp_path / "b.zip", pictures(3)).read_bytes()[:-30])
    with pytest.raises(UserError, match=r"cannot read .*a.zip as a .zip archive \(File is not a zip file\): get"):
        find_images(tmp_path / "a.zip")
    with pytest.raises(UserError, match=r"no .jpg.* file in .*b.zip .*\(but 1 .txt\)"):
        find_images(zipped(tmp_path / "b.zip", {"a.txt": b""}))


def test_a_damaged_archive_is_a_sentence_or_gives_whole_images(tmp_path):
    chance, good = random.Random(SEED), zipped(tmp_path / "a.zip", pictures(4)).read_bytes()
    expected = {load_image(image, SIDE).tobytes() for image in find_images(tmp_path / "a.zip")}
    refused = whole = 0
    for _ in range(300):
        data = garble(chance, good, times=chance.choice((1, 3)), start=good.index(b"PK\x01\x02"))
        (tmp_path / "a.zip").write_bytes(data)
        try:
            for image in find_images(tmp_path / "a.zip"):
                assert load_image(image, SIDE).tobytes() in expected
                whole += 1
        except (UserError, BadImage) as error:
            assert str(error).isprintable()
            refused += 1
    assert refused > 50 and whole > 50


def test_a_run_learns_from_an_archive_and_goes_on_from_its_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    folder_of(Path("faces"), 40)
    zipped("photos.zip", {path.name: path.read_bytes() for path in Path("faces").iterdir()})
    words = ["--data", "photos.zip", "--hold-out", "0.2", "--skip-bad-images", "--steps", "1", "--name", "a"]
    assert train.main([*TINY, *words]) == 0
    assert "of 40 images in photos.zip from training" in capsys.readouterr().err
    assert train.main(["--resume", "a", "--data", "faces", "--steps", "2"]) == 0

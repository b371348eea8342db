"""What a message about images advises works when it is followed."""

import os
import random
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import SEED, cases
from PIL import Image
from test_bad_images import not_root
from test_image_files import folder_of, picture

import train
from magnet.data.image_dataset import load_faces
from magnet.data.image_files import BadImage, load_image
from magnet.support.errors import UserError

SIDE = 8


@cases(short=60, long=1500)
def test_the_advice_on_bad_files_works(tmp_path, capsys, count):
    """Folders of any number of files, any of them bad: who does what the messages say gets the good images."""
    chance, good = random.Random(SEED), (tmp_path / "good.png")
    picture(20, 24).save(good)
    for case in range(count):
        folder, flags, pixels = tmp_path / f"{case}", {}, []
        folder.mkdir()
        total = chance.choice((1, 2, 5, 40, 99, 100, 101, 200, 333))
        bad = {chance.randrange(total) for _ in range(chance.choice((1, 1, 1, 2, 3, 5)))}
        expected = total - len(bad)
        for i in range(total):
            path = folder / f"{i:03d}.png"
            path.write_bytes(b"no image") if i in bad else os.link(good, path)
        for _ in range(len(bad) + 2):
            try:
                pixels = load_faces(str(folder), SIDE, cache_dir=tmp_path / "cache", **flags)
                break
            except UserError as error:
                said = str(error)
            if not list(folder.iterdir()):
                assert "no .jpg" in said
                break
            assert "delete" in said and ("--skip-bad-images" in said) == (total >= 100 and not flags), said
            if "--skip-bad-images" in said and chance.random() < 0.8:
                flags = {"skip_bad_images": True}
                continue
            Path(re.search("(bad image|the last) (.*?): ", said)[2]).unlink()
            total -= 1
        assert len(pixels) == expected
        shutil.rmtree(folder)
        capsys.readouterr()


@cases(short=100, long=3000)
def test_the_advised_share_holds_images_out(tmp_path, capsys, count):
    chance, advised = random.Random(SEED), 0
    for case in range(count):
        folder, options = tmp_path / f"{case}", {"cache_dir": tmp_path / "cache"}
        folder.mkdir()
        for _ in range(chance.choice((1, 2, 3, 6))):
            picture(9, 8).save(folder / f"{chance.random()}.png")
        try:
            load_faces(str(folder), SIDE, hold_out=chance.choice((1e-9, 0.01, 0.1, 0.5)), **options)
        except UserError as error:
            assert "more images" in str(error)
            if share := re.search(r"give `python3 train.py --hold-out (\S+)`", str(error)):
                advised += 1
                parts = [load_faces(str(folder), SIDE, hold_out=float(share[1]), held_out=x, **options) for x in (0, 1)]
                assert all(map(len, parts)) and float(share[1]) <= 0.5
        capsys.readouterr()
    assert advised > count / 4


def test_an_image_that_is_too_large_is_taken_as_advised(tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(np.zeros((3200, 3200), np.uint8)).save(path)
    with pytest.raises(BadImage, match="save it smaller, or as a JPEG that is not progressive"):
        load_image(path, 32)
    image = Image.open(path)
    image.save(tmp_path / "a.jpg")
    image.resize((3000, 3000)).save(tmp_path / "b.png")
    for name in ("a.jpg", "b.png"):
        assert load_image(tmp_path / name, 32).shape == (3, 32, 32)


def test_without_images_every_advice_works(place, capsys):
    flags = ["--image-size", "32", "--width", "4", "--dry-run"]
    for data in ([], ["--data", "nowhere"], ["--data", "empty"], ["--data", "text.zip"]):
        (place / "empty").mkdir(exist_ok=True)
        (place / "text.zip").write_text("no archive")
        assert train.main([*flags, *data]) == 2
        said = capsys.readouterr().err
        assert all(word in said for word in ("`python3 download_celeba.py`", "`--data`", "`--data synthetic`"))
    assert train.main([*flags, "--data", "faces"]) == 0


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such modes")
def test_a_cache_that_cannot_be_written_says_how_to_name_another(place, capsys, monkeypatch):
    (place / "locked").mkdir(mode=0o555)
    place.chmod(0o777)
    monkeypatch.setenv("MAGNET_CACHE", "locked")
    flags = ["--image-size", "32", "--width", "4", "--data", "faces", "--dry-run"]
    with not_root():
        assert train.main(flags) == 2
        said = capsys.readouterr().err.splitlines()[-1]
        assert "cannot write locked/" in said and "`--cache-dir FOLDER` or MAGNET_CACHE" in said
        assert train.main([*flags, "--cache-dir", "mine"]) == 0
    assert folder_of(place / "more", 1) and list((place / "mine").glob("*.npy"))

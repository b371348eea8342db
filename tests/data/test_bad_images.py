"""Bad images: hundreds of damaged, foreign and hostile files, none of which stops the array's making unnamed."""

import contextlib
import io
import os
import random
import re
import shutil
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from conftest import SEED, cases
from garbling import garble
from PIL import Image
from test_image_files import equal, folder_of, picture, pillow

from magnet.data import image_dataset, image_files
from magnet.data.image_dataset import load_faces
from magnet.data.image_files import BadImage, find_images, load_image
from magnet.support.errors import UserError, one_line

SIDE = 16
MODES = "1 L LA La P PA RGB RGBA RGBa RGBX CMYK YCbCr LAB HSV I F I;16".split()
DECODED = ("JPEG", "MPO", "PNG", "WEBP", "BMP", "GIF")  # MPO is a JPEG with more pictures behind it
NONE = "no JPEG, PNG, WebP, BMP or GIF image"


def encoded(mode, kind, **options):
    """The bytes of a picture in one of Pillow's modes and formats; none if the format has no such mode."""
    try:
        image = picture().convert(mode)
    except ValueError:  # Pillow has the mode, but no way to it from RGB
        image = Image.new(mode, picture().size)
    if mode in ("LA", "RGBA"):
        image.putalpha(Image.linear_gradient("L").resize(image.size))
    file = io.BytesIO()
    try:
        image.save(file, kind, **options)
    except (OSError, ValueError, KeyError, AttributeError):
        return b""
    return file.getvalue()


def png(width, height, *chunks, rows=b"\0" * 100):
    """A PNG whose header claims a size, whatever its rows are."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n"
    for kind, content in ((b"IHDR", header), *chunks, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")):
        data += struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
    return data


def many_scans():
    """A progressive JPEG that repeats its last scan: each passes over all pixels and takes some twenty bytes."""
    data = encoded("L", "JPEG", progressive=True)
    last = data[data.rindex(b"\xff\xda") : -2]
    return data[:-2] + (image_files.MAX_SCANS + 1) * last + data[-2:]


def with_three_scans():
    """A JPEG that is not progressive and whose header of the first scan tells of one colour alone."""
    at = GOOD.index(b"\xff\xda\0\x0c\x03")
    return GOOD[:at] + b"\xff\xda\0\x08\x01\x01\0\0\x3f\0" + GOOD[at + 14 :]


GOOD = encoded("RGB", "JPEG")
TURN = Image.Exif()
TURN[0x0112] = 6
SOUND = [
    *(encoded(mode, "JPEG", quality=90) for mode in ("L", "RGB", "CMYK")),
    *(encoded(mode, "PNG") for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")),
    encoded("RGB", "JPEG", progressive=True, exif=TURN, icc_profile=bytes(500)),
    encoded("P", "PNG", transparency=bytes(range(256)), exif=TURN),
    encoded("RGB", "WEBP", exif=TURN), encoded("RGBA", "WEBP", lossless=True), encoded("RGB", "BMP"),
    encoded("P", "GIF", interlace=0, transparency=3),
]  # fmt: skip
NAMES = [
    "", " ", "a b", "\u00fc\u4eba\U0001f600", "a\nb", "a\rb", "\x1b[2J", "\u202e", "\u2028", "'\"", "-", "--name",
    "%s{}", "$(exit 1)", "x" * 200, os.fsdecode(b"\xff\xfe") if os.name == "posix" else "\ud800",
]  # fmt: skip
HEIGHT_AND_WIDTH, LARGE, GIANT = (struct.pack(">HH", *sides) for sides in ((48, 40), (3000, 4000), (65500, 65500)))
BAD = {
    "text": (b"no picture", NONE),
    "empty": (b"", "the file is empty"),
    "bomb": (png(30000, 30000), "30000 x 30000 pixels, more than 10,000,000: save it smaller"),
    "many pixels": (png(3200, 3200), "3200 x 3200 pixels"),
    "strip": (png(1, 5000), "1 x 5000 pixels"),
    "no pixels": (png(0, 0), "its header is damaged"),
    "few rows": (png(3300, 3000), "truncated"),  # as many as are decoded
    "giant jpeg": (GOOD.replace(HEIGHT_AND_WIDTH, GIANT), "65500 x 65500 pixels, more than 640,000,000"),
    "large progressive jpeg": (
        encoded("RGB", "JPEG", progressive=True).replace(HEIGHT_AND_WIDTH, LARGE),
        "4000 x 3000 pixels, more than 10,000,000: save it smaller, or as a JPEG that is not progressive",
    ),
    "large jpeg with a scan for each colour": (
        with_three_scans().replace(HEIGHT_AND_WIDTH, LARGE),
        "4000 x 3000 pixels, more than 10,000,000",
    ),
    "scans": (many_scans(), "507 scans, more than 500"),
    "truncated": (GOOD[:-200], "truncated"),
}


def test_a_file_of_many_bytes_is_not_read(tmp_path):
    path = tmp_path / "a.jpg"
    path.write_bytes(GOOD)
    os.truncate(path, 100_000_001)
    with pytest.raises(BadImage, match="100,000,001 bytes, more than 100,000,000"):
        load_image(path, SIDE)
    os.truncate(path, 20_000_001)  # as an image is with a film behind it
    assert load_image(path, SIDE).shape == (3, SIDE, SIDE)


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_file_is_named_with_the_reason(tmp_path, kind):
    path = tmp_path / "000002.jpg"
    path.write_bytes(BAD[kind][0])
    with pytest.raises(BadImage) as error:
        load_image(path, SIDE)
    assert str(error.value).startswith(f"{path}: ") and BAD[kind][1] in str(error.value)


@pytest.mark.filterwarnings("ignore:.*image format is deprecated:DeprecationWarning")  # one that is not read here
def test_five_formats_are_known_under_any_ending_and_others_meet_no_decoder(tmp_path, monkeypatch):
    """In every mode that Pillow can write; they become RGB as Pillow converts them."""
    Image.init()
    formats = {kind: list(filter(None, (encoded(mode, kind) for mode in MODES))) for kind in Image.SAVE}
    for kind in Image.OPEN.keys() - {*DECODED}:
        monkeypatch.setitem(Image.OPEN, kind, (lambda *_: pytest.fail("decoded"), None))
    chance = random.Random(SEED)
    for kind, files in formats.items():
        for data in files:
            path = tmp_path / chance.choice(("a.jpg", "a.JPEG", "a.png", "a.gif", "a"))
            path.write_bytes(data)
            if kind in DECODED:
                with Image.open(path, formats=sorted({*DECODED} - {"MPO"})) as image:
                    expected = pillow(image, 32) * (image.mode != "I;16")  # whose upper byte is 0 here
                    assert equal(load_image(path, 32), expected), (kind, image.mode)
            else:
                with pytest.raises(BadImage, match=NONE):
                    load_image(path, SIDE)
    assert sum(map(bool, formats.values())) > 15 and all(len(formats[kind]) > 2 for kind in DECODED)


def mangle(chance) -> bytes:
    """A good file with some damage, or a crafted bad one."""
    if chance.random() < 0.1:
        return chance.choice(list(BAD.values()))[0]
    return garble(chance, chance.choice(SOUND), times=chance.choice((0, 1, 1, 2, 10)), other=chance.choice(SOUND))


@cases(short=500, long=10000)
def test_mangled_images_under_wild_names_are_named_and_counted_or_whole(tmp_path, monkeypatch, capsys, count):
    """The array holds what load_image takes, in its order; all others are counted, the first five named, in a line."""
    monkeypatch.setattr(image_dataset, "MAX_BAD_SHARE", 1.0)
    chance, images = random.Random(SEED), tmp_path / "a b\u4eba"
    images.mkdir()
    for i in range(count):
        name = f"{chance.choice(NAMES)}{i}{chance.choice(('.jpg', '.JPG', '.jpeg', '.png'))}"
        with contextlib.suppress(OSError, ValueError):  # Windows takes few of these names
            (images / name).write_bytes(mangle(chance))
    good, bad = [], []
    for path in find_images(images):
        try:
            good.append(load_image(path, SIDE))
        except BadImage as error:
            assert str(error).startswith(one_line(str(path))) and str(error).isprintable()
            bad.append(str(error))
    assert min(len(good), len(bad)) > count / 10
    assert all(image.shape == (3, SIDE, SIDE) and image.dtype == np.uint8 for image in good)
    found = load_faces(str(images), SIDE, cache_dir=tmp_path / "cache", skip_bad_images=True)
    assert np.array_equal(found, good)
    said = capsys.readouterr().err.splitlines()
    assert [line for line in said if line.startswith("left out")] == [f"left out {error}" for error in bad[:5]]
    assert said[-1] == f"{len(bad)} of {len(good) + len(bad)} images in {images} are left out (--skip-bad-images)"
    with pytest.raises(UserError) as error:
        load_faces(str(images), SIDE, cache_dir=tmp_path / "cache")
    assert bad[0] in str(error.value) and str(error.value).isprintable()


def test_an_image_cut_off_anywhere_is_refused(tmp_path):
    """Pillow would fill the rest with grey."""
    path = tmp_path / "a.jpg"
    for whole in SOUND:
        for size in range(0, len(whole) - 20, 97):  # less than 20 bytes short all pixels may be there
            path.write_bytes(whole[:size])
            with pytest.raises(BadImage):
                load_image(path, SIDE)


def link_in_a_ring(path):
    path.symlink_to("storage")
    (path.parent / "storage").symlink_to(path.name)


def make_unreadable(path):
    path.write_bytes(GOOD)
    path.chmod(0)


NO_FILES = {  # what has the name of an image: how it is made, what is said of it
    "link to itself": (lambda path: path.symlink_to(path.name), "Too many levels of symbolic links"),
    "links in a ring": (link_in_a_ring, "Too many levels of symbolic links"),
    "link to nowhere": (lambda path: path.symlink_to("nowhere"), "No such file"),
    "pipe": (os.mkfifo, "no file, but a pipe"),
    "device": (lambda path: path.symlink_to("/dev/zero"), "no file, but a pipe"),
    "unreadable": (make_unreadable, "Permission denied"),
}


no_modes = pytest.mark.skipif(os.name == "nt", reason="Windows has no such modes and files")


@contextlib.contextmanager
def not_root():
    """Within, files that belong to others are read as their modes say, also where the tests run as root."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


@no_modes
@pytest.mark.parametrize(("make", "said"), NO_FILES.values(), ids=NO_FILES.keys())
def test_what_is_no_readable_file_is_named(place, make, said):
    make(place / "faces" / "00.jpg")
    place.chmod(0o777)
    with not_root(), pytest.raises(UserError) as error:
        load_faces("faces", SIDE, cache_dir=Path("data"))
    assert f"bad image faces/00.jpg: {said}" in str(error.value)


@no_modes
def test_a_folder_that_may_not_be_read_is_named(place):
    place.chmod(0o777)
    (place / "faces" / "more.jpg").mkdir(mode=0)
    with not_root(), pytest.raises(UserError, match=r"cannot read the folder faces/more.jpg \(Permission denied\)"):
        find_images(Path("faces"))


def test_a_folder_with_the_name_of_an_image_is_a_folder(tmp_path):
    folder_of(tmp_path / "a.jpg" / "b.png", 2)
    assert find_images(tmp_path) == [tmp_path / "a.jpg" / "b.png" / f"00000{i}.jpg" for i in range(2)]


def test_folders_too_deep_in_one_another_are_refused(tmp_path, monkeypatch):
    def walk(*_, **__):  # as before Python 3.12
        raise RecursionError

    monkeypatch.setattr(os, "walk", walk)
    with pytest.raises(UserError, match="too deep in one another"):
        find_images(tmp_path)


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

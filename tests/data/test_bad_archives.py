"""Archives that are not CelebA's, hostile or damaged: nothing is unpacked before all names and sizes are right."""

import dataclasses
import random
import shutil
import stat
import types
import zipfile

import pytest
from conftest import SEED, cases
from downloads import BODY, TINY, picture, tree, zipped
from garbling import garble

from magnet.data import archives

pytest_plugins = ["downloads"]


def with_mode(name: str, mode: int) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr = mode << 16
    return info


def flagged_as_encrypted(body: bytes) -> bytes:
    entry = body.rindex(b"PK\x01\x02")  # the last one in the central directory, its flags 8 bytes in
    return body[: entry + 8] + bytes([body[entry + 8] | 1]) + body[entry + 9 :]


FIRST = ("img_align_celeba/000001.jpg", picture(24))
HOSTILE = {
    "zip-slip": (zipped(FIRST, ("img_align_celeba/../../evil.jpg", b"")), "evil.jpg' is not"),
    "absolute": (zipped(FIRST, ("/tmp/evil.jpg", b"")), "'/tmp/evil.jpg' is not"),
    "backslash": (zipped(FIRST).replace(b"celeba/0", b"celeba\\0"), r"celeba\\000001.jpg' is not"),
    "other file": (zipped(FIRST, ("img_align_celeba/000002.jpg.sh", b"")), "000002.jpg.sh' is not"),
    "case collision": (zipped(FIRST, ("IMG_align_celeba/000001.jpg", b"")), "000001.jpg' is not"),
    "duplicate": (zipped(FIRST, ("img_align_celeba/000002.jpg", b"")).replace(b"000002", b"000001"), "is there twice"),
    "symlink": (zipped(FIRST, (with_mode("img_align_celeba/000002.jpg", stat.S_IFLNK | 0o777), b"/etc")), "a link"),
    "encrypted": (flagged_as_encrypted(zipped(FIRST)), "000001.jpg is encrypted"),
    "bomb": (zipped((FIRST[0], bytes(10**6)), method=zipfile.ZIP_DEFLATED), "would unpack to 1,000,000"),
    "null byte": (zipped(FIRST).replace(b"000001.jpg", b"00001.jp\0g"), "00001.jp\\x00g' is not"),
    "line break": (zipped(FIRST, ("img_align_celeba/000002.jpg\n", b"")), "000002.jpg\\n' is not"),
    "other digits": (zipped(FIRST, ("img_align_celeba/00000\u0662.jpg", b"")), "00000\u0662.jpg' is not"),
    "pipe": (zipped(FIRST, (with_mode("img_align_celeba/000002.jpg", stat.S_IFIFO | 0o666), b"")), "a link or"),
    "rare packing": (zipped(FIRST, method=zipfile.ZIP_LZMA), "is packed with method 14"),
    "no images": (zipped(), "it has 0 images"),
    "cut short": (zipped(FIRST)[:-30], "damaged"),
}


@pytest.mark.parametrize(("body", "said"), HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_archive_is_refused_before_unpacking(run, hand_made, tmp_path, monkeypatch, body, said):
    hand_made.write_bytes(body)
    monkeypatch.setattr(zipfile.ZipFile, "open", lambda *_: pytest.fail("began to unpack"))
    code, error = run("--from-zip", hand_made, "--any-archive")
    assert code == 1 and said in error and str(hand_made) in error
    assert tree(tmp_path) == {hand_made.name: body}


def test_limits(run, hand_made, monkeypatch):
    code, error = run("--from-zip", hand_made, archive=dataclasses.replace(TINY, images=7))
    assert code == 1 and "it has 6 images, not 7" in error
    monkeypatch.setattr(archives, "MAX_UNPACKED", 100)
    code, error = run("--from-zip", hand_made)
    assert code == 1 and "would unpack to" in error


@pytest.mark.parametrize("content", [FIRST[1][:-100], picture(24, "PNG"), BODY], ids=["cut short", "png", "archive"])
def test_any_archive_decodes_every_image(run, hand_made, data_dir, content):
    hand_made.write_bytes(zipped(FIRST, ("img_align_celeba/000002.jpg", content)))
    code, error = run("--from-zip", hand_made, "--any-archive")
    assert code == 1 and "img_align_celeba/000002.jpg does not decode" in error
    assert tree(data_dir.parent) == {}


@pytest.mark.parametrize("source", ["--url", "--from-zip"])
def test_full_disk(mirror, run, hand_made, tmp_path, monkeypatch, source):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: types.SimpleNamespace(free=len(BODY)))
    code, error = run(source, mirror.url if source == "--url" else hand_made)
    assert code == 1 and "make room" in error
    assert tree(tmp_path) == {hand_made.name: BODY} and mirror.ranges == []


def test_a_member_larger_than_it_says_is_not_unpacked_further(run, hand_made, data_dir, monkeypatch):
    written = []
    monkeypatch.setattr(shutil, "copyfileobj", lambda source, target: written.append(source.read()))
    size = len(FIRST[1])
    body = zipped(FIRST).replace(size.to_bytes(4, "little"), (size - 9).to_bytes(4, "little"))
    hand_made.write_bytes(body)
    code, error = run("--from-zip", hand_made, "--any-archive")
    assert code == 1 and "damaged" in error and all(len(content) < size for content in written)
    assert tree(data_dir.parent) == {}


def test_a_member_before_the_start_of_the_file_is_damage(mirror, run):
    at = BODY.rindex(b"PK\5\6") + 16  # where the end of the file says at which byte the directory begins
    mirror.body = BODY[:at] + (2 * len(BODY)).to_bytes(4, "little") + BODY[at + 4 :]
    code, error = run("--url", mirror.url, "--any-archive")
    assert code == 1 and ".bad is damaged" in error


def test_a_disk_that_fails_is_no_damage(mirror, run, data_dir, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copyfileobj", full)
    code, error = run("--url", mirror.url)
    assert code == 1 and "No space left on device; fix that" in error
    assert tree(data_dir.parent) == {"celeba.download/img_align_celeba.zip": BODY}


METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)


@cases(short=40, long=500)
def test_damaged_archives_are_refused_or_their_images_are_whole(run, hand_made, data_dir, count):
    """Bits flipped, numbers overwritten, parts left out, the end cut off, most of it in the headers."""
    chance, ended = random.Random(SEED), {0: 0, 1: 0}
    images = {f"img_align_celeba/{n:06}.jpg": picture(8 * n) for n in range(1, 4)}
    whole = [zipped(*images.items(), method=method) for method in METHODS]
    for _ in range(count):
        data = chance.choice(whole)
        data = garble(chance, data, times=chance.choice((0, 1, 1, 3)), start=data.index(b"PK\x01\x02"))
        hand_made.write_bytes(data)
        code, said = run("--from-zip", hand_made, "--any-archive")
        ended[code] += 1
        if code == 0:  # an image may be missing from the directory
            (data_dir / ".complete.json").unlink()
            assert tree(data_dir) and tree(data_dir).items() <= images.items()
            shutil.rmtree(data_dir)
        else:
            sentence = said.splitlines()[-1]
            assert sentence.startswith(f"error: {hand_made}") and sentence.isprintable()
            assert tree(data_dir.parent) == {}
    assert min(ended.values()) > count / 20

"""download_celeba.py, run on archives of six drawn images and a server on 127.0.0.1: nothing leaves this machine."""

import contextlib
import dataclasses
import hashlib
import http.server
import io
import json
import random
import re
import shutil
import stat
import subprocess
import sys
import threading
import types
import zipfile
from pathlib import Path

import gdown
import pytest
import torchvision
from PIL import Image

import download_celeba as celeba

ROOT = Path(celeba.__file__).parent
SAMPLE = ROOT.parent / "shared" / "celeba" / "full_size_sample.zip"


def picture(side: int, kind: str = "JPEG") -> bytes:
    file = io.BytesIO()
    Image.effect_noise((side, side), 100).save(file, kind, quality=95)
    return file.getvalue()


def zipped(*members: tuple[str | zipfile.ZipInfo, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in [("img_align_celeba/", b""), *members]:
            info = name if isinstance(name, zipfile.ZipInfo) else zipfile.ZipInfo(name)
            archive.writestr(info, content, compress_type=method)
    return file.getvalue()


IMAGES = {f"img_align_celeba/{n:06}.jpg": picture(8 * n) for n in range(1, 6)}
IMAGES["img_align_celeba/000006.jpg"] = picture(1400)  # gdown writes pieces of 512 kB, and half an archive must be some
BODY = zipped(*IMAGES.items())
TINY = celeba.Archive("https://drive.google.com/file/d/abc/view", len(BODY), hashlib.md5(BODY).hexdigest(), len(IMAGES))


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below the folder, the lock aside."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@pytest.fixture
def data_dir(tmp_path):
    return tmp_path / "data" / "celeba"


@pytest.fixture
def run(data_dir, capsys):
    """Run the program; returns its exit code and all that it said."""

    def run(*options: object, archive: celeba.Archive = TINY) -> tuple[int, str]:
        code = celeba.main(["--data-dir", str(data_dir), *map(str, options)], archive)
        return code, "".join(capsys.readouterr())

    return run


@pytest.fixture
def hand_made(tmp_path):
    """The archive as somebody would have fetched it by hand."""
    path = tmp_path / "by hand.zip"
    path.write_bytes(BODY)
    return path


def assert_installed(data_dir: Path) -> None:
    files = tree(data_dir.parent)
    marker = json.loads(files.pop("celeba/.complete.json"))
    assert (marker["images"], marker["size"], marker["md5"]) == (TINY.images, TINY.size, TINY.md5)
    assert files == {f"celeba/{name}": content for name, content in IMAGES.items()}
    assert not Path(f"{data_dir}.download").exists()


# The download


class Mirror(http.server.BaseHTTPRequestHandler):
    """Serves `server.body` in the manner that `server.mode` names, once `server.gate` is open."""

    def do_GET(self) -> None:
        mode, body, wanted = self.server.mode, self.server.body, self.headers["Range"]
        self.server.ranges.append(wanted)
        self.server.called.set()
        self.server.gate.wait(30)
        start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1]) if wanted and mode == "honest" else 0
        partial = wanted and mode in ("honest", "206 from zero")
        self.send_response(404 if mode == "404" else 206 if partial else 200)
        if partial:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        with contextlib.suppress(ConnectionError):  # the client hangs up on answers that it does not need
            self.wfile.write(body[start : len(body) // 2 if mode == "short" else len(body)])

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def mirror(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(celeba, "RETRIES", 0)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Mirror)
    server.body, server.mode, server.ranges = BODY, "honest", []
    server.called, server.gate = threading.Event(), threading.Event()
    server.gate.set()
    server.url = f"http://127.0.0.1:{server.server_port}/celeba.zip"
    threading.Thread(target=server.serve_forever, args=[0.02], daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def test_download_and_second_run(mirror, run, data_dir, monkeypatch):
    code, said = run("--url", mirror.url)
    assert code == 0 and "6 images" in said and "non-commercial research only" in said and "train.py" in said
    assert_installed(data_dir)
    monkeypatch.setattr(celeba.filelock, "FileLock", lambda _: pytest.fail("a read-only folder has no lock"))
    code, said = run("--url", mirror.url)
    assert code == 0 and said.startswith("Nothing to do") and len(mirror.ranges) == 1


def test_kept_archive_is_used_again(mirror, run, data_dir):
    assert run("--url", mirror.url, "--keep-zip")[0] == 0
    assert Path(f"{data_dir}.download", "img_align_celeba.zip").read_bytes() == BODY
    shutil.rmtree(data_dir)
    assert run("--url", mirror.url, "--keep-zip")[0] == 0 and len(mirror.ranges) == 1
    assert run("--url", mirror.url)[0] == 0  # nothing to do but to delete it, as after a kill
    assert_installed(data_dir)


@pytest.mark.parametrize("mode", ["honest", "ignores ranges", "206 from zero"])
def test_short_body_then_rerun(mirror, run, data_dir, mode):
    mirror.mode = "short"
    code, said = run("--url", mirror.url)
    assert code == 1 and "run the same command again to go on" in said
    [(name, part)] = tree(data_dir.parent).items()
    assert name.endswith(".part") and part and part == BODY[: len(part)]
    mirror.mode = mode
    assert run("--url", mirror.url)[0] == 0
    assert f"bytes={len(part)}-" in mirror.ranges
    assert_installed(data_dir)


def test_parts_from_two_addresses_are_not_joined(mirror, run):
    mirror.mode = "short"
    assert run("--url", mirror.url, "--any-archive")[0] == 1
    mirror.mode = "honest"
    assert run("--url", mirror.url + "?another", "--any-archive")[0] == 0
    assert mirror.ranges == [None, None]


WRONG = {
    "md5": (BODY[:-30] + b"?" + BODY[-29:], "its md5 is"),
    "size": (BODY + b"?", f"it has {len(BODY) + 1:,} bytes, not {len(BODY):,}"),
    "web page": (b"<html><title>Drive - Quota exceeded</title></html>", "web page (Drive - Quota exceeded)"),
}


@pytest.mark.parametrize(("body", "said"), WRONG.values(), ids=WRONG.keys())
def test_wrong_file_is_set_aside(mirror, run, data_dir, body, said):
    mirror.body = body
    code, error = run("--url", mirror.url)
    assert code == 1 and said in error and "--from-zip" in error
    assert tree(data_dir.parent) == {"celeba.download/img_align_celeba.zip.bad": body}
    mirror.body = BODY
    assert run("--url", mirror.url)[0] == 0


ENDS = {
    "quota": (gdown.FileURLRetrievalError("Too many users"), 1, f"quota. Open {TINY.url} in a browser, save the file"),
    "Ctrl-C": (KeyboardInterrupt(), 130, "Stopped; the same command goes on from here"),
}


@pytest.mark.parametrize(("error", "code", "said"), ENDS.values(), ids=ENDS.keys())
def test_drive_download_that_ends_early(run, data_dir, monkeypatch, error, code, said):
    def download(*args: object, **options: object) -> None:
        raise error

    monkeypatch.setattr(gdown, "download", download)
    exit_code, text = run()
    assert exit_code == code and said in text and ("--from-zip" in text) == (code == 1)
    assert tree(data_dir.parent) == {}


@pytest.mark.parametrize(("mode", "said"), [("404", "404"), ("short", "byte range")])
def test_server_that_fails_every_time(mirror, run, monkeypatch, mode, said):
    monkeypatch.setattr(celeba, "RETRIES", 1)
    monkeypatch.setattr(random, "uniform", lambda low, _: low)  # gdown's pause before it tries again
    mirror.mode = mode
    code, error = run("--url", mirror.url)
    assert code == 1 and said in error and f"{mirror.url} stopped" in error


MISTAKES = {
    "no such file": ["--from-zip", "missing.zip"],
    "no web address": ["--url", "ftp://example.org/celeba.zip"],
    "two sources": ["--url", "https://example.org/celeba.zip", "--from-zip", __file__],
}


@pytest.mark.parametrize("options", MISTAKES.values(), ids=MISTAKES.keys())
def test_wrong_arguments(run, options, data_dir):
    with pytest.raises(SystemExit, match="2"):
        run(*options)
    assert not data_dir.exists()


# The archive


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
    "drive letter": (zipped(FIRST, ("C:/000002.jpg", b"")), "'C:/000002.jpg' is not"),
    "other file": (zipped(FIRST, ("img_align_celeba/000002.jpg.sh", b"")), "000002.jpg.sh' is not"),
    "other folder": (zipped(FIRST, ("x/img_align_celeba/000002.jpg", b"")), "000002.jpg' is not"),
    "case collision": (zipped(FIRST, ("IMG_align_celeba/000001.jpg", b"")), "000001.jpg' is not"),
    "duplicate": (zipped(FIRST, ("img_align_celeba/000002.jpg", b"")).replace(b"000002", b"000001"), "is there twice"),
    "symlink": (zipped(FIRST, (with_mode("img_align_celeba/000002.jpg", stat.S_IFLNK | 0o777), b"/etc")), "a link"),
    "encrypted": (flagged_as_encrypted(zipped(FIRST)), "000001.jpg is encrypted"),
    "bomb": (zipped((FIRST[0], bytes(10**6)), method=zipfile.ZIP_DEFLATED), "would unpack to 1,000,000"),
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
    monkeypatch.setattr(celeba, "MAX_UNPACKED", 100)
    code, error = run("--from-zip", hand_made)
    assert code == 1 and "would unpack to" in error


@pytest.mark.parametrize("content", [FIRST[1][:-100], picture(24, "PNG")], ids=["cut short", "png"])
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


# What is there already, and who else is there


@pytest.mark.parametrize("name", ["img_align_celeba/mine.jpg", "img_align_celeba/img_align_celeba/1.jpg", "mine.jpg"])
def test_images_of_somebody_else_stay(run, hand_made, data_dir, name):
    (data_dir / name).parent.mkdir(parents=True)
    (data_dir / name).write_bytes(b"mine")
    code, error = run("--from-zip", hand_made)
    assert code == 1 and str(data_dir) in error and "move them away" in error
    assert tree(data_dir) == {name: b"mine"}


def test_lost_image_is_noticed(run, hand_made, data_dir):
    assert run("--from-zip", hand_made)[0] == 0
    (data_dir / "img_align_celeba" / "000003.jpg").unlink()
    code, error = run("--from-zip", hand_made)
    assert code == 1 and "part of a set" in error
    assert len(tree(data_dir)) == 6  # five images and the marker


def start(data_dir: Path, *options: object, patch: str = "") -> subprocess.Popen:
    argv = ["--data-dir", str(data_dir), *map(str, options)]
    code = f"import os, sys, time\nimport download_celeba as celeba\n{patch}\n"
    code += f"sys.exit(celeba.main({argv!r}, celeba.{TINY!r}))"
    return subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)


STOP = "print('now', flush=True); time.sleep(60)"
KILLED_WHILE = {
    "unpacking": f"def copy(source, target): target.write(b'half'); target.flush(); {STOP}\n"
    "celeba.shutil.copyfileobj = copy",
    "renaming": f"def replace(source, target, rename=os.replace): rename(source, target); {STOP}\nos.replace = replace",
}


@pytest.mark.parametrize("patch", KILLED_WHILE.values(), ids=KILLED_WHILE.keys())
def test_kill_and_rerun(run, hand_made, data_dir, patch):
    with start(data_dir, "--from-zip", hand_made, patch=patch) as process:
        assert process.stdout.readline() == "now\n"
        process.kill()
    assert not (data_dir / "img_align_celeba").exists()
    assert list(Path(f"{data_dir}.download").glob("*.tmp-*"))
    assert run("--from-zip", hand_made)[0] == 0
    assert_installed(data_dir)


def test_two_at_once(mirror, data_dir):
    mirror.gate.clear()
    with start(data_dir, "--url", mirror.url) as first:
        assert mirror.called.wait(60)
        with start(data_dir, "--url", mirror.url) as second:
            assert second.stdout.readline().startswith("Waiting")
            mirror.gate.set()
            assert "6 images" in first.communicate(timeout=60)[0]
            assert "Nothing to do" in second.communicate(timeout=60)[0]
    assert (first.returncode, second.returncode, len(mirror.ranges)) == (0, 0, 1)
    assert_installed(data_dir)


# The list of attributes

ROWS = b"2\nBald Smiling \n000001.jpg -1  1\n000002.jpg  1 -1\n" * 40000  # gdown's pieces again
LIST = dataclasses.replace(celeba.ATTRIBUTES, size=len(ROWS), md5=hashlib.md5(ROWS).hexdigest())


@pytest.mark.parametrize("source", ["--url", "--from-file"])
def test_attributes_lie_beside_the_images(mirror, run, hand_made, data_dir, source):
    assert run("--from-zip", hand_made)[0] == 0
    images = tree(data_dir)
    mirror.body = ROWS
    hand_made.write_bytes(ROWS)
    options = ["--attributes", source, mirror.url if source == "--url" else hand_made]
    code, said = run(*options, archive=LIST)
    assert code == 0 and str(data_dir / "list_attr_celeba.txt") in said
    assert tree(data_dir) == images | {"list_attr_celeba.txt": ROWS}
    assert hand_made.read_bytes() == ROWS and not Path(f"{data_dir}.download").exists()
    code, said = run(*options, archive=LIST)
    assert code == 0 and said.startswith("Nothing to do") and len(mirror.ranges) == (source == "--url")


def test_short_list_then_rerun(mirror, run, data_dir):
    mirror.body, mirror.mode = ROWS, "short"
    assert run("--attributes", "--url", mirror.url, archive=LIST)[0] == 1
    [(name, part)] = tree(data_dir.parent).items()
    assert name.endswith(".part") and 0 < len(part) < len(ROWS)
    mirror.mode = "honest"
    assert run("--attributes", "--url", mirror.url, archive=LIST)[0] == 0
    assert f"bytes={len(part)}-" in mirror.ranges
    assert tree(data_dir.parent) == {"celeba/list_attr_celeba.txt": ROWS}


WRONG_LIST = {
    "md5": (ROWS[:-2] + b"?\n", "its md5 is"),
    "size": (ROWS[:-9], f"it has {len(ROWS) - 9:,} bytes, not {len(ROWS):,}"),
    "web page": (b"<title>Quota exceeded</title>", "not list_attr_celeba.txt but perhaps a web page (Quota exceeded)"),
}


@pytest.mark.parametrize(("body", "said"), WRONG_LIST.values(), ids=WRONG_LIST.keys())
def test_wrong_list_is_set_aside(mirror, run, data_dir, body, said):
    mirror.body = body
    code, error = run("--attributes", "--url", mirror.url, archive=LIST)
    assert code == 1 and said in error and f'--data-dir "{data_dir}" --attributes --from-file PATH' in error
    assert tree(data_dir.parent) == {"celeba.download/list_attr_celeba.txt.bad": body}


def test_wrong_list_in_place_is_named_and_stays(run, data_dir):
    data_dir.mkdir(parents=True)
    (data_dir / "list_attr_celeba.txt").write_bytes(ROWS[:-9])
    code, error = run("--attributes", archive=LIST)
    assert code == 1 and "list_attr_celeba.txt is not the right file" in error and "move it away" in error
    assert tree(data_dir) == {"list_attr_celeba.txt": ROWS[:-9]}


def test_attributes_are_the_list_that_torchvision_knows():
    celeba_files = {name: (drive, md5) for drive, md5, name in torchvision.datasets.CelebA.file_list}
    drive, md5 = celeba_files[celeba.ATTRIBUTES.name]
    assert drive in celeba.ATTRIBUTES.url and md5 == celeba.ATTRIBUTES.md5


def test_import_does_no_work(tmp_path):
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import download_celeba; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not SAMPLE.exists(), reason=f"no real faces at {SAMPLE}")
def test_real_faces(run, data_dir):
    assert run("--from-zip", SAMPLE, "--any-archive")[0] == 0
    assert len(list((data_dir / "img_align_celeba").iterdir())) == 505
    assert SAMPLE.exists()

"""What the tests of download_celeba.py share: an archive of six drawn images and a server on 127.0.0.1."""

import contextlib
import dataclasses
import hashlib
import http.server
import io
import json
import re
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import download_celeba as celeba

ROOT = Path(celeba.__file__).parent


def picture(side: int, kind: str = "JPEG") -> bytes:
    file = io.BytesIO()
    noise = np.random.default_rng(side).integers(0, 256, (side, side), np.uint8)
    Image.fromarray(noise).save(file, kind, quality=95)
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


ROWS = b"2\nBald Smiling \n000001.jpg -1  1\n000002.jpg  1 -1\n" * 40000  # gdown's pieces again
LIST = dataclasses.replace(celeba.find_archive(attributes=True), size=len(ROWS), md5=hashlib.md5(ROWS).hexdigest())


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


def start(data_dir: Path, *options: object, patch: str = "") -> subprocess.Popen:
    argv = ["--data-dir", str(data_dir), *map(str, options)]
    code = f"import os, sys, time\nimport download_celeba as celeba\n{patch}\n"
    code += f"sys.exit(celeba.main({argv!r}, celeba.{TINY!r}))"
    return subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)


class Mirror(http.server.BaseHTTPRequestHandler):
    """Serves `server.body` in the manner that `server.mode` names, once `server.gate` is open.

    The mode may be a function too, which writes an answer, or returns the name of a manner.
    """

    def do_GET(self) -> None:
        mode, body, wanted = self.server.mode, self.server.body, self.headers["Range"]
        self.server.ranges.append(wanted)
        self.server.called.set()
        self.server.gate.wait(30)
        if callable(mode):
            with contextlib.suppress(OSError):  # the client has heard enough
                mode = mode(self.wfile)
        if not isinstance(mode, str):
            return
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

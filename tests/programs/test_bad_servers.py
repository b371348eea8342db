"""Servers that stop, stall, lie or send something else: what comes is right and whole, or the next run goes on."""

import gzip
import random
import shutil
import threading

import pytest
from conftest import SEED, cases
from downloads import BODY, IMAGES, assert_installed, tree

import download_celeba as celeba

pytest_plugins = ["downloads"]


@pytest.mark.parametrize("mode", ["honest", "ignores ranges", "206 from zero"])
def test_short_body_then_rerun(mirror, run, data_dir, mode):
    mirror.mode = "short"
    code, output = run("--url", mirror.url)
    assert code == 1 and "run the same command again to go on" in output
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
    "size": (BODY[:-9], f"it has {len(BODY) - 9:,} bytes, not {len(BODY):,}"),
    "web page": (b"<html><title>Drive - Quota exceeded</title></html>", "web page (Drive - Quota exceeded)"),
}


@pytest.mark.parametrize(("body", "output"), WRONG.values(), ids=WRONG.keys())
def test_wrong_file_is_set_aside(mirror, run, data_dir, body, output):
    mirror.body = body
    code, error = run("--url", mirror.url)
    assert code == 1 and output in error and "--from-zip" in error
    assert tree(data_dir.parent) == {"celeba.download/img_align_celeba.zip.bad": body}
    mirror.body = BODY
    assert run("--url", mirror.url)[0] == 0


@pytest.mark.parametrize(("mode", "output"), [("404", "404"), ("short", "byte range")])
def test_server_that_fails_every_time(mirror, run, monkeypatch, mode, output):
    monkeypatch.setattr(celeba, "RETRIES", 1)
    monkeypatch.setattr(random, "uniform", lambda low, _: low)  # gdown's pause before it tries again
    mirror.mode = mode
    code, error = run("--url", mirror.url)
    assert code == 1 and output in error and f"{mirror.url} stopped" in error


def answer(*headers: str, status: str = "200 OK", body: bytes = b"") -> bytes:
    return "\r\n".join((f"HTTP/1.1 {status}", *headers, "", "")).encode("latin-1") + body


def redirect(address: str) -> bytes:
    return answer(f"Location: {address}", "Connection: close", status="302 Found")


SIZE = len(BODY)
LIES = {
    "too long announced": (answer(f"Content-Length: {SIZE + 999}", body=BODY), f"announced {SIZE + 999} bytes"),
    "far too long announced": (answer(f"Content-Length: {'9' * 40}", body=BODY), "server announced 9999"),
    "too short announced": (answer(f"Content-Length: {SIZE - 999}", body=BODY), "not the right file: it has"),
    "no length": (answer(body=BODY), ""),
    "negative length": (answer("Content-Length: -5", body=BODY), ""),
    "length in words": (answer("Content-Length: two", body=BODY), ""),
    "two lengths": (answer(f"Content-Length: {SIZE}", "Content-Length: 5", body=BODY), "multiple unmatching values"),
    "one byte too many": (answer(body=BODY + b"?"), f"sends more than {SIZE:,} bytes"),
    "small and packed": (answer("Content-Encoding: gzip", body=gzip.compress(bytes(5 * SIZE))), "sends more than"),
    "not packed": (answer("Content-Encoding: gzip", body=BODY), "failed to decode it"),
    "another part": (
        answer(f"Content-Range: bytes 9-{SIZE - 1}/{SIZE}", status="206 Partial Content", body=BODY[9:]),
        "perhaps a web page",
    ),
    "a bad chunk": (answer("Transfer-Encoding: chunked", body=b"zz\r\nabc"), "Download is incomplete"),
    "no content": (answer(status="204 No Content"), "perhaps a web page"),
    "web page": (answer(body=b"<html><title>Sign\n\x1b[2Jin</title></html>"), "web page (Sign\\n\\x1b[2Jin)"),
    "web page as zip": (answer("Content-Type: application/zip", body=b"<!DOCTYPE html>"), "web page (no title)"),
    "no answer": (b"", "Connection aborted"),
    "not the protocol": (b"220 ready\r\n", "Connection aborted"),
    "refusal that steers": (answer(status="404 \x1b[2Jgone"), "404 Client Error: \\x1b[2Jgone"),
    "header without end": (answer(f"X: {'x' * 100_000}"), "Connection aborted"),
    "headers without end": (answer(*["X: x"] * 1000), "Connection aborted"),
    "redirect without end": (redirect("/celeba.zip"), "Exceeded 30 redirects"),
    "redirect to a file": (redirect("file:///etc/passwd"), "No connection adapters"),
    "redirect to no address": (redirect("http://[::1"), "Invalid IPv6 URL"),
    "redirect to no port": (redirect("http://127.0.0.1:999999/"), "Port out of range"),
    "redirect to no letters": (redirect("http://\xff\xfe/"), "can't decode"),
}


def refused(code: int, output: str) -> str:
    """The one sentence, the last line, by which the program ended."""
    assert code == 1
    sentence = output.splitlines()[-1]
    assert sentence.startswith("error: ") and sentence.isprintable()
    return sentence


@pytest.mark.parametrize(("reply", "output"), LIES.values(), ids=LIES.keys())
def test_a_server_that_lies_is_seen_through_and_an_honest_one_ends_it(mirror, run, data_dir, reply, output):
    mirror.mode = lambda wire: wire.write(reply)
    code, text = run("--url", mirror.url)
    if output:
        assert output in refused(code, text)
        assert not (data_dir / "img_align_celeba").exists()
        for left in data_dir.parent.rglob("*.zip.bad"):
            left.unlink()
        mirror.mode = "honest"
        code, _ = run("--url", mirror.url)
    assert code == 0
    assert_installed(data_dir)


def test_a_body_without_end_is_ended_and_leaves_nothing(mirror, run, data_dir):
    def endless(wire):
        wire.write(answer() + BODY)
        for _ in range(2000):  # 131 MB, should nobody hang up
            wire.write(bytes(2**16))

    mirror.mode = endless
    assert "sends more than" in refused(*run("--url", mirror.url))
    assert tree(data_dir.parent) == {}


@pytest.mark.parametrize("sent", [b"", b"HTTP/1.1 200", answer(f"Content-Length: {SIZE}", body=BODY[: SIZE // 2])])
def test_a_server_that_stalls_is_given_up(mirror, run, data_dir, monkeypatch, sent):
    monkeypatch.setattr(celeba, "TIMEOUT", (1, 0.2))
    given_up = threading.Event()

    def stall(wire):
        wire.write(sent)
        given_up.wait(30)

    mirror.mode = stall
    assert "Read timed out" in refused(*run("--url", mirror.url))
    given_up.set()
    mirror.mode = "honest"
    assert run("--url", mirror.url)[0] == 0
    assert_installed(data_dir)


def test_a_server_that_trickles_is_given_up(mirror, run, data_dir, monkeypatch):
    monkeypatch.setattr(celeba, "STALL_SECONDS", 0.3)
    given_up = threading.Event()

    def trickle(wire):
        wire.write(answer(f"Content-Length: {SIZE}", body=BODY[: SIZE // 2]))
        for _ in range(300):
            wire.write(b"?")
            if given_up.wait(0.1):
                break

    mirror.mode = trickle
    assert "less than half a megabyte in 0.3 seconds" in refused(*run("--url", mirror.url))
    given_up.set()
    mirror.mode = "honest"
    assert run("--url", mirror.url)[0] == 0
    assert_installed(data_dir)


NUMBERS = ["0", "-1", "1", str(SIZE), str(SIZE - 1), str(SIZE + 1), "9" * 20, "x", ""]
BODIES = [b"", b"PK\x03\x04", BODY, BODY[:-1], BODY + b"?", BODY[: SIZE // 2], b"<html>", gzip.compress(BODY)]


def any_answer(chance) -> bytes:
    """Headers that agree with one another and with the body, or not; now and then not even those."""
    size = lambda: chance.choice(NUMBERS)  # noqa: E731
    headers = [
        f"Content-Length: {size()}",
        f"Content-Range: bytes {size()}-{size()}/{chance.choice((size(), '*'))}",
        f"Content-Encoding: {chance.choice(('gzip', 'deflate', 'identity', 'br', 'x'))}",
        "Transfer-Encoding: chunked",
        f"Location: {chance.choice(('/', '', '//', 'http://', '/celeba.zip', 'ftp://x/', '?', '#', 'x:'))}",
        f"ETag: {chance.choice(('1', 'W/1', ''))}",
        f"Last-Modified: {chance.choice(('Sun, 22 Nov 2026 14:00:00 GMT', 'today'))}",
        'Content-Disposition: attachment; filename="../../x"',
    ]
    status = chance.choice(("200 OK", "200 OK", "206 Partial Content", "302 Found", "416 no", "503 no", "100 Continue"))
    data = bytearray(answer(*chance.sample(headers, chance.randrange(4)), status=status, body=chance.choice(BODIES)))
    if chance.random() < 0.3:
        data[chance.randrange(min(len(data), 100))] = chance.randrange(256)
    return bytes(data)


@cases(short=30, long=500)
def test_any_answers_leave_the_right_images_or_none(mirror, run, data_dir, caplog, count):
    """Honest ones between them; each run goes on from what the runs before it left."""
    chance, ended = random.Random(SEED), {0: 0, 1: 0}

    def unsteady(wire):
        if chance.random() < 0.5:
            return "honest"
        wire.write(any_answer(chance))

    mirror.mode = unsteady
    for _ in range(count):
        code, output = run("--url", mirror.url)
        ended[code] += 1
        if code == 1:
            refused(code, output)
            assert not (data_dir / "img_align_celeba").exists()
            continue
        assert {name: (data_dir / name).read_bytes() for name in IMAGES} == IMAGES
        shutil.rmtree(data_dir)
    mirror.mode = "honest"
    codes = [run("--url", mirror.url)[0] for _ in range(2)]  # the first may have got a part that a liar sent
    assert codes[1] == 0 and min(ended.values()) > count / 10
    assert not caplog.records  # which would be on the terminal
    assert {name: (data_dir / name).read_bytes() for name in IMAGES} == IMAGES

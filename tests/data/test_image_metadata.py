"""Metadata of image files: whatever it holds, the pixels are read; only the EXIF orientation turns them."""

import io
import random
import struct
import warnings
import zlib

import numpy as np
import pytest
from conftest import SEED, cases
from garbling import garble
from PIL import Image
from test_image_files import picture

from magnet.data.image_files import load_image

SIDE = 32
TURNS = {  # what a viewer does to the stored rows, by EXIF orientation, as numpy on (H, W, 3)
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a.transpose(1, 0, 2)[::-1, ::-1],
    8: lambda a: np.rot90(a),
}
XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'


def encoded(kind: str, **options) -> bytes:
    file = io.BytesIO()
    picture().save(file, kind, **options)
    return file.getvalue()


def exif(orientation: int) -> bytes:
    """A TIFF header with the orientation, a resolution, a text and an inner directory."""
    made = Image.Exif()
    made.update(
        {0x0112: orientation, 0x011A: 72.0, 0x011B: 72.0, 0x0128: 2, 0x010E: "a photo", 0x8769: {0x9003: "2026"}}
    )
    return made.tobytes().removeprefix(b"Exif\0\0")


def segment(marker: int, content: bytes) -> bytes:
    """A segment of a JPEG."""
    return struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content


def chunk(name: bytes, content: bytes, crc: int | None = None) -> bytes:
    """A chunk of a PNG."""
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", crc or zlib.crc32(name + content))


BOMB = zlib.compress(bytes(2**22))
IN_JPEG = {  # name: marker, content
    "jfif": (0xE0, b"JFIF\0\x01\x02\x01\0\x48\0\x48\0\0"), "jfxx": (0xE0, b"JFXX\0\x10"),
    "exif": (0xE1, b"Exif\0\0" + exif(6)), "xmp": (0xE1, b"http://ns.adobe.com/xap/1.0/\0" + XMP),
    "icc": (0xE2, b"ICC_PROFILE\0\x01\x01" + bytes(200)), "mpf": (0xE2, b"MPF\0" + exif(1)),
    "flashpix": (0xE2, b"FPXR\0" + bytes(20)), "adobe": (0xEE, b"Adobe"), "unknown": (0xE7, bytes(9)),
    "photoshop": (0xED, b"Photoshop 3.0\0" + b"8BIM" + struct.pack(">HBBI", 0x03ED, 0, 0, 16) + bytes(16)),
    "comment": (0xFE, b"a comment"),
}  # fmt: skip
IN_PNG = {
    "tEXt": b"Title\0a photo", "zTXt": b"Title\0\0" + zlib.compress(b"a photo"), "bomb zTXt": b"Title\0\0" + BOMB,
    "iTXt": b"XML:com.adobe.xmp\0\0\0\0\0" + XMP, "packed iTXt": b"XML:com.adobe.xmp\0\x01\0\0\0" + zlib.compress(XMP),
    "iCCP": b"icc\0\0" + zlib.compress(bytes(200)), "bomb iCCP": b"icc\0\0" + BOMB, "eXIf": exif(6),
    "pHYs": struct.pack(">IIB", 2835, 2835, 1), "gAMA": struct.pack(">I", 45455), "cHRM": struct.pack(">8I", *range(8)),
    "sRGB": b"\0", "sBIT": b"\x08\x08\x08", "bKGD": bytes(6), "tIME": bytes((7, 234, 1, 1, 0, 0, 0)),
    "tRNS": bytes(6), "hIST": bytes(6), "sPLT": b"a\0\x08" + bytes(6), "acTL": struct.pack(">II", 2, 0),
    "fcTL": struct.pack(">5IHHBB", 0, 40, 48, 0, 0, 1, 1, 0, 0), "prVt": bytes(5),
}  # fmt: skip


def damage(chance: random.Random, content: bytes) -> bytes:
    """`content` with some damage, or what is random from end to end."""
    if chance.random() < 0.1:
        return chance.randbytes(chance.randrange(60))
    return garble(chance, content, times=chance.choice((0, 1, 1, 2, 10)))


def add_metadata(chance: random.Random, kind: str, data: bytes) -> bytes:
    """A file with some of the metadata that its format can hold, garbled."""
    if kind == "WEBP":
        return encoded(kind, lossless=True, exif=damage(chance, exif(6)), icc_profile=damage(chance, bytes(200)))
    if kind == "JPEG":
        parts = [(marker, damage(chance, content)) for marker, content in chance.choices(list(IN_JPEG.values()), k=3)]
        start = chance.choice((2, data.index(b"\xff\xdb")))
        # An Adobe marker that is whole says how colours are stored: it is part of the picture.
        return data[:start] + b"".join(segment(m, c) for m, c in parts if m != 0xEE or len(c) < 12) + data[start:]
    end = chance.choice((33, data.index(b"IDAT") - 4, len(data) - 12))
    parts = b"".join(
        chunk(name[-4:].encode(), damage(chance, IN_PNG[name]), chance.choice((None, None, 1)))
        for name in chance.choices(list(IN_PNG), k=3)
    )
    return data[:end] + parts + data[end:]


@cases(short=900, long=10000)
def test_garbled_metadata_of_every_kind_leaves_the_pixels(tmp_path, count):
    """A file with metadata shows the picture without it, turned in one of the eight ways."""
    plain = {kind: encoded(kind) for kind in ("JPEG", "PNG")} | {"WEBP": encoded("WEBP", lossless=True)}
    expected = {}
    for kind, data in plain.items():
        image = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
        expected[kind] = []
        for turn in TURNS.values():
            Image.fromarray(np.ascontiguousarray(turn(image))).save(tmp_path / "turned.png")
            expected[kind].append(load_image(tmp_path / "turned.png", SIDE))
    chance, path, turned = random.Random(SEED), tmp_path / "photo", 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(count):
            kind = chance.choice(list(plain))
            path.write_bytes(add_metadata(chance, kind, plain[kind]))
            same = [np.array_equal(load_image(path, SIDE), pixels) for pixels in expected[kind]]
            assert any(same), path.read_bytes()
            turned += not same[0]
    assert turned > count / 50


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("order", ["<", ">"])
def test_the_exif_orientation_alone_turns_a_picture(tmp_path, kind, order):
    options = {"lossless": True} if kind == "WEBP" else {}
    stored = np.asarray(Image.open(io.BytesIO(encoded(kind, **options))).convert("RGB"))
    for orientation, turn in TURNS.items():
        tag = struct.pack(order + "HIHHHIHHI", 42, 8, 1, 0x0112, 3, 1, orientation, 0, 0)
        tiff = (b"II" if order == "<" else b"MM") + tag
        file = tmp_path / "photo"
        file.write_bytes(encoded(kind, exif=b"Exif\0\0" + tiff, **options))
        Image.fromarray(np.ascontiguousarray(turn(stored))).save(tmp_path / "expected.png")
        assert np.array_equal(load_image(file, SIDE), load_image(tmp_path / "expected.png", SIDE)), orientation
    file.write_bytes(encoded(kind, xmp=XMP, **options) if kind != "PNG" else encoded(kind))
    Image.fromarray(stored).save(tmp_path / "expected.png")
    assert np.array_equal(load_image(file, SIDE), load_image(tmp_path / "expected.png", SIDE))

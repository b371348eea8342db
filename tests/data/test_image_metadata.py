"""Metadata of image files: whatever it holds, the pixels are read; only the orientation turns them."""

import io
import random
import struct
import warnings
import zlib

import numpy as np
import pytest
from conftest import SEED, cases
from PIL import Image, ImageOps, PngImagePlugin
from test_image_files import picture

from magnet.data.image_dataset import load_faces
from magnet.data.image_files import load_image

SIDE = 32
XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'


def exif(orientation: int, **others) -> bytes:
    """A TIFF header with the orientation, a resolution, a text and an inner directory."""
    made = Image.Exif()
    made.update(
        {0x0112: orientation, 0x011A: 72.0, 0x011B: 72.0, 0x0128: 2, 0x010E: "a photo", 0x8769: {0x9003: "2026"}}
    )
    return made.tobytes().removeprefix(b"Exif\0\0")


def encoded(kind: str, **options) -> bytes:
    file = io.BytesIO()
    picture().save(file, kind, **options)
    return file.getvalue()


def segment(marker: int, content: bytes) -> bytes:
    """A segment of a JPEG."""
    return struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content


def chunk(name: bytes, content: bytes, crc: int | None = None) -> bytes:
    """A chunk of a PNG."""
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", crc or zlib.crc32(name + content))


def extension(label: int, *blocks: bytes) -> bytes:
    """An extension of a GIF."""
    parts = [part[i : i + 255] for part in blocks for i in range(0, len(part), 255)]
    return bytes((0x21, label)) + b"".join(bytes((len(part),)) + part for part in parts) + b"\0"


def riff(*chunks: tuple[bytes, bytes]) -> bytes:
    """A WebP of chunks."""
    body = b"WEBP" + b"".join(n + struct.pack("<I", len(c)) + c + b"\0" * (len(c) % 2) for n, c in chunks)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def raw_profile() -> bytes:
    """The EXIF of a PNG as ImageMagick writes it."""
    return b"\nexif\n 100\n" + (b"Exif\0\0" + exif(3)).hex().encode()


BOMB = zlib.compress(bytes(2**22))
PHOTOSHOP = b"Photoshop 3.0\0" + b"8BIM" + struct.pack(">HBBI", 0x03ED, 0, 0, 16) + bytes(16)
IN_JPEG = {  # name: marker, content
    "jfif": (0xE0, b"JFIF\0\x01\x02\x01\0\x48\0\x48\0\0"), "jfxx": (0xE0, b"JFXX\0\x10"),
    "exif": (0xE1, b"Exif\0\0" + exif(6)), "xmp": (0xE1, b"http://ns.adobe.com/xap/1.0/\0" + XMP),
    "icc": (0xE2, b"ICC_PROFILE\0\x01\x01" + bytes(200)), "mpf": (0xE2, b"MPF\0" + exif(1)),
    "flashpix": (0xE2, b"FPXR\0" + bytes(20)), "photoshop": (0xED, PHOTOSHOP), "adobe": (0xEE, b"Adobe"),
    "unknown": (0xE7, bytes(9)), "comment": (0xFE, b"a comment"),
}  # fmt: skip
IN_PNG = {
    "tEXt": b"Title\0a photo", "zTXt": b"Title\0\0" + zlib.compress(b"a photo"), "bomb": b"Title\0\0" + BOMB,
    "iTXt": b"XML:com.adobe.xmp\0\0\0\0\0" + XMP, "packed iTXt": b"XML:com.adobe.xmp\0\x01\0\0\0" + zlib.compress(XMP),
    "raw zTXt": b"Raw profile type exif\0\0" + zlib.compress(raw_profile()),
    "raw tEXt": b"Raw profile type exif\0" + raw_profile(),
    "iCCP": b"icc\0\0" + zlib.compress(bytes(200)), "bomb iCCP": b"icc\0\0" + BOMB, "eXIf": exif(6),
    "pHYs": struct.pack(">IIB", 2835, 2835, 1), "gAMA": struct.pack(">I", 45455), "cHRM": struct.pack(">8I", *range(8)),
    "sRGB": b"\0", "sBIT": b"\x08\x08\x08", "bKGD": bytes(6), "tIME": bytes((7, 234, 1, 1, 0, 0, 0)),
    "tRNS": bytes(6), "hIST": bytes(6), "sPLT": b"a\0\x08" + bytes(6), "acTL": struct.pack(">II", 2, 0),
    "fcTL": struct.pack(">5IHHBB", 0, 40, 48, 0, 0, 1, 1, 0, 0), "prVt": bytes(5),
}  # fmt: skip
IN_WEBP = {"EXIF": exif(6), "XMP ": XMP, "ICCP": bytes(200), "ABCD": bytes(9)}
IN_GIF = {  # name: label, blocks
    "comment": (0xFE, b"a comment"), "xmp": (0xFF, b"XMP DataXMP", XMP), "loop": (0xFF, b"NETSCAPE2.0", b"\x01\0\0"),
    "icc": (0xFF, b"ICCRGBG1012", bytes(200)), "control": (0xF9, bytes(4)), "text": (0x01, bytes(12), b"a photo"),
}  # fmt: skip
PLAIN = {kind: encoded(kind) for kind in ("JPEG", "PNG", "BMP", "GIF")} | {"WEBP": encoded("WEBP", lossless=True)}
PLAIN["GIF87"] = PLAIN["GIF"]


def garbled(chance: random.Random, content: bytes) -> bytes:
    """`content`, some of it flipped, overwritten, left out or put in; or what is random from end to end."""
    data = bytearray(content)
    for _ in range(chance.choice((0, 1, 1, 2, 10))):
        kind, at = chance.choice(("flip", "overwrite", "insert", "leave out", "cut", "replace")), chance.randrange(400)
        at %= len(data) + 1
        if kind == "flip" and at < len(data):
            data[at] ^= 1 << chance.randrange(8)
        elif kind == "overwrite":
            data[at : at + 4] = chance.randbytes(4)
        elif kind == "insert":
            data[at:at] = chance.randbytes(chance.randrange(1, 40))
        elif kind == "leave out":
            del data[at : at + chance.randrange(1, 40)]
        elif kind == "cut":
            del data[at:]
        elif kind == "replace":
            data[:] = chance.randbytes(chance.randrange(60))
    return bytes(data)


def with_metadata(chance: random.Random, kind: str) -> bytes:
    """A file of one format with some of the metadata that it can hold, garbled."""
    data = PLAIN[kind]
    if kind == "JPEG":
        parts = [(marker, garbled(chance, content)) for marker, content in chance.choices(list(IN_JPEG.values()), k=3)]
        start = chance.choice((2, data.index(b"\xff\xdb")))
        # An Adobe marker that is whole says how colours are stored: it is part of the picture.
        return data[:start] + b"".join(segment(m, c) for m, c in parts if m != 0xEE or len(c) < 12) + data[start:]
    if kind == "PNG":
        end = chance.choice((33, data.index(b"IDAT") - 4, len(data) - 12))
        parts = b"".join(
            chunk(name[-4:].encode(), garbled(chance, IN_PNG[name]), chance.choice((None, None, 1)))
            for name in chance.choices(list(IN_PNG), k=3)
        )
        return data[:end] + parts + data[end:]
    if kind == "WEBP":
        parts = [
            (name, garbled(chance, IN_WEBP[name.decode()])) for name in map(str.encode, chance.sample(list(IN_WEBP), 3))
        ]
        flags = sum({b"ICCP": 0x20, b"EXIF": 8, b"XMP ": 4}.get(name, 0) for name, _ in parts)
        parts.sort(key=lambda part: part[0] != b"ICCP")
        before = [part for part in parts if part[0] == b"ICCP"]
        size = struct.pack("<I", 39)[:3] + struct.pack("<I", 47)[:3]
        image = (data[12:16], data[20 : 20 + struct.unpack_from("<I", data, 16)[0]])
        return riff((b"VP8X", bytes((flags, 0, 0, 0)) + size), *before, image, *parts[len(before) :])
    if kind == "BMP":
        return data[:38] + chance.randbytes(8) + data[46:]  # pixels a metre
    parts = b"".join(
        extension(label, *(garbled(chance, block) for block in blocks))
        for label, *blocks in chance.choices(list(IN_GIF.values()), k=3)
    )
    colours = 13 + 3 * 2 ** ((data[10] & 7) + 1)
    return data[:colours] + parts + data[colours:]


@cases(short=1200, long=10000)
def test_garbled_metadata_of_every_kind_leaves_the_pixels(tmp_path, count):
    """A file with metadata shows the picture without it, turned in one of the eight ways."""
    turns = [None, *(getattr(Image.Transpose, way) for way in (
        "FLIP_LEFT_RIGHT", "ROTATE_180", "FLIP_TOP_BOTTOM", "TRANSPOSE", "ROTATE_270", "TRANSVERSE", "ROTATE_90"
    ))]  # fmt: skip
    expected = {}
    for kind, data in PLAIN.items():
        image = Image.open(io.BytesIO(data)).convert("RGB")
        found = []
        for way in turns:
            (image if way is None else image.transpose(way)).save(tmp_path / "turned.png")
            found.append(load_image(tmp_path / "turned.png", SIDE))
        expected[kind] = found
    chance, turned = random.Random(SEED), 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for i in range(count):
            kind = chance.choice(list(PLAIN))
            path = tmp_path / f"{i}.{kind.lower()}"
            path.write_bytes(with_metadata(chance, kind))
            same = [np.array_equal(load_image(path, SIDE), pixels) for pixels in expected[kind]]
            assert any(same), path
            turned += not same[0]
            path.unlink()
    assert turned > count / 50


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("content", [b"broken!!", b"", b"II*\0", b"MM\0*\xff\xff\xff\xff", b"II*\0\x08\0\0\0\xff\xff"])
def test_a_photo_whose_exif_is_broken_is_a_photo(tmp_path, kind, content):
    """As users meet it; also where images are skipped or all of them are trained on."""
    plain, broken = tmp_path / "plain", tmp_path / "broken"
    for folder, options in ((plain, {}), (broken, {"exif": b"Exif\0\0" + content, "dpi": (72, 72)})):
        folder.mkdir()
        for i in range(3):
            picture(64, 64, seed=i).save(folder / f"{i}.{kind.lower()}", kind, **options)
    arrays = [load_faces(str(folder), SIDE, cache_dir=tmp_path / "cache") for folder in (plain, broken)]
    assert np.array_equal(*arrays)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("size", [3, 4])
def test_the_orientation_is_read_wherever_it_stands(tmp_path, orientation, order, size):
    """In EXIF of both byte orders, in either kind of whole number, and in XMP where EXIF has none."""
    value = struct.pack(order + ("HH" if size == 3 else "I"), *([orientation, 0] if size == 3 else [orientation]))
    tiff = (
        (b"II" if order == "<" else b"MM") + struct.pack(order + "HIHHHI", 42, 8, 1, 0x0112, size, 1) + value + bytes(4)
    )
    xmp = XMP.replace(b"6", str(orientation).encode())
    raw = b"\nexif\n 40\n" + tiff.hex().encode()
    text = PngImagePlugin.PngInfo()
    text.add_itxt("XML:com.adobe.xmp", xmp.decode(), zip=size == 3)
    profile = PngImagePlugin.PngInfo()
    profile.add_text("Raw profile type exif", raw.decode(), zip=size == 3)
    files = {
        "1.jpg": encoded("JPEG", exif=b"Exif\0\0" + tiff), "2.jpg": encoded("JPEG", xmp=xmp),
        "1.png": encoded("PNG", exif=tiff), "2.png": encoded("PNG", pnginfo=text),
        "3.png": encoded("PNG", pnginfo=profile),
        "1.webp": encoded("WEBP", lossless=True, exif=tiff), "2.webp": encoded("WEBP", lossless=True, xmp=xmp),
    }  # fmt: skip
    for name, data in files.items():
        path = tmp_path / name
        path.write_bytes(data)
        with Image.open(path) as image:
            ImageOps.exif_transpose(image).convert("RGB").save(tmp_path / "expected.png")
        assert np.array_equal(load_image(path, SIDE), load_image(tmp_path / "expected.png", SIDE)), name

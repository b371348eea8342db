"""Metadata of an image file: the orientation is read, all else is hidden from the decoder.

Pillow refuses an image for metadata that it cannot read: broken EXIF, a profile of another length, a packed comment
that unpacks to megabytes. What is optional must not decide over pixels.

    with file.getbuffer() as data:
        orientation = hide_metadata(data, b"PNG")
"""

import re
import struct
import zlib

MAX_TEXT = 1 << 20  # bytes that a packed text may unpack to
EXIF, XMP = b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0"
RAW_PROFILE, XML = b"Raw profile type exif\0", b"XML:com.adobe.xmp\0"  # how some programs write both into a PNG


def hide_metadata(data: memoryview, kind: str) -> int:
    """Hides in `data`, the bytes of a JPEG, PNG or GIF, what its pixels do not need. Returns its orientation.

    Parts are renamed where they stand, so the file keeps its length. Bytes that follow no format are left as they are.
    """
    try:
        found = {"JPEG": _hide_in_jpeg, "PNG": _hide_in_png, "GIF": _hide_in_gif}[kind](data)
    except (IndexError, struct.error):  # the file is cut off: the decoder will say so
        return 1
    return read_orientation(*found)


def read_orientation(exif: bytes, xmp: bytes) -> int:
    """The EXIF orientation, 1 to 8 in a sound file, else that of XMP; 1 if neither can be read."""
    tiff, found = exif.removeprefix(EXIF), None
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    try:
        start = struct.unpack_from(f"{order}I", tiff, 4)[0] if order else len(tiff)
        count = struct.unpack_from(f"{order}H", tiff, start)[0]
        for entry in range(start + 2, start + 2 + 12 * count, 12):
            tag, size, values = struct.unpack_from(f"{order}HHI", tiff, entry)
            if tag == 0x0112 and values == 1 and size in (1, 3, 4):
                found = struct.unpack_from(order + {1: "B", 3: "H", 4: "I"}[size], tiff, entry + 8)[0]
    except (struct.error, TypeError):
        pass  # cut off, or no TIFF: what was read until here counts
    if found is None and (match := re.search(rb'tiff:Orientation(?:="|>)([0-9])', xmp)):
        found = int(match[1])
    return 1 if found is None else found


def _hide_in_jpeg(data: memoryview) -> tuple[bytes, bytes]:
    """Makes comments of all application segments but those that say how colours are stored."""
    exif, xmp, at = b"", b"", 2
    while match := re.compile(rb"\xff+([^\x00\xff])").search(data, at):
        marker, at = match[1][0], match.end()
        if marker in (0xD9, 0xDA):  # the end, or the pixels
            break
        if marker == 1 or 0xD0 <= marker <= 0xD8:  # without a length
            continue
        (length,) = struct.unpack_from(">H", data, at)
        if 0xE0 <= marker <= 0xEF:
            content = bytes(data[at + 2 : at + length])
            if content.startswith(EXIF):
                exif += content.removeprefix(EXIF) if exif else content
            elif content.startswith(XMP):
                xmp = content
            colours = {0xE0: b"JFIF\0", 0xEE: b"Adobe"}.get(marker)
            if not colours or not content.startswith(colours) or len(content) < (14 if marker == 0xE0 else 12):
                data[at - 1] = 0xFE
        at += max(length, 2)
    return exif, xmp


def _hide_in_png(data: memoryview) -> tuple[bytes, bytes]:
    """Renames each ancillary chunk, tRNS too, to one that no decoder knows, and updates its checksum."""
    exif, raw, xmp, at = b"", b"", b"", 8
    while at + 12 <= len(data):
        (length,), name = struct.unpack_from(">I", data, at), bytes(data[at + 4 : at + 8])
        end = at + 8 + length
        if end + 4 > len(data):
            break
        if name[:1].islower():
            content = data[at + 8 : end]
            if name == b"eXIf":
                exif = bytes(content)
            elif name in (b"tEXt", b"zTXt", b"iTXt"):
                text = _text(name, bytes(content))
                raw = raw if not text.startswith(RAW_PROFILE) else _from_hex(text)
                xmp = text if text.startswith(XML) else xmp
            data[at + 4 : at + 8] = b"sKIP"
            struct.pack_into(">I", data, end, zlib.crc32(data[at + 4 : end]))
            content.release()
        at = end + 4
    return exif or raw, xmp


def _text(name: bytes, content: bytes) -> bytes:
    """The key of a text chunk, a zero byte, and its text, up to MAX_TEXT; empty if it cannot be unpacked."""
    key, _, rest = content.partition(b"\0")
    packed = name == b"zTXt" or name == b"iTXt" and rest[:1] == b"\1"
    if name == b"iTXt":
        rest = b"\0".join(rest[2:].split(b"\0", 2)[2:])  # after the language and the key's translation
    elif name == b"zTXt":
        rest = rest[1:]
    try:
        return key + b"\0" + (zlib.decompressobj().decompress(rest, MAX_TEXT) if packed else rest)
    except zlib.error:
        return b""


def _from_hex(text: bytes) -> bytes:
    """The bytes of a raw profile: three lines, then hexadecimal digits."""
    try:
        return bytes.fromhex("".join(text.removeprefix(RAW_PROFILE).decode("latin-1").split("\n")[3:]))
    except ValueError:
        return b""


def _hide_in_gif(data: memoryview) -> tuple[bytes, bytes]:
    """Turns the extensions before the first picture into comments, except a complete graphics control extension.

    A GIF has no EXIF.
    """
    at = 13 + (3 << (data[10] & 7) + 1) * (data[10] >> 7)
    while data[at] == 0x21:
        start, at = at, at + 2
        while data[at]:
            at += 1 + data[at]
        at += 1
        if data[start + 1] != 0xF9 or at - start != 8:
            data[start + 1] = 0xFE
    return b"", b""

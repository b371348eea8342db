"""Metadata of an image file: read the EXIF orientation, hide all else from the decoder.

Pillow refuses an image for metadata that it cannot read: broken EXIF, a profile of another length, a packed comment
that unpacks to megabytes. Such an image still has good pixels.

    with file.getbuffer() as data:
        orientation = hide_metadata(data, "PNG")
"""

import re
import struct
import zlib
from contextlib import suppress

EXIF = b"Exif\0\0"


def hide_metadata(data: memoryview, kind: str) -> int:
    """Hides in `data`, the bytes of a JPEG or PNG, what its pixels do not need. Returns its EXIF orientation.

    It renames parts where they stand, so the file keeps its length. Bytes that follow no format stay as they are.
    """
    with suppress(IndexError, struct.error):  # the file is cut off: the decoder will say so
        if kind == "JPEG":
            return read_orientation(_hide_in_jpeg(data))
        if kind == "PNG":
            return read_orientation(_hide_in_png(data))
    return 1


def read_orientation(exif: bytes) -> int:
    """Returns the orientation in EXIF data, 1 to 8 in a sound file; 1 if it cannot be read."""
    tiff = exif.removeprefix(EXIF)
    if order := {b"II": "<", b"MM": ">"}.get(tiff[:2]):
        with suppress(struct.error):  # it is cut off
            (start,) = struct.unpack_from(f"{order}I", tiff, 4)
            (count,) = struct.unpack_from(f"{order}H", tiff, start)
            for entry in range(start + 2, start + 2 + 12 * count, 12):
                tag, kind, _, value = struct.unpack_from(f"{order}HHIH", tiff, entry)
                if (tag, kind) == (0x0112, 3):
                    return value
    return 1


def _hide_in_jpeg(data: memoryview) -> bytes:
    """Turns application segments into comments, except those that say how colours are stored. Returns the EXIF."""
    exif, at = b"", 2
    while match := re.compile(rb"\xff+([^\x00\xff])").search(data, at):
        marker, at = match[1][0], match.end()
        if marker in (0xD9, 0xDA):  # the end, or the pixels
            break
        (length,) = struct.unpack_from(">H", data, at)
        if 0xE0 <= marker <= 0xEF:
            content = bytes(data[at + 2 : at + length])
            if content.startswith(EXIF):
                exif = exif or content
            name, size = {0xE0: (b"JFIF\0", 14), 0xEE: (b"Adobe", 12)}.get(marker, (b"", 1 << 16))
            if not content.startswith(name) or len(content) < size:
                data[at - 1] = 0xFE
        at += max(length, 2)
    return exif


def _hide_in_png(data: memoryview) -> bytes:
    """Renames ancillary chunks, tRNS too, to one that no decoder knows, with its checksum. Returns the EXIF."""
    exif, at = b"", 8
    while at + 12 <= len(data):
        (length,), name = struct.unpack_from(">I", data, at), bytes(data[at + 4 : at + 8])
        end = at + 8 + length
        if end + 4 > len(data):
            break
        if name[:1].islower():
            if name == b"eXIf":
                exif = bytes(data[at + 8 : end])
            data[at + 4 : at + 8] = b"sKIP"
            struct.pack_into(">I", data, end, zlib.crc32(data[at + 4 : end]))
        at = end + 4
    return exif

"""Which images training never sees: a hash of their names selects them, so they are the same on every machine."""

import hashlib
import math
import os
import sys
from collections.abc import Callable
from typing import Any

from magnet.support.errors import UserError
from magnet.support.paths import command_of

MAX_SHARE = 0.5  # of --hold-out


def _hash_name(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(os.fsencode(name), digest_size=8).digest(), "big")


def is_held_out(name: str, share: float) -> bool:
    """Whether the image `name` is among the `share` in [0, 1] of images that training never sees.

    The answer depends on the name alone. A larger share holds out the same images and more.
    """
    return _hash_name(name) < share * 2**64


def select_part(source: str, images: list, get_name: Callable[[Any], str], share: float, held_out: bool) -> list:
    """Returns the images that are held out, or the others. Raises UserError if there are none of either kind."""
    if not share and not held_out:
        return images
    names = [get_name(image) for image in images]
    part = [image for image, name in zip(images, names, strict=True) if is_held_out(name, share) == held_out]
    count = len(part) if held_out else len(images) - len(part)
    summary = f"--hold-out {share} keeps {count} of {len(images)} images in {source} from training"
    if count in (0, len(images)):
        better = math.ceil(min(map(_hash_name, names)) / 2**64 * 1000) / 1000  # it holds one image or a few out
        is_good = better <= MAX_SHARE and not all(is_held_out(name, better) for name in names)
        command = f"`{command_of('train')} --hold-out {better}`, or " * is_good
        raise UserError(f"{summary}: give {command}more images")
    if not held_out:
        print(summary, file=sys.stderr)
    return part

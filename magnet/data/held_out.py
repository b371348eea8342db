"""Which images are kept from training: chosen by a hash of their names, so alike on every machine."""

import hashlib
import math
import os
import sys
from collections.abc import Callable
from typing import Any

from magnet.support.errors import UserError

MAX_SHARE = 0.5  # of --hold-out


def _place(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(os.fsencode(name), digest_size=8).digest(), "big")


def is_held_out(name: str, share: float) -> bool:
    """Whether the image `name` is among the `share` in [0, 1] of all images that are kept from training.

    By a hash of the name alone, so alike on every machine; what one share holds out, every larger one does too.
    """
    return _place(name) < share * 2**64


def select_part(source: str, images: list, name: Callable[[Any], str], share: float, held_out: bool) -> list:
    """Of `images` those that are held out, or the others. Raises UserError if either are none."""
    if not share and not held_out:
        return images
    apart = [is_held_out(name(image), share) for image in images]
    shares = f"--hold-out {share} keeps {sum(apart)} of {len(apart)} images in {source} from training"
    if len(set(apart)) < 2:
        other = _find_share([name(image) for image in images])
        advice = f"give `train.py --hold-out {other}`, or more images" if other else "give more images"
        raise UserError(f"{shares}: {advice}")
    if not held_out:
        print(shares, file=sys.stderr)
    return [image for image, is_apart in zip(images, apart, strict=True) if is_apart == held_out]


def _find_share(names: list[str]) -> float | None:
    """A share of few digits by which some of the images are held out and some are not; None if there is none."""
    places = sorted(map(_place, names))
    for digits in range(1, 7):
        share = math.ceil(places[0] / 2**64 * 10**digits) / 10**digits
        if places[0] < share * 2**64 <= places[-1] and share <= MAX_SHARE:
            return share
    return None

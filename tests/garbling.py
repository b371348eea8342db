"""Random damage to bytes, for the tests with random cases."""

import random

KINDS = ("flip", "overwrite", "insert", "leave out", "splice", "cut")


def garble(chance: random.Random, data: bytes, times: int, other: bytes = b"", start: int = 0) -> bytes:
    """Damages `data` so many times, often in the 200 bytes from `start` on. other: what `splice` puts behind."""
    data = bytearray(data)
    for _ in range(times):
        kind, size = chance.choice(KINDS), len(data)
        low, high = chance.choice(((0, size), (min(start, size), min(start + 200, size))))
        if low == high:
            continue
        at = chance.randrange(low, high)
        if kind == "flip":
            data[at] ^= 1 << chance.randrange(8)
        elif kind == "overwrite":
            data[at : at + 4] = chance.choice((b"\xff" * 4, bytes(4), chance.randbytes(4)))
        elif kind == "insert":
            data[at:at] = chance.randbytes(chance.randrange(1, 40))
        elif kind == "leave out":
            del data[at : at + chance.randrange(1, 40)]
        elif kind == "splice":
            data[at:] = other[at:]
        else:
            del data[at + 1 :]
    return bytes(data)

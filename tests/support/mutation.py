"""Inputs made of stored ones: bits flipped, pieces cut, doubled, moved and spliced, numbers made interesting. Repeatable by seed."""

import random
from collections.abc import Sequence

_NUMBERS = (
    0,
    1,
    0x3F,
    0x40,
    0x7F,
    0x80,
    0xFF,
    0x3FFF,
    0x4000,
    0xFFFF,
    0x3FFFFFFF,
    0x7FFFFFFF,
    0xFFFFFFFF,
    1 << 62,
    (1 << 64) - 1,
)
_WORDS = (
    b"\r\n",
    b"\r\n\r\n",
    b"chunked",
    b"\xed\xa0\x80",
    b"\\ud800",
    b"NaN",
    b"1e999",
    b"[" * 100,
    b"\0",
    b"-----BEGIN",
    b"data: ",
)
MAX_BYTES = 1 << 16


def mutate(corpus: Sequence[bytes], rng: random.Random) -> bytes:
    """One input: a stored one with one to six changes, or once in a hundred plain noise."""
    if rng.random() < 0.01:
        return rng.randbytes(rng.randrange(2_000))
    data = bytearray(rng.choice(corpus))
    for _ in range(rng.randint(1, 6)):
        _change(data, corpus, rng)
    return bytes(data[:MAX_BYTES])


def _change(data: bytearray, corpus: Sequence[bytes], rng: random.Random) -> None:
    kind = rng.randrange(8)
    at = rng.randrange(len(data) + 1)
    end = min(len(data), at + (rng.randrange(64) if rng.random() < 0.8 else rng.randrange(4_096)))
    if kind == 0 and at < len(data):
        data[at] ^= 1 << rng.randrange(8)
    elif kind == 1:
        del data[at:end]
    elif kind == 2:
        data[at:at] = data[at:end] * rng.choice((1, 1, 2, 50))
    elif kind == 3:
        data[at:at] = rng.randbytes(rng.randrange(1, 16))
    elif kind == 4:
        size = rng.choice((1, 2, 4, 8))
        number = (rng.choice(_NUMBERS) % (1 << (8 * size))).to_bytes(size, rng.choice(("big", "little")))
        data[at : at + size] = number
    elif kind == 5:
        other = rng.choice(corpus)
        cut = rng.randrange(len(other) + 1)
        data[at:] = other[cut:]
    elif kind == 6:
        data[at:end] = rng.choice(_WORDS)
    else:
        del data[at:]

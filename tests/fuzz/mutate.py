"""Changing what is right: bytes, values of a document, blocks of a tar stream. All of it comes of a `Random`."""

from random import Random
from typing import Any

BOUNDARIES = (
    0,
    1,
    2,
    255,
    511,
    512,
    4095,
    65535,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**32,
    2**63 - 1,
    2**63,
    2**64 - 1,
)
TEXTS = ("", "..", "/", "\0", "a" * 300, "sha256:" + "0" * 64, "\udcff", "\u202e", "1" * 400, "-1")
Document = Any
"""What JSON and msgpack are made of."""


def change_bytes(data: bytes, rng: Random) -> bytes:
    """One to four changes: flips, cuts, runs that are doubled or dropped, numbers at the edge of what fits."""
    changed = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(changed) + 1)
        length = min(rng.choice((1, 2, 4, 8, 16, 64)), len(changed) - at)
        match rng.randrange(6):
            case 0 if length:
                changed[at] ^= 1 << rng.randrange(8)
            case 1:
                del changed[at : at + length]
            case 2:
                changed[at:at] = changed[at : at + length]
            case 3 if length in (1, 2, 4, 8):
                number = rng.choice(BOUNDARIES) % (1 << 8 * length)
                changed[at : at + length] = number.to_bytes(length, rng.choice(("little", "big")))
            case 4 if length:
                changed[at : at + length] = rng.randbytes(length)
            case 5 if rng.random() < 0.2:
                del changed[at:]
    return bytes(changed)


def change_document(value: Document, rng: Random) -> Document:
    """A copy with one value somewhere in it changed, taken away, doubled or of another kind."""
    if isinstance(value, dict) and value and rng.random() < 0.9:
        key = rng.choice(list(value))
        if rng.random() < 0.05:
            return {name: each for name, each in value.items() if name != key}
        return value | {key: change_document(value[key], rng)}
    if isinstance(value, list) and value and rng.random() < 0.9:
        at = rng.randrange(len(value))
        match rng.randrange(8):
            case 0:
                return value[:at] + value[at + 1 :]
            case 1:
                return [*value[: at + 1], *value[at:]]
        return [*value[:at], change_document(value[at], rng), *value[at + 1 :]]
    return _other(value, rng)


def _other(value: Document, rng: Random) -> Document:
    if rng.random() < 0.1:
        return rng.choice((None, True, 0, -1, "", "x", [], {}, 1.5))
    match value:
        case bytes():
            return change_bytes(value, rng)
        case bool():
            return not value
        case int():
            changed = rng.choice((value + 1, value - 1, -value, *BOUNDARIES))
            return min(max(changed, -(1 << 63)), (1 << 64) - 1)  # what msgpack knows
        case str():
            if rng.random() < 0.5:
                return rng.choice(TEXTS)
            at = rng.randrange(len(value) + 1)
            return value[:at] + rng.choice(("", "\0", "/", "A", ":", "é", value)) + value[at + 1 :]
    return rng.choice((None, 1, "", []))

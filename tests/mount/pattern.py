"""The bytes of synthetic devices: a function of the seed and the offset, so nothing needs to be stored."""

import numpy as np

_WORD = 8


def pattern(seed: int, offset: int, length: int) -> bytes:
    """The bytes [offset, offset + length) of the endless device ``seed``; no two pages of it are equal."""
    if length <= 0:
        return b""
    first, last = offset // _WORD, (offset + length - 1) // _WORD
    words = np.arange(first, last + 1, dtype="<u8") * np.uint64(0x9E3779B97F4A7C15) + np.uint64(seed)
    skip = offset - first * _WORD
    return words.tobytes()[skip : skip + length]

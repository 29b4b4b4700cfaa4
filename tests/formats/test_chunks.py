"""Chunk digests by the letter of docs/format.md, and the table of chunks beside a plain search."""

import hashlib
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazyfs.formats.chunks import UNIT_SIZE, ChunkTable, chunk_digest, combine, shown, unit_digests


def by_the_letter(plain: bytes) -> bytes:
    if len(plain) <= 32768:
        return hashlib.sha256(plain).digest()
    units = [hashlib.sha256(plain[at : at + 32768]).digest() for at in range(0, len(plain), 32768)]
    return hashlib.sha256(b"lazyfs chunk\0" + len(plain).to_bytes(8, "little") + b"".join(units)).digest()


@pytest.mark.parametrize("size", [1, 512, 32767, 32768, 32769, 65536, 100_000, 524_288])
def test_digests(size: int) -> None:
    plain = Random(size).randbytes(size)
    assert chunk_digest(plain) == by_the_letter(plain)
    assert chunk_digest(memoryview(plain)) == chunk_digest(bytearray(plain)) == chunk_digest(plain)
    units = unit_digests(plain)
    assert len(units) == -(-size // UNIT_SIZE)
    assert combine(units, size) == chunk_digest(plain)


def test_a_digest_is_one_only_together_with_the_length() -> None:
    """What is hashed for a long chunk can be the plain bytes of a short one."""
    plain = bytes(40_000)
    hashed = b"lazyfs chunk\0" + len(plain).to_bytes(8, "little") + b"".join(unit_digests(plain))
    assert chunk_digest(hashed) == chunk_digest(plain)
    assert combine(unit_digests(plain), len(plain) - 1) != chunk_digest(plain)


@st.composite
def tables(draw: st.DrawFn) -> ChunkTable:
    lengths = draw(st.lists(st.integers(1, 50), min_size=1, max_size=20))
    count = len(lengths)
    start = np.cumsum([0, *lengths]).astype(np.int64)
    edges = sorted(draw(st.sets(st.integers(0, int(start[-1])), max_size=12)))
    edges = edges[: len(edges) // 2 * 2]
    return ChunkTable(
        start=start,
        blob_offset=np.arange(count, dtype=np.int64),
        blob_length=np.ones(count, np.int64),
        digests=bytes(32) * count,
        data_start=np.array(edges[::2], np.int64),
        data_end=np.array(edges[1::2], np.int64),
    )


@given(tables(), st.data())
def test_covering(table: ChunkTable, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, table.device_size - 1))
    length = data.draw(st.integers(1, table.device_size - at))
    expected = [
        index
        for index in range(len(table))
        if table.start[index] < at + length and table.start[index + 1] > at
    ]
    assert list(table.covering(at, length)) == expected
    assert sum(table.length(index) for index in range(len(table))) == table.device_size


@given(tables())
def test_what_the_device_shows(table: ChunkTable) -> None:
    """Byte by byte: data where the ranges say so, else zeros."""
    stream = bytes(range(1, 251)) * (table.device_size // 250 + 1)
    for index in range(len(table)):
        start, end = int(table.start[index]), int(table.start[index + 1])
        ranges = list(zip(table.data_start.tolist(), table.data_end.tolist(), strict=True))
        expected = bytes(
            stream[at] if any(low <= at < high for low, high in ranges) else 0 for at in range(start, end)
        )
        assert table.shown(index, stream[start:end]) == expected


def test_all_data_is_not_copied() -> None:
    plain = bytes(1000)
    assert shown(plain, [(0, 1000)]) is plain
    assert shown(b"abc", []) == bytes(3)

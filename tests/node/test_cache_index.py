"""The index of digests, and the holes that may be punched, against what they should be by definition."""

from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from lazyfs.formats.chunks import ChunkTable
from lazyfs.node.cache_eviction import oldest, unused_since
from lazyfs.node.cache_files import BLOCK
from lazyfs.node.cache_holes import holes
from lazyfs.node.cache_index import MAX_FOUND, DigestIndex

layers = st.lists(
    st.lists(st.tuples(st.integers(0, 5), st.sampled_from([512, 1024])), max_size=8), min_size=1, max_size=6
)


def digest(number: int) -> bytes:
    return bytes((number,)) * 32


def table(chunks: list[tuple[int, int]]) -> ChunkTable:
    nowhere = np.zeros(len(chunks), np.int64)
    start = np.cumsum([0, *(length for _, length in chunks)]).astype(np.int64)
    return ChunkTable(start, nowhere, nowhere, b"".join(digest(number) for number, _ in chunks))


@given(layers, st.sets(st.integers(0, 5)), st.booleans())
def test_the_index_finds_what_is_there(
    contents: list[list[tuple[int, int]]], removed: set[int], asked_between: bool
) -> None:
    index = DigestIndex()
    for number, chunks in enumerate(contents):
        index.add(str(number), table(chunks))
        if asked_between:
            index.find(digest(0), 512)
    for number in removed:
        index.remove(str(number))
    for wanted in range(7):
        for length in (512, 1024):
            expected = [
                (str(number), at)
                for number, chunks in enumerate(contents)
                for at, chunk in enumerate(chunks)
                if chunk == (wanted, length) and number not in removed
            ]
            found = index.find(digest(wanted), length)
            assert len(found) == min(len(expected), MAX_FOUND)
            assert set(found) <= set(expected)


@given(
    st.lists(
        st.tuples(st.integers(1, 30), st.sampled_from(["chosen", "free", "used"])), min_size=1, max_size=30
    )
)
def test_holes_are_whole_blocks_of_nothing_that_is_used(chunks: list[tuple[int, str]]) -> None:
    start = np.cumsum([0, *(512 * size for size, _ in chunks)]).astype(np.int64)
    chosen = [number for number, (_, kind) in enumerate(chunks) if kind == "chosen"]
    found, touched = holes(start, chosen, lambda number: chunks[number][1] == "free")
    punched = np.zeros(int(start[-1]) + BLOCK, bool)
    for low, high in found:
        assert low % BLOCK == high % BLOCK == 0
        punched[low:high] = True
    for number, (low, high) in enumerate(pairwise(start.tolist())):
        if chunks[number][1] == "used":
            assert not punched[low:high].any()
        if punched[low:high].any():
            assert number in touched
    usable = np.ones(len(punched), bool)
    for number, (low, high) in enumerate(pairwise(start.tolist())):
        usable[low:high] = chunks[number][1] != "used"
    for low in range(0, int(start[-1]), BLOCK):
        block = slice(low, low + BLOCK)
        has_chosen = any(start[number] < low + BLOCK and low < start[number + 1] for number in chosen)
        assert punched[block].all() == (has_chosen and bool(usable[block].all()))


chunk_uses = st.lists(
    st.lists(st.tuples(st.integers(0, 9), st.sampled_from([0, 100, 200])), max_size=6), min_size=1, max_size=4
)


@given(chunk_uses, st.integers(-5, 2000))
def test_the_oldest_go_first_and_no_more_than_needed(
    contents: list[list[tuple[int, int]]], need: int
) -> None:
    arrays = [
        (
            np.array([time for time, _ in chunks], np.uint32),
            np.array([size for _, size in chunks], np.int64),
        )
        for chunks in contents
    ]
    picked = oldest(arrays, need)
    went = [contents[layer][chunk] for layer, chunks in enumerate(picked) for chunk in chunks]
    stayed = [
        use
        for layer, chunks in enumerate(contents)
        for number, use in enumerate(chunks)
        if number not in picked[layer] and use[1]
    ]
    assert all(size > 0 for _, size in went)
    assert not went or not stayed or max(time for time, _ in went) <= min(time for time, _ in stayed)
    total = sum(size for _, size in went)
    assert total >= need or not stayed
    assert need > 0 or not went
    assert not went or total - max(size for _, size in went) < need
    old = unused_since(arrays, 5)
    for layer, chunks in enumerate(contents):
        assert old[layer] == [at for at, (time, size) in enumerate(chunks) if size and time < 5]

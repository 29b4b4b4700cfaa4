"""Profiles: text that comes back as it was, merges without doubles, and finds its pages in an image."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazyfs.errors import BadInputError
from lazyfs.formats.chunks import UNIT_SIZE, ChunkTable
from lazyfs.formats.image_paths import PAGE, extents, regular_files
from lazyfs.formats.image_tree import merge as merge_trees
from lazyfs.formats.profile import FIRST_LINE, Touch, from_reads, merge, parse, render, resolve
from tests.layers import layer_tree
from tests.trees import Entry

NAMES = st.lists(
    st.binary(min_size=1, max_size=12).filter(lambda name: b"/" not in name and b"\0" not in name),
    min_size=1,
    max_size=3,
).map(b"/".join)
TOUCHES = st.lists(
    st.tuples(NAMES, st.integers(0, 60), st.integers(0, 9)).map(
        lambda each: Touch(each[0], each[1], each[1] + each[2])
    ),
    max_size=30,
)
FILES = {b"usr/bin/tool": 300_000, b"etc/small": 100, b"etc/other": 5000, b"lib/large": 1_000_000}


def pages_of(profile: list[Touch]) -> list[tuple[bytes, int]]:
    return [(touch.path, page) for touch in profile for page in range(touch.first, touch.last + 1)]


@given(TOUCHES)
def test_a_profile_comes_back(touches: list[Touch]) -> None:
    profile = merge([touches])
    text = render(profile, ["made\nby a test"])
    assert text.isprintable() or all(line.isprintable() for line in text.splitlines())
    assert parse(text) == profile
    assert render(parse(text), ["made by a test"]) == text


@given(TOUCHES, TOUCHES)
def test_merging_keeps_the_first_order_and_adds_what_is_new(one: list[Touch], other: list[Touch]) -> None:
    both = pages_of(merge([one, other]))
    assert len(both) == len(set(both))
    assert both == list(dict.fromkeys(pages_of(one) + pages_of(other)))


@pytest.mark.parametrize(
    "line",
    [
        "usr/bin/env",
        "/usr/bin/env 1",
        " 1",
        "a 1-0",
        "a -1",
        "a 1,,2",
        "a 01",
        "a x",
        "a%00b 1",
        "a 99999999999999",
    ],
)
def test_lines_that_are_none(line: str) -> None:
    with pytest.raises(BadInputError, match="line 3"):
        parse(f"{FIRST_LINE}\n# a comment\n{line}\n")


def test_a_text_of_another_kind() -> None:
    for text in ("", "usr/bin/env 1\n", "# lazyfs profile 2\n"):
        with pytest.raises(BadInputError, match="does not begin"):
            parse(text)


@pytest.fixture(scope="module")
def image() -> tuple[object, list[ChunkTable], dict[bytes, int]]:
    tree = merge_trees([layer_tree([Entry(path, content=bytes(size)) for path, size in FILES.items()])])
    found = dict(regular_files(tree))
    end = max(int(tree.inodes.data[inode]) + int(tree.inodes.size[inode]) for inode in found.values())
    start = np.arange(0, end + 200_000, 150_000, dtype=np.int64)
    zeros = np.zeros(len(start) - 1, np.int64)
    return tree, [ChunkTable(start, zeros, zeros, b"")], found


def test_pages_are_found_in_an_image(image: tuple[object, list[ChunkTable], dict[bytes, int]]) -> None:
    tree, tables, found = image
    assert set(found) == set(FILES)
    profile = [Touch(b"lib/large", 3, 3), Touch(b"gone", 0, 5), Touch(b"etc/small", 0, 1000)]
    hot = resolve(profile, tree, tables)  # type: ignore[arg-type]
    assert (hot.gone, hot.pages) == ([b"gone"], 2)
    first = tables[0].first_units()

    def covered(offset: int) -> bool:
        chunk = tables[0].covering(offset, 1)[0]
        return (0, int(first[chunk]) + (offset - int(tables[0].start[chunk])) // UNIT_SIZE) in hot.units

    for path, page in ((b"lib/large", 3), (b"etc/small", 0)):
        (extent,) = extents(tree, found[path])  # type: ignore[arg-type]
        low = extent.start + page * PAGE
        high = min(low + PAGE, extent.start + extent.length)
        # The kernel keeps whole pages of the device.
        for offset in range(low // PAGE * PAGE, -(-high // PAGE) * PAGE, 512):
            assert covered(offset)
    assert len(hot.units) <= 6


def test_reads_become_pages_of_files(image: tuple[object, list[ChunkTable], dict[bytes, int]]) -> None:
    tree, _, found = image
    (extent,) = extents(tree, found[b"lib/large"])  # type: ignore[arg-type]
    low = (extent.start + 10 * PAGE) // PAGE * PAGE
    reads = [(0, low + 20 * PAGE, 3 * PAGE), (0, low, 2 * PAGE)]
    exact = from_reads(reads, tree, lambda path: [10, 30, 31])  # type: ignore[arg-type]
    assert exact == [Touch(b"lib/large", 30, 31), Touch(b"lib/large", 10, 10)]
    guessed = pages_of(from_reads(reads, tree))  # type: ignore[arg-type]
    assert (b"lib/large", 30) in guessed
    assert len(guessed) <= 5
    dropped = pages_of(from_reads(reads, tree, lambda path: []))  # type: ignore[arg-type]
    assert dropped == guessed, "the kernel keeps nothing of it any more"
    partly = pages_of(from_reads(reads, tree, lambda path: [10]))  # type: ignore[arg-type]
    assert set(partly) == {*guessed, (b"lib/large", 10)}

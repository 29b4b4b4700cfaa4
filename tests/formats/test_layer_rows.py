"""The table of entries does what a dict does."""

from hypothesis import given
from hypothesis import strategies as st

from lazyfs.formats.layer_rows import Entries

NAMES = st.sampled_from([b"a", b"b", b"ab", b"a" * 255])


@given(st.lists(st.tuples(st.integers(0, 2), NAMES, st.integers(0, 2**32 - 1))))
def test_the_last_inode_of_a_name_counts(puts: list[tuple[int, bytes, int]]) -> None:
    entries = Entries()
    known: dict[tuple[int, bytes], int] = {}
    for directory, name, inode in puts:
        assert entries.get(directory, name) == known.get((directory, name), Entries.NOTHING)
        assert entries.put(directory, name, inode) == known.get((directory, name), Entries.NOTHING)
        known[directory, name] = inode
    directories, inodes, names = entries.arrays()
    assert dict(zip(zip(directories.tolist(), names, strict=True), inodes.tolist(), strict=True)) == known


def test_a_table_that_grows_forgets_nothing() -> None:
    entries = Entries()
    for number in range(10_000):
        entries.put(number % 7, b"name %d" % number, number)
    assert [entries.get(number % 7, b"name %d" % number) for number in range(10_000)] == list(range(10_000))
    assert entries.get(0, b"name 1") == Entries.NOTHING

"""Columns of strings do what lists of them do."""

from collections.abc import Sequence

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from lazyfs.formats.strings import WORD, Strings, Words

# Few letters and lengths around those of words, so that many begin alike or are equal.
LETTERS = st.sampled_from(b"ab\xff\x01").map(lambda letter: bytes([letter]))
STRING = st.one_of(
    st.lists(LETTERS, max_size=3).map(b"".join),
    st.builds(lambda length, end: b"a" * length + end, st.integers(5, 26), LETTERS),
)
MANY = st.lists(STRING, max_size=40)


@given(MANY)
def test_a_column_is_its_strings(strings: Sequence[bytes]) -> None:
    column = Strings.of(strings)
    assert list(column) == list(strings)
    assert [column[row] for row in range(len(column))] == list(strings)
    assert column.lengths().tolist() == [len(string) for string in strings]
    assert list(Strings.parse(column.data)) == list(strings)


@given(MANY, MANY)
def test_columns_are_joined(some: list[bytes], others: list[bytes]) -> None:
    assert list(Strings.join([Strings.of(some), Strings.of(others)])) == some + others


@given(MANY, st.data())
def test_rows_are_taken_in_any_order(strings: Sequence[bytes], data: st.DataObject) -> None:
    rows = data.draw(st.lists(st.integers(0, len(strings) - 1))) if strings else []
    taken = Strings.of(strings).take(np.array(rows, np.int64))
    assert list(taken) == [strings[row] for row in rows]


@given(MANY)
def test_ranks_have_the_order_of_the_strings(strings: Sequence[bytes]) -> None:
    ranks = Strings.of(strings).ranks().tolist()
    assert sorted(range(len(strings)), key=lambda row: (ranks[row], row)) == sorted(
        range(len(strings)), key=lambda row: (strings[row], row)
    )
    assert len(set(ranks)) == len(set(strings))
    assert len(set(zip(ranks, strings, strict=True))) == len(set(strings))


@given(st.lists(st.tuples(st.integers(0, 3), STRING), max_size=40))
def test_strings_are_sorted_within_groups(rows: Sequence[tuple[int, bytes]]) -> None:
    order, opens = Strings.of(string for _, string in rows).sorted(
        np.array([group for group, _ in rows], np.uint32)
    )
    found = [rows[row] for row in order.tolist()]
    assert found == sorted(rows)
    assert opens.tolist() == [at == 0 or found[at] != found[at - 1] for at in range(len(found))]


@given(MANY, st.integers(0, 4))
def test_words_end_where_the_strings_do(strings: Sequence[bytes], nth: int) -> None:
    words = Words(Strings.of(strings)).at(np.arange(len(strings)), nth)
    assert words.tolist() == [
        int.from_bytes(string[WORD * nth : WORD * (nth + 1)].ljust(WORD, b"\0")) for string in strings
    ]

"""Very many short byte strings without an object for each: names and targets, as a TOC has them.

A million names are 20 MB here, and 80 MB as a list of `bytes`. No string has a NUL in it, so each can end in one,
and strings can be compared eight bytes at a time, as big-endian numbers in which NULs stand behind the end.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lazyfs.formats.columns import batches, ranges

Ints = npt.NDArray[np.int64]
WORD = 8
"""Bytes."""
_MASKS = np.array([(1 << 64) - (1 << 64 - 8 * size) for size in range(WORD + 1)], np.uint64)


@dataclass(frozen=True, slots=True, eq=False)
class Strings:
    """`data` are the strings, each followed by a NUL; string i is at `start[i]`, and `start` has one element more."""

    data: bytes
    start: npt.NDArray[np.uint32]

    @classmethod
    def parse(cls, data: bytes) -> "Strings":
        """`data` is empty or ends in a NUL."""
        ends = np.flatnonzero(np.frombuffer(data, np.uint8) == 0)
        start = np.zeros(len(ends) + 1, np.uint32)
        start[1:] = ends
        start[1:] += 1
        return cls(data, start)

    @classmethod
    def of(cls, strings: Iterable[bytes]) -> "Strings":
        return cls.parse(b"".join(string + b"\0" for string in strings))

    @classmethod
    def join(cls, parts: Sequence["Strings"]) -> "Strings":
        if len(parts) == 1:
            return parts[0]
        return cls.parse(b"".join(part.data for part in parts))

    def __len__(self) -> int:
        return len(self.start) - 1

    def __getitem__(self, index: int) -> bytes:
        return self.data[self.start[index] : int(self.start[index + 1]) - 1]

    def __iter__(self) -> Iterator[bytes]:
        for batch in batches(len(self)):
            part = self.data[self.start[batch.start] : int(self.start[batch.stop]) - 1]
            yield from part.split(b"\0")

    def lengths(self) -> Ints:
        return (self.start[1:] - self.start[:-1] - 1).astype(np.int64)

    def take(self, rows: npt.NDArray[np.integer]) -> "Strings":
        """The strings of these rows, in this order."""
        if len(rows) == len(self) and (rows == np.arange(len(rows))).all():
            return self
        text = np.frombuffer(self.data, np.uint8)
        taken = bytearray()
        for batch in batches(len(rows)):
            start = self.start[rows[batch]].astype(np.int64)
            taken += text[ranges(start, self.start[rows[batch] + 1] - start)].tobytes()
        return Strings.parse(bytes(taken))

    def ranks(self) -> npt.NDArray[np.int32]:
        """A number for each string: equal ones have the same, and the numbers have the order of the strings."""
        order, opens = self.sorted(np.zeros(len(self), np.uint32))
        rank = np.zeros(len(self), np.int32)
        rank[order] = np.cumsum(opens)
        return rank

    def sorted(self, group: npt.NDArray[np.integer]) -> tuple[Ints, npt.NDArray[np.bool_]]:
        """Rows by group, and by string within one; and where among them another group or string begins."""
        words, lengths = Words(self), self.lengths()
        word = words.at(np.arange(len(self)), 0)
        order = np.lexsort((word, group))
        word, group = word[order], group[order]
        opens = np.ones(len(self), np.bool_)
        opens[1:] = (word[1:] != word[:-1]) | (group[1:] != group[:-1])
        tied = np.arange(len(self))
        nth = 1
        while len(tied := tied[_undecided(opens[tied], lengths[order[tied]] > WORD * nth)]):
            rows, run = order[tied], np.cumsum(opens[tied])
            word = words.at(rows, nth)
            again = np.lexsort((word, run))
            order[tied], word = rows[again], word[again]
            opens[tied[1:]] |= word[1:] != word[:-1]
            nth += 1
        return order, opens


def _undecided(opens: npt.NDArray[np.bool_], goes_on: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Of rows in runs, each of which begins where one `opens`: those in runs of several that do not all end here."""
    if not len(opens):
        return opens
    run = np.cumsum(opens) - 1
    several = np.bincount(run) > 1
    longer = np.bincount(run, weights=goes_on) > 0
    undecided: npt.NDArray[np.bool_] = (several & longer)[run]
    return undecided


class Words:
    """Strings as rows of 64-bit numbers that compare as the bytes do."""

    def __init__(self, strings: Strings) -> None:
        padded = strings.data + bytes(WORD)
        # One number at each byte, most of them not where a string is: a view costs nothing.
        self._at = np.ndarray((len(padded) - WORD + 1,), ">u8", padded, strides=(1,))
        self._start = strings.start

    def at(self, rows: npt.NDArray[np.integer], nth: int) -> npt.NDArray[np.uint64]:
        """Bytes 8 * `nth` to 8 * `nth` + 7 of the strings of these rows, zeros behind their ends."""
        words = np.empty(len(rows), np.uint64)
        for batch in batches(len(rows)):
            start = self._start[rows[batch]].astype(np.int64)
            size = np.clip(self._start[rows[batch] + 1] - start - 1 - WORD * nth, 0, WORD)
            at = np.where(size > 0, start + WORD * nth, 0)
            words[batch] = self._at[at].astype(np.uint64) & _MASKS[size]
        return words

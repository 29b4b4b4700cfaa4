"""The tar stream as the walk reads it, and as the chunks that leave behind the walk."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator

from converter.cuts import CutRules, end_of
from lazyfs.formats.tarwalk import Member

HEADER_GRACE = 64 * 1024
"""How much longer than it should be a pack may grow, so that it can still end before the header just read."""


class ChunkedStream:
    """A `tarwalk.Source` that keeps what was read until a chunk of it is complete, and hands that to `emit`,
    with the ranges (start, end) of it that are data of files.

    Holds one chunk and one piece at most: the walk's position decides, so a chunk is emitted as soon as the
    walk has passed its end.
    """

    def __init__(
        self, pieces: Iterator[bytes], rules: CutRules, emit: Callable[[bytes, list[tuple[int, int]]], None]
    ) -> None:
        self._pieces = pieces
        self._rules = rules
        self._emit = emit
        self._piece = b""
        self._at = 0
        self._pending: list[bytes | memoryview] = []
        self._cut = 0
        self._planned: Iterator[int] = iter(())
        self._next_cut: int | None = None
        self._limit: int | None = None
        self._data: deque[tuple[int, int]] = deque()
        self.position = 0

    def read(self, n: int) -> bytes:
        parts: list[bytes | memoryview] = []
        while n > 0 and (part := self._advance(n)):
            parts.append(part)
            n -= len(part)
        return bytes(parts[0]) if len(parts) == 1 else b"".join(parts)

    def skip(self, n: int) -> None:
        while n > 0 and (part := self._advance(n)):
            n -= len(part)

    def plan(self, member: Member, data: Iterable[tuple[int, int]]) -> None:
        """Decide the cuts around a member whose headers have been read, and whose data is (offset, length)."""
        if self._rules.before(member, self._cut):
            self._cut_at(member.header_offset)
        self._data.extend((at, at + length) for at, length in data)
        within = self._rules.within(member)
        if within:
            self._planned = iter(within)
            self._limit = end_of(member)
            self._plan_next()
            self._cut_passed()

    def finish(self) -> None:
        """Emit what is left, the stream having ended."""
        self._next_cut = None
        self._cut_passed()
        self._cut_at(self.position)

    def _advance(self, n: int) -> bytes | memoryview:
        if self._at >= len(self._piece):
            self._piece = next(self._pieces, b"")
            self._at = 0
        part: bytes | memoryview
        if self._at == 0 and len(self._piece) <= n:
            part = self._piece
        else:
            part = memoryview(self._piece)[self._at : self._at + n]
        self._at += len(part)
        if part:
            self._pending.append(part)
            self.position += len(part)
            self._cut_passed()
        return part

    def _plan_next(self) -> None:
        cut = next(self._planned, None)
        self._next_cut = cut if cut is None or self._limit is None else min(cut, self._limit)

    def _cut_passed(self) -> None:
        """Make the cuts that the position has reached: planned ones, else where a chunk would grow too large."""
        while True:
            largest = self._cut + self._rules.chunk_size + HEADER_GRACE
            if self._next_cut is not None and self._next_cut <= largest:
                if self.position < self._next_cut:
                    return
                self._cut_at(self._next_cut)
                self._plan_next()
            elif self.position > largest:
                self._cut_at(largest)
            else:
                return

    def _cut_at(self, offset: int) -> None:
        size = offset - self._cut
        if size <= 0:
            return
        joined = b"".join(self._pending)
        self._emit(joined[:size], self._data_before(offset))
        self._pending = [memoryview(joined)[size:]] if len(joined) > size else []
        self._cut = offset

    def _data_before(self, offset: int) -> list[tuple[int, int]]:
        """The data of the chunk that ends at `offset`, counted from its start."""
        ranges = []
        while self._data and self._data[0][0] < offset:
            start, end = self._data[0]
            ranges.append((max(start, self._cut) - self._cut, min(end, offset) - self._cut))
            if end > offset:
                break
            self._data.popleft()
        return ranges

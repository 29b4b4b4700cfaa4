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
    walk has passed its end. Most calls stay within one piece and before the next cut: they are kept short.
    """

    def __init__(
        self, pieces: Iterator[bytes], rules: CutRules, emit: Callable[[bytes, list[tuple[int, int]]], None]
    ) -> None:
        self._pieces = pieces
        self._rules = rules
        self._emit = emit
        self._piece = b""
        self._start = 0
        """Stream offset of the piece."""
        self._end = 0
        """Stream offset behind the piece."""
        self._earlier: list[memoryview] = []
        """The stream from the last cut to the piece."""
        self._cut = 0
        self._planned: Iterator[int] = iter(())
        self._next_cut: int | None = None
        self._largest = 0
        """Where a chunk ends that has no cut before."""
        self._due = 0
        """The position at which the next cut must be made, planned or because a chunk would grow too large."""
        self._data: deque[tuple[int, int]] = deque()
        self.position = 0
        self._set_due()

    def read(self, n: int) -> bytes:
        at = self.position
        if at + n > self._end:
            return self._read_on(n)
        self.position = at + n
        at -= self._start
        data = self._piece[at : at + n]
        if self.position >= self._due:
            self._cut_passed()
        return data

    def skip(self, n: int) -> None:
        position = self.position + n
        if n > 0 and position <= self._end:
            self.position = position
            if position >= self._due:
                self._cut_passed()
            return
        while n > 0 and (step := self._available(n)):
            self.position += step
            n -= step
            if self.position >= self._due:
                self._cut_passed()

    def plan(self, member: Member, data: Iterable[tuple[int, int]]) -> None:
        """Decide the cuts around a member whose headers have been read, and whose data is (offset, length)."""
        if self._rules.before(member, self._cut):
            self._cut_at(member.header_offset)
        for at, length in data:
            self._data.append((at, at + length))
        if member.stored_size >= self._rules.large_file:
            within = self._rules.within(member)
            limit = end_of(member)
            self._planned = (min(cut, limit) for cut in within)
            self._next_cut = next(self._planned)
            self._set_due()
            self._cut_passed()

    def finish(self) -> None:
        """Emit what is left, the stream having ended."""
        self._next_cut = None
        self._set_due()
        self._cut_passed()
        self._cut_at(self.position)

    def _read_on(self, n: int) -> bytes:
        """Read across the end of the piece."""
        parts: list[bytes] = []
        while n > 0 and (step := self._available(n)):
            parts.append(self.read(step))
            n -= step
        return b"".join(parts)

    def _available(self, n: int) -> int:
        """How many of the next `n` bytes the piece has, the next one being taken where it has none."""
        if self.position == self._end:
            self._earlier.append(memoryview(self._piece)[max(0, self._cut - self._start) :])
            self._piece = next(self._pieces, b"")
            self._start = self._end
            self._end += len(self._piece)
        return min(n, self._end - self.position)

    def _cut_passed(self) -> None:
        """Make the cuts that the position has reached: planned ones, else where a chunk would grow too large."""
        while self.position >= self._due:
            cut = self._next_cut
            if cut is None or cut > self._largest:
                self._cut_at(self._largest)
            else:
                self._next_cut = next(self._planned, None)
                self._cut_at(cut)

    def _set_due(self) -> None:
        self._largest = self._cut + self._rules.chunk_size + HEADER_GRACE
        planned = self._next_cut
        self._due = self._largest + 1 if planned is None or planned > self._largest else planned

    def _cut_at(self, offset: int) -> None:
        if offset > self._cut:
            self._emit(self._take(offset), self._data_before(offset))
            self._cut = offset
        self._set_due()

    def _take(self, offset: int) -> bytes:
        """The stream from the last cut to `offset`, which is let go."""
        end = offset - self._start
        if end >= 0:
            part = memoryview(self._piece)[max(0, self._cut - self._start) : end]
            chunk = b"".join((*self._earlier, part))
            self._earlier.clear()
            return chunk
        joined = b"".join(self._earlier)
        size = offset - self._cut
        self._earlier = [memoryview(joined)[size:]]
        return joined[:size]

    def _data_before(self, offset: int) -> list[tuple[int, int]]:
        """The data of the chunk that ends at `offset`, counted from its start."""
        ranges = []
        data, cut = self._data, self._cut
        while data and data[0][0] < offset:
            start, end = data.popleft()
            if end > offset:
                data.appendleft((start, end))
                end = offset
            ranges.append((start - cut if start > cut else 0, end - cut))
            if end == offset:
                break
        return ranges

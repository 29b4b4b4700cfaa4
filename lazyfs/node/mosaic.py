"""A file put together of parts of devices: an image joined in one file, or a sparse file of an image.

Parts that lie close together on a device are read from it in one piece, so that a megabyte of small files is
a few reads and not hundreds.
"""

import itertools
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lazyfs.errors import LazyfsError, NodeError
from lazyfs.formats.image_paths import Extent
from lazyfs.formats.spread import Pieces
from lazyfs.node.device import RandomAccess

log = logging.getLogger(__name__)

Read = Callable[[int, int], bytes | None]
PAGE = 4096
MAX_GAP = 4096
"""Bytes of a device that are read along between two parts: tar headers, a file that another layer hides."""


@dataclass(slots=True)
class Run:
    """Bytes of one source, and which parts of them go where: (place in the answer, place in the bytes, length)."""

    source: int
    start: int
    length: int
    cuts: list[tuple[int, int, int]]

    @property
    def end(self) -> int:
        return self.start + self.length


class Mosaic:
    """Random access to `size` bytes that `pieces` of `sources` make; what no piece covers is zeros."""

    def __init__(self, size: int, pieces: Pieces, sources: Sequence[RandomAccess]) -> None:
        self._size = size
        self._pieces = pieces
        self._sources = sources
        self._end = pieces.at + pieces.length
        self._by_source: npt.NDArray[np.int64] | None = None

    @property
    def size(self) -> int:
        return self._size

    def peek(self, offset: int, length: int) -> bytes | None:
        return self.gather(offset, length, [source.peek for source in self._sources])

    def gather(self, offset: int, length: int, reads: Sequence[Read]) -> bytes | None:
        """What `peek` gives, read by these functions, one for each source."""
        length = self._clip(offset, length)
        found = []
        for run in self.runs(offset, length):
            data = reads[run.source](run.start, run.length)
            if data is None:
                return None
            found.append((run, data))
        return _put_together(length, found)

    def request(self, offset: int, length: int) -> "Future[bytes]":
        """See `RandomAccess.request`. Everything that is missing is asked for at once."""
        answer: Future[bytes] = Future()
        length = self._clip(offset, length)
        runs = list(self.runs(offset, length))
        asked = [self._sources[run.source].request(run.start, run.length) for run in runs]
        others = itertools.count(len(asked) - 1, -1)

        def finish(_: object = None) -> None:
            if asked and next(others) > 0:  # one step of the interpreter: each caller gets another number
                return
            try:
                data = [each.result() for each in asked]
                answer.set_result(_put_together(length, zip(runs, data, strict=True)))
            except LazyfsError as error:
                answer.set_exception(error)
            except Exception as error:  # whoever waits must hear of it: a callback's exceptions are dropped
                log.exception("%d bytes at %d", length, offset)
                answer.set_exception(NodeError(f"{type(error).__name__}: {error}"))

        for each in asked:
            each.add_done_callback(finish)
        if not asked:
            finish()
        return answer

    def runs(self, offset: int, length: int) -> Iterator[Run]:
        """Which bytes of the sources [offset, offset + length) is made of."""
        pieces = self._pieces
        first = int(np.searchsorted(self._end, offset, side="right"))
        last = int(np.searchsorted(pieces.at, offset + length, side="left"))
        rows = slice(first, max(first, last))
        run: Run | None = None
        columns = (pieces.at, pieces.layer, pieces.start, pieces.length)
        for at, source, start, size in zip(*(column[rows].tolist() for column in columns), strict=True):
            cut = max(offset - at, 0)
            begin, amount = start + cut, min(size, offset + length - at) - cut
            if run is not None and run.source == source and 0 <= begin - run.end <= MAX_GAP:
                run.cuts.append((at + cut - offset, begin - run.start, amount))
                run.length = begin + amount - run.start
                continue
            if run is not None:
                yield run
            run = Run(source, begin, amount, [(at + cut - offset, 0, amount)])
        if run is not None:
            yield run

    def places(self, source: int, start: int, length: int) -> list[tuple[int, int]]:
        """(start, end) of the pages in which these bytes of a source stand, neighbours together.

        Of a run of pages the first and the last may hold other bytes as well, which are elsewhere.
        """
        if self._by_source is None:
            self._by_source = np.lexsort((self._pieces.start, self._pieces.layer))
        order = self._by_source
        here = order[slice(*np.searchsorted(self._pieces.layer[order], (source, source + 1)))]
        first = int(np.searchsorted(self._pieces.start[here], start, side="right"))
        last = int(np.searchsorted(self._pieces.start[here], start + length, side="left"))
        found: list[tuple[int, int]] = []
        for row in here[max(first - 1, 0) : last].tolist():
            begin = max(int(self._pieces.start[row]), start)
            end = min(int(self._pieces.start[row] + self._pieces.length[row]), start + length)
            if begin >= end:
                continue
            shift = int(self._pieces.at[row] - self._pieces.start[row])
            low, high = (begin + shift) // PAGE * PAGE, min(-(-(end + shift) // PAGE) * PAGE, self._size)
            if found and found[-1][1] == low:
                found[-1] = found[-1][0], high
            else:
                found.append((low, high))
        return found

    def _clip(self, offset: int, length: int) -> int:
        return max(0, min(length, self._size - offset))


def sparse_file(size: int, found: Sequence[Extent], devices: Sequence[RandomAccess]) -> Mosaic:
    """A sparse file whose data lie at these extents of its layer's device."""
    rows = [(each.offset, each.layer, each.start, each.length) for each in found]
    columns = np.array(rows, np.int64).reshape(-1, 4).T
    return Mosaic(size, Pieces(columns[0], columns[1], columns[2], columns[3]), devices)


class FileBytes:
    """Random access to a file of this node, which is not changed any more."""

    def __init__(self, path: Path) -> None:
        try:
            self._file = path.open("rb", buffering=0)
            self._size = path.stat().st_size
        except OSError as error:
            raise NodeError(f"{path}: {error.strerror}") from error
        self._path = path

    def close(self) -> None:
        self._file.close()

    @property
    def size(self) -> int:
        return self._size

    def peek(self, offset: int, length: int) -> bytes:
        try:
            return os.pread(self._file.fileno(), length, offset)
        except OSError as error:
            raise NodeError(f"{self._path}: {error.strerror}") from error

    def request(self, offset: int, length: int) -> "Future[bytes]":
        answer: Future[bytes] = Future()
        try:
            answer.set_result(self.peek(offset, length))
        except NodeError as error:
            answer.set_exception(error)
        return answer


def _put_together(length: int, found: Iterable[tuple[Run, bytes]]) -> bytes:
    """Raises NodeError where a source gave less than it was asked for."""
    parts: list[bytes | memoryview] = []
    at = 0
    for run, data in found:
        if len(data) != run.length:
            raise NodeError(f"{len(data)} bytes instead of {run.length} at {run.start}")
        view = memoryview(data)
        for place, begin, amount in run.cuts:
            parts += [bytes(place - at), view[begin : begin + amount]]
            at = place + amount
    parts.append(bytes(length - at))
    return b"".join(parts)

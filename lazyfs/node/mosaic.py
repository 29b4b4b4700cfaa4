"""A file put together of parts of devices: an image joined in one file, or a sparse file of an image.

Parts that lie close together on a device are read from it in one piece, so that a megabyte of small files is
a few reads and not hundreds.
"""

import itertools
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lazyfs.errors import LazyfsError, NodeError
from lazyfs.formats.spread import Pieces
from lazyfs.node.device import RandomAccess

log = logging.getLogger(__name__)

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

    @property
    def size(self) -> int:
        return self._size

    def peek(self, offset: int, length: int) -> bytes | None:
        length = self._clip(offset, length)
        found = []
        for run in self.runs(offset, length):
            data = self._sources[run.source].peek(run.start, run.length)
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

    def _clip(self, offset: int, length: int) -> int:
        return max(0, min(length, self._size - offset))


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

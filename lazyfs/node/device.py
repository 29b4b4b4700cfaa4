"""The device of a layer: random access to its tar stream, from the cache or from the store.

    reader -> device.peek       everything there: bytes, at once
           -> device.request    something missing: a future; one flight per chunk whoever asks

This is all that a front end (FUSE) sees of the node.
"""

import errno
import logging
import threading
from collections.abc import Iterator
from concurrent.futures import CancelledError, Future
from contextlib import contextmanager
from functools import partial
from typing import Protocol

from lazyfs.errors import LazyfsError, NodeError
from lazyfs.node.cache import LayerCache
from lazyfs.node.fetch import Fetcher
from lazyfs.node.plan import Countdown
from lazyfs.node.windows import Windows

log = logging.getLogger(__name__)


class AskForLessError(LazyfsError):
    """Not now: a page alone can be had sooner than all that was asked for ahead of any reader."""

    errno = errno.EAGAIN


class RandomAccess(Protocol):
    """What a front end may ask of a device."""

    @property
    def size(self) -> int:
        """Bytes."""
        ...

    def peek(self, offset: int, length: int) -> bytes | None:
        """The bytes at `offset` if all are on this machine and proved, else None; waits for no network and no disk.

        Shorter than `length` only at the end of the device.
        """
        ...

    def request(self, offset: int, length: int) -> "Future[bytes]":
        """As `peek`, after fetching what is missing, or reading it from a disk.

        The future raises LazyfsError; asking again tries anew.
        """
        ...


@contextmanager
def _told(answer: "Future[bytes]") -> Iterator[None]:
    """Whoever waits for the answer hears of what goes wrong: a callback's exceptions are dropped."""
    try:
        yield
    except CancelledError:
        answer.set_exception(NodeError("the node is closing"))
    except LazyfsError as error:
        answer.set_exception(error)
    except Exception as error:
        log.exception("a read")
        answer.set_exception(NodeError(f"{type(error).__name__}: {error}"))


class LayerDevice:
    """One layer's device. Thread safe."""

    def __init__(self, cache: LayerCache, fetcher: Fetcher) -> None:
        self._cache = cache
        self._fetcher = fetcher
        self._chunks = cache.chunks
        self._windows = Windows(self.size)
        self._watching = threading.Lock()

    @property
    def size(self) -> int:
        return self._chunks.device_size

    def peek(self, offset: int, length: int) -> bytes | None:
        length = self._clip(offset, length)
        if not length:
            return b""
        if not self._cache.is_at_hand(offset, length):
            return None
        data = self._cache.read(offset, length)
        if data is not None:
            self._foresee(offset, offset + length)
        return data

    def request(self, offset: int, length: int) -> "Future[bytes]":
        answer: Future[bytes] = Future()
        length = self._clip(offset, length)
        if length and self._cache.has(offset, length):
            self._read_disk(answer, offset, length)
        elif length and self._lies_on_disk(offset, length):
            self._fetch_beside_disk(answer, offset, length)
        else:
            self._fetch(answer, offset, length)
        if length:
            self._foresee(offset, offset + length)
        return answer

    def _read_disk(self, answer: "Future[bytes]", offset: int, length: int) -> None:
        def done(read: "Future[bytes | None]") -> None:
            with _told(answer):
                data = read.result()
                if data is not None:
                    answer.set_result(data)
                else:  # the disk does not give it back, or it was dropped meanwhile
                    self._fetch(answer, offset, length)

        self._fetcher.from_disk(partial(self._cache.read, offset, length)).add_done_callback(done)

    def _lies_on_disk(self, offset: int, length: int) -> bool:
        """Would some of what is here keep a reader waiting for the disk?"""
        spans = [self._span(index, offset, length) for index in self._chunks.covering(offset, length)]
        here = [(low, high - low) for low, high in spans if self._cache.has(low, high - low)]
        return not all(self._cache.is_at_hand(*each) for each in here)

    def _fetch_beside_disk(self, answer: "Future[bytes]", offset: int, length: int) -> None:
        """`_fetch` by a thread that may wait for the disk; what is missing is on its way meanwhile."""
        spans = {index: self._span(index, offset, length) for index in self._chunks.covering(offset, length)}
        missing = [index for index, (low, high) in spans.items() if not self._cache.has(low, high - low)]
        self._fetcher.flights(missing)

        def done(fetching: "Future[None]") -> None:
            with _told(answer):
                fetching.result()

        self._fetcher.from_disk(partial(self._fetch, answer, offset, length)).add_done_callback(done)

    def _fetch(self, answer: "Future[bytes]", offset: int, length: int) -> None:
        indexes = self._chunks.covering(offset, length) if length else range(0)
        pieces = {index: self._cached(index, offset, length) for index in indexes}
        flights = self._fetcher.flights(index for index in indexes if pieces[index] is None)
        waiting = Countdown(len(flights))

        def finish() -> None:
            try:
                with _told(answer):
                    for flight in flights:
                        low, high = self._span(flight.index, offset, length)
                        start = int(self._chunks.start[flight.index])
                        pieces[flight.index] = flight.future.result()[low - start : high - start]
                    answer.set_result(b"".join(piece for piece in pieces.values() if piece is not None))
            finally:
                # A flight knows this function, which knows the flight: the bytes would wait for the collector.
                flights.clear()
                pieces.clear()

        if not flights:
            finish()
        for flight in tuple(flights):
            flight.future.add_done_callback(lambda _: finish() if waiting.last() else None)

    def _foresee(self, offset: int, end: int) -> None:
        """Fetch what a sequential reader comes to next."""
        with self._watching:
            low, high = self._windows.observe(offset, end)
        if low < high:
            self._fetcher.ahead_of_reader(low, high)

    def _clip(self, offset: int, length: int) -> int:
        return max(0, min(length, self.size - offset))

    def _span(self, index: int, offset: int, length: int) -> tuple[int, int]:
        """Which part of [offset, offset + length) lies in the chunk: (start, end) on the device."""
        start, end = int(self._chunks.start[index]), int(self._chunks.start[index + 1])
        return max(offset, start), min(offset + length, end)

    def _cached(self, index: int, offset: int, length: int) -> bytes | None:
        """The part of the chunk that is wanted, from the cache."""
        low, high = self._span(index, offset, length)
        return self._cache.read(low, high - low)

"""The device of a layer: random access to its tar stream, from the cache or from the store.

    reader -> device.peek       everything there: bytes, at once
           -> device.request    something missing: a future; one flight per chunk whoever asks

This is all that a front end (FUSE) sees of the node.
"""

import logging
import threading
from concurrent.futures import Future
from typing import Protocol

from lazyfs.errors import LazyfsError, NodeError
from lazyfs.node.cache import LayerCache
from lazyfs.node.fetch import Fetcher

log = logging.getLogger(__name__)


class RandomAccess(Protocol):
    """What a front end may ask of a device."""

    @property
    def size(self) -> int:
        """Bytes."""
        ...

    def peek(self, offset: int, length: int) -> bytes | None:
        """The bytes at `offset` if all are on this machine and proved, else None; never waits on a network.

        Shorter than `length` only at the end of the device.
        """
        ...

    def request(self, offset: int, length: int) -> "Future[bytes]":
        """As `peek`, after fetching what is missing. The future raises LazyfsError; asking again tries anew."""
        ...


class LayerDevice:
    """One layer's device. Thread safe."""

    def __init__(self, cache: LayerCache, fetcher: Fetcher) -> None:
        self._cache = cache
        self._fetcher = fetcher
        self._chunks = cache.chunks

    @property
    def size(self) -> int:
        return self._chunks.device_size

    def peek(self, offset: int, length: int) -> bytes | None:
        length = self._clip(offset, length)
        return self._cache.read(offset, length) if length else b""

    def request(self, offset: int, length: int) -> "Future[bytes]":
        answer: Future[bytes] = Future()
        length = self._clip(offset, length)
        indexes = self._chunks.covering(offset, length) if length else range(0)
        pieces = {index: self._cached(index, offset, length) for index in indexes}
        flights = self._fetcher.flights(index for index in indexes if pieces[index] is None)
        waiting = _Countdown(len(flights))

        def finish() -> None:
            try:
                for flight in flights:
                    low, high = self._span(flight.index, offset, length)
                    start = int(self._chunks.start[flight.index])
                    pieces[flight.index] = flight.future.result()[low - start : high - start]
                answer.set_result(b"".join(piece for piece in pieces.values() if piece is not None))
            except LazyfsError as error:
                answer.set_exception(error)
            except Exception as error:  # whoever waits must hear of it: a callback's exceptions are dropped
                log.exception("%d bytes at %d", length, offset)
                answer.set_exception(NodeError(f"{type(error).__name__}: {error}"))

        if not flights:
            finish()
        for flight in flights:
            flight.future.add_done_callback(lambda _: finish() if waiting.last() else None)
        return answer

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


class _Countdown:
    """Tells the last of `count` callers, on whichever thread, that it is the last."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._lock = threading.Lock()

    def last(self) -> bool:
        with self._lock:
            self._count -= 1
            return self._count == 0

"""The bytes of a launch pack as they come from a store."""

import time
from collections.abc import Iterator
from contextlib import suppress

from lazyfs.errors import IntegrityError, LazyfsError, StoreError
from lazyfs.formats.oci_descriptor import PackLocation
from lazyfs.stores.base import Store

PIECE = 64 * 1024
"""Of the stream: what is here can be used, however slow the link is."""


class PackStream:
    """The bytes of a pack from one request, and from more where something is left out."""

    def __init__(self, store: Store, location: PackLocation) -> None:
        self._store = store
        self._location = location
        self._pieces: Iterator[bytes] | None = None
        self._buffer = bytearray()
        self._asked = 0.0
        self._answered = 0.0
        self._closed = False
        self.position = 0
        """Of what `take` gives next."""
        self.received = 0

    def take(self, length: int) -> bytes:
        """The next bytes. StoreError where the pack ends before."""
        while len(self._buffer) < length:
            if self._closed:
                raise StoreError("stopped")
            pieces = self._pieces
            if pieces is None:
                self._asked = time.monotonic()
                at = self.position + len(self._buffer)
                pieces = self._pieces = self._store.stream(self._location.digest, at, PIECE)
            try:
                piece = next(pieces, None)
            except ValueError as error:  # another thread is in it, to close it
                raise StoreError("stopped") from error
            if piece is None and self._closed:
                raise StoreError("stopped")
            if piece is None:
                raise IntegrityError(f"launch pack: it ends after {self.position + len(self._buffer)} bytes")
            self._answered = self._answered or time.monotonic()
            self.received += len(piece)
            self._buffer += piece
        data = bytes(self._buffer[:length])
        del self._buffer[:length]
        self.position += length
        return data

    def seek(self, position: int, worth: int) -> None:
        """Go on at `position`, by a new request if that leaves out more than `worth` bytes."""
        skipped = position - self.position
        if skipped <= len(self._buffer) or (skipped <= worth and self._pieces is not None):
            self.take(skipped)
            return
        self._hang_up()
        self._buffer.clear()
        self.position = position

    def is_soon(self, end: int, wanted: int) -> bool:
        """Will the stream be at `end` before `wanted` bytes could come by a request beside it?

        That would take a round trip, and half of the link: the stream goes on meanwhile.
        """
        behind = end - self.position - len(self._buffer)
        elapsed = time.monotonic() - self._answered
        if not self._answered or elapsed <= 0 or not self.received:
            return True
        rate = self.received / elapsed
        return behind / rate <= (self._answered - self._asked) + 2 * wanted / rate

    def close(self) -> None:
        self._closed = True
        self._hang_up()

    def _hang_up(self) -> None:
        close = getattr(self._pieces, "close", None)
        if close is not None:
            # Another thread may be in it just now: it finds out by itself.
            with suppress(ValueError, LazyfsError):
                close()
        self._pieces = None

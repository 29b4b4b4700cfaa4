"""Chunks that nobody gave right a moment ago: who reads them again at once is told the same at once.

A reader of a damaged file asks for each piece of a chunk anew, and whoever finds an error tries again; each time the
whole chunk would be fetched, decoded and found damaged. Only for a moment, though: a store that was mended is read
again without anybody's help.
"""

import threading
import time
from collections.abc import Iterable

from lazyfs.errors import LazyfsError

REMEMBER_SECONDS = 1.0
_MAX_CHUNKS = 4096


class Damage:
    """Of one layer. Thread safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._found: dict[int, tuple[float, LazyfsError]] = {}

    def note(self, chunks: Iterable[int], error: LazyfsError) -> None:
        """Each of their sources gave them wrong."""
        until = time.monotonic() + REMEMBER_SECONDS
        with self._lock:
            if len(self._found) >= _MAX_CHUNKS:
                self._found.clear()
            self._found.update((chunk, (until, error)) for chunk in chunks)

    def of(self, chunk: int) -> LazyfsError | None:
        """What was wrong with it, if that was just now."""
        if not self._found:
            return None
        with self._lock:
            until, error = self._found.get(chunk, (0.0, None))
            if error is None:
                return None
            if time.monotonic() >= until:
                del self._found[chunk]
                return None
        return type(error)(error.message, hint=error.hint)

    def forget(self) -> None:
        """There may be another source now."""
        with self._lock:
            self._found.clear()

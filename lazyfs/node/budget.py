"""A budget of bytes: how much of what is fetched may be in memory at a time."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Budget:
    """Who holds none yet may always take what he needs alone, so nobody waits for ever. Thread safe."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._used = 0
        self._freed = threading.Condition()

    @property
    def limit(self) -> int:
        return self._limit

    def set_limit(self, limit: int) -> None:
        """From now on; what is held already is given back in its time."""
        with self._freed:
            self._limit = limit
            self._freed.notify_all()

    @contextmanager
    def take(self, size: int) -> Iterator[None]:
        """Wait until there is room for `size` bytes, which are given back at the end. Not to be nested."""
        with self._freed:
            while self._used and self._used + size > self._limit:
                self._freed.wait()
            self._used += size
        try:
            yield
        finally:
            with self._freed:
                self._used -= size
                self._freed.notify_all()

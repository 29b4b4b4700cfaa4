"""How long a server takes to begin its answers, and whether it keeps somebody waiting now."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

_LEAST = 0.25
"""Seconds. Less says nothing: the fetch engine asks a second time after 0.3 s at the soonest."""
_TIMES = 3.0


class Waits:
    """Of one server. Thread safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._since: list[float] = []
        self._usual = 0.0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Until the head of an answer has come, or none will."""
        began = time.monotonic()
        with self._lock:
            self._since.append(began)
        try:
            yield
            with self._lock:
                self._usual += (time.monotonic() - began - self._usual) / 8
        finally:
            with self._lock:
                self._since.remove(began)

    def too_long(self) -> bool:
        """Whether somebody waits for much longer than is usual: who asks now had better ask elsewhere."""
        with self._lock:
            patience = max(_LEAST, self._usual * _TIMES)
            return bool(self._since) and time.monotonic() - self._since[0] > patience

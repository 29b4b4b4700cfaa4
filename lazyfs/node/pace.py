"""How far away a store is, and how fast: by the ranged reads that it answered of late."""

import threading
from collections import deque
from dataclasses import dataclass

FEW = 4
"""Reads that say nothing yet."""
_LATEST = 16
_MUCH = 64 << 10
"""Bytes; how long less takes says little of a link."""


@dataclass(frozen=True, slots=True)
class _Answer:
    """A read gave `first` bytes after `waited` seconds, then `more` bytes in `rest` seconds."""

    waited: float
    first: int
    rest: float
    more: int


class Pace:
    """Thread safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._answers: deque[_Answer] = deque(maxlen=_LATEST)
        self._streams: deque[_Answer] = deque(maxlen=_LATEST)

    def answered(self, waited: float, first: int, rest: float, more: int) -> None:
        answer = _Answer(waited, first, rest, more)
        with self._lock:
            self._answers.append(answer)
            if more >= _MUCH and rest > 0:
                self._streams.append(answer)

    def round_trip(self) -> float:
        """Seconds from a question to the first byte of its answer, at best: a busy machine makes no store farther away.

        0 while next to nothing is known.
        """
        with self._lock:
            rate = self._rate()
            if len(self._answers) < FEW or not rate:
                return 0.0
            return max(0.0, min(each.waited - each.first / rate for each in self._answers))

    def rate(self) -> float:
        """Bytes a second, of one read; 0 while nothing is known."""
        with self._lock:
            return self._rate()

    def _rate(self) -> float:
        if self._streams:
            return sum(each.more for each in self._streams) / sum(each.rest for each in self._streams)
        # Too little, since all that came waited for a round trip as well. Twice as much can be had at least.
        return 2 * max((each.first / each.waited for each in self._answers if each.waited > 0), default=0.0)

"""One thread that looks again, later: at reads whose answer is late. It sleeps while there are none."""

import heapq
import itertools
import logging
import threading
import time
from collections.abc import Callable

log = logging.getLogger(__name__)

_GRID = 0.05
"""Seconds. Looks are put together, so that a thousand reads a second cost twenty."""

Look = Callable[[], float | None]
"""Gives when to look again (`time.monotonic`), or None when there is nothing more to see."""


class Watch:
    """Thread safe."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._due: list[tuple[float, int, Look]] = []
        self._numbers = itertools.count()
        self._thread: threading.Thread | None = None
        self._closed = False

    def at(self, moment: float, look: Look) -> None:
        moment = (moment // _GRID + 1) * _GRID
        with self._changed:
            if self._closed:
                return
            earliest = self._due[0][0] if self._due else float("inf")
            heapq.heappush(self._due, (moment, next(self._numbers), look))
            if self._thread is None:
                thread = threading.Thread(target=self._run, name="watch", daemon=True)
                try:
                    thread.start()
                except RuntimeError as error:  # no thread can be had just now; the next read tries again
                    log.warning("nobody looks after reads: %s", error)
                else:
                    self._thread = thread
            elif moment < earliest:
                self._changed.notify()

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._due.clear()
            self._changed.notify()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        while (looks := self._wait()) is not None:
            for look in looks:
                try:
                    again = look()
                except Exception:  # the others must still be looked at
                    log.exception("looking after a read")
                else:
                    if again is not None:
                        self.at(again, look)

    def _wait(self) -> list[Look] | None:
        """What is due now, at least one; None at the end."""
        with self._changed:
            while not self._closed:
                now = time.monotonic()
                if self._due and self._due[0][0] <= now:
                    looks = []
                    while self._due and self._due[0][0] <= now:
                        looks.append(heapq.heappop(self._due)[2])
                    return looks
                self._changed.wait(self._due[0][0] - now if self._due else None)
            return None

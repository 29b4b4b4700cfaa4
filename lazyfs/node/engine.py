"""What all fetchers of a node share: threads, memory, time, and the record of what they did."""

import threading
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

from lazyfs.node.budget import Budget
from lazyfs.node.crew import Crew
from lazyfs.node.pace import Pace
from lazyfs.node.timeline import Timeline
from lazyfs.node.watch import Watch

TIMEOUT = 60.0
MEMORY = 64 << 20
DISK_THREADS = 4
"""For reads of what is here, but not in the page cache."""

_HEDGE_AFTER = 0.3
_HEDGE_TIMES = 4.0
"""A read is asked again when nothing of it came in so many times the usual."""
_HEDGE_SHARE = 0.05
_FREE_HEDGES = 2


class Engine:
    """`timeout` is for one read, in seconds; `memory` for what is being decoded, in bytes. Thread safe."""

    def __init__(
        self,
        timeline: Timeline,
        *,
        timeout: float = TIMEOUT,
        memory: int = MEMORY,
        crew: Crew | None = None,
    ) -> None:
        self.timeline = timeline
        self.timeout = timeout
        self.crew = crew or Crew()
        self.budget = Budget(memory)
        self.watch = Watch()
        self.disk = ThreadPoolExecutor(DISK_THREADS, thread_name_prefix="disk")
        self._lock = threading.Lock()
        self._usual = _HEDGE_AFTER / _HEDGE_TIMES
        self._asked = self._hedged = 0
        self._paces: dict[str, Pace] = {}

    def patience(self) -> float:
        """Seconds without a byte after which a read is asked a second time."""
        return max(_HEDGE_AFTER, self._usual * _HEDGE_TIMES)

    def answered(self, seconds: float) -> None:
        """A store took so long until the first chunk of a read was here."""
        with self._lock:
            self._asked += 1
            self._usual += (seconds - self._usual) / 8

    def pace(self, url: str) -> Pace:
        """What is known of the host that this store is on."""
        with self._lock:
            return self._paces.setdefault(urlsplit(url).netloc, Pace())

    def may_hedge(self) -> bool:
        """Second requests are a small share of all: a store that is slow must not get twice the work."""
        with self._lock:
            if self._hedged >= _FREE_HEDGES + self._asked * _HEDGE_SHARE:
                return False
            self._hedged += 1
        self.timeline.hedged()
        return True

    def close(self) -> None:
        self.watch.close()
        self.disk.shutdown(cancel_futures=True)
        self.crew.close()

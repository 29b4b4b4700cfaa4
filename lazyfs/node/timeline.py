"""What was fetched when, and what went wrong: counters and a bounded record, for status and pictures."""

import threading
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

MAX_EVENTS = 20_000
MAX_RECORDED = 400_000
"""Reads, while a start is recorded page by page."""
MAX_FAILURES = 50


@dataclass(frozen=True, slots=True)
class Fetched:
    """One ranged read: [start, end) of a layer's device for `stored` bytes of blob; times are `time.monotonic`."""

    layer: str
    start: int
    end: int
    stored: int
    began: float
    ended: float


@dataclass(frozen=True, slots=True)
class Read:
    """One read of a layer's device by the kernel; `waited` says whether it could not be answered at once."""

    layer: str
    offset: int
    size: int
    waited: bool
    at: float


class Timeline:
    """Thread safe; the oldest events are forgotten first."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._events: deque[Fetched] = deque(maxlen=MAX_EVENTS)
        self._reads: deque[Read] = deque(maxlen=MAX_EVENTS)
        self._read_count = 0
        self._failures: deque[str] = deque(maxlen=MAX_FAILURES)
        self._requests = 0
        self._stored_bytes = 0
        self._plain_bytes = 0
        self._filled_bytes = 0
        self._hedges = 0
        self._failed = 0
        self._cache_failures = 0

    def keep_reads(self) -> None:
        """Forget no reads from now on, or only after very many: a start is to be recorded."""
        self._reads = deque(self._reads.copy(), maxlen=MAX_RECORDED)

    def fetched(
        self, layer: str, start: int, end: int, stored: int, began: float, *, fill: bool = False
    ) -> None:
        """`fill`: nobody has asked for it, nor is about to."""
        event = Fetched(layer, start, end, stored, began, time.monotonic())
        with self._lock:
            self._events.append(event)
            self._requests += 1
            self._stored_bytes += stored
            if fill:
                self._filled_bytes += end - start
            else:
                self._plain_bytes += end - start

    def hedged(self) -> None:
        """A read was asked a second time."""
        with self._lock:
            self._hedges += 1

    def read(self, layer: str, offset: int, size: int, waited: bool) -> None:
        # Called by one thread, for each read: no lock.
        self._reads.append(Read(layer, offset, size, waited, time.monotonic()))
        self._read_count += 1

    def small_read(self, stored: int) -> None:
        """A read of a document (manifest, config, TOC) from the store."""
        with self._lock:
            self._requests += 1
            self._stored_bytes += stored

    def failed(self, layer: str, reason: str) -> None:
        with self._lock:
            self._failed += 1
            self._remember(f"{layer}: {reason}")

    def cache_failed(self, reason: str) -> None:
        with self._lock:
            self._cache_failures += 1
            self._remember(f"cache: {reason}")

    def _remember(self, failure: str) -> None:
        """Each once, the latest last: a thousand reads that fail alike must not push out what else went wrong."""
        with suppress(ValueError):
            self._failures.remove(failure)
        self._failures.append(failure)

    def counters(self) -> dict[str, Any]:
        """Totals since the daemon started, JSON-able."""
        with self._lock:
            return {
                "requests": self._requests,
                "store_bytes": self._stored_bytes,
                "fetched_bytes": self._plain_bytes,
                "filled_bytes": self._filled_bytes,
                "second_requests": self._hedges,
                "device_reads": self._read_count,
                "failed_fetches": self._failed,
                "cache_write_failures": self._cache_failures,
                "recent_failures": list(self._failures),
            }

    def since(self, moment: float) -> tuple[list[Fetched], list[Read]]:
        """What was read, and begun to be fetched, after `moment` (`time.monotonic`)."""
        with self._lock:
            fetched = [event for event in self._events if event.began >= moment]
        return fetched, [read for read in self._reads.copy() if read.at >= moment]

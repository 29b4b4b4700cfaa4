"""The threads that fetch: one crew for a node, and what is urgent first.

    DEMAND      somebody waits for it
    PREFETCH    somebody will soon: what a sequential reader comes to next, what a start is known to read
    FILL        nobody yet: the rest of layers that are in use

A lane that is not urgent has few threads, so that demand always finds one. Threads are started when they are needed and
wait for work without using any time.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from enum import IntEnum

log = logging.getLogger(__name__)

THREADS = (40, 8, 2)
"""At most, of each lane. A thread that waits for an answer costs some 50 KB."""
_STACK = 512 * 1024

CLOSE_SECONDS = 2.0
"""For what is being done when the node closes: readers wait for the next daemon. The threads end with the process."""


class Lane(IntEnum):
    DEMAND = 0
    PREFETCH = 1
    FILL = 2


class Crew:
    """Does what is submitted, each lane in order. Thread safe."""

    def __init__(self, threads: Sequence[int] = THREADS) -> None:
        self._limits = tuple(threads)
        self._changed = threading.Condition()
        self._queues: tuple[deque[Callable[[], object]], ...] = tuple(deque() for _ in Lane)
        self._running = [0 for _ in Lane]
        self._idle = 0
        self._threads: list[threading.Thread] = []
        self._closed = False
        self._busy_at = 0.0

    def submit(self, lane: Lane, work: Callable[[], object]) -> None:
        """Raises RuntimeError when there is no thread to do it, or the crew is closed."""
        with self._changed:
            if self._closed:
                raise RuntimeError("the node is closing")
            self._queues[lane].append(work)
            if lane is not Lane.FILL:
                self._busy_at = time.monotonic()
            if self._idle >= self._due():
                self._changed.notify()
            elif len(self._threads) < sum(self._limits):
                self._start_thread(lane, work)

    def quiet_for(self) -> float:
        """Seconds since there was something more urgent than to fill; 0 while there is."""
        with self._changed:
            if any(self._queues[: Lane.FILL]) or any(self._running[: Lane.FILL]):
                return 0.0
            return time.monotonic() - self._busy_at

    def demanded(self) -> int:
        """How much that somebody waits for is being done, or is to be."""
        with self._changed:
            return len(self._queues[Lane.DEMAND]) + self._running[Lane.DEMAND]

    def close(self) -> None:
        """Wait for what is being done, though not for stores that say nothing; what is queued is given up."""
        with self._changed:
            self._closed = True
            for queue in self._queues:
                queue.clear()
            self._changed.notify_all()
        ends = time.monotonic() + CLOSE_SECONDS
        for thread in self._threads:
            thread.join(max(0.0, ends - time.monotonic()))

    def _due(self) -> int:
        """How much of what is queued may be done now: what waits for its lane alone wants no thread."""
        return sum(
            min(len(queue), limit - running)
            for queue, limit, running in zip(self._queues, self._limits, self._running, strict=True)
        )

    def _start_thread(self, lane: Lane, work: Callable[[], object]) -> None:
        thread = threading.Thread(target=self._work, name=f"fetch-{len(self._threads)}", daemon=True)
        before = threading.stack_size(_STACK)
        try:
            thread.start()
        except RuntimeError:
            if not self._threads:  # nobody would ever do it
                self._queues[lane].remove(work)
                raise
            return
        finally:
            threading.stack_size(before)
        self._threads.append(thread)
        self._idle += 1  # until it has had a look

    def _work(self) -> None:
        with self._changed:
            self._idle -= 1
        while (taken := self._take()) is not None:
            lane, work = taken
            try:
                work()
            except Exception:  # a thread that ends would be missed by all work to come
                log.exception("fetching")
            finally:
                del work, taken
                self._done(lane)

    def _take(self) -> tuple[Lane, Callable[[], object]] | None:
        with self._changed:
            while True:
                if self._closed:
                    return None
                for lane in Lane:
                    if self._queues[lane] and self._running[lane] < self._limits[lane]:
                        self._running[lane] += 1
                        work = self._queues[lane].popleft()
                        # Who has left a lane for a more urgent one has left its place there to somebody else.
                        if self._idle and self._due():
                            self._changed.notify()
                        return lane, work
                self._idle += 1
                self._changed.wait()
                self._idle -= 1

    def _done(self, lane: Lane) -> None:
        with self._changed:
            self._running[lane] -= 1
            if lane is not Lane.FILL:
                self._busy_at = time.monotonic()

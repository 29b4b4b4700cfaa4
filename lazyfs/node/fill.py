"""The background: what is in use is fetched whole while nobody else needs the link, layer after layer.

So a node depends on its registry for as short a time as can be. Whoever reads comes first: a fill that is under way
makes way at the next chunk. Nothing is dropped from the cache for what nobody has asked for: with little room left, the
rest of a layer is not fetched. What has been filled can be judged: whoever adds a layer may say how.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import CancelledError, Future, wait
from functools import partial

from lazyfs.errors import LazyfsError, StoreError
from lazyfs.node.cache import LayerCache
from lazyfs.node.crew import CLOSE_SECONDS, Crew, Lane
from lazyfs.node.fetch import Fetcher

log = logging.getLogger(__name__)

GoOn = Callable[[], bool]
Judge = Callable[[GoOn], None]
"""What is done with a layer that is here whole. It asks its argument before each step, and stops when that says no."""

IDLE_SECONDS = 5.0
"""Without a read that had to wait, before anything is fetched that nobody asked for."""
_BATCH = 32
_PAUSE_AFTER_ERROR = 60.0
_LOOK_SECONDS = 0.5


class Filler:
    """One thread, which sleeps while there is nothing to fill. Thread safe."""

    def __init__(
        self,
        crew: Crew,
        may_fill: Callable[[LayerCache], bool] = lambda _: True,
        is_busy: Callable[[], bool] = lambda: False,
        *,
        idle: float = IDLE_SECONDS,
        pause: float = _PAUSE_AFTER_ERROR,
    ) -> None:
        """`may_fill` says whether a cache has room to spare, `is_busy` whether the link is wanted by more than `crew`.

        `pause` is how long to leave a store alone that did not answer, in seconds.
        """
        self._crew = crew
        self._may_fill = may_fill
        self._is_busy = is_busy
        self._idle = idle
        self._pause = pause
        self._changed = threading.Condition()
        self._waiting: deque[tuple[Fetcher, LayerCache]] = deque()
        self._known: dict[Fetcher, Judge | None] = {}
        self._resting: dict[Fetcher, float] = {}
        """Until when the store of a layer that waits is left alone."""
        self._thread: threading.Thread | None = None
        self._closed = False
        self._added_at = 0.0

    def add(self, fetcher: Fetcher, cache: LayerCache, judge: Judge | None = None) -> None:
        """Fill this layer in its turn, and judge it then; nothing happens if both were done, or are to be."""
        with self._changed:
            if fetcher in self._known:
                self._known[fetcher] = judge or self._known[fetcher]
                return
            whole = cache.present_bytes() >= cache.chunks.device_size
            if self._closed or (whole and judge is None):
                return
            self._known[fetcher] = judge
            self._added_at = time.monotonic()  # who opens an image is about to read
            self._waiting.append((fetcher, cache))
            if self._thread is None:
                thread = threading.Thread(target=self._run, name="fill", daemon=True)
                try:
                    thread.start()
                except RuntimeError as error:  # no thread can be had just now; the next layer tries again
                    log.warning("nothing is filled: %s", error)
                else:
                    self._thread = thread
            self._changed.notify()

    def forget(self, fetcher: Fetcher) -> None:
        """Nobody uses this layer any more: what of it is on its way still comes, and nothing else."""
        with self._changed:
            self._known.pop(fetcher, None)
            self._resting.pop(fetcher, None)
            self._waiting = deque(each for each in self._waiting if each[0] is not fetcher)

    def layers_left(self) -> int:
        """Layers that are being filled, or wait for it."""
        return len(self._known)

    def close(self) -> None:
        """A proof that waits for its store is not waited for."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join(CLOSE_SECONDS)

    def _run(self) -> None:
        while (layer := self._next()) is not None:
            fetcher, cache = layer
            unjudged = False
            try:
                if self._fill(fetcher, cache):
                    judge = self._known.get(fetcher)
                    unjudged = judge is None
                    if judge is not None:
                        judge(partial(self._goes_on, fetcher))
            except StoreError as error:
                # Others meanwhile: their stores may answer.
                log.info("filling waits: %s", error)
                with self._changed:
                    if fetcher in self._known:
                        self._waiting.append(layer)
                        self._resting[fetcher] = time.monotonic() + self._pause
                continue
            except LazyfsError as error:
                log.warning("the background: %s", error)
            except Exception:  # other layers must still be filled
                log.exception("filling a layer")
            with self._changed:
                if unjudged and self._known.get(fetcher) is not None:
                    self._waiting.append(layer)  # who wants it judged came just now
                else:
                    self._known.pop(fetcher, None)

    def _next(self) -> tuple[Fetcher, LayerCache] | None:
        """The first whose store is not to be left alone just now; None when the node is closing."""
        with self._changed:
            while not self._closed:
                now = time.monotonic()
                for layer in self._waiting:
                    if self._resting.get(layer[0], now) <= now:
                        self._waiting.remove(layer)
                        self._resting.pop(layer[0], None)
                        return layer
                ends = [self._resting[fetcher] for fetcher, _ in self._waiting]
                self._changed.wait(min(ends) - now if ends else None)
            return None

    def _fill(self, fetcher: Fetcher, cache: LayerCache) -> bool:
        """False where something is still missing, and is left missing."""
        index = 0
        while index < len(cache.chunks) and self._is_quiet():
            batch = range(index, min(index + _BATCH, len(cache.chunks)))
            if fetcher not in self._known or not fetcher.has_room() or not self._may_fill(cache):
                return False
            if self._landed(fetcher.ahead(batch, Lane.FILL)):
                index = batch.stop
        return not self._closed

    def _landed(self, futures: "list[Future[bytes]]") -> bool:
        """Wait for them; False where they made way for somebody. Raises the LazyfsError of one that failed."""
        missing = set(futures)
        while missing and not self._closed:
            missing = wait(missing, timeout=_LOOK_SECONDS).not_done
        try:
            for future in futures:
                if future.done():
                    future.result()
        except CancelledError:
            return False
        return True

    def _goes_on(self, fetcher: Fetcher) -> bool:
        return self._is_quiet() and fetcher in self._known

    def _is_quiet(self) -> bool:
        """Wait until nobody has asked for anything for a while; False when the node is closing."""
        while not self._closed:
            left = self._idle - self._quiet_for()
            if left <= 0:
                return True
            self._sleep(left)
        return False

    def _quiet_for(self) -> float:
        if self._is_busy():
            return 0.0
        return min(self._crew.quiet_for(), time.monotonic() - self._added_at)

    def _sleep(self, seconds: float) -> None:
        ends = time.monotonic() + seconds
        with self._changed:
            while not self._closed and (left := ends - time.monotonic()) > 0:
                self._changed.wait(left)

"""The directories of a node's cache: in which of them a layer lies, and that none holds more than its limit.

What is written is admitted first. When a directory is nearly full the least recently used chunks go, by a thread of
its own; who writes meanwhile is admitted as long as the limit itself is kept.
"""

import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from contextlib import suppress

from lazyfs.node.cache_directory import HIGH_WATER, LOW_WATER, SPARE_WATER, CacheDirectory
from lazyfs.node.cache_files import BLOCK
from lazyfs.node.cache_layer import LayerFiles
from lazyfs.node.cache_settings import Limit

log = logging.getLogger(__name__)

_EDGES = 2 * BLOCK
"""A chunk begins and ends within a block."""


class CacheRoom:
    """Thread safe. Nothing in here calls a layer, or `drop`, while it holds `_lock`."""

    def __init__(
        self,
        directories: Sequence[CacheDirectory],
        drop: Callable[[CacheDirectory, int], int],
        remove_unknown: Callable[[CacheDirectory], None],
        executor: Executor,
        report: Callable[[str], None],
    ) -> None:
        """`drop` drops chunks of so many bytes in a directory, and says how many; `remove_unknown` what belongs to
        no layer."""
        self.directories = directories
        self.not_kept = 0
        """Chunks that were not admitted."""
        self._drop = drop
        self._remove_unknown = remove_unknown
        self._executor = executor
        self._report = report
        self._lock = threading.Lock()
        self._making = False
        self._by_path = {str(each.path): each for each in directories}

    def of(self, name: str) -> CacheDirectory | None:
        """The directory in which the layer lies, if it lies in one."""
        for directory in self.directories:
            if not directory.broken and (directory.path / name).is_dir():
                return directory
        return None

    def at(self, home: str) -> CacheDirectory | None:
        """The directory of a layer that is open, by its `home`."""
        return self._by_path.get(home)

    def place(self, name: str) -> CacheDirectory:
        """The directory in which the layer lies, or is to lie."""
        whole = [each for each in self.directories if not each.broken]
        return self.of(name) or best(name, whole or self.directories)

    def admit(self, layer: LayerFiles, size: int) -> bool:
        """See `Surroundings.admit`."""
        directory = self.at(layer.home)
        if directory is None:
            return True
        size += _EDGES
        with self._lock:
            full = directory.used + size > directory.limit
            if not full:
                directory.used += size
                directory.arriving += size
                directory.stale = True
            else:
                self.not_kept += 1
        if directory.used + size > directory.limit * HIGH_WATER:
            self.make_soon(directory)
        return not full

    def arrived(self, home: str, size: int) -> None:
        """See `Surroundings.arrived`."""
        directory = self.at(home)
        if directory is not None:
            with self._lock:
                directory.arriving = max(0, directory.arriving - size - _EDGES)

    def is_spare(self, layer: LayerFiles) -> bool:
        """May what nobody has asked for be kept, so that nothing will have to go for it?"""
        directory = self.at(layer.home)
        return directory is None or directory.used < directory.limit * SPARE_WATER

    def set_limit(self, limit: Limit) -> None:
        """Of every directory, from now on."""
        for directory in self.directories:
            directory.set_limit(limit)
            self.make(directory)

    def keep_limits(self) -> bool:
        """To be called now and then. Returns whether there is something that time alone may mend."""
        for directory in self.directories:
            if directory.due:
                self.make(directory)
        return any(directory.stale or directory.problem for directory in self.directories)

    def make(self, directory: CacheDirectory, need: int = 0) -> None:
        """Drop the least recently used chunks until the limit is kept, and `need` bytes more are free."""
        used = directory.measure()
        goal = int(directory.limit * LOW_WATER) if used > directory.limit * HIGH_WATER else used
        goal = min(goal, used - need)
        if directory.used > goal:
            self._remove_unknown(directory)
        while directory.used > goal:
            dropped = self._drop(directory, directory.used - goal)
            directory.measure()
            if not dropped:
                directory.rest()
                if directory.used > directory.limit:
                    self._report(f"{directory.path}: what is pinned or mounted is more than the limit")
                break

    def make_soon(self, directory: CacheDirectory, need: int = 0) -> None:
        """As `make`, by another thread; nothing if that is at it already, or found nothing to drop a moment ago."""

        def make() -> None:
            try:
                self.make(directory, need)
            except Exception:  # nobody waits for this future
                log.exception("making room in %s", directory.path)
            finally:
                self._making = False

        with self._lock:
            if self._making or directory.resting:
                return
            self._making = True
        with suppress(RuntimeError):  # closing
            self._executor.submit(make)


def best(name: str, directories: Sequence[CacheDirectory]) -> CacheDirectory:
    """Where a layer belongs, of these."""
    return max(directories, key=lambda each: each.score(name))

"""The cache of a node: every layer's, in one directory or several, within a limit.

A layer lies whole in one directory, chosen by weight when it comes and found again by its name. What another layer
has is copied and not fetched (`elsewhere`): the bytes are hashed against the digest that the new layer's own TOC
promises, so a copy needs no trust in its source; hashing costs a tenth of what a network of 1 Gbit/s takes, and whoever
waits needs the bytes in memory anyway, so nothing is gained by letting the file system copy them.

Lock order: a layer's own lock, then that of `CacheRoom`, or `_counting`.
"""

import errno
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Any
from weakref import WeakValueDictionary

from lazyfs.config import NodePaths
from lazyfs.errors import NodeError
from lazyfs.formats.chunks import ChunkTable
from lazyfs.node.cache import LayerCache
from lazyfs.node.cache_directory import CacheDirectory
from lazyfs.node.cache_eviction import oldest
from lazyfs.node.cache_hold import has_mark
from lazyfs.node.cache_index import DigestIndex
from lazyfs.node.cache_layer import LayerFiles
from lazyfs.node.cache_room import CacheRoom, best
from lazyfs.node.cache_settings import CacheSettings
from lazyfs.node.cache_surroundings import Surroundings
from lazyfs.node.cache_table import has_table, load_table, save_table

log = logging.getLogger(__name__)

IDLE_LAYERS = 16
"""Of those that no image has open, how many stay in memory."""

SAVE_SECONDS = 60
HOLD_SECONDS = 60.0
"""How long who has opened an image may take to mount it from the data files of its layers."""
_FULL = (errno.ENOSPC, errno.EDQUOT)
_NOT_THE_DISK = (*_FULL, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EINTR)


class NodeCache(Surroundings):
    """Thread safe. `pinned` are the layers of which nothing may be dropped."""

    def __init__(
        self, directories: Sequence[CacheDirectory], boot: bytes, report: Callable[[str], None]
    ) -> None:
        """`report` is told of each failure, once for each time it is met."""
        super().__init__()
        self.directories = directories
        self.pinned: frozenset[str] = frozenset()
        self._boot = boot
        self._report = report
        self._opening = threading.RLock()
        self._counting = threading.Lock()
        self._all: WeakValueDictionary[str, LayerCache] = WeakValueDictionary()
        self._open: dict[str, LayerCache] = {}
        self._idle: OrderedDict[str, LayerCache] = OrderedDict()
        self._index = DigestIndex()
        self._checked: set[CacheDirectory] = set()
        self._saved = 0
        self._copied_bytes = self._damaged = 0
        self.now = int(time.time())
        self.on_write: Callable[[], None] = lambda: None
        """Told of each write, before it."""
        self._keeping = ThreadPoolExecutor(1, thread_name_prefix="cache")
        self.room = CacheRoom(directories, self._drop_oldest, self._remove_unknown, self._keeping, report)
        for directory in directories:
            directory.clear()
            directory.measure()
            if directory.problem:
                report(f"{directory.path}: {directory.problem}")
        self._remove_twins()
        self._held = {name for each in directories for name in each.names() if has_mark(each.path / name)}
        self._indexed: Future[None] = self._keeping.submit(self._index_all)

    def open(self, name: str, chunks: ChunkTable) -> LayerCache:
        """The cache of the layer whose TOC has the sha256 `name`; it stays open."""
        with self._opening:
            cache = self._open.get(name) or self._all.get(name)
            if cache is None:
                cache = LayerCache(self.room.place(name).path / name, chunks, self._boot, self)
            cache.chunks = chunks  # one that was idle does not know where its chunks lie in the blob
            self._open[name] = self._all[name] = cache
            self._idle.pop(name, None)
            self._save_table(cache)
        self._index.add(name, chunks)
        return cache

    def let_go(self, name: str) -> None:
        """No image has the layer open any more."""
        with self._opening:
            cache = self._open.pop(name, None)
            if cache is None:
                return
            try:
                cache.flush()
                cache.save_times()
            except OSError as error:
                self._report(f"sync: {error.strerror}")
            self._rest(name, cache)

    def is_open(self, name: str) -> bool:
        return name in self._open

    def layer(self, name: str) -> LayerCache | None:
        """Any layer that is here, from its own files when no image has it open. Do not `close` it."""
        with self._opening:
            cache = self._all.get(name)
            if cache is None:
                directory = self.room.of(name)
                chunks = load_table(directory.path / name) if directory is not None else None
                if directory is None or chunks is None:
                    return None
                cache = self._all[name] = LayerCache(directory.path / name, chunks, self._boot, self)
            if name not in self._open:
                self._rest(name, cache)
            return cache

    def names(self) -> list[str]:
        """Layers that have something on the disk."""
        return [name for directory in self.directories for name in directory.names()]

    def remove(self, name: str) -> bool:
        """Remove all of a layer; False when it is open, or the kernel has it mounted."""
        with self._opening:
            directory, cache = self.room.of(name), self.layer(name)
            if directory is None or name in self._open or (cache is not None and cache.held):
                return False
            if cache is not None:
                cache.move(cache.directory)
            self._idle.pop(name, None)
            self._all.pop(name, None)
            self._index.remove(name)
            directory.remove(name)
        return True

    def hold(self, cache: LayerCache) -> bool:
        """May the kernel be given the data file of a layer to read? Nothing of it is dropped then, for
        `HOLD_SECONDS` and as long as somebody has it open."""
        if self.paranoid or not cache.complete():
            return False
        try:
            cache.hold(HOLD_SECONDS)
        except OSError as error:
            self._report(f"{cache.directory}: {error.strerror}")
            return False
        self._held.add(cache.directory.name)
        return cache.complete()

    def release_holds(self, at_once: bool = False) -> None:
        """Let those layers be dropped again that nobody has mounted any more; see `LayerFiles.release`."""
        for name in list(self._held):
            self._held.discard(name)  # first: who holds it again meanwhile puts it back
            cache = self.layer(name)
            if cache is not None and not cache.release(at_once):
                self._held.add(name)

    def look_at_clock(self) -> None:
        """What is read from now on is marked with this time."""
        self.now = int(time.time())

    def tick(self, quiet: bool = False) -> bool:
        """Make durable what was written, and keep the limit. To be called every few seconds while things are done.

        Returns whether it is to be called again although nothing is done (`quiet`).
        """
        self.look_at_clock()
        save = quiet or self.now - self._saved >= SAVE_SECONDS
        with self._opening:
            layers = list(self._open.values())
        for cache in layers:
            try:
                cache.flush()
                if save:
                    cache.save_times()
            except OSError as error:
                self._report(f"sync: {error.strerror}")
        if save:
            self._saved = self.now
        self.release_holds()
        return self.room.keep_limits()

    def choose(
        self, names: Iterable[str], rule: Callable[[list[tuple[Any, Any]]], list[list[int]]]
    ) -> dict[str, list[int]]:
        """The chunks that `rule` picks of these layers; nothing of layers that the kernel has mounted."""
        self.release_holds(at_once=True)
        found = [
            (name, cache.used.copy(), cache.sizes()) for name, cache in self.each(names) if not cache.held
        ]
        picked = rule([(used, sizes) for _, used, sizes in found])
        return {name: indexes for (name, _, _), indexes in zip(found, picked, strict=True) if indexes}

    def drop(self, chosen: Mapping[str, Sequence[int]]) -> int:
        """Drop chunks of layers; how many went. A layer of which nothing is left, and that is not open, goes too."""
        dropped = 0
        for name, cache in self.each(chosen):
            try:
                dropped += cache.drop(chosen[name])
                if not cache.sizes().any() and not self.is_open(name):
                    self.remove(name)
            except OSError as error:
                self._report(f"{cache.directory}: {error.strerror}")
        return dropped

    def status(self) -> dict[str, Any]:
        """JSON-able; bytes."""
        return {
            "directories": [
                {
                    "path": str(each.path),
                    "used": each.used,
                    "limit": each.limit,
                    "weight": each.weight,
                    "problem": each.problem if each.broken else "",
                }
                for each in self.directories
            ],
            "copied_bytes": self._copied_bytes,
            "damaged_chunks": self._damaged,
            "chunks_not_kept": self.room.not_kept,
            "paranoid": self.paranoid,
        }

    def close(self) -> None:
        self._keeping.shutdown(wait=True, cancel_futures=True)
        for cache in self._open.values():
            with suppress(OSError):
                cache.close()
        self.files.close()

    def admit(self, cache: LayerFiles, size: int) -> bool:
        self.on_write()
        return self.room.admit(cache, size)

    def arrived(self, home: str, size: int) -> None:
        self.room.arrived(home, size)

    def elsewhere(self, cache: LayerCache, index: int) -> Mapping[int, bytes]:
        self._indexed.result()
        digest, length = cache.chunks.digest(index), cache.chunks.length(index)
        count = len(cache.missing_units(index))
        found: dict[int, bytes] = {}
        for name, number in self._index.find(digest, length):
            source = self.layer(name) if (name, number) != (cache.directory.name, index) else None
            if (
                source is None
                or source.chunks.length(number) != length
                or source.chunks.digest(number) != digest
            ):
                continue
            found.update(source.present_units(number))
            if len(found) >= count:
                break
        with self._counting:
            self._copied_bytes += sum(map(len, found.values()))
        return found

    def failed(self, cache: LayerFiles, home: str, error: OSError) -> None:
        directory = self.room.at(home)
        if directory is None or cache.home != home:  # it has moved meanwhile, for the same reason
            return
        if error.errno in _FULL:
            self.room.make_soon(directory, directory.used // 16)
        elif error.errno not in _NOT_THE_DISK:
            others = [each for each in self.directories if each is not directory and not each.broken]
            if others:
                directory.fail(error.strerror or str(error))
                self._report(f"{directory.path}: {error.strerror}; using another directory")
                cache.move(best(cache.directory.name, others).path / cache.directory.name)
            elif error.errno == errno.ENOENT:
                cache.move(cache.directory)

    def damaged(self, cache: LayerCache, index: int) -> None:
        with self._counting:
            self._damaged += 1
        self._report(f"layer {cache.directory.name}: chunk {index} was damaged on the disk")

    def _rest(self, name: str, cache: LayerCache) -> None:
        self._idle[name] = cache
        self._idle.move_to_end(name)
        if len(self._idle) > IDLE_LAYERS:
            self._idle.popitem(last=False)

    def _remove_twins(self) -> None:
        """A layer that had to move has left what it had where it was, if that disk has come back."""
        known: set[str] = set()
        for directory in self.directories:
            for name in directory.names():
                if name in known:
                    with suppress(OSError):
                        directory.remove(name)
                known.add(name)

    def _drop_oldest(self, directory: CacheDirectory, need: int) -> int:
        self.look_at_clock()  # what comes and goes fast needs a finer one
        names = [name for name in directory.names() if name not in self.pinned]
        return self.drop(self.choose(names, partial(oldest, need=need)))

    def _remove_unknown(self, directory: CacheDirectory) -> None:
        """What nobody has open and does not say what it is can neither be shared nor dropped by parts. A daemon makes
        no such thing; a crash may have: looking once is enough."""
        if directory in self._checked:
            return
        with self._opening:
            self._checked.add(directory)
            for name in directory.names():
                path = directory.path / name
                if name not in self._all and not has_mark(path) and load_table(path) is None:
                    with suppress(OSError):
                        directory.remove(name)
            directory.measure()

    def _index_all(self) -> None:
        for name in self.names():
            directory = self.room.of(name)
            chunks = load_table(directory.path / name) if directory is not None else None
            if chunks is not None:
                self._index.add(name, chunks)

    def each(self, names: Iterable[str]) -> Iterable[tuple[str, LayerCache]]:
        """Those of these layers that are here; see `layer`."""
        for name in names:
            cache = self.layer(name)
            if cache is not None:
                yield name, cache

    def _save_table(self, cache: LayerCache) -> None:
        if not has_table(cache.directory):
            try:
                save_table(cache.directory, cache.chunks)
            except NodeError as error:
                log.warning("%s", error)


def open_cache(
    paths: NodePaths, settings: CacheSettings, boot: bytes, report: Callable[[str], None]
) -> NodeCache:
    """The cache of a node, as its owner wants it."""
    if settings.directories:
        directories = [
            CacheDirectory(each.path, each.limit or settings.limit, each.weight)
            for each in settings.directories
        ]
    else:
        paths.cache.mkdir(parents=True, exist_ok=True)
        directories = [CacheDirectory(paths.cache, settings.limit)]
    cache = NodeCache(directories, boot, report)
    cache.paranoid = settings.paranoid
    cache.release_holds()
    return cache

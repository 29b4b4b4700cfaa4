"""The files of one layer's cache, and what may be done to them at the same time: written, synced, dropped, moved.

States of a unit, and why a crash cannot leave a mark without its data:

    MISSING     not there
    WRITTEN     verified and handed to the kernel. True as long as this kernel runs, even if this process
                is killed; after a reboot (the header names the kernel's boot id) it counts as DOUBTFUL
    DURABLE     the data file was synced after the unit had been written, before this mark was made
    DOUBTFUL    the data must match its digest before it is used: `recheck`

Why nobody reads a hole that `drop` punches: it marks the chunks MISSING, raises the generation, makes the marks
durable and punches only then, and until it is done nothing is written to these chunks. A reader takes the generation,
looks at the marks, reads, and takes the generation again. Had the hole been there when it read, then the marks had
gone before; either it saw that, or they went after its look, and the generation is another: it looks again.
"""

import logging
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lazyfs.formats.chunks import UNIT_SIZE, ChunkTable
from lazyfs.node.cache_files import OpenFiles, make_sparse, punch_hole, write_all
from lazyfs.node.cache_hold import Hold
from lazyfs.node.cache_holes import holes
from lazyfs.node.cache_map import DOUBTFUL, DURABLE, MISSING, WRITTEN, UnitMap
from lazyfs.node.cache_proof import first_units
from lazyfs.node.cache_surroundings import Surroundings

log = logging.getLogger(__name__)


class LayerFiles:
    """Thread safe. Where the disk does not even take the empty files, each write tries again."""

    def __init__(
        self, directory: Path, chunks: ChunkTable, boot: bytes, shared: Surroundings | None = None
    ) -> None:
        """Open or create the cache of the layer whose TOC has the sha256 `directory.name`."""
        self.chunks = chunks
        self._boot = boot
        self._shared = shared or Surroundings()
        self._files: OpenFiles = self._shared.files
        self._first_unit = first_units(chunks)
        self._lock = threading.Lock()
        self._generation = 0
        self._unsynced: Callable[[], None] | None = None
        self._syncing: npt.NDArray[np.bool_] | None = None
        self._writing: Counter[int] = Counter()
        self._punching: set[int] = set()
        self._ready = False
        self._map = self._new_map(directory)
        self._settle_in(directory)
        try:
            self._prepare()
        except OSError as error:
            self._shared.failed(self, self.home, error)

    @property
    def used(self) -> npt.NDArray[np.uint32]:
        """When each chunk was last read, in seconds since 1970."""
        return self._map.used

    def close(self) -> None:
        try:
            self.flush()
            if self._ready:
                self._map.save_times()
        finally:
            self._let_go()

    @property
    def held(self) -> bool:
        return bool(self._hold)

    def hold(self, seconds: float) -> None:
        """Drop nothing from now on, so that the data file can be mounted. Ask `complete` after it.

        For so many seconds, and as long as anybody has it open then. Raises OSError.
        """
        with self._lock:
            self._hold.take(seconds)

    def release(self, at_once: bool = False) -> bool:
        """Hold no more, if nobody has the data file open; is nothing held now? To be asked again else.

        With `at_once` also sooner than was promised: who is about to mount it finds that out.
        """
        with self._lock:
            if self._hold:
                if self._unsynced is not None or not (at_once or self._hold.is_due()):
                    return False  # the first has a descriptor, which looks like anybody's
                self._files.drop(self._data)
                if self._hold.give_back(self._data):
                    self._map.used[:] = self._shared.now  # nobody counted what the kernel read
            return not self._hold

    def drop(self, indexes: Iterable[int]) -> int:
        """Give up chunks and the room that they take; those being written stay. Returns how many went.

        Raises OSError when the disk fails: what is marked as missing then may still take room.
        """
        with self._lock:
            if self._hold or not self._ready:
                return 0
            chosen = sorted({index for index in indexes if self._is_idle(index)})
            found, touched = holes(self.chunks.start, chosen, self._is_free)
            try:
                for index in chosen:
                    self._map.mark(int(self._first_unit[index]), int(self._first_unit[index + 1]), MISSING)
                    self._not_synced(range(index, index + 1))
            finally:
                self._generation += 1
            self._punching |= touched
        try:
            self._map.sync()
            with self._files.open(self._data) as descriptor:
                for start, end in found:
                    punch_hole(descriptor, start, end)
        finally:
            with self._lock:
                self._punching -= touched
        return len(chosen)

    def flush(self) -> None:
        """Make present units durable: the data first, then their marks. Raises OSError when the disk fails."""
        with self._lock:
            if self._unsynced is None or self._syncing is not None:
                return
            self._syncing = np.frombuffer(bytes(self._map.states), np.uint8) == WRITTEN
            close, self._unsynced = self._unsynced, None
            place, data = self.home, self._data
        try:
            with self._files.open(data) as descriptor:
                os.fdatasync(descriptor)
            self._settle(DURABLE)
            self._map.save_times()
            self._map.sync()
        except OSError as error:
            # The kernel reports a lost write once and then takes its pages for clean (fsync(2)).
            with suppress(OSError):
                self._settle(DOUBTFUL)
            self._shared.failed(self, place, error)
            raise
        finally:
            with self._lock:
                self._syncing = None
            close()

    def save_times(self) -> None:
        """Write down when chunks were last read. Raises OSError."""
        with self._lock:
            if self._ready:
                self._map.save_times()

    def move(self, directory: Path) -> None:
        """Start anew, with nothing, in another directory: the disk of this one is lost.

        What was begun here does not count there: a sync settles nothing more, a write marks nothing. The marks go
        first, then the generation rises, then the data is another, as with `drop`.
        """
        with self._lock:
            if self._hold:
                return
            self._ready = False
            if self._syncing is not None:
                self._syncing[:] = False
            self._let_go()
            self._map = self._new_map(directory)
            self._generation += 1
            self._settle_in(directory)

    def _new_map(self, directory: Path) -> UnitMap:
        return UnitMap(directory, int(self._first_unit[-1]), len(self.chunks), self._boot, self._files)

    def _settle_in(self, directory: Path) -> None:
        self.directory = directory
        self.home = str(directory.parent)
        self._data = str(directory / "data")
        self._hold = Hold(directory, self._boot)

    def _prepare(self) -> None:
        self.directory.mkdir(exist_ok=True)  # not its parent: that may be where a disk was mounted
        # What is open by these names may be files that somebody has removed: what is written there is seen by nobody
        # who opens them again, or mounts them.
        self._files.drop(self._data)
        self._map.close()
        make_sparse(self.directory / "data", self.chunks.device_size, self.directory / "map")
        self._map.load()
        self._hold.load()
        self._ready = True

    def _let_go(self) -> None:
        if self._unsynced is not None:
            self._unsynced()
            self._unsynced = None
        self._files.drop(self._data)
        self._map.close()

    @contextmanager
    def _writing_to(self, index: int, size: int) -> Iterator[UnitMap | None]:
        """The map for its marks, if the chunk may be written to inside; nobody drops it then."""
        try:
            with self._lock:
                place = self.home
                if not self._ready:
                    self._prepare()
                if self._unsynced is None:
                    self._unsynced = self._files.keep(self._data)
                admitted = index not in self._punching and self._shared.admit(self, size)
                if admitted:
                    self._writing[index] += 1
                home = self._map
            try:
                yield home if admitted else None
            finally:
                if admitted:
                    self._shared.arrived(place, size)
                    with self._lock:
                        self._writing -= Counter((index,))
        except OSError as error:
            self._shared.failed(self, place, error)
            raise

    def _write(self, offset: int, plain: bytes) -> None:
        with self._files.open(self._data) as descriptor:
            self._check_size(descriptor)
            write_all(descriptor, plain, offset)
            self._check_size(descriptor)

    def _check_size(self, descriptor: int) -> None:
        """Where somebody has cut the data file, nothing of it counts any more, nor what is being written now.

        What is behind the cut is read short until something is written there, and as zeros then. As with `drop` the
        marks go first, durably, then the generation rises, then there are zeros.
        """
        if os.fstat(descriptor).st_size >= self.chunks.device_size:
            return
        with self._lock:
            if os.fstat(descriptor).st_size >= self.chunks.device_size:
                return
            log.error("%s was cut by somebody else; what was there is fetched again", self._data)
            self._map.write(0, bytes(len(self._map.states)))
            self._map.sync()
            if self._syncing is not None:
                self._syncing[:] = False
            self._map = self._new_map(self.directory)
            self._generation += 1
            self._map.load()
            os.ftruncate(descriptor, self.chunks.device_size)

    def _mark_written(self, home: UnitMap, first: int, stop: int, index: int) -> None:
        with self._lock:
            if home is not self._map:
                return  # the layer has moved meanwhile, and these bytes have not
            self._map.mark(first, stop, WRITTEN)
            self._not_synced(range(index, index + 1))
        self._map.used[index] = self._shared.now

    def _is_idle(self, index: int) -> bool:
        return index not in self._writing and index not in self._punching and any(self._states(index))

    def _is_free(self, index: int) -> bool:
        return index not in self._writing and not any(self._states(index))

    def _settle(self, state: int) -> None:
        """What was being synced has this state from now on, except what was written or dropped meanwhile."""
        with self._lock:
            states = np.frombuffer(bytes(self._map.states), np.uint8).copy()
            states[self._syncing] = state
            try:
                self._map.write(0, states.tobytes())
            finally:
                if state == DOUBTFUL:
                    self._map.states[:] = states.tobytes()

    def _not_synced(self, chunks: range) -> None:
        if self._syncing is not None:
            self._syncing[self._first_unit[chunks.start] : self._first_unit[chunks.stop]] = False

    def _forget(self, chunks: range, doubtful_only: bool = False) -> None:
        first, stop = int(self._first_unit[chunks.start]), int(self._first_unit[chunks.stop])
        with self._lock:
            self._not_synced(chunks)
            states = bytes(self._map.states[first:stop])
            kept = (
                states.replace(bytes((DOUBTFUL,)), bytes((MISSING,)))
                if doubtful_only
                else bytes(stop - first)
            )
            try:
                self._map.write(first, kept)
            except OSError:
                self._map.states[first:stop] = kept

    def _states(self, index: int) -> bytearray:
        return self._map.states[self._first_unit[index] : self._first_unit[index + 1]]

    def _unit(self, index: int, offset: int) -> int:
        return int(self._first_unit[index]) + (offset - int(self.chunks.start[index])) // UNIT_SIZE

    def _pread(self, offset: int, length: int) -> bytes | None:
        """None where the disk does not give the bytes: they are fetched again then."""
        try:
            with self._files.open(self._data) as descriptor:
                data = os.pread(descriptor, length, offset)
        except OSError as error:
            log.warning("reading the cache failed: %s", error.strerror)
            return None
        return data if len(data) == length else None

"""The cache of one layer: its device as a sparse file, and a map of which units of it are there.

    <cache>/<sha256 of the TOC>/data    the device; only present units hold data
    <cache>/<sha256 of the TOC>/map     states, times and proofs (`cache_map`)
    <cache>/<sha256 of the TOC>/held    the boot id of the kernel that has `data` mounted, if one has (`cache_hold`)

The name is the TOC's digest and not the DiffID: a TOC proves its chunks, while the DiffID in it is only
a claim, so no image can put bytes into another image's cache.

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

import hashlib
import logging
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lazyfs.formats.chunks import UNIT_SIZE, ChunkTable
from lazyfs.node.cache_files import OpenFiles, make_sparse, punch_hole, write_all
from lazyfs.node.cache_hold import Hold
from lazyfs.node.cache_holes import holes
from lazyfs.node.cache_map import DOUBTFUL, DURABLE, MISSING, PRESENT, WRITTEN, UnitMap, boot_id
from lazyfs.node.cache_proof import Prover, first_units
from lazyfs.node.cache_surroundings import Surroundings

__all__ = ["DOUBTFUL", "DURABLE", "MISSING", "WRITTEN", "LayerCache", "Surroundings", "boot_id"]

log = logging.getLogger(__name__)


class LayerCache:
    """What is present of one layer. Thread safe.

    Where the disk does not even take the empty files, nothing is present, and each `put` tries again.
    """

    def __init__(
        self, directory: Path, chunks: ChunkTable, boot: bytes, shared: Surroundings | None = None
    ) -> None:
        """Open or create the cache of the layer whose TOC has the sha256 `directory.name`."""
        self.chunks = chunks
        self._boot = boot
        self._shared = shared or Surroundings()
        self._files: OpenFiles = self._shared.files
        self._first_unit = first_units(chunks)
        self._prover = Prover(chunks, self._first_unit, self._pread)
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
            self._shared.failed(self, error)

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

    def read(self, offset: int, length: int) -> bytes | None:
        """`length` bytes if every unit of them is present and beyond doubt, else None.

        What the disk does not give back is missing from then on.
        """
        chunks = self.chunks.covering(offset, length)
        first, last = self._unit(chunks[0], offset), self._unit(chunks[-1], offset + length - 1)
        read = partial(self._prover.read, self._map) if self._shared.paranoid else self._pread
        while True:
            generation = self._generation
            if self._map.states[first : last + 1].translate(None, PRESENT):
                return None
            data = read(offset, length)
            if generation == self._generation:
                break
        if data is None:
            self._forget(chunks)
            if self._shared.paranoid:
                self._shared.damaged(self, chunks.start)
        else:
            self._map.used[chunks.start : chunks.stop] = self._shared.now
        return data

    def missing_units(self, index: int) -> list[int]:
        """Which units of a chunk are not there beyond doubt, counted from the chunk's first."""
        return [unit for unit, state in enumerate(self._states(index)) if state not in PRESENT]

    def present_units(self, index: int) -> dict[int, bytes]:
        """The units of a chunk that are here, proved once more. What is damaged is dropped, and reported."""
        return self._proved(index) or {}

    def verify(self, index: int) -> int | None:
        """How many bytes of a chunk are on the disk and match their digests; None if one does not.

        As `present_units`, but what the kernel has in memory is no excuse for the disk.
        """
        start, length = int(self.chunks.start[index]), self.chunks.length(index)
        with suppress(OSError), self._files.open(self._data) as descriptor:
            os.posix_fadvise(descriptor, start, length, os.POSIX_FADV_DONTNEED)
        units = self._proved(index)
        return None if units is None else sum(map(len, units.values()))

    def complete(self) -> bool:
        """Is every unit here, and on the disk? Then the kernel may read the data file itself. `flush` first."""
        return self._ready and not self._map.states.translate(None, bytes((DURABLE,)))

    @property
    def held(self) -> bool:
        return bool(self._hold)

    def hold(self) -> None:
        """Drop nothing from now on: the kernel reads the data file. Holds are counted. Ask `complete` after it."""
        with self._lock:
            self._hold.take()

    def release(self) -> None:
        """Undo one `hold`."""
        with self._lock:
            self._hold.give_back()

    def put(self, index: int, plain: bytes) -> bool:
        """Keep a verified chunk. False when there is no room for it.

        Raises OSError when the disk is full or fails; nothing is marked then.
        """
        return self._put(index, plain, len(plain))

    def put_unit(self, index: int, unit: int, plain: bytes) -> bool:
        """As `put_units`, for one."""
        return self.put_units(index, {unit: plain})

    def put_units(
        self, index: int, units: Mapping[int, bytes], digests: Mapping[int, bytes] | None = None
    ) -> bool:
        """Keep verified units of a chunk whose other units may be missing; units count from the chunk's first.

        `digests` are theirs, if they are known. False and OSError as from `put`.
        """
        first, start = int(self._first_unit[index]), int(self.chunks.start[index])
        with self._writing_to(index, sum(map(len, units.values()))) as home:
            if home is not None:
                for run in _runs(units):
                    plain = [units[unit] for unit in run]
                    proofs = [
                        digests[unit] if digests else hashlib.sha256(units[unit]).digest() for unit in run
                    ]
                    self._write(start + run.start * UNIT_SIZE, b"".join(plain))
                    home.set_proof(first + run.start, b"".join(proofs))
                    self._mark_written(home, first + run.start, first + run.stop, index)
        return home is not None

    def recheck(self, index: int) -> bytes | None:
        """The bytes of a chunk, if this machine has them after all: in doubt here, or in another layer.

        Settles doubt, and copies what others have, so that `missing_units` is what must be fetched.
        """
        states = bytes(self._states(index))
        if DOUBTFUL in states:
            if MISSING not in states:
                plain = self._prover.chunk(index)
                if plain is not None:
                    # Written again, since pages of a write that failed look like any others (fsync(2)).
                    with suppress(OSError):
                        self._put(index, plain, 0)
                    return plain
            else:
                doubtful = [unit for unit, state in enumerate(states) if state == DOUBTFUL]
                with suppress(OSError):
                    self.put_units(index, self._prover.units(self._map, index, doubtful))
            if DOUBTFUL in self._states(index):
                log.warning("chunk %d of %s did not survive the last stop", index, self.directory.name)
                self._forget(range(index, index + 1), doubtful_only=True)
        return self._copy(index)

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
        try:
            with self._files.open(self._data) as descriptor:
                os.fdatasync(descriptor)
            self._settle(DURABLE)
            self._map.save_times()
            self._map.sync()
        except OSError as error:
            # The kernel reports a lost write once and then takes its pages for clean (fsync(2)).
            with suppress(OSError):
                self._settle(DOUBTFUL)
            self._shared.failed(self, error)
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

    def present_bytes(self) -> int:
        """Bytes of the device that are here, in whole units."""
        missing = len(self._map.states.translate(None, PRESENT))
        return min((len(self._map.states) - missing) * UNIT_SIZE, self.chunks.device_size)

    def sizes(self) -> npt.NDArray[np.int64]:
        """About how many bytes of each chunk take room."""
        if not len(self.chunks):
            return np.zeros(0, np.int64)
        there = np.frombuffer(bytes(self._map.states), np.uint8) != MISSING
        units = np.add.reduceat(there, self._first_unit[:-1], dtype=np.int64)
        return np.asarray(np.minimum(units * UNIT_SIZE, np.diff(self.chunks.start)), np.int64)

    def _new_map(self, directory: Path) -> UnitMap:
        return UnitMap(directory, int(self._first_unit[-1]), len(self.chunks), self._boot, self._files)

    def _settle_in(self, directory: Path) -> None:
        self.directory = directory
        self._data = str(directory / "data")
        self._hold = Hold(directory, self._boot)

    def _prepare(self) -> None:
        self.directory.mkdir(exist_ok=True)  # not its parent: that may be where a disk was mounted
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

    def _proved(self, index: int) -> dict[int, bytes] | None:
        while True:
            generation = self._generation
            units = self._prover.present(self._map, index)
            if units is not None:
                return units
            if generation == self._generation:
                self._shared.damaged(self, index)
                with suppress(OSError):
                    self.drop((index,))
                self._forget(range(index, index + 1))  # where it must not be dropped, it is written over
                return None

    def _put(self, index: int, plain: bytes, room: int) -> bool:
        with self._writing_to(index, room) as home:
            if home is not None:
                self._write(int(self.chunks.start[index]), plain)
                self._mark_written(
                    home, int(self._first_unit[index]), int(self._first_unit[index + 1]), index
                )
        return home is not None

    def _copy(self, index: int) -> bytes | None:
        """Take over what another layer has of the chunk; its bytes, if that makes it whole."""
        units = self._shared.elsewhere(self, index)
        missing = self.missing_units(index)
        start, length = int(self.chunks.start[index]), self.chunks.length(index)
        if len(units) == len(self._states(index)):
            plain = b"".join(units[unit] for unit in range(len(units)))
            with suppress(OSError):
                self.put(index, plain)
            return plain
        if units and missing:
            with suppress(OSError):
                self.put_units(index, {unit: plain for unit, plain in units.items() if unit in missing})
            return self.read(start, length)
        return None

    @contextmanager
    def _writing_to(self, index: int, size: int) -> Iterator[UnitMap | None]:
        """The map for its marks, if the chunk may be written to inside; nobody drops it then."""
        try:
            with self._lock:
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
                    self._shared.arrived(self, size)
                    with self._lock:
                        self._writing -= Counter((index,))
        except OSError as error:
            self._shared.failed(self, error)
            raise

    def _write(self, offset: int, plain: bytes) -> None:
        with self._files.open(self._data) as descriptor:
            write_all(descriptor, plain, offset)

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


def _runs(units: Iterable[int]) -> list[range]:
    """Neighbours together: each write to the disk costs a system call."""
    runs: list[range] = []
    for unit in sorted(units):
        if runs and runs[-1].stop == unit:
            runs[-1] = range(runs[-1].start, unit + 1)
        else:
            runs.append(range(unit, unit + 1))
    return runs

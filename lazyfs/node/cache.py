"""The cache of one layer: its device as a sparse file, and a map of which units of it are there.

    <cache>/<sha256 of the TOC>/data    the device; only present units hold data
    <cache>/<sha256 of the TOC>/map     header, then one byte per unit

The name is the TOC's digest and not the DiffID: a TOC proves its chunks, while the DiffID in it is only
a claim, so no image can put bytes into another image's cache.

States of a unit, and why a crash cannot leave a mark without its data:

    MISSING     not there
    WRITTEN     verified and handed to the kernel. True as long as this kernel runs, even if this process
                is killed; after a reboot (the header names the kernel's boot id) it counts as DOUBTFUL
    DURABLE     the data file was synced after the unit had been written, before this mark was made
    DOUBTFUL    the data must match the chunk's digest before it is used: `recheck`
"""

import logging
import mmap
import os
import struct
import threading
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lazyfs.errors import NodeError
from lazyfs.formats.chunks import UNIT_SIZE, ChunkTable, chunk_digest

log = logging.getLogger(__name__)

MISSING, WRITTEN, DURABLE, DOUBTFUL = range(4)

_MAGIC = b"lazyfsM1"
_HEADER = struct.Struct("<8s36s32sI")
_HEADER_SIZE = 128
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def boot_id() -> bytes:
    """36 characters that name this run of the kernel."""
    return _BOOT_ID.read_bytes().strip()


class LayerCache:
    """What is present of one layer. Thread safe: units only ever go from missing to present while it is open."""

    def __init__(self, directory: Path, chunks: ChunkTable, boot: bytes) -> None:
        """Open or create the cache of the layer whose TOC has the sha256 `directory.name`."""
        self.chunks = chunks
        self._first_unit = _first_units(chunks)
        self._lock = threading.Lock()
        self._dirty = False
        try:
            directory.mkdir(parents=True, exist_ok=True)
            self._data = _open_data(directory, chunks.device_size)
            try:
                self._map = _open_map(directory / "map", int(self._first_unit[-1]), boot)
            except BaseException:
                os.close(self._data)
                raise
        except OSError as error:
            raise NodeError(
                f"cache {directory}: {error.strerror}", hint="free some space, or choose another --root"
            ) from error
        self._state: npt.NDArray[np.uint8] = np.frombuffer(self._map, np.uint8)[_HEADER_SIZE:]

    def close(self) -> None:
        try:
            self.flush()
        finally:
            del self._state
            self._map.close()
            os.close(self._data)

    def read(self, offset: int, length: int) -> bytes | None:
        """`length` bytes if every unit of them is present and beyond doubt, else None.

        What the disk does not give back is missing from then on.
        """
        chunks = self.chunks.covering(offset, length)
        state = self._state[self._unit(chunks[0], offset) : self._unit(chunks[-1], offset + length - 1) + 1]
        if not ((state == WRITTEN) | (state == DURABLE)).all():
            return None
        data = self._pread(offset, length)
        if data is None:
            self._forget(chunks)
        return data

    def put(self, index: int, plain: bytes) -> None:
        """Keep a verified chunk. Raises OSError when the disk is full or fails; nothing is marked then."""
        start = int(self.chunks.start[index])
        view = memoryview(plain)
        while view:
            written = os.pwrite(self._data, view, start)
            start += written
            view = view[written:]
        self._units(index)[:] = WRITTEN
        self._dirty = True

    def recheck(self, index: int) -> bytes | None:
        """The bytes of a doubtful chunk if they match its digest; otherwise the chunk is missing from now on."""
        state = self._units(index)
        if (state == MISSING).any() or not (state == DOUBTFUL).any():
            return None
        plain = self._pread(int(self.chunks.start[index]), self.chunks.length(index))
        if plain is None or chunk_digest(plain) != self.chunks.digest(index):
            log.warning("chunk %d did not survive the last stop; fetching it again", index)
            self._forget(range(index, index + 1))
            return None
        state[:] = WRITTEN
        self._dirty = True
        return plain

    def flush(self) -> None:
        """Make present units durable: the data first, then their marks. Raises OSError when the disk fails."""
        with self._lock:
            if not self._dirty:
                return
            self._dirty = False
            written = np.flatnonzero(self._state == WRITTEN)
            try:
                os.fdatasync(self._data)
            except OSError:
                # The kernel reports a lost write once and then takes its pages for clean (fsync(2)).
                self._state[written] = DOUBTFUL
                raise
            self._state[written] = DURABLE
            self._map.flush()

    def present_bytes(self) -> int:
        """Bytes of the device that are here, in whole units."""
        present = (self._state == WRITTEN) | (self._state == DURABLE)
        return min(int(present.sum()) * UNIT_SIZE, self.chunks.device_size)

    def _forget(self, chunks: range) -> None:
        # Not while `flush` syncs: what is written anew meanwhile would be marked with what it has synced.
        with self._lock:
            self._state[self._first_unit[chunks.start] : self._first_unit[chunks.stop]] = MISSING

    def _units(self, index: int) -> npt.NDArray[np.uint8]:
        return self._state[self._first_unit[index] : self._first_unit[index + 1]]

    def _unit(self, index: int, offset: int) -> int:
        return int(self._first_unit[index]) + (offset - int(self.chunks.start[index])) // UNIT_SIZE

    def _pread(self, offset: int, length: int) -> bytes | None:
        """None where the disk does not give the bytes: they are fetched again then."""
        try:
            data = os.pread(self._data, length, offset)
        except OSError as error:
            log.warning("reading the cache failed: %s", error.strerror)
            return None
        return data if len(data) == length else None


def _first_units(chunks: ChunkTable) -> npt.NDArray[np.int64]:
    units = -(-np.diff(chunks.start) // UNIT_SIZE)
    return np.concatenate(([0], np.cumsum(units))).astype(np.int64)


def _open_data(directory: Path, size: int) -> int:
    """The data file; made anew where it has not the device's size."""
    descriptor = os.open(directory / "data", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        if os.fstat(descriptor).st_size != size:
            # The old marks go first: at no moment may they speak of a new file.
            _remove_durably(directory / "map")
            os.ftruncate(descriptor, 0)
            os.ftruncate(descriptor, size)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _remove_durably(path: Path) -> None:
    try:
        path.unlink()
    except FileNotFoundError:
        return
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _open_map(path: Path, units: int, boot: bytes) -> mmap.mmap:
    """The map as shared memory; made anew where it is not the map of this layer."""
    header = _HEADER.pack(_MAGIC, boot, bytes.fromhex(path.parent.name), units)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        size = _HEADER_SIZE + units
        old = os.pread(descriptor, _HEADER.size, 0)
        usable = len(old) == _HEADER.size and os.fstat(descriptor).st_size == size
        if not usable or old[:8] != header[:8] or old[44:] != header[44:]:
            os.ftruncate(descriptor, 0)
            os.posix_fallocate(descriptor, 0, size)
        memory = mmap.mmap(descriptor, size)
    finally:
        os.close(descriptor)
    if memory[8:44] != boot:
        state = np.frombuffer(memory, np.uint8)[_HEADER_SIZE:]
        state[state == WRITTEN] = DOUBTFUL
        del state
    memory[: len(header)] = header
    return memory

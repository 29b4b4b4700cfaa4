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
            self._data = os.open(directory / "data", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fresh = os.fstat(self._data).st_size != chunks.device_size
            if fresh:
                os.ftruncate(self._data, 0)
                os.ftruncate(self._data, chunks.device_size)
            self._map = _open_map(directory / "map", int(self._first_unit[-1]), boot, fresh)
        except OSError as error:
            raise NodeError(
                f"cache {directory}: {error.strerror}", hint="free some space, or choose another --root"
            ) from error
        self._state: npt.NDArray[np.uint8] = np.frombuffer(self._map, np.uint8, offset=_HEADER_SIZE)

    def close(self) -> None:
        self.flush()
        del self._state
        self._map.close()
        os.close(self._data)

    def read(self, offset: int, length: int) -> bytes | None:
        """`length` bytes if every unit of them is present and beyond doubt, else None."""
        chunks = self.chunks.covering(offset, length)
        state = self._state[self._unit(chunks[0], offset) : self._unit(chunks[-1], offset + length - 1) + 1]
        if not ((state == WRITTEN) | (state == DURABLE)).all():
            return None
        return self._pread(offset, length)

    def has(self, index: int) -> bool:
        """Is the whole chunk present and beyond doubt?"""
        state = self._units(index)
        return bool(((state == WRITTEN) | (state == DURABLE)).all())

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

    def drop(self, index: int) -> None:
        """Forget a chunk, so that it is fetched again."""
        self._units(index)[:] = MISSING

    def recheck(self, index: int) -> bytes | None:
        """The bytes of a doubtful chunk if they match its digest; otherwise the chunk is missing from now on."""
        state = self._units(index)
        if (state == MISSING).any() or not (state == DOUBTFUL).any():
            return None
        plain = self._pread(int(self.chunks.start[index]), self.chunks.length(index))
        if plain is None or chunk_digest(plain) != self.chunks.digest(index):
            log.warning("chunk %d did not survive the last stop; fetching it again", index)
            state[:] = MISSING
            return None
        state[:] = WRITTEN
        self._dirty = True
        return plain

    def flush(self) -> None:
        """Make present units durable: the data first, then their marks."""
        with self._lock:
            if not self._dirty:
                return
            self._dirty = False
            written = np.flatnonzero(self._state == WRITTEN)
            os.fdatasync(self._data)
            self._state[written] = DURABLE
            self._map.flush()

    def present_bytes(self) -> int:
        """Bytes of the device that are here, in whole units."""
        present = (self._state == WRITTEN) | (self._state == DURABLE)
        return min(int(present.sum()) * UNIT_SIZE, self.chunks.device_size)

    def _units(self, index: int) -> npt.NDArray[np.uint8]:
        return self._state[self._first_unit[index] : self._first_unit[index + 1]]

    def _unit(self, index: int, offset: int) -> int:
        return int(self._first_unit[index]) + (offset - int(self.chunks.start[index])) // UNIT_SIZE

    def _pread(self, offset: int, length: int) -> bytes | None:
        """None where the disk does not give the bytes: they are fetched again then."""
        try:
            data = os.pread(self._data, length, offset)
        except OSError as error:
            log.warning("reading the cache failed: %s", error)
            return None
        return data if len(data) == length else None


def _first_units(chunks: ChunkTable) -> npt.NDArray[np.int64]:
    units = -(-np.diff(chunks.start) // UNIT_SIZE)
    return np.concatenate(([0], np.cumsum(units))).astype(np.int64)


def _open_map(path: Path, units: int, boot: bytes, fresh: bool) -> mmap.mmap:
    """The map as shared memory; made anew where it is not the map of this data file."""
    header = _HEADER.pack(_MAGIC, boot, bytes.fromhex(path.parent.name), units)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        size = _HEADER_SIZE + units
        old = os.pread(descriptor, _HEADER.size, 0)
        usable = len(old) == _HEADER.size and os.fstat(descriptor).st_size == size and not fresh
        if not usable or old[:8] != header[:8] or old[44:] != header[44:]:
            os.ftruncate(descriptor, 0)
            os.posix_fallocate(descriptor, 0, size)
        memory = mmap.mmap(descriptor, size)
    finally:
        os.close(descriptor)
    if memory[8:44] != boot:
        state = np.frombuffer(memory, np.uint8, offset=_HEADER_SIZE)
        state[state == WRITTEN] = DOUBTFUL
        del state
    memory[: len(header)] = header
    return memory

"""What a layer's cache remembers of its units and chunks, in memory and in the file `map`.

    header    128 bytes: "lazyfsM2", boot id (36), sha256 of the TOC (32), u32 units, u32 chunks
    states    one byte per unit
    used      u32 per chunk: when it was last read, seconds since 1970; at the next multiple of 4
    proofs    32 bytes per unit, the sha256 of its bytes; only for units that came without their sisters; sparse

All of it is little-endian. The file is written with pwrite and never mapped: a disk that fails would kill a process
that has it in its memory.

A proof needs no proof of its own: a place of this file speaks of the same unit for ever, so that whatever stands
there is either the unit's digest or matches no bytes at all.
"""

import os
import struct
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lazyfs.formats.chunks import DIGEST_SIZE
from lazyfs.node.cache_files import OpenFiles, write_all

MISSING, WRITTEN, DURABLE, DOUBTFUL = range(4)
PRESENT = bytes((WRITTEN, DURABLE))

HEADER_SIZE = 128
_MAGIC = b"lazyfsM2"
_HEADER = struct.Struct("<8s36s32sII")


class UnitMap:
    """States and times of one layer. Whoever changes them holds the lock of the `LayerCache`."""

    def __init__(self, directory: Path, units: int, chunks: int, boot: bytes, files: OpenFiles) -> None:
        self._path = str(directory / "map")
        self._files = files
        self._used_at = HEADER_SIZE + -(-units // 4) * 4
        self._proofs_at = self._used_at + 4 * chunks
        self._size = self._proofs_at + DIGEST_SIZE * units
        self._header = _HEADER.pack(_MAGIC, boot, bytes.fromhex(directory.name), units, chunks)
        self.states = bytearray(units)
        self.used: npt.NDArray[np.uint32] = np.zeros(chunks, np.uint32)
        self._saved = 0

    def load(self) -> None:
        """Take states and times from the file, which is made anew where it is not the map of this layer."""
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            header, old = self._header, os.pread(descriptor, self._proofs_at, 0)
            usable = len(old) == self._proofs_at and os.fstat(descriptor).st_size == self._size
            if not usable or old[:8] != header[:8] or old[44 : len(header)] != header[44:]:
                os.ftruncate(descriptor, 0)
                os.posix_fallocate(descriptor, 0, self._proofs_at)
                os.ftruncate(descriptor, self._size)
                old = bytes(self._proofs_at)
            states = bytearray(old[HEADER_SIZE : HEADER_SIZE + len(self.states)])
            if old[: len(header)] != header:
                states = states.replace(bytes((WRITTEN,)), bytes((DOUBTFUL,)))
                write_all(descriptor, states, HEADER_SIZE)
                write_all(descriptor, header, 0)
        finally:
            os.close(descriptor)
        self.states = states
        self.used = np.frombuffer(old[self._used_at :], "<u4").astype(np.uint32)
        self._saved = int(self.used.max(initial=0))

    def mark(self, first: int, stop: int, state: int) -> None:
        """Set the states of units [first, stop). Raises OSError, and nothing has changed, when the disk fails."""
        self.write(first, bytes((state,)) * (stop - first))

    def write(self, first: int, states: bytes) -> None:
        """As `mark`, one state for each unit from `first` on."""
        with self._files.open(self._path) as descriptor:
            write_all(descriptor, states, HEADER_SIZE + first)
        self.states[first : first + len(states)] = states

    def set_proof(self, unit: int, digest: bytes) -> None:
        """The digest of a unit; or of several, one behind the other, from `unit` on."""
        with self._files.open(self._path) as descriptor:
            write_all(descriptor, digest, self._proofs_at + DIGEST_SIZE * unit)

    def proof(self, unit: int) -> bytes:
        with self._files.open(self._path) as descriptor:
            return os.pread(descriptor, DIGEST_SIZE, self._proofs_at + DIGEST_SIZE * unit)

    def save_times(self) -> None:
        """Write down when chunks were last read, if any was since the last time."""
        latest = int(self.used.max(initial=0))
        if latest == self._saved:
            return
        with self._files.open(self._path) as descriptor:
            write_all(descriptor, self.used.astype("<u4").tobytes(), self._used_at)
        self._saved = latest

    def sync(self) -> None:
        with self._files.open(self._path) as descriptor:
            os.fdatasync(descriptor)

    def close(self) -> None:
        self._files.drop(self._path)

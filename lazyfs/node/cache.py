"""The cache of one layer: its device as a sparse file, and a map of which units of it are there.

    <cache>/<sha256 of the TOC>/data    the device; only present units hold data
    <cache>/<sha256 of the TOC>/map     states, times and proofs (`cache_map`)
    <cache>/<sha256 of the TOC>/held    where the kernel may have `data` mounted (`cache_hold`)

The name is the TOC's digest and not the DiffID: a TOC proves its chunks, while the DiffID in it is only
a claim, so no image can put bytes into another image's cache.

What may happen to these files at once, and what a crash leaves of them, is told in `cache_layer`.
"""

import hashlib
import logging
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lazyfs.formats.chunks import UNIT_SIZE, ChunkTable
from lazyfs.node.cache_files import is_in_memory
from lazyfs.node.cache_layer import LayerFiles
from lazyfs.node.cache_map import DOUBTFUL, DURABLE, MISSING, PRESENT
from lazyfs.node.cache_proof import Prover
from lazyfs.node.cache_surroundings import Surroundings

log = logging.getLogger(__name__)


class LayerCache(LayerFiles):
    """What is present of one layer. Thread safe.

    Where the disk does not even take the empty files, nothing is present, and each `put` tries again.
    """

    def __init__(
        self, directory: Path, chunks: ChunkTable, boot: bytes, shared: Surroundings | None = None
    ) -> None:
        """Open or create the cache of the layer whose TOC has the sha256 `directory.name`."""
        super().__init__(directory, chunks, boot, shared)
        self._prover = Prover(chunks, self._first_unit, self._pread)

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

    def is_at_hand(self, offset: int, length: int) -> bool:
        """Would `read` of what is here not wait for a disk?"""
        with suppress(OSError), self._files.open(self._data) as descriptor:
            return is_in_memory(descriptor, offset, length)
        return True

    def has(self, offset: int, length: int) -> bool:
        """Is every unit of these bytes present and beyond doubt?"""
        chunks = self.chunks.covering(offset, length)
        first, last = self._unit(chunks[0], offset), self._unit(chunks[-1], offset + length - 1)
        return not self._map.states[first : last + 1].translate(None, PRESENT)

    def will_be_read(self, low: int, high: int) -> None:
        """Have the kernel read [low, high) from the disk: whoever reads it will not wait then."""
        with suppress(OSError), self._files.open(self._data) as descriptor:
            os.posix_fadvise(descriptor, low, high - low, os.POSIX_FADV_WILLNEED)

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

    def put(self, index: int, plain: bytes) -> bool:
        """Keep a verified chunk. False when there is no room for it.

        Raises OSError when the disk is full or fails; nothing is marked then.
        """
        return self._put(index, plain, len(plain))

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


def _runs(units: Iterable[int]) -> list[range]:
    """Neighbours together: each write to the disk costs a system call."""
    runs: list[range] = []
    for unit in sorted(units):
        if runs and runs[-1].stop == unit:
            runs[-1] = range(runs[-1].start, unit + 1)
        else:
            runs.append(range(unit, unit + 1))
    return runs

"""Proving what a layer's data file holds: against the digest of a chunk, or unit by unit where sisters are missing."""

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lazyfs.formats.chunks import UNIT_SIZE, ChunkTable, chunk_digest
from lazyfs.node.cache_map import PRESENT, UnitMap


def first_units(chunks: ChunkTable) -> npt.NDArray[np.int64]:
    """The number of each chunk's first unit, counted over the layer; one element more than there are chunks."""
    units = -(-np.diff(chunks.start) // UNIT_SIZE)
    return np.concatenate(([0], np.cumsum(units))).astype(np.int64)


@dataclass(frozen=True, slots=True)
class Prover:
    """Reads with `pread` (offset, length), which gives None where the disk does not give the bytes."""

    chunks: ChunkTable
    first_unit: npt.NDArray[np.int64]
    pread: Callable[[int, int], bytes | None]

    def chunk(self, index: int) -> bytes | None:
        """The whole chunk, if it matches its digest."""
        plain = self.pread(int(self.chunks.start[index]), self.chunks.length(index))
        return plain if plain is not None and chunk_digest(plain) == self.chunks.digest(index) else None

    def units(self, units: UnitMap, index: int, wanted: Iterable[int]) -> dict[int, bytes]:
        """Those of the wanted units that match the digests kept for them."""
        first, start = int(self.first_unit[index]), int(self.chunks.start[index])
        end = start + self.chunks.length(index)
        proved = {}
        for unit in wanted:
            offset = start + unit * UNIT_SIZE
            plain = self.pread(offset, min(UNIT_SIZE, end - offset))
            try:
                proof = units.proof(first + unit)
            except OSError:
                break
            if plain is not None and hashlib.sha256(plain).digest() == proof:
                proved[unit] = plain
        return proved

    def present(
        self, units: UnitMap, index: int, wanted: Iterable[int] | None = None
    ) -> dict[int, bytes] | None:
        """The units of the chunk that are marked as present (of those wanted); None if one is not what it was."""
        first, stop = int(self.first_unit[index]), int(self.first_unit[index + 1])
        states = bytes(units.states[first:stop])
        if not states.translate(None, PRESENT):
            plain = self.chunk(index)
            return None if plain is None else dict(enumerate(split(plain)))
        asked = range(stop - first) if wanted is None else wanted
        marked = [unit for unit in asked if states[unit] in PRESENT]
        proved = self.units(units, index, marked)
        return proved if len(proved) == len(marked) else None

    def read(self, units: UnitMap, offset: int, length: int) -> bytes | None:
        """These bytes, if all of their units are marked as present and match their digests just now."""
        pieces = []
        for index in self.chunks.covering(offset, length):
            start = int(self.chunks.start[index])
            low, high = max(0, offset - start), min(self.chunks.length(index), offset + length - start)
            wanted = range(low // UNIT_SIZE, -(-high // UNIT_SIZE))
            proved = self.present(units, index, wanted)
            if proved is None or not proved.keys() >= set(wanted):
                return None
            plain = b"".join(proved[unit] for unit in wanted)
            pieces.append(plain[low - wanted[0] * UNIT_SIZE : high - wanted[0] * UNIT_SIZE])
        return b"".join(pieces)


def split(plain: bytes) -> list[bytes]:
    """A chunk's units."""
    return [plain[at : at + UNIT_SIZE] for at in range(0, len(plain), UNIT_SIZE)]

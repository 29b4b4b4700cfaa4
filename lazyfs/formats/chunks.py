"""Chunks: the pieces of a device that are compressed, fetched and verified; and their digests.

A *chunk* is a range of the device, stored in the blob as one frame. A *unit* is a fixed piece of a
chunk (32 KiB of plain bytes; the last one of a chunk may be shorter): the smallest thing that can be
proved and marked as present. The digest of a chunk is a small Merkle step over its units, so that a
single unit can be proved with the digests of its sisters, without the bytes of its sisters:

    length <= UNIT_SIZE   sha256(plain bytes)
    length >  UNIT_SIZE   sha256("lazyfs chunk\\0" || u64le(length) || sha256(unit 0) || sha256(unit 1) || …)

Both depend on the plain bytes alone, whatever the codec. A chunk is known by its digest *and* its length: what is
hashed for a long chunk could itself be the plain bytes of a short one.

The plain bytes of a chunk are those that the *device* shows: the data of files, at its place in the tar stream,
and zeros everywhere else. What a tar header says is in the TOC, and a reader never needs it; but headers hold
times, and two installations of one package differ in them. Without headers their chunks are the same chunks:
of what an ideal file-level deduplication would share between them, 0.98 is shared, and 0.49 with headers.
"""

import hashlib
import struct
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

UNIT_SIZE = 32 * 1024
MAX_CHUNK_SIZE = 16 << 20
DIGEST_SIZE = 32
_TREE_PREFIX = b"lazyfs chunk\0"


def unit_digests(plain: bytes | bytearray | memoryview) -> list[bytes]:
    """sha256 of each unit of one chunk."""
    view = memoryview(plain)
    return [hashlib.sha256(view[at : at + UNIT_SIZE]).digest() for at in range(0, len(view), UNIT_SIZE)]


def combine(units: list[bytes], length: int) -> bytes:
    """The digest of a chunk of `length` bytes from the digests of its units."""
    if len(units) == 1:
        return units[0]
    return hashlib.sha256(b"".join((_TREE_PREFIX, struct.pack("<Q", length), *units))).digest()


def chunk_digest(plain: bytes | bytearray | memoryview) -> bytes:
    """The digest (32 bytes) of one chunk, which is not empty."""
    return combine(unit_digests(plain), len(plain))


def shown(plain: bytes, data: Iterable[tuple[int, int]]) -> bytes:
    """A piece of the stream as the device shows it: zeros but for the ranges (start, end) of `data` in it, rising."""
    ranges = list(data)
    if ranges == [(0, len(plain))]:
        return plain
    view, at = memoryview(plain), 0
    parts: list[bytes | memoryview] = []
    for start, end in ranges:
        parts += (bytes(start - at), view[start:end])
        at = end
    return b"".join((*parts, bytes(len(plain) - at)))


def _no_offsets() -> npt.NDArray[np.int64]:
    return np.zeros(0, np.int64)


@dataclass(frozen=True, slots=True)
class ChunkTable:
    """The seek table of one layer: where each chunk lies on the device and in the blob.

    Arrays of one length, in device order; the chunks cover the device without gap or overlap.
    `start` has one element more: `start[i]` is the device offset of chunk i, `start[-1]` the device size.
    `data_start` and `data_end` are the ranges of the device that are data of files: disjoint, rising.
    """

    start: npt.NDArray[np.int64]
    blob_offset: npt.NDArray[np.int64]
    blob_length: npt.NDArray[np.int64]
    digests: bytes
    data_start: npt.NDArray[np.int64] = field(default_factory=_no_offsets)
    data_end: npt.NDArray[np.int64] = field(default_factory=_no_offsets)

    def __len__(self) -> int:
        return len(self.blob_offset)

    @property
    def device_size(self) -> int:
        return int(self.start[-1])

    def digest(self, index: int) -> bytes:
        return self.digests[index * DIGEST_SIZE : (index + 1) * DIGEST_SIZE]

    def length(self, index: int) -> int:
        return int(self.start[index + 1] - self.start[index])

    def first_units(self) -> npt.NDArray[np.int64]:
        """For each chunk how many units the chunks before it have; one element more, the units of all."""
        units = -(-np.diff(self.start) // UNIT_SIZE)
        return np.concatenate(([0], np.cumsum(units))).astype(np.int64)

    def shown(self, index: int, plain: bytes) -> bytes:
        """What the device shows of chunk `index`, from what its frame holds of the stream."""
        start, end = int(self.start[index]), int(self.start[index + 1])
        first = int(self.data_end.searchsorted(start, "right"))
        last = int(self.data_start.searchsorted(end, "left"))
        lows = np.maximum(self.data_start[first:last], start) - start
        highs = np.minimum(self.data_end[first:last], end) - start
        return shown(plain, zip(lows.tolist(), highs.tolist(), strict=True))

    def covering(self, offset: int, length: int) -> range:
        """Indexes of the chunks that hold [offset, offset + length) of the device; length > 0."""
        first = int(self.start.searchsorted(offset, "right")) - 1
        last = int(self.start.searchsorted(offset + length, "left"))
        return range(first, min(last, len(self)))

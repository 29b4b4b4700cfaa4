"""The units of a launch pack (`pack`), proved against the TOCs of the image before anybody has them."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import zstandard

from lazyfs.errors import BadInputError, IntegrityError, LimitError
from lazyfs.formats.chunks import DIGEST_SIZE, UNIT_SIZE, ChunkTable, combine
from lazyfs.formats.pack import MAX_FRAME_SIZE, PackIndex, Place


@dataclass(frozen=True, slots=True)
class Unit:
    """One proved unit: unit `number` of chunk `chunk` of `layer`, `plain` at `offset` of the device."""

    layer: int
    chunk: int
    number: int
    offset: int
    plain: memoryview
    digest: bytes


class Pack:
    """A pack held against the TOCs of the image: gives proved units. Used by one thread at a time."""

    def __init__(self, index: PackIndex, chunks: Sequence[ChunkTable]) -> None:
        """`chunks` are the chunk tables of the image's layers. BadInputError or LimitError if they do not fit."""
        self.index = index
        self._chunks = chunks
        self._first = [table.first_units() for table in chunks]
        self._digests: dict[Place, list[bytes]] = {}
        self._check_runs()
        self.frames_at = index.frames_at

    def __len__(self) -> int:
        """The number of frames."""
        return len(self.index.frame_length)

    def places(self, frame: int) -> list[tuple[int, int, int]]:
        """(layer, chunk, unit of the chunk) of each unit that a frame carries, in its order."""
        index = self.index
        found: list[tuple[int, int, int]] = []
        for row in range(int(self._run_at[frame]), int(self._run_at[frame + 1])):
            layer, unit = int(index.run_layer[row]), int(index.run_unit[row])
            units = np.arange(unit, unit + int(index.run_units[row]))
            chunk = np.searchsorted(self._first[layer], units, side="right") - 1
            found += zip(
                [layer] * len(units),
                chunk.tolist(),
                (units - self._first[layer][chunk]).tolist(),
                strict=True,
            )
        return found

    def take_proofs(self, data: bytes) -> None:
        """Prove the unit digests of all chunks. IntegrityError where they are not those of the image."""
        at = 0
        for layer, chunk in zip(
            self.index.proof_layer.tolist(), self.index.proof_chunk.tolist(), strict=True
        ):
            count = int(self._first[layer][chunk + 1] - self._first[layer][chunk])
            end = at + count * DIGEST_SIZE
            digests = [data[one : one + DIGEST_SIZE] for one in range(at, end, DIGEST_SIZE)]
            table = self._chunks[layer]
            if end > len(data) or combine(digests, table.length(chunk)) != table.digest(chunk):
                raise IntegrityError(
                    f"launch pack: chunk {chunk} of layer {layer} has other units than it says"
                )
            self._digests[layer, chunk] = digests
            at = end

    def open_frame(self, frame: int, data: bytes | memoryview) -> list[Unit]:
        """The units of a frame, each proved. IntegrityError, or BadInputError, if one is not what it should be."""
        places = self.places(frame)
        spans = [self._span(*place) for place in places]
        plain = memoryview(_open(data, sum(length for _, length in spans), frame))
        units = []
        at = 0
        for (layer, chunk, number), (offset, length) in zip(places, spans, strict=True):
            piece = plain[at : at + length]
            digest = hashlib.sha256(piece).digest()
            if digest != self._digest(layer, chunk, number):
                raise IntegrityError(
                    f"launch pack: unit {number} of chunk {chunk} of layer {layer} is not what the image has there"
                )
            units.append(Unit(layer, chunk, number, offset, piece, digest))
            at += length
        return units

    def _digest(self, layer: int, chunk: int, number: int) -> bytes:
        digests = self._digests.get((layer, chunk))
        return self._chunks[layer].digest(chunk) if digests is None else digests[number]

    def _span(self, layer: int, chunk: int, number: int) -> tuple[int, int]:
        """Offset on the device, and length, of a unit."""
        table = self._chunks[layer]
        offset = int(table.start[chunk]) + number * UNIT_SIZE
        return offset, min(UNIT_SIZE, int(table.start[chunk + 1]) - offset)

    def _check_runs(self) -> None:
        index = self.index
        layers = len(self._chunks)
        if (
            len(index.tocs) != layers
            or (index.run_layer >= layers).any()
            or (index.proof_layer >= layers).any()
        ):
            raise BadInputError("launch pack: it is of an image with other layers")
        counts = np.array([first[-1] for first in self._first], np.int64)
        chunk_counts = np.array([len(table) for table in self._chunks], np.int64)
        if (index.run_unit + index.run_units > counts[index.run_layer]).any():
            raise BadInputError("launch pack: it carries units that the image does not have")
        if (index.proof_chunk >= chunk_counts[index.proof_layer]).any():
            raise BadInputError("launch pack: it proves chunks that the image does not have")
        self._run_at = np.concatenate(([0], np.cumsum(index.frame_runs))).astype(np.int64)
        per_frame = (
            np.add.reduceat(index.run_units, self._run_at[:-1]) if len(self._run_at) > 1 else index.run_units
        )
        if (per_frame * UNIT_SIZE > MAX_FRAME_SIZE).any():
            raise LimitError(f"launch pack: a frame of more than {MAX_FRAME_SIZE} bytes")
        for layer in range(layers):
            self._check_layer(layer)

    def _check_layer(self, layer: int) -> None:
        """No unit twice, and every chunk of several units proved, once."""
        index, first = self.index, self._first[layer]
        mine = np.flatnonzero(index.run_layer == layer)
        mine = mine[np.argsort(index.run_unit[mine], kind="stable")]
        starts, ends = index.run_unit[mine], (index.run_unit + index.run_units)[mine]
        if (starts[1:] < ends[:-1]).any():
            raise BadInputError("launch pack: it carries a unit twice")
        proved = index.proof_chunk[index.proof_layer == layer]
        has_proof = np.zeros(len(first) - 1, np.bool_)
        has_proof[proved] = True
        if has_proof.sum() != len(proved) or (np.diff(first)[proved] == 1).any():
            raise BadInputError("launch pack: it proves a chunk twice, or one that needs none")
        touched = np.zeros(len(first), np.int64)
        low = np.searchsorted(first, starts, side="right") - 1
        high = np.searchsorted(first, ends - 1, side="right")
        np.add.at(touched, low, 1)
        np.add.at(touched, high, -1)
        carried = np.cumsum(touched)[:-1] > 0
        if (carried & ~has_proof & (np.diff(first) > 1)).any():
            raise BadInputError("launch pack: it carries units without a proof")


def _open(data: bytes | memoryview, length: int, frame: int) -> bytes:
    try:
        if zstandard.frame_content_size(data) != length:
            raise BadInputError(f"launch pack: frame {frame} does not hold the {length} bytes of its units")
        plain: bytes = zstandard.ZstdDecompressor().decompress(
            data, max_output_size=length, allow_extra_data=False
        )
    except zstandard.ZstdError as error:
        raise BadInputError(f"launch pack: frame {frame} is damaged ({error})") from error
    return plain


def check_document(data: bytes, sha256: str) -> bytes:
    """`data` if it has this digest; else IntegrityError."""
    if hashlib.sha256(data).hexdigest() != sha256:
        raise IntegrityError("launch pack: a document in it has other bytes than its digest promises")
    return data

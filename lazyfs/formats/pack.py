"""The launch pack of an image: what a start reads, in the order in which it reads it, as one object to stream.

    header      magic "lazyfsPK", u32 version, u32 length of the index
    index       what follows, and where: a zstd frame around one msgpack map of columns
    documents   the config and the TOCs of all layers, as the image has them
    proofs      the digests of all units of each chunk of which the pack carries some
    frames      the hot units in order of first touch: zstd frames of about FRAME_SIZE plain bytes

`docs/format.md` has every field. A pack is read from a stranger, and nothing in it is believed: a document
must have the digest that the image promises, the unit digests of a chunk must add up to the chunk's digest in
the TOC, and a unit must have its digest. So whatever a pack says, it can give no wrong byte; and what it may
cost is bounded: no unit comes twice, and no size is taken from it that is not checked first.

A frame needs nothing but the index, the TOCs and the proofs: it can be used as soon as it is there, and left
out where the node has its units.

Version history
    1   first version
"""

import hashlib
import struct
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import msgpack
import numpy as np
import numpy.typing as npt
import zstandard

from lazyfs.errors import BadInputError, LimitError, UnsupportedError
from lazyfs.formats.chunks import DIGEST_SIZE, ChunkTable
from lazyfs.formats.columns import from_planes, take, to_planes
from lazyfs.formats.toc import MAX_TOC_SIZE

MAGIC = b"lazyfsPK"
VERSION = 1
HEADER = struct.Struct("<8sII")

FRAME_SIZE = 512 * 1024
"""Plain bytes of a frame, at which a writer ends it."""
LEVEL = 18
"""numpy: 7.97 MB in 4 s of CPU time; level 12: 8.74 MB in 0.6 s, 15: 8.71 in 1.5, 17: 8.24 in 2.7, 19: 7.96 in 4.7.
A pack is made once, and every start waits for its bytes."""
MAX_FRAME_SIZE = 4 << 20
MAX_INDEX_SIZE = 16 << 20
MAX_DOCUMENTS_SIZE = 256 << 20
MAX_LAYERS = 1024
MAX_RUNS = 1 << 20
MAX_PLAIN_INDEX = 64 << 20
_COLUMNS = {
    "documents": {"length": "u4"},
    "frames": {"length": "u4", "runs": "u4"},
    "runs": {"layer": "u2", "unit": "u4", "units": "u4"},
    "proofs": {"layer": "u2", "chunk": "u4"},
}

Ints = npt.NDArray[np.int64]
Place = tuple[int, int]
"""A unit or a chunk of a layer: (layer, lowest 0; its number, counted through the layer's chunks)."""


@dataclass(frozen=True, slots=True)
class PackIndex:
    """What a pack says of itself: checked for sense, and not yet against an image."""

    size: int
    """Of header and index, in bytes."""
    tocs: tuple[str, ...]
    """sha256 (hex) of the TOC of each layer, lowest first."""
    documents: tuple[tuple[str, int], ...]
    """sha256 (hex) and length of each."""
    proof_digests: int
    frame_length: Ints
    frame_runs: Ints
    run_layer: Ints
    run_unit: Ints
    run_units: Ints
    proof_layer: Ints
    proof_chunk: Ints

    @property
    def proofs_at(self) -> int:
        """Where in the pack the proofs begin."""
        return self.size + sum(length for _, length in self.documents)

    @property
    def frames_at(self) -> Ints:
        """Where each frame begins; one element more, the end of the pack."""
        first = self.proofs_at + self.proof_digests * DIGEST_SIZE
        return first + np.concatenate(([0], np.cumsum(self.frame_length)))


def encode(
    tocs: Sequence[bytes],
    config: bytes,
    chunks: Sequence[ChunkTable],
    units: Mapping[Place, bytes],
    digests: Mapping[Place, Sequence[bytes]],
    *,
    level: int = LEVEL,
    jobs: int = 1,
) -> Iterator[bytes]:
    """The pack, piece by piece. `tocs` are the packed TOCs, lowest layer first, and `chunks` their chunk tables.

    `units` has the hot units in order of first touch, `digests` the unit digests of each chunk that one of them
    belongs to.
    """
    frames = _frames(units)
    compress = partial(_compress, units, level)
    with ThreadPoolExecutor(jobs) as pool:
        packed = list(pool.map(compress, frames))
    documents = [config, *tocs]
    runs = [_runs(frame) for frame in frames]
    proofs = {place: listed for place, listed in digests.items() if len(listed) > 1}
    index = {
        "version": VERSION,
        "tocs": b"".join(hashlib.sha256(each).digest() for each in tocs),
        "digests": b"".join(hashlib.sha256(each).digest() for each in documents),
        "proof_digests": sum(map(len, proofs.values())),
        "documents": _table("documents", [[len(each)] for each in documents]),
        "frames": _table("frames", [list(map(len, pair)) for pair in zip(packed, runs, strict=True)]),
        "runs": _table("runs", [run for listed in runs for run in listed]),
        "proofs": _table("proofs", [list(place) for place in proofs]),
    }
    stored = zstandard.compress(msgpack.packb(index, use_bin_type=True), 19)
    yield HEADER.pack(MAGIC, VERSION, len(stored)) + stored
    yield from documents
    yield b"".join(digest for listed in proofs.values() for digest in listed)
    yield from packed


def _frames(units: Mapping[Place, bytes]) -> list[list[Place]]:
    """The units cut into frames; within a frame by place, where neighbours compress and are used together."""
    frames: list[list[Place]] = []
    size = FRAME_SIZE
    for place, plain in units.items():
        if size >= FRAME_SIZE:
            frames.append([])
            size = 0
        frames[-1].append(place)
        size += len(plain)
    return [sorted(frame) for frame in frames]


def _compress(units: Mapping[Place, bytes], level: int, frame: list[Place]) -> bytes:
    return zstandard.compress(b"".join(units[place] for place in frame), level)


def _runs(frame: list[Place]) -> list[list[int]]:
    """(layer, first unit, units) of the units of a frame, which are sorted."""
    runs: list[list[int]] = []
    for layer, unit in frame:
        if runs and runs[-1][0] == layer and runs[-1][1] + runs[-1][2] == unit:
            runs[-1][2] += 1
        else:
            runs.append([layer, unit, 1])
    return runs


def _table(name: str, rows: Sequence[Sequence[int]]) -> dict[str, Any]:
    columns = _COLUMNS[name]
    values = np.array(rows, np.int64).reshape(len(rows), len(columns))
    planes = {key: to_planes(values[:, at], dtype) for at, (key, dtype) in enumerate(columns.items())}
    return {"count": len(rows), **planes}


def index_length(header: bytes) -> int:
    """How many bytes of index follow the header. BadInputError, LimitError or UnsupportedError."""
    if len(header) < HEADER.size:
        raise BadInputError("launch pack: it ends in its header")
    magic, version, length = HEADER.unpack_from(header)
    if magic != MAGIC:
        raise BadInputError("launch pack: it does not begin as one")
    if version != VERSION:
        raise UnsupportedError(
            f"launch pack: version {version}, this lazyfs reads version {VERSION}",
            hint="make it again: lazyfs profile",
        )
    if not 0 < length <= MAX_INDEX_SIZE:
        raise LimitError(f"launch pack: an index of {length} bytes, the limit is {MAX_INDEX_SIZE}")
    return int(length)


def decode_index(stored: bytes) -> PackIndex:
    """The index of a stranger's pack. Raises BadInputError, LimitError or UnsupportedError."""
    try:
        return _decode_index(stored)
    except (BadInputError, LimitError) as error:
        # Columns speak of the TOC, which they were made for.
        raise type(error)(f"launch pack: {error.message.removeprefix('TOC: ')}") from error


def _decode_index(stored: bytes) -> PackIndex:
    document = _unpack(stored)
    if take(document, "version", int, "index") != VERSION:
        raise BadInputError("header and index disagree about the version")
    tocs = _digests(document, "tocs", MAX_LAYERS)
    listed = _digests(document, "digests", MAX_LAYERS + 1)
    documents = _columns(document, "documents")["length"].tolist()
    if len(documents) != len(listed):
        raise BadInputError("documents and digests disagree")
    if max(documents, default=0) > MAX_TOC_SIZE or sum(documents) > MAX_DOCUMENTS_SIZE:
        raise LimitError(f"documents of {sum(documents)} bytes, the limit is {MAX_DOCUMENTS_SIZE}")
    frames, runs = _columns(document, "frames"), _columns(document, "runs")
    proofs = _columns(document, "proofs")
    proof_digests = take(document, "proof_digests", int, "index")
    if not 0 <= proof_digests <= MAX_RUNS * 4:
        raise LimitError(f"{proof_digests} digests, the limit is {MAX_RUNS * 4}")
    if int(frames["runs"].sum()) != len(runs["unit"]) or (frames["runs"] == 0).any():
        raise BadInputError("frames and runs disagree")
    if (runs["units"] == 0).any() or (frames["length"] > 2 * MAX_FRAME_SIZE).any():
        raise BadInputError("an empty run, or a frame beyond all measure")
    return PackIndex(
        size=HEADER.size + len(stored),
        tocs=tuple(tocs),
        documents=tuple(zip(listed, documents, strict=True)),
        proof_digests=proof_digests,
        frame_length=frames["length"],
        frame_runs=frames["runs"],
        run_layer=runs["layer"],
        run_unit=runs["unit"],
        run_units=runs["units"],
        proof_layer=proofs["layer"],
        proof_chunk=proofs["chunk"],
    )


def _unpack(stored: bytes) -> dict[str, Any]:
    try:
        size = zstandard.frame_content_size(stored)
        if not 0 <= size <= MAX_PLAIN_INDEX:
            raise LimitError(f"an index of {size} bytes when unpacked, the limit is {MAX_PLAIN_INDEX}")
        plain = zstandard.ZstdDecompressor().decompress(stored, max_output_size=size, allow_extra_data=False)
        document = msgpack.unpackb(
            plain, strict_map_key=True, max_str_len=256, max_array_len=0, max_map_len=64, max_ext_len=0
        )
    except (zstandard.ZstdError, ValueError, msgpack.UnpackException, RecursionError) as error:
        raise BadInputError(f"its index cannot be read ({error or type(error).__name__})") from error
    if not isinstance(document, dict):
        raise BadInputError("its index is not a map")
    return document


def _digests(document: Mapping[str, Any], name: str, limit: int) -> list[str]:
    data: bytes = take(document, name, bytes, "index")
    count, rest = divmod(len(data), DIGEST_SIZE)
    if rest or not 0 < count <= limit:
        raise BadInputError(f"index.{name} has {len(data)} bytes")
    return [data[at : at + DIGEST_SIZE].hex() for at in range(0, len(data), DIGEST_SIZE)]


def _columns(document: Mapping[str, Any], name: str) -> dict[str, Ints]:
    table = take(document, name, dict, "index")
    count = take(table, "count", int, name)
    if not 0 <= count <= MAX_RUNS:
        raise LimitError(f"{count} {name}, the limit is {MAX_RUNS}")
    return {
        key: from_planes(take(table, key, bytes, name), dtype, count, f"{name}.{key}").astype(np.int64)
        for key, dtype in _COLUMNS[name].items()
    }

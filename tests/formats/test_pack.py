"""Launch packs: what is written is read back and proved, and no pack, however it lies, gives a wrong byte."""

import hashlib
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from random import Random
from typing import Any

import msgpack
import numpy as np
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lazyfs.errors import BadInputError, IntegrityError, LazyfsError, LimitError, UnsupportedError
from lazyfs.formats import pack
from lazyfs.formats.chunks import UNIT_SIZE, ChunkTable, chunk_digest, unit_digests
from lazyfs.formats.columns import to_planes
from lazyfs.formats.pack import Place
from lazyfs.formats.pack_read import Pack, Unit, check_document

KIB = 1024
LENGTHS = ([100 * KIB, 20 * KIB, 512 * KIB, 33 * KIB], [5, 64 * KIB + 7])


@dataclass(frozen=True)
class Layer:
    plain: bytes
    chunks: ChunkTable
    toc: bytes


def make_layer(lengths: list[int], seed: int) -> Layer:
    rng = Random(seed)
    plain = b"".join(bytes(rng.choices(b"abc", k=length)) for length in lengths)
    start = np.concatenate(([0], np.cumsum(lengths))).astype(np.int64)
    zeros = np.zeros(len(lengths), np.int64)
    digests = b"".join(chunk_digest(plain[one:end]) for one, end in pairwise(start.tolist()))
    return Layer(plain, ChunkTable(start, zeros, zeros, digests), f"TOC {seed}".encode())


LAYERS = [make_layer(lengths, seed) for seed, lengths in enumerate(LENGTHS)]
TABLES = [layer.chunks for layer in LAYERS]
CONFIG = b"{}"


def everything() -> list[Place]:
    return [
        (number, unit) for number, table in enumerate(TABLES) for unit in range(int(table.first_units()[-1]))
    ]


def unit_of(layer: Layer, unit: int) -> tuple[int, bytes]:
    """Which chunk a unit is of, and its bytes."""
    first = layer.chunks.first_units()
    chunk = int(np.searchsorted(first, unit, side="right")) - 1
    start = int(layer.chunks.start[chunk]) + (unit - int(first[chunk])) * UNIT_SIZE
    return chunk, layer.plain[start : min(start + UNIT_SIZE, int(layer.chunks.start[chunk + 1]))]


def made(hot: list[Place]) -> bytes:
    units: dict[Place, bytes] = {}
    digests: dict[Place, list[bytes]] = {}
    for layer, unit in hot:
        chunk, units[layer, unit] = unit_of(LAYERS[layer], unit)
        table = TABLES[layer]
        whole = LAYERS[layer].plain[int(table.start[chunk]) : int(table.start[chunk + 1])]
        digests[layer, chunk] = unit_digests(whole)
    return b"".join(pack.encode([layer.toc for layer in LAYERS], CONFIG, TABLES, units, digests, level=1))


def opened(data: bytes) -> Pack:
    length = pack.index_length(data[: pack.HEADER.size])
    index = pack.decode_index(data[pack.HEADER.size : pack.HEADER.size + length])
    found = Pack(index, TABLES)
    found.take_proofs(data[index.proofs_at : int(found.frames_at[0])])
    return found


def read(data: bytes) -> list[Unit]:
    found = opened(data)
    return [
        unit
        for frame, (start, end) in enumerate(pairwise(found.frames_at.tolist()))
        for unit in found.open_frame(frame, data[start:end])
    ]


def changed(data: bytes, change: Callable[[dict[str, Any]], None]) -> bytes:
    """The pack with another index."""
    end = pack.HEADER.size + pack.index_length(data)
    index = msgpack.unpackb(zstandard.decompress(data[pack.HEADER.size : end]))
    change(index)
    stored = zstandard.compress(msgpack.packb(index, use_bin_type=True))
    return pack.HEADER.pack(pack.MAGIC, pack.VERSION, len(stored)) + stored + data[end:]


@given(
    st.permutations(everything()).flatmap(
        lambda places: st.integers(1, len(places)).map(lambda n: places[:n])
    )
)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_units_come_back_where_they_belong(hot: list[Place]) -> None:
    data = made(hot)
    found = read(data)
    for unit in found:
        assert bytes(unit.plain) == LAYERS[unit.layer].plain[unit.offset : unit.offset + len(unit.plain)]
        first = int(TABLES[unit.layer].first_units()[unit.chunk])
        assert unit_of(LAYERS[unit.layer], first + unit.number) == (unit.chunk, bytes(unit.plain))
    firsts = [table.first_units() for table in TABLES]
    places = [(unit.layer, int(firsts[unit.layer][unit.chunk]) + unit.number) for unit in found]
    assert sorted(places) == sorted(hot)
    assert data == made(hot), "equal input, equal bytes"


def test_frames_follow_the_order_of_touch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pack, "FRAME_SIZE", 64 * KIB)
    hot = everything()[::-1]
    data = made(hot)
    found = opened(data)
    assert len(found) > 5
    last = [(layer, chunk, unit) for layer, chunk, unit in found.places(len(found) - 1)]
    assert (0, 0, 0) in last
    assert all(layer == 1 for layer, _, _ in found.places(0))
    # Each frame can be opened alone.
    start, end = int(found.frames_at[-2]), int(found.frames_at[-1])
    assert {unit.chunk for unit in found.open_frame(len(found) - 1, data[start:end])} == {0}


def test_documents_are_where_the_index_says() -> None:
    data = made(everything()[:3])
    index = opened(data).index
    at = index.size
    found = []
    for digest, length in index.documents:
        found.append(check_document(data[at : at + length], digest))
        at += length
    assert found == [CONFIG, *(layer.toc for layer in LAYERS)]
    assert index.tocs == tuple(hashlib.sha256(layer.toc).hexdigest() for layer in LAYERS)
    with pytest.raises(IntegrityError):
        check_document(b"another", index.documents[0][0])


def test_every_byte_that_is_changed_is_found_or_does_not_matter() -> None:
    data = made(everything()[::3])
    right = {(unit.layer, unit.offset): bytes(unit.plain) for unit in read(data)}
    rng = Random(3)
    for _ in range(400):
        broken = bytearray(data)
        broken[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        try:
            units = read(bytes(broken))
        except LazyfsError:
            continue
        assert {(unit.layer, unit.offset): bytes(unit.plain) for unit in units}.items() <= right.items()


def test_a_pack_that_is_cut_short_is_refused() -> None:
    data = made(everything())
    for length in (0, 5, pack.HEADER.size, pack.HEADER.size + 20, len(data) // 2, len(data) - 1):
        with pytest.raises(LazyfsError):
            read(data[:length])


def column(name: str, key: str, values: list[int]) -> Callable[[dict[str, Any]], None]:
    def change(index: dict[str, Any]) -> None:
        dtype = pack._COLUMNS[name][key]
        index[name][key] = to_planes(np.array(values), dtype)

    return change


def values_of(index: Mapping[str, Any], **changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda document: document.update(changes)


ONE = made([(0, 0), (0, 1), (1, 0)])
"""One frame of two runs, one chunk that needs a proof."""


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (lambda index: index.update(version=2), BadInputError, "version"),
        (lambda index: index.pop("runs"), BadInputError, "runs is missing"),
        (lambda index: index.update(tocs=index["tocs"][:31]), BadInputError, "tocs"),
        (lambda index: index.update(tocs=index["tocs"][:32]), BadInputError, "other layers"),
        (lambda index: index.update(proof_digests=1 << 40), LimitError, "digests"),
        (lambda index: index.update(proof_digests=True), BadInputError, "proof_digests"),
        (lambda index: index["frames"].update(count=1 << 40), LimitError, "frames"),
        (column("documents", "length", [2, 1 << 31, 5]), LimitError, "documents"),
        (column("documents", "length", [2, 5]), BadInputError, "length"),
        (column("frames", "runs", [1]), BadInputError, "frames and runs"),
        (column("frames", "length", [1 << 31]), BadInputError, "beyond all measure"),
        (column("runs", "units", [0, 1]), BadInputError, "empty run"),
        (column("runs", "units", [1 << 31, 1]), BadInputError, "does not have"),
        (column("runs", "layer", [0, 7]), BadInputError, "other layers"),
        (column("runs", "unit", [0, 1000]), BadInputError, "does not have"),
        (column("runs", "layer", [0, 0]), BadInputError, "twice"),
        (column("proofs", "chunk", [1]), BadInputError, "none"),
        (column("proofs", "chunk", [2]), BadInputError, "without a proof"),
        (column("proofs", "chunk", [900]), BadInputError, "does not have"),
        (column("proofs", "layer", [9]), BadInputError, "other layers"),
    ],
)
def test_an_index_that_lies_is_refused(
    change: Callable[[dict[str, Any]], None], error: type[LazyfsError], words: str
) -> None:
    with pytest.raises(error, match=words) as caught:
        read(changed(ONE, change))
    assert caught.value.message.startswith("launch pack: ")


def test_units_of_another_image_are_refused() -> None:
    data = made([(0, 1), (1, 0)])
    other = [make_layer(lengths, seed + 10) for seed, lengths in enumerate(LENGTHS)]
    length = pack.index_length(data)
    index = pack.decode_index(data[pack.HEADER.size : pack.HEADER.size + length])
    found = Pack(index, [layer.chunks for layer in other])
    with pytest.raises(IntegrityError, match="chunk 0 of layer 0"):
        found.take_proofs(data[index.proofs_at : int(found.frames_at[0])])


def test_a_frame_that_says_another_size_is_not_unpacked() -> None:
    found = opened(ONE)
    with pytest.raises(BadInputError, match="does not hold"):
        found.open_frame(0, zstandard.compress(bytes(1 << 20)))
    with pytest.raises(BadInputError, match="damaged"):
        found.open_frame(0, b"nothing of the kind")


def test_headers_that_are_none() -> None:
    header = pack.HEADER.pack(pack.MAGIC, pack.VERSION, 100)
    assert pack.index_length(header) == 100
    with pytest.raises(BadInputError, match="does not begin"):
        pack.index_length(b"x" * 16)
    with pytest.raises(UnsupportedError, match="version 7"):
        pack.index_length(pack.HEADER.pack(pack.MAGIC, 7, 100))
    for length in (0, 1 << 31):
        with pytest.raises(LimitError):
            pack.index_length(struct.pack("<8sII", pack.MAGIC, pack.VERSION, length))


def test_an_index_that_unpacks_to_very_much_is_not_unpacked() -> None:
    with pytest.raises(LimitError, match="when unpacked"):
        pack.decode_index(zstandard.compress(bytes(pack.MAX_PLAIN_INDEX + 1)))
    with pytest.raises(BadInputError, match="cannot be read"):
        pack.decode_index(zstandard.compress(b"\xc1"))
    with pytest.raises(BadInputError, match="not a map"):
        pack.decode_index(zstandard.compress(msgpack.packb(5)))

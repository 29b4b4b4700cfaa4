"""Sparse members in all formats of GNU tar, with the bytes put together again."""

from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lazyfs.errors import BadInputError, LimitError, UnsupportedError
from lazyfs.formats import tar_sparse
from lazyfs.formats.tarwalk import Kind
from tests.formats.tar_blocks import (
    END,
    GNU,
    content,
    header,
    long_name,
    members,
    octal,
    only,
    padded,
    pax,
    sealed,
)

Map = list[tuple[int, int]]
Encoder = Callable[[Map, int, bytes], bytes]


def old_gnu(entries: Map, size: int, data: bytes) -> bytes:
    def area(part: Map, slots: int, *, more: bool) -> bytes:
        fields = b"".join(octal(offset, 12) + octal(length, 12) for offset, length in part)
        return fields.ljust(24 * slots, b"\0") + bytes([more])

    tail = bytes(41) + area(entries[:4], 4, more=len(entries) > 4) + octal(size, 12)
    blocks = header(b"name", flag=b"S", size=len(data), magic=GNU, tail=tail)
    for at in range(4, len(entries), 21):
        blocks += area(entries[at : at + 21], 21, more=len(entries) > at + 21).ljust(512, b"\0")
    return blocks + padded(data)


def pax_0_0(entries: Map, size: int, data: bytes) -> bytes:
    pairs = []
    for offset, length in entries:
        pairs += [(b"GNU.sparse.offset", b"%d" % offset), (b"GNU.sparse.numbytes", b"%d" % length)]
    start = pax((b"GNU.sparse.size", b"%d" % size), (b"GNU.sparse.numblocks", b"%d" % len(entries)), *pairs)
    return start + header(b"name", size=len(data)) + padded(data)


def pax_0_1(entries: Map, size: int, data: bytes) -> bytes:
    start = pax(
        (b"GNU.sparse.size", b"%d" % size),
        (b"GNU.sparse.numblocks", b"%d" % len(entries)),
        (b"GNU.sparse.name", b"name"),
        (b"GNU.sparse.map", b",".join(b"%d,%d" % entry for entry in entries)),
    )
    return start + header(b"GNUSparseFile.1/name", size=len(data)) + padded(data)


def pax_1_0(entries: Map, size: int, data: bytes) -> bytes:
    start = pax(
        (b"GNU.sparse.major", b"1"),
        (b"GNU.sparse.minor", b"0"),
        (b"GNU.sparse.name", b"name"),
        (b"GNU.sparse.realsize", b"%d" % size),
    )
    numbers = b"".join(b"%d\n%d\n" % entry for entry in entries)
    data = padded(b"%d\n" % len(entries) + numbers) + data
    return start + header(b"GNUSparseFile.1/name", size=len(data)) + padded(data)


every_format = pytest.mark.parametrize("encode", [old_gnu, pax_0_0, pax_0_1, pax_1_0])


@st.composite
def sparse_files(draw: st.DrawFn) -> tuple[Map, int, bytes, bytes]:
    """A map, the size, the stored data, and the whole file; some pieces are empty, as GNU tar's last."""
    edges = sorted(draw(st.lists(st.integers(0, 5000), max_size=80)))
    entries = [(start, end - start) for start, end in list(pairwise(edges))[::2]]
    size = (edges[-1] if edges else 0) + draw(st.integers(0, 600))
    data = draw(st.randoms(use_true_random=False)).randbytes(sum(length for _, length in entries))
    whole, at = bytearray(size), 0
    for offset, length in entries:
        whole[offset : offset + length] = data[at : at + length]
        at += length
    return entries, size, data, bytes(whole)


@every_format
@settings(deadline=None)
@given(file=sparse_files())
def test_every_format_gives_the_file_back(encode: Encoder, file: tuple[Map, int, bytes, bytes]) -> None:
    entries, size, data, whole = file
    if not entries and encode in (pax_0_0, pax_0_1):
        entries = [(size, 0)]  # without an entry these formats cannot say that a file is sparse
    stream = encode(entries, size, data)
    member, following = members(stream, header(b"next"), END)
    assert (member.name, member.kind, member.size) == (b"name", Kind.FILE, size)
    assert (member.data_offset % 512, following.header_offset) == (0, len(stream))
    assert member.sparse is not None
    assert [(offset, length) for offset, _, length in member.sparse] == [pair for pair in entries if pair[1]]
    assert content(stream, member) == whole


@every_format
def test_hole_of_any_size(encode: Encoder) -> None:
    member = only(encode([(2**61, 3), (2**62, 0)], 2**62, b"abc"))
    assert member.size == 2**62
    assert member.sparse is not None
    assert [(offset, length) for offset, _, length in member.sparse] == [(2**61, 3)]


@every_format
@pytest.mark.parametrize(
    ("entries", "size", "data"),
    [
        ([(0, 4), (3, 4)], 10, b"12345678"),
        ([(5, 1), (0, 1)], 10, b"12"),
        ([(8, 4)], 10, b"1234"),
        ([(11, 0)], 10, b""),
        ([(2**62, 2**62)], 10, b""),
        ([(0, 4)], 10, b"12345"),
        ([(0, 4)], 10, b"123"),
        ([(0, 4)], 10, b""),
        ([(0, 0)], -1, b""),
        ([(-1, 1)], 10, b"1"),
        ([(1, -1), (1, 1)], 10, b""),
    ],
)
def test_map_that_cannot_be(encode: Encoder, entries: Map, size: int, data: bytes) -> None:
    with pytest.raises(BadInputError, match=r"its sparse map|cannot have a size") as caught:
        members(encode(entries, size, data), END)
    assert "at byte" in caught.value.message


@pytest.mark.parametrize("number", [b"", b"x", b"1.0", b"-", b" 1", b"9" * 30])
def test_map_of_what_are_no_numbers(number: bytes) -> None:
    for encode in (pax_0_1, pax_1_0):
        stream = encode([(7, 1)], 10, b"1")
        spoiled = stream.replace(b"7,1\n", b"%s,1\n" % number).replace(b"\n7\n", b"\n%s\n" % number)
        if encode is pax_0_1:
            keys = (b"GNU.sparse.size", b"GNU.sparse.numblocks", b"GNU.sparse.map")
            spoiled = (
                pax(*zip(keys, (b"10", b"1", number + b",1"), strict=True)) + header(size=1) + padded(b"1")
            )
        with pytest.raises(BadInputError):
            members(spoiled, END)


@pytest.mark.parametrize(
    ("count", "body"),
    [(b"2", b"0\n1\n"), (b"1", b""), (b"1", b"0\n"), (b"-1", b""), (b"x", b""), (b"0" * 600, b"")],
)
def test_map_1_0_that_does_not_end(count: bytes, body: bytes) -> None:
    start = pax((b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0"), (b"GNU.sparse.realsize", b"9"))
    data = padded(count + b"\n" + body)
    with pytest.raises(BadInputError):
        members(start, header(size=len(data)), data, END)
    with pytest.raises(BadInputError, match="sparse map"):
        members(start, header(size=len(count)), data, END)


def test_stream_that_ends_inside_a_map() -> None:
    for encode in (old_gnu, pax_1_0):
        stream = encode([(n * 2, 1) for n in range(400)], 1000, b"d" * 400)
        with pytest.raises(BadInputError, match="the stream ends inside its sparse map"):
            members(stream[:2600])


def test_map_in_records_with_a_count_that_lies() -> None:
    for blocks in ((), ((b"GNU.sparse.numblocks", b"2"),)):
        start = pax((b"GNU.sparse.map", b"0,1"), (b"GNU.sparse.size", b"5"), *blocks)
        with pytest.raises(BadInputError):
            members(start, header(size=1), padded(b"1"), END)


def test_pairs_out_of_order() -> None:
    start = pax((b"GNU.sparse.numbytes", b"1"), (b"GNU.sparse.offset", b"0"))
    with pytest.raises(BadInputError, match="out of order"):
        members(start, header(size=1), padded(b"1"), END)


def test_only_files_are_sparse() -> None:
    stream = pax((b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0")) + header(flag=b"5")
    with pytest.raises(BadInputError, match="only a regular file can be sparse"):
        members(stream, END)


@pytest.mark.parametrize("version", [(b"1", b"1"), (b"2", b"0"), (b"0", b"2"), (b"", b"1")])
def test_versions_that_are_not_known(version: tuple[bytes, bytes]) -> None:
    start = pax((b"GNU.sparse.major", version[0]), (b"GNU.sparse.minor", version[1]))
    with pytest.raises(UnsupportedError, match="is not known"):
        members(start, header(), END)


def test_sparse_header_of_star() -> None:
    with pytest.raises(UnsupportedError, match="only star knows"):
        members(header(flag=b"S"), END)


def test_old_gnu_with_a_long_name_and_base_256() -> None:
    stream = old_gnu([(2**34, 3), (2**35, 0)], 2**35, b"abc")
    member = only(long_name(b"long" * 50), stream)
    assert (member.name, member.size, member.header_offset) == (b"long" * 50, 2**35, 0)
    assert member.sparse == ((2**34, member.data_offset, 3),)


def test_more_pieces_than_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tar_sparse, "MAX_SEGMENTS", 100)
    entries = [(n * 2, 1) for n in range(130)]
    for encode in (old_gnu, pax_1_0):
        with pytest.raises(LimitError, match="more than 100 pieces"):
            members(encode(entries, 1000, b"d" * 130), END)


def test_count_that_would_eat_all_memory() -> None:
    start = pax((b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0"))
    with pytest.raises(LimitError, match="more than 1,000,000 pieces"):
        members(start, header(size=512), padded(b"1000001\n"), END)


def test_empty_extension_blocks_without_end() -> None:
    block = old_gnu([(0, 1)], 10, b"1")[:512]
    block = sealed(block[:482] + b"\1" + block[483:])
    with pytest.raises(LimitError):
        members(block, (bytes(504) + b"\1" + bytes(7)) * 50_000)

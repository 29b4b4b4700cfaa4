"""Compressed layers as they are found: every shape that gzip, zstd and lz4 files have, whole and damaged."""

import contextlib
import gzip
import hashlib
import io
import struct
import zlib
from collections.abc import Iterator
from random import Random

import lz4.frame
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from converter.unpack import PIECE, Limits, as_file, checked_blob, limited, plain_pieces
from lazyfs.errors import BadInputError, IntegrityError, LimitError
from lazyfs.formats.oci_descriptor import Descriptor, sha256_digest
from lazyfs.formats.oci_types import OCI_LAYER

PLAIN = Random(1).randbytes(300_000) + bytes(3 << 20) + b"end"


def split(data: bytes, size: int) -> Iterator[bytes]:
    for at in range(0, len(data), size):
        yield data[at : at + size]


def unpacked(blob: bytes, piece: int = 1 << 20) -> bytes:
    pieces = list(plain_pieces(split(blob, piece), "layer"))
    assert all(0 < len(piece) <= PIECE for piece in pieces)
    return b"".join(pieces)


def gzip_with_all_fields(plain: bytes) -> bytes:
    """Extra field, name, comment and header checksum (RFC 1952, 2.3.1)."""
    header = b"\x1f\x8b\x08\x1e" + struct.pack("<IBB", 0, 0, 255)
    header += struct.pack("<H", 5) + b"extra" + b"name\0" + b"comment\0"
    header += struct.pack("<H", zlib.crc32(header) & 0xFFFF)
    deflate = zlib.compressobj(wbits=-15)
    body = deflate.compress(plain) + deflate.flush()
    return header + body + struct.pack("<II", zlib.crc32(plain), len(plain) & 0xFFFFFFFF)


def skippable(size: int) -> bytes:
    return struct.pack("<II", 0x184D2A53, size) + bytes(size)


def streamed_zstd(plain: bytes) -> bytes:
    """Without a content size, as a pipe writes it, and with a checksum."""
    compressor = zstandard.ZstdCompressor(write_checksum=True).compressobj()
    return compressor.compress(plain) + compressor.flush()


HALF = len(PLAIN) // 2
BLOBS = {
    "plain": PLAIN,
    "gzip": gzip.compress(PLAIN),
    "gzip, stored": gzip.compress(PLAIN, 0),
    "gzip, all fields": gzip_with_all_fields(PLAIN),
    "gzip, two members": gzip.compress(PLAIN[:HALF]) + gzip_with_all_fields(PLAIN[HALF:]),
    "gzip, empty members": gzip.compress(b"") + gzip.compress(PLAIN) + gzip.compress(b"") * 3,
    "gzip, padded": gzip.compress(PLAIN) + bytes(1000),
    "zstd": zstandard.compress(PLAIN),
    "zstd, streamed": streamed_zstd(PLAIN),
    "zstd, two frames": zstandard.compress(PLAIN[:HALF]) + streamed_zstd(PLAIN[HALF:]),
    "zstd, skippable": skippable(5) + zstandard.compress(PLAIN) + skippable(0) + skippable(70_000),
    "lz4": lz4.frame.compress(PLAIN),
    "lz4, two frames": lz4.frame.compress(PLAIN[:HALF]) + lz4.frame.compress(PLAIN[HALF:], store_size=False),
    "lz4, skippable": lz4.frame.compress(PLAIN) + skippable(5) + skippable(3 << 20) + skippable(0),
}
PACKED = [name for name in BLOBS if name != "plain"]


@pytest.mark.parametrize("name", BLOBS)
def test_every_shape(name: str) -> None:
    assert unpacked(BLOBS[name]) == PLAIN


@pytest.mark.parametrize("name", BLOBS)
@pytest.mark.parametrize("piece", [997, 65_536])
def test_however_the_bytes_arrive(name: str, piece: int) -> None:
    assert unpacked(BLOBS[name], piece) == PLAIN


@pytest.mark.parametrize("compress", [gzip.compress, zstandard.compress, lz4.frame.compress, bytes])
@pytest.mark.parametrize("plain", [b"", b"x", b"\x1f", b"\x28\xb5", b"ab" * 10])
def test_byte_by_byte(compress: type[bytes], plain: bytes) -> None:
    assert unpacked(compress(plain), 1) == plain


@pytest.mark.parametrize("name", PACKED)
def test_cut_short_anywhere(name: str) -> None:
    """An end that is missing is named, or what is there is less than all, which its digest will tell."""
    blob = BLOBS[name]
    whole = unpacked(blob)
    for at in [*range(4, 40), *range(100, len(blob), len(blob) // 20), len(blob) - 9, len(blob) - 1]:
        try:
            got = unpacked(blob[:at])
        except BadInputError:
            continue
        assert whole.startswith(got)
        assert not name.startswith("gzip") or got == whole or at in frame_ends(name)


def frame_ends(name: str) -> list[int]:
    """Where a file of several members could be cut, and nobody could tell."""
    blob = BLOBS[name]
    if name == "gzip, padded":
        return list(range(len(blob) - 1000, len(blob)))
    ends = []
    while blob:
        inflate = zlib.decompressobj(31)
        inflate.decompress(blob)
        blob = inflate.unused_data
        ends.append(len(BLOBS[name]) - len(blob))
    return ends


@pytest.mark.parametrize("name", [name for name in PACKED if "padded" not in name])
def test_rubbish_behind_the_end(name: str) -> None:
    with pytest.raises(BadInputError, match="layer layer: its compressed stream"):
        unpacked(BLOBS[name] + b"rubbish behind the end")


@pytest.mark.parametrize("name", ["gzip", "gzip, two members", "zstd, streamed"])
def test_flipped_bits_are_named_or_change_nothing(name: str) -> None:
    """Both have a checksum; only fields that mean nothing may change."""
    for at in range(0, len(BLOBS[name]), len(BLOBS[name]) // 60):
        damaged = bytearray(BLOBS[name])
        damaged[at] ^= 0x10
        try:
            assert unpacked(bytes(damaged)) in (PLAIN, bytes(damaged))
        except BadInputError as error:
            assert "layer layer" in error.message


@given(
    st.binary(max_size=2000),
    st.sampled_from([b"", b"\x1f\x8b\x08", b"\x28\xb5\x2f\xfd", b"\x04\x22\x4d\x18"]),
)
def test_any_bytes(data: bytes, magic: bytes) -> None:
    with contextlib.suppress(BadInputError):
        unpacked(magic + data, 100)


def test_the_blob_is_held_against_its_descriptor() -> None:
    data = bytes(range(256)) * 40
    descriptor = Descriptor(OCI_LAYER, sha256_digest(data), len(data))
    read: list[int] = []
    assert b"".join(checked_blob(split(data, 1000), descriptor, read.append)) == data
    assert sum(read) == len(data)
    for wrong in (data[:-1], data + b"x", data[:-1] + b"x", b""):
        with pytest.raises(IntegrityError, match=descriptor.digest):
            list(checked_blob(split(wrong, 1000), descriptor))


def test_a_blob_without_end_is_not_read_to_its_end() -> None:
    def endless() -> Iterator[bytes]:
        while True:
            yield bytes(1000)

    descriptor = Descriptor(OCI_LAYER, sha256_digest(b""), 5000)
    with pytest.raises(IntegrityError):
        for _ in checked_blob(endless(), descriptor):
            pass


def test_limits_of_what_a_layer_unpacks_to() -> None:
    layer = Descriptor(OCI_LAYER, sha256_digest(b""), 10)
    pieces = [bytes(100)] * 10
    assert b"".join(limited(pieces, layer, Limits(max_size=1000))) == bytes(1000)
    with pytest.raises(LimitError, match="more than 999 bytes"):
        list(limited(pieces, layer, Limits(max_size=999)))
    with pytest.raises(LimitError, match="10 bytes unpack to more than 20 times"):
        list(limited(pieces, layer, Limits(max_ratio=20, ratio_from=500)))
    assert list(limited(pieces, layer, Limits(max_ratio=20, ratio_from=1000))) == pieces


def test_a_bomb_is_unpacked_piece_by_piece() -> None:
    """A gigabyte of zeros is not held at once."""
    bomb = gzip.compress(bytes(64 << 20))
    digest = hashlib.sha256()
    size = 0
    for piece in plain_pieces([bomb], "layer"):
        assert len(piece) <= PIECE
        size += len(piece)
        digest.update(piece)
    assert size == 64 << 20


def test_pieces_as_a_file() -> None:
    file = as_file(iter([b"abc", b"", b"defg", b"h"]))
    assert isinstance(file, io.BufferedReader)
    assert (file.read(2), file.read(4), file.read(100), file.read(1)) == (b"ab", b"cdef", b"gh", b"")

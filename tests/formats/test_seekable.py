"""The seek table: what others make of ours, what we make of theirs, and of damaged ones."""

import io
import struct
import subprocess
from pathlib import Path
from random import Random

import pytest
import pyzstd
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from converter.layer import Settings
from lazyfs.errors import BadInputError
from lazyfs.formats import seekable
from tests.layers import convert_stream
from tests.trees import Entry, layer_tar

FRAMES = st.lists(st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1)), max_size=30)


@pytest.fixture(scope="module", params=["zstd", "none"])
def converted(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[bytes, bytes]:
    """A tar stream with an appendix, and the blob made of it."""
    rng = Random(6)
    entries = [Entry(b"f%d" % n, content=rng.randbytes(rng.randint(0, 90_000))) for n in range(60)]
    entries += [Entry(b"large", content=rng.randbytes(3_000_000)), Entry(b"text", content=b"text " * 300_000)]
    entries.append(Entry(b"odd", content=bytes(100) + b"x" * 5000, sparse=((100, 5000),)))
    stream = layer_tar(entries)
    directory: Path = tmp_path_factory.mktemp("layout")
    made = convert_stream(stream, directory, settings=Settings(codec=request.param))
    digest = made.descriptor.digest.removeprefix("sha256:")
    return stream, (directory / "blobs/sha256" / digest).read_bytes()


def test_the_reference_implementation_reads_it(converted: tuple[bytes, bytes]) -> None:
    stream, blob = converted
    rng = Random(7)
    with pyzstd.SeekableZstdFile(io.BytesIO(blob)) as file:
        assert file.read() == stream
        for _ in range(200):
            at, length = rng.randint(0, len(stream)), rng.choice((1, 100, 5000, 1 << 20))
            file.seek(at)
            assert file.read(length) == stream[at : at + length]


def test_zstd_reads_it(converted: tuple[bytes, bytes]) -> None:
    stream, blob = converted
    assert subprocess.run(["zstd", "-dc"], input=blob, capture_output=True, check=True).stdout == stream
    listed = subprocess.run(["zstd", "-l", "-"], input=blob, capture_output=True, check=False)
    assert listed.returncode in (0, 1)  # an old zstd lists no pipes
    subprocess.run(["zstd", "-t"], input=blob, capture_output=True, check=True)


def test_the_table_adds_up(converted: tuple[bytes, bytes]) -> None:
    stream, blob = converted
    size = seekable.seek_table_size(blob[-seekable.FOOTER_SIZE :])
    frames = seekable.parse_seek_table(blob[-size:]).astype(int)
    assert int(frames[:, 0].sum()) + size == len(blob)
    assert int(frames[:, 1].sum()) == len(stream)
    at = 0
    for stored, plain in frames.tolist():
        if plain:
            assert zstandard.frame_content_size(blob[at : at + stored]) == plain
        else:
            magic, length = struct.unpack_from("<II", blob, at)
            assert magic & ~0xF == 0x184D2A50
            assert length + 8 == stored
        at += stored


@given(FRAMES)
def test_tables_come_back(frames: list[tuple[int, int]]) -> None:
    table = seekable.seek_table(frames)
    assert seekable.seek_table_size(table[-seekable.FOOTER_SIZE :]) == len(table)
    assert [tuple(row) for row in seekable.parse_seek_table(table).tolist()] == frames


def test_a_table_with_checksums_is_read() -> None:
    """As other writers make them (the format's checksum flag)."""
    entries = struct.pack("<III", 100, 200, 1) + struct.pack("<III", 50, 60, 2)
    footer = struct.pack("<IBI", 2, 0x80, seekable.SEEKABLE_MAGIC)
    table = seekable.skippable_frame(seekable.SKIPPABLE_MAGIC_SEEK_TABLE, entries + footer)
    assert seekable.seek_table_size(footer) == len(table)
    assert seekable.parse_seek_table(table).tolist() == [[100, 200], [50, 60]]


def test_what_pyzstd_writes_is_read() -> None:
    data = Random(8).randbytes(100_000)
    file = io.BytesIO()
    with pyzstd.SeekableZstdFile(file, "w", max_frame_content_size=30_000) as writer:
        writer.write(data)
    blob = file.getvalue()
    size = seekable.seek_table_size(blob[-seekable.FOOTER_SIZE :])
    frames = seekable.parse_seek_table(blob[-size:])
    assert frames[:, 1].tolist() == [30_000, 30_000, 30_000, 10_000]
    assert int(frames[:, 0].sum()) + size == len(blob)


@settings(max_examples=300)
@given(FRAMES, st.data())
def test_damaged_tables_are_named(frames: list[tuple[int, int]], data: st.DataObject) -> None:
    """Damage to an entry cannot be seen here; to anything else it can."""
    table = bytearray(seekable.seek_table(frames))
    at = data.draw(st.integers(0, len(table) - 1))
    table[at] ^= data.draw(st.integers(1, 255))
    try:
        parsed = seekable.parse_seek_table(bytes(table))
    except BadInputError:
        return
    assert 8 <= at < len(table) - seekable.FOOTER_SIZE or table[-5] in (1, 2, 3)
    assert len(parsed) == len(frames)


@given(st.binary(max_size=100))
def test_any_bytes(data: bytes) -> None:
    with pytest.raises(BadInputError):
        seekable.seek_table_size(data)
    with pytest.raises(BadInputError):
        seekable.parse_seek_table(data)


@pytest.mark.parametrize(
    ("footer", "what"),
    [
        (b"", "shorter than a footer"),
        (bytes(8), "shorter than a footer"),
        (bytes(9), "does not end in one"),
        (struct.pack("<IBI", 0, 0x04, seekable.SEEKABLE_MAGIC), "reserved bits"),
        (struct.pack("<IBI", 2**32 - 1, 0, seekable.SEEKABLE_MAGIC), "too many frames"),
    ],
)
def test_footers_that_are_none(footer: bytes, what: str) -> None:
    with pytest.raises(BadInputError, match=what):
        seekable.seek_table_size(footer)


def test_a_table_that_is_cut_short() -> None:
    table = seekable.seek_table([(1, 2), (3, 4)])
    for at in range(1, len(table)):
        with pytest.raises(BadInputError):
            seekable.parse_seek_table(table[at:])

"""Where streams are cut: by what is in them, never by how their bytes arrive."""

import io
from collections.abc import Iterator
from itertools import accumulate, pairwise
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from converter.cuts import CutRules
from converter.data import StreamData
from converter.stream import HEADER_GRACE, ChunkedStream
from lazyfs.formats.chunks import chunk_digest, shown
from lazyfs.formats.tarwalk import FileSource, Kind, walk
from tests.trees import Entry, layer_tar, random_layers

Chunk = tuple[bytes, list[tuple[int, int]]]
SMALL = CutRules(chunk_size=8192, large_file=4096, min_pack=2048, name_mask=0x3)


def chunks_of(stream: bytes, rules: CutRules, sizes: Iterator[int] | None = None) -> list[Chunk]:
    """The chunks with the ranges of data in them; `sizes` are those of the pieces in which the stream arrives."""

    def pieces() -> Iterator[bytes]:
        at = 0
        while at < len(stream):
            size = next(sizes) if sizes else len(stream)
            yield stream[at : at + size]
            at += size

    chunks: list[Chunk] = []
    source = ChunkedStream(pieces(), rules, lambda plain, data: chunks.append((plain, data)))
    data = StreamData()
    for member in walk(source):
        source.plan(member, data.of(member))
    source.finish()
    assert source.position == len(stream)
    return chunks


def edges(chunks: list[Chunk]) -> list[int]:
    return [0, *accumulate(len(plain) for plain, _ in chunks)]


def random_stream(seed: int, members: int) -> bytes:
    rng = Random(seed)
    entries = random_layers(rng, 1, members)[0]
    large = [
        Entry(b"large%d" % n, content=rng.randbytes(rng.choice((4096, 20_000, 100_001)))) for n in range(4)
    ]
    for each in large:
        entries.insert(rng.randint(0, len(entries)), each)
    return layer_tar(entries)


def data_of(stream: bytes) -> list[tuple[int, int]]:
    """The ranges of files' data, as the members say themselves."""
    ranges = []
    for member in walk(FileSource(io.BytesIO(stream))):
        if member.kind is Kind.FILE:
            plain = ((0, member.data_offset, member.size),)
            segments = plain if member.sparse is None else member.sparse
            ranges += [(at, at + length) for _, at, length in segments if length]
    return ranges


@settings(max_examples=40)
@given(
    seed=st.integers(0, 2**32 - 1),
    members=st.integers(0, 60),
    rules=st.sampled_from(
        [CutRules(), SMALL, CutRules(chunk_size=65536, large_file=1 << 30, min_pack=512, name_mask=0)]
    ),
    arrival=st.integers(0, 2**32 - 1),
)
def test_cuts_depend_on_the_stream_alone(seed: int, members: int, rules: CutRules, arrival: int) -> None:
    stream = random_stream(seed, members)
    chunks = chunks_of(stream, rules)
    assert b"".join(plain for plain, _ in chunks) == stream
    assert all(0 < len(plain) <= rules.chunk_size + HEADER_GRACE for plain, _ in chunks)
    assert all(edge % 512 == 0 for edge in edges(chunks)[:-1])
    rng = Random(arrival)
    sizes = iter(lambda: rng.choice((1, 100, 511, 512, 513, 10_000)), None)
    assert chunks_of(stream, rules, sizes) == chunks


@settings(max_examples=25)
@given(seed=st.integers(0, 2**32 - 1))
def test_chunks_say_what_is_data(seed: int) -> None:
    """Joined, their ranges are the members' data, and the device shows that and nothing else."""
    stream = random_stream(seed, 40)
    chunks = chunks_of(stream, SMALL)
    device = b"".join(shown(plain, data) for plain, data in chunks)
    expected = bytearray(len(stream))
    for start, end in data_of(stream):
        expected[start:end] = stream[start:end]
    assert device == bytes(expected)


def test_an_empty_stream_has_no_chunks() -> None:
    assert chunks_of(b"", CutRules()) == []


def test_large_files_have_the_same_chunks_in_every_layer() -> None:
    content = Random(5).randbytes(1_300_001)
    digests = []
    for around in ([], [Entry(b"before%d" % n, content=bytes([n]) * 3000) for n in range(50)]):
        stream = layer_tar(
            [*around, Entry(b"dir%d/large" % len(around), content=content, mtime=10**9), *around]
        )
        digests.append([chunk_digest(shown(*chunk)) for chunk in chunks_of(stream, CutRules())])
    pieces = [content[at : at + 512 * 1024] for at in range(0, len(content), 512 * 1024)]
    pieces[-1] += bytes(-len(pieces[-1]) % 512)
    for piece in pieces:
        assert all(chunk_digest(piece) in each for each in digests)


def test_packs_come_back_into_step() -> None:
    """A file more, one less and one changed: most chunks of two versions are the same, whatever their headers say."""
    rng = Random(3)
    entries = [
        Entry(b"pkg%d/f%d" % (n % 40, n), content=rng.randbytes(rng.randint(0, 20_000))) for n in range(2000)
    ]
    changed = [Entry(b"a/new", content=b"new" * 1000), *entries]
    changed[700] = Entry(changed[700].path, content=b"changed")
    del changed[1500]
    versions = []
    for version, prefix, time in ((entries, b"", 0), (changed, b"./", 10**9)):
        stream = layer_tar([Entry(e.path, content=e.content, mtime=time) for e in version], prefix)
        versions.append(
            {chunk_digest(shown(*chunk)): len(chunk[0]) for chunk in chunks_of(stream, CutRules())}
        )
    one, other = versions
    common = sum(size for digest, size in one.items() if digest in other)
    assert common > 0.8 * sum(one.values())


def test_a_pack_ends_before_what_would_not_fit() -> None:
    rules = CutRules(name_mask=0xFFFFFFFF)
    stream = layer_tar([Entry(b"f%d" % number, content=bytes(100_000)) for number in range(20)])
    sizes = [high - low for low, high in pairwise(edges(chunks_of(stream, rules)))]
    assert max(sizes) <= rules.chunk_size
    assert min(sizes[:-1]) > rules.chunk_size - 100_000 - 1024


@pytest.mark.parametrize("size", [1, 511, 512, 8191, 8192, 8193, 16_384, 16_385, 100_000])
def test_the_padding_belongs_to_the_last_chunk_of_a_large_file(size: int) -> None:
    rules = CutRules(chunk_size=8192, large_file=1)
    stream = layer_tar([Entry(b"f", content=b"x" * size), Entry(b"g", content=b"y")])
    starts = [
        at
        for at, plain in zip(edges(chunks_of(stream, rules)), chunks_of(stream, rules), strict=False)
        if plain
    ]
    padded = -(-size // 512) * 512
    assert {*range(512, 512 + padded, 8192), 512 + padded} <= set(starts)


def test_headers_may_be_longer_than_a_chunk() -> None:
    """A name or an attribute of a header is no data, so a chunk may end in it; a stream of such stays in step."""
    stream = layer_tar(
        [Entry(b"f%d" % n, xattrs={b"user.a": bytes(60_000), b"user.b": b"x" * 40_000}) for n in range(9)]
    )
    chunks = chunks_of(stream, SMALL)
    assert b"".join(plain for plain, _ in chunks) == stream
    assert max(len(plain) for plain, _ in chunks) <= SMALL.chunk_size + HEADER_GRACE
    assert chunks_of(stream, SMALL, iter(lambda: 777, None)) == chunks

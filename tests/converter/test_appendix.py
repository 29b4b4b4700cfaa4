"""Sparse files that cannot be mapped where they lie: what the device has for them is what was stored."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from converter import appendix as appendix_module
from converter.layer import ConvertedLayer
from lazyfs.errors import LimitError
from lazyfs.formats.frames import CODECS
from lazyfs.formats.toc_types import Tree
from tests.converter.test_layer import with_codec
from tests.layers import convert_image_files, convert_stream, device_bytes, inode_paths
from tests.referees import empty_directory, fsck, mounted
from tests.trees import Entry, layer_tar

Segments = list[tuple[int, int]]


def sparse(path: bytes, segments: Sequence[tuple[int, int]], size: int, seed: int = 0) -> Entry:
    content = bytearray(size)
    for offset, length in segments:
        content[offset : offset + length] = Random(seed + offset).randbytes(length)
    return Entry(path, content=bytes(content), sparse=tuple(segments))


def read_back(tree: Tree, device: bytes, inode: int) -> bytes:
    """What a reader of the file gets, by the columns of the TOC."""
    content = bytearray(int(tree.inodes.size[inode]))
    columns = tree.sparse
    for row in (columns.inode == inode).nonzero()[0].tolist():
        offset, at, length = (int(column[row]) for column in (columns.offset, columns.data, columns.length))
        assert offset % 512 == at % 512 == 0
        content[offset : offset + length] = device[at : at + length]
    return bytes(content)


def contents(converted: ConvertedLayer, layout: Path) -> dict[bytes, bytes]:
    tree = converted.toc.tree
    device = device_bytes(converted, layout)
    paths = inode_paths(tree)
    return {
        path: read_back(tree, device, inode)
        for path, inode in paths.items()
        if inode in tree.sparse_inodes.tolist()
    }


@st.composite
def layouts(draw: st.DrawFn) -> tuple[Segments, int]:
    """Segments that start and end anywhere, and the size of the file."""
    unit = draw(st.sampled_from([1, 100, 512, 4096]))
    at = 0
    segments = []
    for _ in range(draw(st.integers(0, 8))):
        at += draw(st.integers(0, 20)) * unit
        length = draw(st.integers(1, 30)) * unit
        segments.append((at, length))
        at += length
    return segments, at + draw(st.sampled_from([0, 1, 5000]))


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(files=st.lists(layouts(), min_size=1, max_size=4), codec=st.sampled_from(CODECS))
def test_data_is_what_was_stored(tmp_path: Path, files: list[tuple[Segments, int]], codec: str) -> None:
    """Small chunk sizes, so that the appendix has several chunks."""
    layout = empty_directory(tmp_path / "layout")
    entries = [sparse(b"f%d" % number, *each, number) for number, each in enumerate(files)]
    entries.insert(1, Entry(b"between", content=b"x" * 1000))
    converted = convert_stream(layer_tar(entries), layout, settings=with_codec(codec))
    assert contents(converted, layout) == {e.path: e.content for e in entries if e.sparse is not None}


@pytest.mark.root
def test_the_kernel_reads_it_so(temp_root: Path) -> None:
    rng = Random(4)
    entries = []
    for number in range(12):
        at = 0
        segments = []
        for _ in range(rng.randint(1, 30)):
            at += rng.randint(0, 20_000)
            segments.append((at, rng.randint(1, 9000)))
            at += segments[-1][1]
        entries.append(sparse(b"f%02d" % number, segments, at + rng.choice((0, 1, 100_000)), number))
    files = convert_image_files([layer_tar(entries), layer_tar(entries[6:])], temp_root)
    fsck(files.bootstrap, files.devices)
    with mounted(files.bootstrap, files.devices, temp_root / "mnt") as root:
        for entry in entries:
            data = (root / entry.path.decode()).read_bytes()
            assert hashlib.sha256(data).digest() == hashlib.sha256(entry.content).digest()


def test_what_can_be_mapped_stays_where_it_is(tmp_path: Path) -> None:
    entries = [
        sparse(b"blocks", [(512, 512), (4096, 8192)], 100_000),
        sparse(b"end", [(0, 512), (10_240, 100)], 10_340),
        sparse(b"hole", [], 1 << 20),
        sparse(b"nothing", [], 0),
    ]
    stream = layer_tar(entries)
    assert convert_stream(stream, tmp_path).toc.chunks.device_size == len(stream)


def test_files_that_would_need_too_many_chunk_indexes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are laid out in larger chunks."""
    monkeypatch.setattr(appendix_module, "MAX_CHUNK_INDEXES", 100)
    entry = sparse(b"f", [(512, 512), (300_000 // 512 * 512, 1024), (1 << 20, 512)], 2 << 20)
    converted = convert_stream(layer_tar([entry]), tmp_path)
    assert contents(converted, tmp_path) == {b"f": entry.content}
    assert all(offset % 32768 == 0 for offset in converted.toc.tree.sparse.offset.tolist())


def test_a_crumbled_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of its bytes would take a page of the device."""
    monkeypatch.setattr(appendix_module, "_FREE_SIZE", 0)
    crumbled = sparse(b"crumbled", [(number * 100_000 + 1, 1) for number in range(2000)], 200_000_000)
    with pytest.raises(LimitError, match="'crumbled' has its data in too many small pieces"):
        convert_stream(layer_tar([crumbled]), tmp_path)

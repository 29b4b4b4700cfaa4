"""TOCs of honest layers: what is encoded comes back, equal trees are equal bytes, what is unknown is passed over."""

from collections.abc import Sequence
from dataclasses import fields, replace
from random import Random
from typing import Any

import msgpack
import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from lazyfs.errors import BadInputError, LimitError, UnsupportedError
from lazyfs.formats import toc
from lazyfs.formats.chunks import ChunkTable
from lazyfs.formats.columns import from_planes, to_planes
from lazyfs.formats.strings import Strings
from lazyfs.formats.toc_types import INODE_COLUMNS, Inodes, Toc, Tree
from tests.layers import layer_tree
from tests.trees import DIRECTORY, Entry, random_layers


def make_toc(tree: Tree, chunk_lengths: Sequence[int] = (1 << 20,) * 8) -> Toc:
    """A TOC of a device of these chunks; the tree's data must fit it."""
    count = len(chunk_lengths)
    return Toc(
        diff_id=bytes(range(32)),
        stream_size=sum(chunk_lengths),
        codec="zstd",
        chunks=ChunkTable(
            start=np.cumsum([0, *chunk_lengths]).astype(np.int64),
            blob_offset=np.arange(count, dtype=np.int64) * 1000,
            blob_length=np.full(count, 1000, np.int64),
            digests=bytes(32) * count,
        ),
        tree=tree,
    )


def random_toc(seed: int, members: int = 40) -> Toc:
    """Of the upper of two layers, so that it may have whiteouts and links to the lower one."""
    return make_toc(layer_tree(random_layers(Random(seed), 2, members)[1]))


def packed(document: dict[str, Any]) -> bytes:
    return zstandard.compress(msgpack.packb(document))


def document_of(of: Toc) -> dict[str, Any]:
    document: dict[str, Any] = msgpack.unpackb(zstandard.decompress(toc.encode(of)))
    return document


def assert_equal(one: Toc, other: Toc) -> None:
    assert toc.same_tree(one.tree, other.tree)
    assert (one.diff_id, one.stream_size, one.codec) == (other.diff_id, other.stream_size, other.codec)
    for name in ("start", "blob_offset", "blob_length"):
        assert getattr(one.chunks, name).tolist() == getattr(other.chunks, name).tolist()
    assert one.chunks.digests == other.chunks.digests


@settings(max_examples=60)
@given(st.integers(0, 2**32 - 1), st.integers(0, 80))
def test_what_is_encoded_comes_back(seed: int, members: int) -> None:
    original = random_toc(seed, members)
    data = toc.encode(original)
    decoded = toc.decode(data)
    assert_equal(decoded, original)
    assert toc.encode(decoded) == data
    for column in fields(Inodes):
        assert getattr(decoded.tree.inodes, column.name).dtype == np.dtype(INODE_COLUMNS[column.name])


def test_an_empty_layer() -> None:
    empty = make_toc(layer_tree([]), ())
    assert_equal(toc.decode(toc.encode(empty)), empty)
    assert toc.decode(toc.encode(empty)).chunks.device_size == 0


@given(st.sampled_from(["u1", "u2", "u4", "u8", "i8"]), st.data())
def test_columns_come_back(dtype: str, data: st.DataObject) -> None:
    info = np.iinfo(dtype)
    values = data.draw(st.lists(st.integers(int(info.min), int(info.max)), max_size=50))
    planes = to_planes(np.array(values, dtype), dtype)
    assert from_planes(planes, dtype, len(values), "c").tolist() == values
    assert len(planes) == len(values) * info.bits // 8


def test_planes_are_laid_out_as_the_format_says() -> None:
    assert to_planes(np.array([0x01020304, 0x11121314]), "u4") == bytes.fromhex("0414 0313 0212 0111")


def test_keys_of_later_versions_are_passed_over() -> None:
    original = random_toc(1)
    document = document_of(original)
    document["later"] = {"a": {}, "b": b"x"}
    document["tree"]["later"] = 5
    document["tree"]["inodes"]["later"] = b""
    assert_equal(toc.decode(packed(document)), original)


@pytest.mark.parametrize(
    ("change", "error", "what"),
    [
        ({"version": 2}, UnsupportedError, "version 2"),
        ({"codec": "brotli"}, UnsupportedError, "codec 'brotli'"),
        ({"version": True}, BadInputError, "version is missing or not int"),
        ({"diff_id": b"short"}, BadInputError, "diff_id"),
        ({"diff_id": "x" * 32}, BadInputError, "diff_id"),
        ({"stream_size": -1}, BadInputError, "stream_size"),
        ({"stream_size": 2**63}, BadInputError, "stream_size"),
        ({"stream_size": 5}, BadInputError, "does not end where a chunk ends"),
        ({"tree": []}, BadInputError, "tree is missing or not dict"),
        ({"chunks": None}, BadInputError, "chunks is missing or not dict"),
    ],
)
def test_what_is_wrong_is_named(change: dict[str, Any], error: type[Exception], what: str) -> None:
    with pytest.raises(error, match=what):
        toc.decode(packed(document_of(random_toc(1)) | change))


def test_the_row_that_is_wrong_is_named() -> None:
    tree = layer_tree([Entry(b"%d" % number) for number in range(10)])
    nsec = tree.inodes.nsec.copy()
    nsec[7] = 10**9
    bad = make_toc(replace(tree, inodes=replace(tree.inodes, nsec=nsec)))
    with pytest.raises(BadInputError, match=r"nanoseconds .* \(row 7\)"):
        toc.decode(toc.encode(bad))


def test_limits_are_looked_at_before_memory_is_spent(monkeypatch: pytest.MonkeyPatch) -> None:
    data = toc.encode(random_toc(1))
    for name in ("MAX_TOC_SIZE", "MAX_PLAIN_SIZE"):
        with monkeypatch.context() as patch:
            patch.setattr(toc, name, 10)
            with pytest.raises(LimitError, match="the limit is 10"):
                toc.decode(data)


@pytest.mark.parametrize(
    "path", ["tree.inodes.count", "tree.entries.count", "tree.sparse.files", "chunks.count"]
)
def test_counts_are_limited(path: str) -> None:
    document = document_of(random_toc(1))
    *parents, last = path.split(".")
    table = document
    for key in parents:
        table = table[key]
    table[last] = 4_000_001
    with pytest.raises(LimitError, match="4000001, the limit is 4000000"):
        toc.decode(packed(document))


@pytest.mark.parametrize("levels", [2048, 2049])
def test_the_depth_of_a_tree(levels: int) -> None:
    tree = chain(levels)
    if levels <= 2048:
        assert len(toc.decode(toc.encode(make_toc(tree))).tree.inodes) == levels + 1
    else:
        with pytest.raises(BadInputError, match="levels of directories"):
            toc.decode(toc.encode(make_toc(tree)))


def chain(levels: int) -> Tree:
    """Directories in one another, with a file beside each so that levels are wider than one."""
    tree = layer_tree([Entry(b"d", DIRECTORY)])
    inodes = Inodes(
        **{
            column.name: np.repeat(getattr(tree.inodes, column.name)[:1], levels + 1)
            for column in fields(Inodes)
        }
    )
    return replace(
        tree,
        inodes=inodes,
        counts=np.array([1] * levels + [0], "u4"),
        names=Strings.of([b"d"] * levels),
        entries=np.arange(1, levels + 1, dtype="u4"),
    )

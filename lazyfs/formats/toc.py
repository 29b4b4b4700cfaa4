"""The TOC of a layer: its seek table and its tree, as columns. `docs/format.md` has every field.

A TOC is a zstd frame around one msgpack map. It is named by the sha256 of its compressed bytes, which
the layer's annotation carries, and is read from a stranger: `decode` bounds every size before memory is
spent on it and hands the values to `toc_check`, so that a `Toc` that exists is a Toc that holds together.

Order is canonical, so that equal trees give equal TOCs and a reader need not sort:
    inodes    inode 0 is the root; the others are numbered as the entries first name them
    entries   directories in inode order; the names of one directory in byte order, strictly rising

Version history
    1   first version
"""

import stat
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import zip_longest
from typing import Any

import msgpack
import numpy as np
import numpy.typing as npt
import zstandard

from lazyfs.errors import BadInputError, LimitError, UnsupportedError
from lazyfs.formats import toc_check
from lazyfs.formats.chunks import DIGEST_SIZE, ChunkTable
from lazyfs.formats.columns import from_planes, take, to_planes
from lazyfs.formats.strings import Strings
from lazyfs.formats.toc_types import INODE_COLUMNS, MAX_INODES, Inodes, Sparse, Strays, Toc, Tree, Xattrs

VERSION = 1
MAX_TOC_SIZE = 64 << 20
MAX_PLAIN_SIZE = 256 << 20
MAX_XATTRS = 1 << 20
"""Sets, and pairs in all of them."""
_MAX_MAPS = 64
_MAX_TEXT = 256
TOC_LEVEL = 9


def encode(toc: Toc) -> bytes:
    """The TOC as it lies in the blob: one zstd frame."""
    document = {
        "version": VERSION,
        "diff_id": toc.diff_id,
        "stream_size": toc.stream_size,
        "codec": toc.codec,
        "chunks": _encode_chunks(toc.chunks),
        "tree": _encode_tree(toc.tree),
        "strays": {
            "count": len(toc.strays.offset),
            "offset": partial(to_planes, toc.strays.offset, "u8"),
            "length": partial(to_planes, toc.strays.length, "u8"),
        },
    }
    return zstandard.ZstdCompressor(level=TOC_LEVEL).compress(_packed(document))


def same_tree(one: Tree, other: Tree) -> bool:
    """Would they stand in a TOC as the same bytes? Column by column, so that it takes no memory for them all."""
    columns = zip_longest(_parts(_encode_tree(one)), _parts(_encode_tree(other)))
    return all(mine == theirs for mine, theirs in columns)


def _packed(document: dict[str, Any]) -> bytearray:
    """The map as msgpack, column by column, so that not all of them are there twice."""
    packed = bytearray()
    for part in _parts(document):
        packed += part
    return packed


def _parts(value: Any) -> Iterator[bytes]:
    if isinstance(value, dict):
        yield msgpack.Packer().pack_map_header(len(value))
        for key, each in value.items():
            yield from _parts(key)
            yield from _parts(each)
    else:
        yield msgpack.packb(value() if callable(value) else value, use_bin_type=True)


def _encode_chunks(chunks: ChunkTable) -> dict[str, Any]:
    return {
        "count": len(chunks),
        "length": partial(to_planes, np.diff(chunks.start), "u4"),
        "blob_offset": partial(to_planes, chunks.blob_offset, "u8"),
        "blob_length": partial(to_planes, chunks.blob_length, "u4"),
        "digests": chunks.digests,
    }


def _encode_tree(tree: Tree) -> dict[str, Any]:
    sparse = tree.sparse
    return {
        "inodes": {
            "count": len(tree.inodes),
            **{
                name: partial(to_planes, getattr(tree.inodes, name), dtype)
                for name, dtype in INODE_COLUMNS.items()
            },
        },
        "entries": {
            "directories": len(tree.counts),
            "count": len(tree.entries),
            "counts": partial(to_planes, tree.counts, "u4"),
            "names": tree.names.data,
            "inodes": partial(to_planes, tree.entries, "u4"),
        },
        "targets": tree.targets.data,
        "xattrs": _encode_xattrs(tree.xattr_sets),
        "sparse": {
            "files": len(tree.sparse_inodes),
            "count": len(sparse.inode),
            "inodes": partial(to_planes, tree.sparse_inodes, "u4"),
            "inode": partial(to_planes, sparse.inode, "u4"),
            "offset": partial(to_planes, sparse.offset, "u8"),
            "data": partial(to_planes, sparse.data, "u8"),
            "length": partial(to_planes, sparse.length, "u8"),
        },
    }


def _encode_xattrs(sets: list[Xattrs]) -> dict[str, Any]:
    pairs = [pair for each in sets for pair in each]
    return {
        "sets": len(sets),
        "count": len(pairs),
        "counts": partial(to_planes, np.array([len(each) for each in sets], "u4"), "u4"),
        "names": b"".join(name + b"\0" for name, _ in pairs),
        "lengths": partial(to_planes, np.array([len(value) for _, value in pairs], "u4"), "u4"),
        "values": b"".join(value for _, value in pairs),
    }


def decode(data: bytes) -> Toc:
    """Read a TOC that a stranger wrote.

    Raises BadInputError, LimitError or UnsupportedError; what is returned has passed `toc_check.check`.
    """
    document = _unpack(data)
    version = take(document, "version", int, "toc")
    if version != VERSION:
        raise UnsupportedError(
            f"TOC: version {version}, this lazyfs reads version {VERSION}",
            hint="convert the image again, or use the lazyfs that made it",
        )
    toc = Toc(
        diff_id=take(document, "diff_id", bytes, "toc"),
        stream_size=take(document, "stream_size", int, "toc"),
        codec=take(document, "codec", str, "toc"),
        chunks=_decode_chunks(take(document, "chunks", dict, "toc")),
        tree=_decode_tree(take(document, "tree", dict, "toc")),
        strays=_decode_strays(take(document, "strays", dict, "toc")),
    )
    toc_check.check(toc)
    return replace(toc, chunks=with_data(toc.chunks, toc.tree, toc.strays, toc.stream_size))


def with_data(chunks: ChunkTable, tree: Tree, strays: Strays, stream_size: int) -> ChunkTable:
    """The chunk table with the ranges of the device that are data: of inodes, strays, and all of the appendix."""
    plain = (tree.inodes.mode & 0o170000 == stat.S_IFREG) & (tree.inodes.size > 0)
    plain[tree.sparse_inodes.astype(np.int64)] = False
    appendix = [stream_size] if chunks.device_size > stream_size else []
    start = np.concatenate((tree.inodes.data[plain], tree.sparse.data, strays.offset, appendix)).astype(
        np.int64
    )
    length = np.concatenate(
        (
            tree.inodes.size[plain],
            tree.sparse.length,
            strays.length,
            [chunks.device_size - at for at in appendix],
        )
    ).astype(np.int64)
    order = np.argsort(start, kind="stable")
    start, end = start[order], np.maximum.accumulate((start + length)[order])
    fresh = np.concatenate(([True], start[1:] > end[:-1])) if len(start) else np.zeros(0, np.bool_)
    last = np.concatenate((fresh[1:], [True])) if len(start) else fresh
    return replace(chunks, data_start=start[fresh], data_end=end[last])


def _unpack(data: bytes) -> dict[str, Any]:
    if len(data) > MAX_TOC_SIZE:
        raise LimitError(f"TOC: {len(data)} bytes, the limit is {MAX_TOC_SIZE}")
    try:
        size = zstandard.frame_content_size(data)
        if size < 0:
            raise BadInputError("TOC: its zstd frame does not state a content size")
        if size > MAX_PLAIN_SIZE:
            raise LimitError(f"TOC: {size} bytes when unpacked, the limit is {MAX_PLAIN_SIZE}")
        plain = zstandard.ZstdDecompressor().decompress(data, max_output_size=size, allow_extra_data=False)
        document = msgpack.unpackb(
            plain,
            strict_map_key=True,
            max_str_len=_MAX_TEXT,
            max_array_len=0,
            max_map_len=_MAX_MAPS,
            max_ext_len=0,
            object_hook=_MapCounter(),
        )
    except (zstandard.ZstdError, ValueError, msgpack.UnpackException, RecursionError) as error:
        raise BadInputError(f"TOC: cannot be read ({error or type(error).__name__})") from error
    if not isinstance(document, dict):
        raise BadInputError("TOC: not a map")
    return document


class _MapCounter:
    """Refuses a document of very many maps: one that takes a byte to write takes 64 to hold."""

    def __init__(self) -> None:
        self._left = _MAX_MAPS

    def __call__(self, table: dict[str, Any]) -> dict[str, Any]:
        if not self._left:
            raise BadInputError(f"TOC: more than {_MAX_MAPS} maps")
        self._left -= 1
        return table


def _decode_chunks(table: dict[str, Any]) -> ChunkTable:
    count = _count(table, "count", "chunks")
    length = _column(table, "length", "u4", count, "chunks").astype(np.int64)
    digests = take(table, "digests", bytes, "chunks")
    if len(digests) != count * DIGEST_SIZE:
        raise BadInputError(f"TOC: chunks.digests has {len(digests)} bytes for {count} chunks")
    blob_offset = _column(table, "blob_offset", "u8", count, "chunks")
    if count and int(blob_offset.max()) >= 1 << 62:
        raise BadInputError("TOC: chunks.blob_offset beyond any blob")
    return ChunkTable(
        start=np.concatenate(([0], np.cumsum(length))).astype(np.int64),
        blob_offset=blob_offset.astype(np.int64),
        blob_length=_column(table, "blob_length", "u4", count, "chunks").astype(np.int64),
        digests=digests,
    )


def _decode_strays(table: dict[str, Any]) -> Strays:
    count = _count(table, "count", "strays")
    return Strays(
        _column(table, "offset", "u8", count, "strays"), _column(table, "length", "u8", count, "strays")
    )


def _decode_tree(table: dict[str, Any]) -> Tree:
    inodes = take(table, "inodes", dict, "tree")
    entries = take(table, "entries", dict, "tree")
    sparse = take(table, "sparse", dict, "tree")
    inode_count = _count(inodes, "count", "inodes")
    entry_count = _count(entries, "count", "entries")
    directories = _count(entries, "directories", "entries")
    segments = _count(sparse, "count", "sparse")
    files = _count(sparse, "files", "sparse")
    return Tree(
        inodes=Inodes(
            **{n: _column(inodes, n, dtype, inode_count, "inodes") for n, dtype in INODE_COLUMNS.items()}
        ),
        counts=_column(entries, "counts", "u4", directories, "entries"),
        names=_strings(entries, "names", entry_count, "entries"),
        entries=_column(entries, "inodes", "u4", entry_count, "entries"),
        targets=_strings(table, "targets", None, "tree"),
        xattr_sets=_decode_xattrs(take(table, "xattrs", dict, "tree")),
        sparse_inodes=_column(sparse, "inodes", "u4", files, "sparse"),
        sparse=Sparse(
            inode=_column(sparse, "inode", "u4", segments, "sparse"),
            offset=_column(sparse, "offset", "u8", segments, "sparse"),
            data=_column(sparse, "data", "u8", segments, "sparse"),
            length=_column(sparse, "length", "u8", segments, "sparse"),
        ),
    )


def _decode_xattrs(table: dict[str, Any]) -> list[Xattrs]:
    sets = _count(table, "sets", "xattrs", MAX_XATTRS)
    count = _count(table, "count", "xattrs", MAX_XATTRS)
    counts = _column(table, "counts", "u4", sets, "xattrs").astype(np.int64)
    names = _strings(table, "names", count, "xattrs")
    ends = np.cumsum(_column(table, "lengths", "u4", count, "xattrs").astype(np.int64))
    values = take(table, "values", bytes, "xattrs")
    if int(counts.sum()) != count or (int(ends[-1]) if count else 0) != len(values):
        raise BadInputError("TOC: xattrs.counts, lengths and values do not agree")
    starts = [0, *ends.tolist()]
    pairs = [(name, values[starts[row] : starts[row + 1]]) for row, name in enumerate(names)]
    bounds = [0, *np.cumsum(counts).tolist()]
    return [tuple(pairs[bounds[row] : bounds[row + 1]]) for row in range(sets)]


def _count(table: dict[str, Any], name: str, where: str, limit: int = MAX_INODES) -> int:
    value: int = take(table, name, int, where)
    if not 0 <= value <= limit:
        raise LimitError(f"TOC: {where}.{name} is {value}, the limit is {limit}")
    return value


def _column(table: dict[str, Any], name: str, dtype: str, count: int, where: str) -> npt.NDArray[Any]:
    planes: bytes = take(table, name, bytes, where)
    table[name] = b""  # a column is read once, and not kept in both forms
    return from_planes(planes, dtype, count, f"{where}.{name}")


def _strings(table: dict[str, Any], name: str, count: int | None, where: str) -> Strings:
    """The strings of a column, `count` of them where that is known; counted before they are taken apart."""
    data: bytes = take(table, name, bytes, where)
    found = data.count(b"\0")
    if data and not data.endswith(b"\0"):
        raise BadInputError(f"TOC: {where}.{name} does not end in NUL")
    if found > MAX_INODES:
        raise LimitError(f"TOC: {where}.{name} has {found} strings, the limit is {MAX_INODES}")
    if count not in (None, found):
        raise BadInputError(f"TOC: {where}.{name} has {found} strings, {count} are needed")
    return Strings.parse(data)

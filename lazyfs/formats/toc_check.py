"""What must hold of a TOC before anything is built from it: bounds, types, names, order, no cycles.

Whole-array comparisons, because the check stands between a user and a started container: 10^5 inodes
take about 50 ms. Every failure is a BadInputError that names the column and the first row that is wrong.
"""

import operator
import stat

import numpy as np
import numpy.typing as npt

from lazyfs.errors import BadInputError, LimitError, UnsupportedError
from lazyfs.formats.chunks import DIGEST_SIZE, MAX_CHUNK_SIZE, ChunkTable
from lazyfs.formats.columns import batches
from lazyfs.formats.strings import WORD, Strings, Words
from lazyfs.formats.toc_types import (
    CODECS,
    FLAG_IMPLIED,
    FLAG_OPAQUE,
    WHITEOUT,
    Inodes,
    Strays,
    Toc,
    Tree,
    Xattrs,
)

BLOCK = 512
MAX_NAME = 255
MAX_DEPTH = 2048
"""Levels of directories: more than a path (4095 bytes) can reach."""
MAX_SYMLINK = 4095
MAX_XATTR_NAME = 255
MAX_XATTR_VALUE = 64 * 1024 - 1
"""What EROFS can say; one byte less than Linux allows."""
MAX_XATTR_SET_SIZE = 128 * 1024
MAX_FILE_SIZE = 1 << 62
MAX_SPARSE_FILES = 1 << 17
"""Each is laid out by itself: these take some seconds."""
XATTR_PREFIXES = (b"user.", b"trusted.", b"security.")
ACL_XATTRS = (b"system.posix_acl_access", b"system.posix_acl_default")
OVERLAY_XATTRS = b"trusted.overlay."

_DOTS = np.array([ord(".") << 56, ord(".") << 56 | ord(".") << 48], np.uint64)
"""`.` and `..` as `Words`."""
_TYPES = (stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO, 0)
Mask = npt.NDArray[np.bool_]


def check(toc: Toc) -> None:
    """Raise BadInputError, LimitError or UnsupportedError unless the TOC holds together in itself."""
    if toc.codec not in CODECS:
        raise UnsupportedError(
            f"TOC: codec {toc.codec!r}",
            hint=f"this version of lazyfs reads {', '.join(CODECS)}; convert the image again",
        )
    if len(toc.diff_id) != DIGEST_SIZE:
        raise BadInputError("TOC: diff_id is not a sha256")
    _check_chunks(toc.chunks, toc.stream_size)
    _check_entries(toc.tree)
    _check_inodes(toc.tree.inodes, len(toc.tree.xattr_sets))
    _check_targets(toc.tree)
    _check_data(toc.tree, toc.chunks.device_size)
    _check_strays(toc.strays, toc.stream_size)
    for pairs in toc.tree.xattr_sets:
        _check_xattrs(pairs)


def _refuse(bad: Mask, what: str) -> None:
    if bad.any():
        raise BadInputError(f"TOC: {what} (row {int(np.argmax(bad))})")


def _check_chunks(chunks: ChunkTable, stream_size: int) -> None:
    length = np.diff(chunks.start)
    _refuse(
        (length <= 0) | (length > MAX_CHUNK_SIZE), f"a chunk is empty or larger than {MAX_CHUNK_SIZE} bytes"
    )
    # A frame may be a little larger than what it holds, never much.
    _refuse(
        (chunks.blob_length <= 0) | (chunks.blob_length > length + length // 8 + 1024),
        "a frame has an absurd size",
    )
    end = chunks.blob_offset + chunks.blob_length
    _refuse(chunks.blob_offset[1:] < end[:-1], "frames overlap or are out of order")
    if chunks.device_size % BLOCK or not 0 <= stream_size <= chunks.device_size:
        raise BadInputError("TOC: stream_size does not fit the device")
    if stream_size and stream_size not in chunks.start[np.searchsorted(chunks.start, stream_size) :][:1]:
        raise BadInputError("TOC: the tar stream does not end where a chunk ends")


def _check_entries(tree: Tree) -> None:
    """Names are well formed and sorted, inodes numbered as first named; so the directories are a tree."""
    count = len(tree.entries)
    if len(tree.names) != count or int(tree.counts.astype(np.int64).sum()) != count:
        raise BadInputError("TOC: entries.counts, names and inodes do not agree in number")
    is_dir = (tree.inodes.mode & 0o170000) == stat.S_IFDIR
    directories = np.flatnonzero(is_dir)
    if not len(directories) or directories[0] != 0:
        raise BadInputError("TOC: inode 0 is not a directory")
    if len(directories) != len(tree.counts):
        raise BadInputError("TOC: entries.counts does not have one value per directory")
    parents = np.repeat(directories, tree.counts)
    _check_names(tree.names, parents)
    _check_numbering(tree.entries, parents, is_dir)
    _check_depth(tree, directories, parents, is_dir)


def _check_names(names: Strings, parents: npt.NDArray[np.int64]) -> None:
    if not len(names):
        return
    lengths = names.lengths()
    _refuse((lengths == 0) | (lengths > MAX_NAME), f"a name is empty or longer than {MAX_NAME} bytes")
    if b"/" in names.data:
        raise BadInputError("TOC: a name has a slash in it")
    words = Words(names)
    _refuse(np.isin(words.at(np.arange(len(names)), 0), _DOTS), "a name is . or ..")
    sisters = np.flatnonzero(parents[1:] == parents[:-1])
    for batch in batches(len(sisters)):
        _check_rising(words, lengths, sisters[batch])


def _check_rising(words: Words, lengths: npt.NDArray[np.int64], row: npt.NDArray[np.int64]) -> None:
    """Each of these names comes before the next one; eight bytes at a time, as many as are needed."""
    nth = 0
    while len(row):
        one, other = words.at(row, nth), words.at(row + 1, nth)
        ended = (one == other) & (lengths[row + 1] <= WORD * (nth + 1))
        if (falling := ended | (one > other)).any():
            row = row[falling]
            raise BadInputError(f"TOC: names of a directory are not in rising order (row {int(row[0])})")
        row, nth = row[one == other], nth + 1


def _check_numbering(entries: npt.NDArray[np.uint32], parents: npt.NDArray[np.int64], is_dir: Mask) -> None:
    count = len(is_dir)
    named = entries != WHITEOUT
    targets = entries[named].astype(np.int64)
    _refuse(targets >= count, "an entry names an inode that is not there")
    highest = np.maximum.accumulate(np.concatenate(([0], targets)))
    fresh = targets == highest[:-1] + 1
    _refuse(~fresh & (targets > highest[:-1]), "inodes are not numbered as first named")
    _refuse(~fresh & is_dir[targets], "a directory has two names")
    if int(highest[-1]) != count - 1:
        raise BadInputError("TOC: an inode has no name")
    # A fresh inode has a higher number than every directory read so far, so a path cannot come back to itself.
    _refuse(is_dir[targets] & (targets <= parents[named]), "a directory is inside itself")


def _check_depth(
    tree: Tree, directories: npt.NDArray[np.int64], parents: npt.NDArray[np.int64], is_dir: Mask
) -> None:
    """Directories are numbered breadth first, so those of one level stand together, their parents before them."""
    named = tree.entries != WHITEOUT
    below = named.copy()
    below[named] = is_dir[tree.entries[named]]
    parents_of_directories = parents[below]
    reached = 0
    for _ in range(MAX_DEPTH + 1):
        if reached == len(parents_of_directories):
            return
        reached = int(np.searchsorted(parents_of_directories, directories[reached], side="right"))
    raise BadInputError(f"TOC: more than {MAX_DEPTH} levels of directories")


def _check_inodes(inodes: Inodes, xattr_sets: int) -> None:
    kind = inodes.mode & 0o170000
    _refuse(~np.isin(kind, _TYPES), "an inode has an unknown type")
    no_one = np.uint32(0xFFFFFFFF)
    _refuse((inodes.uid == no_one) | (inodes.gid == no_one), "an owner that is nobody at all")
    _refuse(inodes.nsec >= 1_000_000_000, "nanoseconds of an mtime out of range")
    _refuse(inodes.size >= MAX_FILE_SIZE, "a file has an absurd size")
    _refuse(
        (kind != stat.S_IFREG) & (kind != stat.S_IFLNK) & (inodes.size != 0), "a size where there is no data"
    )
    _refuse(
        (kind != stat.S_IFCHR) & (kind != stat.S_IFBLK) & (inodes.rdev != 0),
        "a device number where there is no device",
    )
    _refuse((inodes.flags & ~np.uint8(FLAG_IMPLIED | FLAG_OPAQUE)) != 0, "unknown flags")
    _refuse((kind != stat.S_IFDIR) & (inodes.flags != 0), "directory flags on another inode")
    _refuse(inodes.xattrs > xattr_sets, "an xattr set that is not there")


def _check_targets(tree: Tree) -> None:
    kind = tree.inodes.mode & 0o170000
    has_target = (kind == stat.S_IFLNK) | (kind == 0)
    if int(has_target.sum()) != len(tree.targets):
        raise BadInputError("TOC: targets does not have one string per link")
    lengths = tree.targets.lengths()
    _refuse(
        (lengths == 0) | (lengths > MAX_SYMLINK), f"a link target is empty or longer than {MAX_SYMLINK} bytes"
    )
    is_symlink = kind[has_target] == stat.S_IFLNK
    sizes = tree.inodes.size[has_target].astype(np.int64)
    _refuse(is_symlink & (sizes != lengths), "a symlink's size is not that of its target")


def _check_data(tree: Tree, device_size: int) -> None:
    inodes = tree.inodes
    files = tree.sparse_inodes.astype(np.int64)
    _refuse(files[1:] <= files[:-1], "sparse.inodes is not in rising order")
    _refuse(files >= len(inodes), "a sparse inode that is not there")
    if len(files) > MAX_SPARSE_FILES:
        raise LimitError(f"TOC: {len(files)} sparse files, the limit is {MAX_SPARSE_FILES}")
    regular = (inodes.mode & 0o170000) == stat.S_IFREG
    is_sparse = np.zeros(len(inodes), np.bool_)
    is_sparse[files] = True
    _refuse(is_sparse & ~regular, "a sparse inode that is not a regular file")
    plain = regular & ~is_sparse & (inodes.size > 0)
    _refuse(~plain & (inodes.data != 0), "a data offset where there is no data")
    _refuse(plain & (inodes.data % BLOCK != 0), "file data that does not start at a multiple of 512")
    padded = (inodes.size + np.uint64(BLOCK - 1)) // np.uint64(BLOCK) * np.uint64(BLOCK)
    _refuse(plain & ((inodes.data > device_size) | (padded > device_size)), "file data beyond the device")
    _refuse(plain & (inodes.data + padded > device_size), "file data beyond the device")
    _check_sparse(tree, is_sparse, device_size)


def _check_strays(strays: Strays, stream_size: int) -> None:
    limit = np.uint64(MAX_FILE_SIZE)
    _refuse((strays.offset >= limit) | (strays.length >= limit), "an absurd stray")
    _refuse(strays.offset + strays.length > stream_size, "a stray beyond the stream")
    _refuse((strays.length == 0) | (strays.offset % BLOCK != 0), "an empty or unaligned stray")
    _refuse(strays.offset[1:] < (strays.offset + strays.length)[:-1], "strays overlap or are out of order")


def _check_sparse(tree: Tree, is_sparse: Mask, device_size: int) -> None:
    sparse = tree.sparse
    if not len(sparse.inode):
        return
    owner = sparse.inode.astype(np.int64)
    _refuse(owner >= len(is_sparse), "a sparse segment of an inode that is not there")
    _refuse(~is_sparse[owner], "a sparse segment of an inode that is not sparse")
    _refuse(
        (sparse.offset | sparse.data) % np.uint64(BLOCK) != 0,
        "a sparse segment that does not start at a multiple of 512",
    )
    limit = np.uint64(MAX_FILE_SIZE)
    _refuse(
        (sparse.offset >= limit) | (sparse.data >= limit) | (sparse.length >= limit),
        "an absurd sparse segment",
    )
    _refuse(sparse.length == 0, "an empty sparse segment")
    padded = (sparse.length + np.uint64(BLOCK - 1)) // np.uint64(BLOCK) * np.uint64(BLOCK)
    _refuse(sparse.data + padded > device_size, "a sparse segment beyond the device")
    end = sparse.offset + sparse.length
    _refuse(end > tree.inodes.size[owner], "a sparse segment beyond its file")
    _refuse(
        (sparse.length % np.uint64(BLOCK) != 0) & (end != tree.inodes.size[owner]),
        "a sparse segment that ends inside a block and is not the end of its file",
    )
    same = owner[1:] == owner[:-1]
    _refuse(owner[1:] < owner[:-1], "sparse segments are not in inode order")
    _refuse(same & (sparse.offset[1:] < end[:-1]), "sparse segments overlap")


def is_image_xattr(name: bytes) -> bool:
    """May an image set this xattr? Not those of overlayfs, by which a layer could speak for others."""
    if name in ACL_XATTRS:
        return True
    return (
        name.startswith(XATTR_PREFIXES)
        and not name.startswith(OVERLAY_XATTRS)
        and name not in XATTR_PREFIXES
        and b"\0" not in name
    )


def xattr_fault(pairs: Xattrs) -> str:
    """What is wrong with one inode's xattrs, whose names are known to be such as an image may set."""
    for name, value in pairs:
        if len(name) > MAX_XATTR_NAME or len(value) > MAX_XATTR_VALUE:
            return f"xattr {name[:64]!r} is too long"
    if sum(len(name) + len(value) + 8 for name, value in pairs) > MAX_XATTR_SET_SIZE:
        return f"more than {MAX_XATTR_SET_SIZE} bytes of xattrs"
    return ""


def _check_xattrs(pairs: Xattrs) -> None:
    if not pairs:
        raise BadInputError("TOC: an empty xattr set")
    for name, _ in pairs:
        if not is_image_xattr(name):
            raise BadInputError(f"TOC: xattr {name[:64]!r} has a name that no image may set")
    if fault := xattr_fault(pairs):
        raise BadInputError(f"TOC: {fault}")
    names = [name for name, _ in pairs]
    if any(map(operator.ge, names, names[1:])):
        raise BadInputError("TOC: an xattr set is not in rising order of names")

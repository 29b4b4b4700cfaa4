"""Directory blocks of a bootstrap: entries in byte order of their names, `.` and `..` among them.

A block holds the dirents (12 bytes each) and then their names; an entry that does not fit whole opens the
next block (erofs.rst, "Directories").
"""

import stat
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lazyfs.formats.columns import batches, ranges, shares
from lazyfs.formats.erofs import DIRENT
from lazyfs.formats.image_tree import ImageTree

Ints = npt.NDArray[np.int32]
"""All that MAX_INODES entries need of directory blocks is less than 2^31 bytes."""

_FILE_TYPES = {
    stat.S_IFREG: 1,
    stat.S_IFDIR: 2,
    stat.S_IFCHR: 3,
    stat.S_IFBLK: 4,
    stat.S_IFIFO: 5,
    stat.S_IFSOCK: 6,
    stat.S_IFLNK: 7,
}


@dataclass(frozen=True, slots=True)
class Directories:
    """`blocks` of all directories in inode order; first block (from 0) and size in bytes of each."""

    blocks: bytearray
    first_block: Ints
    size: Ints


@dataclass(frozen=True, slots=True)
class _Rows:
    """Dirents in the order in which they are written: the tree's entries, with `.` and `..` put in."""

    directory: Ints
    inode: Ints
    text: npt.NDArray[np.uint8]
    text_start: Ints
    length: Ints


def lay_out_directories(tree: ImageTree, nids: npt.NDArray[np.int64], size: int) -> Directories:
    """`size` is that of a block."""
    inodes = np.flatnonzero((tree.inodes.mode & 0o170000) == stat.S_IFDIR).astype(np.int32)
    parents = _parents(tree, inodes)
    end = np.cumsum(tree.counts, dtype=np.int32)
    blocks, first_blocks, sizes = bytearray(), [], []
    for part in shares(tree.counts):
        entries = slice(int(end[part.start] - tree.counts[part.start]), int(end[part.stop - 1]))
        rows = _rows(tree, inodes[part], parents[part], tree.counts[part], entries)
        first_block, used = _write(blocks, tree, rows, nids, size)
        first_blocks.append(first_block)
        sizes.append(used)
    return Directories(blocks, np.concatenate(first_blocks), np.concatenate(sizes))


def _write(
    blocks: bytearray, tree: ImageTree, rows: _Rows, nids: npt.NDArray[np.int64], size: int
) -> tuple[Ints, Ints]:
    """Add the blocks of some directories; the first block of each, and how many bytes it has."""
    opens, block = _fill_blocks(rows.directory, rows.length + DIRENT.itemsize, size)
    types = np.zeros(16, np.uint8)
    for mode, file_type in _FILE_TYPES.items():
        types[mode >> 12] = file_type

    starts = np.flatnonzero(opens).astype(np.int32)
    in_block = np.diff(starts, append=np.int32(len(block)))
    text_before = np.cumsum(rows.length, dtype=np.int32) - rows.length
    name_offset = np.repeat(in_block * DIRENT.itemsize - text_before[starts], in_block) + text_before

    written = np.zeros((int(block[-1]) + 1) * size, np.uint8)
    # Dirents are multiples of 4 bytes at multiples of 4: three words each, so that words are copied, not bytes.
    words = written.view("<u4")
    for batch in batches(len(block)):
        inode = rows.inode[batch]
        dirents = np.zeros(len(inode), DIRENT)
        dirents["nid"] = nids[inode]
        dirents["nameoff"] = name_offset[batch]
        dirents["type"] = types[tree.inodes.mode[inode] >> 12]
        nth = np.arange(batch.start, batch.stop, dtype=np.int32) - starts[block[batch]]
        at = (block[batch] * size + nth * DIRENT.itemsize) // 4
        for word, values in enumerate(dirents.view("<u4").reshape(-1, 3).T):
            words[at + word] = values
        into = ranges(block[batch] * size + name_offset[batch], rows.length[batch])
        written[into] = rows.text[ranges(rows.text_start[batch], rows.length[batch])]

    last = np.flatnonzero(np.concatenate((rows.directory[1:] != rows.directory[:-1], [True])))
    first = np.concatenate(([0], last[:-1] + 1))
    used = name_offset[last] + rows.length[last]
    earlier = len(blocks) // size
    blocks += written.data
    return earlier + block[first], (block[last] - block[first]) * size + used


def _parents(tree: ImageTree, inodes: Ints) -> Ints:
    """For each directory that which has an entry for it; the root is its own."""
    owner = np.repeat(inodes, tree.counts)
    is_dir = (tree.inodes.mode[tree.entries] & 0o170000) == stat.S_IFDIR
    parent = np.zeros(len(tree.inodes), np.int32)
    parent[tree.entries[is_dir]] = owner[is_dir]
    return parent[inodes]


def _rows(tree: ImageTree, inodes: Ints, parents: Ints, counts: Ints, entries: slice) -> _Rows:
    """The dirents of the directories `inodes`, whose `counts` entries are these of the tree."""
    start = tree.names.start[entries.start : entries.stop + 1]
    text = np.frombuffer(tree.names.data[start[0] : start[-1]] + b"..", np.uint8)
    start = (start - start[0]).astype(np.int32)
    text_start, lengths = start[:-1], np.diff(start) - 1
    owner = np.repeat(np.arange(len(inodes), dtype=np.int32), counts)
    before_dot, before_dotdot = _before_dots(text, text_start, lengths)
    dot_at = np.bincount(owner, weights=before_dot, minlength=len(inodes)).astype(np.int32)
    dotdot_at = np.bincount(owner, weights=before_dotdot, minlength=len(inodes)).astype(np.int32)

    first = np.cumsum(counts + 2, dtype=np.int32) - (counts + 2)
    at = np.arange(len(owner), dtype=np.int32) + 2 * owner + ~before_dot + ~before_dotdot
    total = len(owner) + 2 * len(inodes)
    inode, begin, length = (np.zeros(total, np.int32) for _ in range(3))
    dots = np.full(len(inodes), len(text) - 2)
    for where, values in (
        (at, (tree.entries[entries], text_start, lengths)),
        (first + dot_at, (inodes, dots, np.ones(len(inodes), np.int32))),
        (first + dotdot_at + 1, (parents, dots, np.full(len(inodes), 2))),
    ):
        inode[where], begin[where], length[where] = values
    return _Rows(np.repeat(np.arange(len(inodes), dtype=np.int32), counts + 2), inode, text, begin, length)


def _before_dots(
    text: npt.NDArray[np.uint8], start: Ints, lengths: Ints
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Which names sort before `.`, and which before `..`."""
    dot = ord(".")
    first = text[start]
    second = np.where(lengths > 1, text[start + (lengths > 1)], 0)
    before_dot = first < dot
    return before_dot, before_dot | ((first == dot) & (second < dot))


def _fill_blocks(directory: Ints, sizes: Ints, block: int) -> tuple[npt.NDArray[np.bool_], Ints]:
    """Which rows open a block, and the block of each row; a directory starts in a block of its own."""
    opens = np.concatenate(([True], directory[1:] != directory[:-1]))
    ends = np.cumsum(sizes, dtype=np.int32)
    bounds = np.concatenate((np.flatnonzero(opens), [len(sizes)]))
    totals = np.diff(np.concatenate(([0], ends[bounds[1:] - 1])))
    starts_extra: list[int] = []
    for index in np.flatnonzero(totals > block).tolist():  # most directories fit one block
        at, end = int(bounds[index]), int(bounds[index + 1])
        while True:
            base = int(ends[at] - sizes[at])
            at += int(np.searchsorted(ends[at:end], np.int32(base + block), side="right"))
            if at >= end:
                break
            starts_extra.append(at)
    opens[starts_extra] = True
    return opens, np.cumsum(opens, dtype=np.int32) - 1

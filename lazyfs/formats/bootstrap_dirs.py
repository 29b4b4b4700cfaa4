"""Directory blocks of a bootstrap: entries in byte order of their names, `.` and `..` among them.

A block holds the dirents (12 bytes each) and then their names; an entry that does not fit whole opens the
next block (erofs.rst, "Directories").
"""

import stat
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lazyfs.formats.erofs import DIRENT
from lazyfs.formats.image_tree import ImageTree, ranges

Ints = npt.NDArray[np.int64]

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

    blocks: npt.NDArray[np.uint8]
    first_block: Ints
    size: Ints


@dataclass(frozen=True, slots=True)
class _Rows:
    """All dirents in the order in which they are written: the tree's entries, with `.` and `..` put in."""

    directory: Ints
    inode: Ints
    text: npt.NDArray[np.uint8]
    text_start: Ints
    length: Ints


def lay_out_directories(tree: ImageTree, nids: Ints, size: int) -> Directories:
    """`size` is that of a block."""
    rows = _rows(tree)
    sizes = rows.length + DIRENT.itemsize
    opens, block = _fill_blocks(rows.directory, sizes, size)
    types = np.zeros(16, np.uint8)
    for mode, file_type in _FILE_TYPES.items():
        types[mode >> 12] = file_type

    starts = np.flatnonzero(opens)
    entries_in_block = np.diff(np.concatenate((starts, [len(block)])))
    nth = np.arange(len(block)) - np.repeat(starts, entries_in_block)
    text_before = np.cumsum(rows.length) - rows.length
    name_offset = (
        np.repeat(entries_in_block * DIRENT.itemsize - text_before[starts], entries_in_block) + text_before
    )

    dirents = np.zeros(len(block), DIRENT)
    dirents["nid"] = nids[rows.inode]
    dirents["nameoff"] = name_offset
    dirents["type"] = types[tree.inodes.mode[rows.inode] >> 12]
    blocks = np.zeros((int(block[-1]) + 1) * size, np.uint8)
    # Dirents are multiples of 4 bytes at multiples of 4: three words each, so that words are copied, not bytes.
    words = blocks.view("<u4")
    at = (block * size + nth * DIRENT.itemsize) // 4
    for word, values in enumerate(dirents.view("<u4").reshape(-1, 3).T):
        words[at + word] = values
    blocks[ranges(block * size + name_offset, rows.length)] = rows.text[ranges(rows.text_start, rows.length)]

    last = np.flatnonzero(np.concatenate((rows.directory[1:] != rows.directory[:-1], [True])))
    first = np.concatenate(([0], last[:-1] + 1))
    used = name_offset[last] + rows.length[last]
    return Directories(blocks, block[first], (block[last] - block[first]) * size + used)


def _rows(tree: ImageTree) -> _Rows:
    directories = np.flatnonzero((tree.inodes.mode & 0o170000) == stat.S_IFDIR)
    counts = tree.counts
    lengths = np.fromiter(map(len, tree.names), np.int64, len(tree.names))
    text = np.frombuffer(b"".join(tree.names) + b"..", np.uint8)
    text_start = np.cumsum(lengths) - lengths
    owner = np.repeat(np.arange(len(directories)), counts)
    before_dot, before_dotdot = _before_dots(text, text_start, lengths)
    dot_at = np.bincount(owner, weights=before_dot, minlength=len(directories)).astype(np.int64)
    dotdot_at = np.bincount(owner, weights=before_dotdot, minlength=len(directories)).astype(np.int64)

    parent = np.zeros(len(tree.inodes), np.int64)
    is_dir = (tree.inodes.mode[tree.entries] & 0o170000) == stat.S_IFDIR
    parent[tree.entries[is_dir]] = directories[owner[is_dir]]

    start = np.cumsum(counts + 2) - (counts + 2)
    nth = np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)
    at = start[owner] + nth + ~before_dot + ~before_dotdot
    total = len(owner) + 2 * len(directories)
    inode, begin, length = (np.zeros(total, np.int64) for _ in range(3))
    dots = np.full(len(directories), len(text) - 2)
    for where, values in (
        (at, (tree.entries, text_start, lengths)),
        (start + dot_at, (directories, dots, np.ones(len(directories), np.int64))),
        (start + dotdot_at + 1, (parent[directories], dots, np.full(len(directories), 2))),
    ):
        inode[where], begin[where], length[where] = values
    return _Rows(np.repeat(np.arange(len(directories)), counts + 2), inode, text, begin, length)


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
    ends = np.cumsum(sizes)
    bounds = np.concatenate((np.flatnonzero(opens), [len(sizes)]))
    totals = np.diff(np.concatenate(([0], ends[bounds[1:] - 1])))
    starts_extra: list[int] = []
    for index in np.flatnonzero(totals > block).tolist():  # most directories fit one block
        at, end = int(bounds[index]), int(bounds[index + 1])
        while True:
            base = int(ends[at] - sizes[at])
            at = int(np.searchsorted(ends[at:end], base + block, side="right")) + at
            if at >= end:
                break
            starts_extra.append(at)
    opens[starts_extra] = True
    return opens, np.cumsum(opens) - 1

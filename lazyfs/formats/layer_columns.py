"""The tree of a layer in the TOC's columns and canonical order, from what was noted while its tar was read."""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from lazyfs.formats.columns import Column, ranges
from lazyfs.formats.layer_rows import DIRECTORY, LOWER_LINK, SYMLINK, Entries, InodeRows
from lazyfs.formats.strings import Strings, Words
from lazyfs.formats.toc_types import INODE_COLUMNS, WHITEOUT, Inodes, Sparse, Tree, Xattrs

Ints = npt.NDArray[np.int64]
Segment = tuple[int, int, int]
"""(file offset, device offset, length)"""

WHITEOUT_META_PREFIX = b".wh..wh."
"""AUFS keeps there what has several names; they are hard links to it, and what is here is nobody's entry."""

APPENDIX = 1 << 61
"""Device offsets from here on count from where the appendix begins, which is known when the stream has ended."""


def columns(
    rows: InodeRows,
    entries: Entries,
    targets: bytearray,
    xattr_sets: Sequence[Xattrs],
    sparse: Mapping[int, Sequence[Segment]],
    appendix_start: int,
) -> Tree:
    """Number what can be reached from inode 0, breadth first, and lay it out.

    `targets` has the strings of symlinks and of links to lower layers, each followed by a NUL; the `data` of such an
    inode is where its string is. The inodes' `xattrs` are 0 or 1 + an index into `xattr_sets`; `sparse` has
    the segments of sparse files by inode.
    """
    records = rows.columns()
    order, counts, target, names = _breadth_first(entries, records["mode"] >> 12)
    number = np.full(len(records), WHITEOUT, np.uint32)
    number[order] = np.arange(len(order), dtype=np.uint32)
    target[target != WHITEOUT] = number[target[target != WHITEOUT]]
    fields = {name: records[name][order] for name in INODE_COLUMNS}
    linked = np.isin(fields["mode"] >> 12, (SYMLINK, LOWER_LINK))
    strings = Strings.parse(bytes(targets))
    link_targets = strings.take(np.searchsorted(strings.start, fields["data"][linked]))
    fields["data"][linked] = 0
    fields["xattrs"], sets = _first_used(fields["xattrs"], xattr_sets)
    sparse_inodes, segments = _segments(sparse, number, appendix_start)
    return Tree(
        inodes=Inodes(**fields),
        counts=counts,
        names=names,
        entries=target,
        targets=link_targets,
        xattr_sets=sets,
        sparse_inodes=sparse_inodes,
        sparse=segments,
    )


def _breadth_first(entries: Entries, kind: Column) -> tuple[Column, Column, Column, Strings]:
    """Inodes in canonical order; of their directories the number of entries; of all entries inode and name."""
    directory, target, names = entries.arrays()
    own = Words(names).at(np.arange(len(names)), 0) != int.from_bytes(WHITEOUT_META_PREFIX)
    row, _ = names.sorted(directory)
    row = row[own[row]].astype(np.uint32)
    counts = np.bincount(directory[row], minlength=len(kind)).astype(np.int32)
    first = np.cumsum(counts, dtype=np.int32) - counts
    target = target[row]

    seen = np.zeros(len(kind), np.bool_)
    seen[0] = True
    level = np.zeros(1, np.uint32)
    levels, inodes, listed = [], [level], []
    while len(level):
        levels.append(level)
        at = ranges(first[level], counts[level])
        listed.append(at)
        named = target[at]
        named = named[named != WHITEOUT]
        named = named[~seen[named]]
        _, once = np.unique(named, return_index=True)
        fresh = named[np.sort(once)]
        seen[fresh] = True
        inodes.append(fresh)
        level = fresh[kind[fresh] == DIRECTORY]
    at = np.concatenate(listed)
    counts = counts[np.concatenate(levels)].astype(np.uint32)
    return np.concatenate(inodes), counts, target[at], names.take(row[at])


def _first_used(column: Column, sets: Sequence[Xattrs]) -> tuple[Column, list[Xattrs]]:
    """The sets that a column names, in the order in which it first names them, and the column for that order."""
    used, first = np.unique(column, return_index=True)
    used = used[np.argsort(first)]
    used = used[used > 0]
    number = np.zeros(len(sets) + 1, np.uint32)
    number[used] = 1 + np.arange(len(used))
    return number[column], [sets[index - 1] for index in used.tolist()]


def _segments(
    sparse: Mapping[int, Sequence[Segment]], number: Column, appendix_start: int
) -> tuple[Column, Sparse]:
    """Numbers of the sparse files that have one, and their segments, with offsets on the finished device."""
    files = sorted((int(number[inode]), found) for inode, found in sparse.items())
    files = [file for file in files if file[0] != WHITEOUT]
    segments = np.array(
        [(inode, *segment) for inode, found in files for segment in found], np.uint64
    ).reshape(-1, 4)
    appended = segments[:, 2] >= APPENDIX
    segments[appended, 2] -= np.uint64(APPENDIX - appendix_start)
    return np.array([inode for inode, _ in files], "u4"), Sparse(
        inode=segments[:, 0].astype("u4"),
        offset=segments[:, 1],
        data=segments[:, 2],
        length=segments[:, 3],
    )

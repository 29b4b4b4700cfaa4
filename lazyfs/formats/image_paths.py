"""Paths of an image, and where its files lie: which pages of a file are which bytes of which device."""

import stat
from bisect import bisect_left
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from lazyfs.formats.image_tree import ImageTree

PAGE = 4096
MAX_LINKS = 40
"""Symlinks in one path, as in Linux."""
MAX_PATH = 4096


@dataclass(frozen=True, slots=True)
class Extent:
    """`length` bytes of a file from `offset` on, which lie at `start` of the device of `layer`."""

    offset: int
    layer: int
    start: int
    length: int


def regular_files(tree: ImageTree) -> Iterator[tuple[bytes, int]]:
    """Path (without a slash in front) and inode of each regular file with data; a hard link has several paths."""
    kinds = tree.inodes.mode & 0o170000
    has_data = ((kinds == stat.S_IFREG) & (tree.inodes.size > 0)).tolist()
    is_directory = (kinds == stat.S_IFDIR).tolist()
    prefixes = {0: b""}
    entries = tree.entries.tolist()
    row = 0
    # A directory comes after the one that names it, so its own path is known by then.
    for directory, count in zip(np.flatnonzero(is_directory).tolist(), tree.counts.tolist(), strict=True):
        prefix = prefixes[directory]
        for at in range(row, row + count):
            inode = entries[at]
            if has_data[inode]:
                yield prefix + tree.names[at], inode
            elif is_directory[inode]:
                prefixes[inode] = prefix + tree.names[at] + b"/"
        row += count


def extents(tree: ImageTree, inode: int) -> list[Extent]:
    """Where a regular file's data lie, in the order of the file; holes of a sparse file are left out."""
    layer = int(tree.device[inode])
    at = int(np.searchsorted(tree.sparse_inodes, inode))
    if at == len(tree.sparse_inodes) or tree.sparse_inodes[at] != inode:
        return [Extent(0, layer, int(tree.inodes.data[inode]), int(tree.inodes.size[inode]))]
    sparse = tree.sparse
    return [
        Extent(int(sparse.offset[row]), layer, int(sparse.data[row]), int(sparse.length[row]))
        for row in np.flatnonzero(sparse.inode == inode).tolist()
    ]


def device_ranges(found: list[Extent], first: int, last: int) -> list[tuple[int, int, int]]:
    """(layer, start, end) of the device bytes that hold pages `first` to `last` of a file."""
    low, high = first * PAGE, (last + 1) * PAGE
    ranges = []
    for extent in found:
        start, end = max(low, extent.offset), min(high, extent.offset + extent.length)
        if start < end:
            shift = extent.start - extent.offset
            ranges.append((extent.layer, start + shift, end + shift))
    return ranges


class Lookup:
    """Paths of an image's tree to inodes."""

    def __init__(self, tree: ImageTree) -> None:
        self._tree = tree
        self._kinds = tree.inodes.mode & 0o170000
        self._directories = np.flatnonzero(self._kinds == stat.S_IFDIR)
        self._links = np.flatnonzero(self._kinds == stat.S_IFLNK)
        self._ends = np.cumsum(tree.counts)

    def regular_file(self, path: bytes) -> int | None:
        """The inode of the regular file at `path`, from the root; symlinks are followed and stay inside."""
        steps, parents = deque(path.split(b"/")), [0]
        links = 0
        while steps:
            step = steps.popleft()
            if step in (b"", b"."):
                continue
            if step == b"..":
                parents = parents[:-1] or [0]
                continue
            inode = self._child(parents[-1], step)
            if inode is None:
                return None
            if self._kinds[inode] != stat.S_IFLNK:
                parents.append(inode)
                continue
            target = self._tree.targets[int(np.searchsorted(self._links, inode))]
            links += 1
            if links > MAX_LINKS or len(target) > MAX_PATH:
                return None
            parents = [0] if target.startswith(b"/") else parents
            steps.extendleft(reversed(target.split(b"/")))
        return parents[-1] if self._kinds[parents[-1]] == stat.S_IFREG else None

    def _child(self, directory: int, name: bytes) -> int | None:
        if self._kinds[directory] != stat.S_IFDIR:
            return None
        row = int(np.searchsorted(self._directories, directory))
        end = int(self._ends[row])
        at = bisect_left(self._tree.names, name, end - int(self._tree.counts[row]), end)
        if at == end or self._tree.names[at] != name:
            return None
        return int(self._tree.entries[at])

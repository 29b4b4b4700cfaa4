"""An image's tree for a kernel that cannot read it itself: attributes, names and contents, out of its columns.

Knows nothing of FUSE; `fuse` says it in its words. Nothing in here waits for anything, and nothing changes.

    view_base(key) + 0      the image joined in one file
    view_base(key) + 1      its root directory; inode i of the tree is + 1 + i

Numbers come of the image's key alone, so that a daemon that takes over from a dead one finds the kernel's.
"""

import stat
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from lazyfs.formats.image_paths import extents
from lazyfs.formats.image_tree import ImageTree
from lazyfs.node.mosaic import sparse_file

if TYPE_CHECKING:
    from lazyfs.node.device import RandomAccess

INODE_BITS = 22
"""Of a number: more than `toc.MAX_INODES`."""
_VIEWS = 1 << 62
_KEY_DIGITS = 10
_BATCH = 64

Places = np.typing.NDArray[np.int64]


def view_base(key: str) -> int:
    """The first of the numbers of an image whose key (hexadecimal) this is."""
    return _VIEWS | int(key[:_KEY_DIGITS], 16) << INODE_BITS


def view_of(number: int) -> int:
    """The `view_base` of a number; 0 when it is not one of an image."""
    return number >> INODE_BITS << INODE_BITS if number & _VIEWS else 0


@dataclass(frozen=True, slots=True)
class Attributes:
    """What stat(2) says of an inode. `rdev` is (major << 20 | minor)."""

    number: int
    mode: int
    links: int
    uid: int
    gid: int
    size: int
    mtime_ns: int
    rdev: int


@dataclass(frozen=True, slots=True)
class Range:
    """A file that is one range of a device."""

    device: "RandomAccess"
    start: int
    size: int

    def peek(self, offset: int, length: int) -> bytes | None:
        return self.device.peek(self.start + offset, self._clip(offset, length))

    def request(self, offset: int, length: int) -> "Future[bytes]":
        return self.device.request(self.start + offset, self._clip(offset, length))

    def _clip(self, offset: int, length: int) -> int:
        return max(0, min(length, self.size - offset))


class ImageFiles:
    """One image. Numbers that it does not have are KeyError."""

    def __init__(self, base: int, tree: ImageTree, devices: "Sequence[RandomAccess]") -> None:
        """`devices` are those of the image's layers, lowest first."""
        self.root = base + 1
        self._tree = tree
        self._devices = devices
        inodes = tree.inodes
        kind = inodes.mode & 0o170000
        directories = np.flatnonzero(kind == stat.S_IFDIR)
        ends = np.cumsum(tree.counts)
        self._range = {
            directory: (end - count, end)
            for directory, count, end in zip(
                directories.tolist(), tree.counts.tolist(), ends.tolist(), strict=True
            )
        }
        is_dir = kind[tree.entries] == stat.S_IFDIR
        parents = np.zeros(len(inodes), np.int64)
        parents[tree.entries[is_dir]] = np.repeat(directories, tree.counts)[is_dir]
        self._parents = parents
        self._target = np.cumsum(kind == stat.S_IFLNK) - 1
        self._sparse: dict[int, RandomAccess] = {}

    def find(self, directory: int, name: bytes) -> Attributes | None:
        start, end = self._range[directory - self.root]
        at = bisect_left(self._tree.names, name, start, end)
        if at == end or self._tree.names[at] != name:
            return None
        return self.attributes(self.root + int(self._tree.entries[at]))

    def entries(self, directory: int, start: int) -> Iterator[tuple[bytes, Attributes, int]]:
        """What a directory holds from position ``start`` on, and the position behind each."""
        inode = directory - self.root
        first, end = self._range[inode]
        if start < 1:
            yield b".", self.attributes(directory), 1
        if start < 2:
            yield b"..", self.attributes(self.root + int(self._parents[inode])), 2
        for low in range(first + max(start - 2, 0), end, _BATCH):
            high = min(low + _BATCH, end)
            found = self._attributes(self._tree.entries[low:high])
            for row, attributes in zip(range(low, high), found, strict=True):
                yield self._tree.names[row], attributes, row - first + 3

    def attributes(self, number: int) -> Attributes:
        inode = number - self.root
        if not 0 <= inode < len(self._tree.inodes):
            raise KeyError(number)
        return next(self._attributes(np.array([inode])))

    def target(self, number: int) -> bytes:
        """Of a symlink."""
        self._check(number, stat.S_IFLNK)
        return self._tree.targets[int(self._target[number - self.root])]

    def xattrs(self, number: int) -> Sequence[tuple[bytes, bytes]]:
        which = int(self._tree.inodes.xattrs[self.attributes(number).number - self.root])
        return self._tree.xattr_sets[which - 1] if which else ()

    def content(self, number: int) -> "RandomAccess":
        """Of a regular file."""
        self._check(number, stat.S_IFREG)
        inode = number - self.root
        if inode in self._sparse:
            return self._sparse[inode]
        size = int(self._tree.inodes.size[inode])
        found = extents(self._tree, inode)
        if found and found[0].length == size:
            return Range(self._devices[found[0].layer], found[0].start, size)
        self._sparse[inode] = sparse_file(size, found, self._devices)
        return self._sparse[inode]

    def origins(self, number: int, offset: int, size: int) -> list[tuple[int, int, int]]:
        """(layer, start, length) of the devices' bytes that these bytes of a regular file are."""
        found = []
        for extent in extents(self._tree, number - self.root):
            low, high = max(offset, extent.offset), min(offset + size, extent.offset + extent.length)
            if low < high:
                found.append((extent.layer, extent.start + low - extent.offset, high - low))
        return found

    def inside(self, layer: int, start: int, end: int) -> list[tuple[int, int, int]]:
        """(number, low, high): which bytes of which regular files lie in [start, end) of a layer's device.

        Sparse files, which may lie in many pieces, are left out.
        """
        inodes, starts, ends = self._places[layer]
        first, last = np.searchsorted(ends, start, "right"), np.searchsorted(starts, end, "left")
        return [
            (self.root + inode, max(start, at) - at, min(end, behind) - at)
            for inode, at, behind in zip(
                inodes[first:last].tolist(),
                starts[first:last].tolist(),
                ends[first:last].tolist(),
                strict=True,
            )
        ]

    @cached_property
    def _places(self) -> list[tuple[Places, Places, Places]]:
        """Of each layer: its files by where they lie on the device, and where they start and end."""
        inodes = self._tree.inodes
        is_file = (inodes.mode & 0o170000 == stat.S_IFREG) & (inodes.size > 0)
        is_file[self._tree.sparse_inodes] = False
        places = []
        for layer in range(len(self._devices)):
            found = np.flatnonzero(is_file & (self._tree.device == layer))
            found = found[np.argsort(inodes.data[found])]
            starts = inodes.data[found].astype(np.int64)
            places.append((found, starts, starts + inodes.size[found].astype(np.int64)))
        return places

    def _check(self, number: int, kind: int) -> None:
        if self.attributes(number).mode & 0o170000 != kind:
            raise KeyError(number)

    def _attributes(
        self, inodes: np.typing.NDArray[np.int32] | np.typing.NDArray[np.int64]
    ) -> Iterator[Attributes]:
        columns = self._tree.inodes
        for inode, mode, links, uid, gid, size, mtime, nsec, rdev in zip(
            inodes.tolist(),
            columns.mode[inodes].tolist(),
            self._tree.links[inodes].tolist(),
            columns.uid[inodes].tolist(),
            columns.gid[inodes].tolist(),
            columns.size[inodes].tolist(),
            columns.mtime[inodes].tolist(),
            columns.nsec[inodes].tolist(),
            columns.rdev[inodes].tolist(),
            strict=True,
        ):
            yield Attributes(self.root + inode, mode, links, uid, gid, size, mtime * 10**9 + nsec, rdev)

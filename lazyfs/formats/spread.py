"""An image in one file: where each file's data lie behind the metadata, and which bytes of which layer they are.

The oldest kernels that have EROFS mount one device, in blocks of a page. Tar aligns data to 512 bytes, so
they cannot be mapped where they lie; but the file is only imagined, its bytes are put together when they are
read. So each file starts at a page of its own, in the order in which the layers hold them, and holes of sparse
files are there as zeros. (Address space is all that costs: 16 TiB of it.)
"""

import stat
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from lazyfs.errors import LimitError
from lazyfs.formats.image_tree import ImageTree
from lazyfs.formats.toc_types import Sparse

PAGE = 4096
MAX_SIZE = 1 << 44
"""Of the data: 2^32 blocks."""

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Pieces:
    """The bytes of a file as parts of layers' devices, in rising order of `at`; everything between is zeros.

    `length` bytes at `at` are those at `start` of the device of `layer`.
    """

    at: Ints
    layer: Ints
    start: Ints
    length: Ints

    def __len__(self) -> int:
        return len(self.at)


@dataclass(frozen=True, slots=True)
class Spread:
    """`tree` has its files' data in one device of `size` bytes, which `pieces` describe."""

    tree: ImageTree
    size: int
    pieces: Pieces


def spread(tree: ImageTree) -> Spread:
    """Lay the data of an image out for one file. Raises LimitError where they take more than `MAX_SIZE`."""
    inodes = tree.inodes
    files = np.flatnonzero(((inodes.mode & 0o170000) == stat.S_IFREG) & (inodes.size > 0))
    order = files[np.lexsort((inodes.data[files], tree.device[files]))]
    if float(inodes.size[order].astype(np.float64).sum()) + PAGE * len(order) > MAX_SIZE:
        raise LimitError(
            f"the image's files have more than {MAX_SIZE} bytes, joined in one file",
            hint="--mount-mode tree has no such limit",
        )
    sizes = inodes.size[order].astype(np.int64)
    room = -(-sizes // PAGE) * PAGE
    at = np.zeros(len(inodes), np.int64)
    at[order] = np.cumsum(room) - room
    moved = replace(
        tree,
        inodes=replace(inodes, data=at.astype(np.uint64)),
        device=np.zeros_like(tree.device),
        sparse_inodes=np.zeros(0, np.int64),
        sparse=Sparse(np.zeros(0, np.uint32), *(np.zeros(0, np.uint64) for _ in range(3))),
    )
    return Spread(moved, int(room.sum()), _pieces(tree, order, at))


def _pieces(tree: ImageTree, files: Ints, at: Ints) -> Pieces:
    whole = files[~np.isin(files, tree.sparse_inodes)]
    sparse = tree.sparse
    owner = sparse.inode.astype(np.int64)
    starts = np.concatenate((at[whole], at[owner] + sparse.offset.astype(np.int64)))
    layers = np.concatenate((tree.device[whole], tree.device[owner])).astype(np.int64)
    data = np.concatenate((tree.inodes.data[whole], sparse.data)).astype(np.int64)
    lengths = np.concatenate((tree.inodes.size[whole], sparse.length)).astype(np.int64)
    kept = np.flatnonzero(lengths > 0)
    kept = kept[np.argsort(starts[kept], kind="stable")]
    return Pieces(starts[kept], layers[kept], data[kept], lengths[kept])


@dataclass(frozen=True, slots=True)
class Placed:
    """`length` bytes at `start` of a layer's device are to be seen at `at`."""

    at: int
    start: int
    length: int


class ReverseMap:
    """Where bytes of a layer's device are to be seen in the file that the pieces make."""

    def __init__(self, pieces: Pieces) -> None:
        order = np.lexsort((pieces.start, pieces.layer))
        self._first = np.searchsorted(pieces.layer[order], np.arange(int(pieces.layer.max(initial=-1)) + 2))
        self._at, self._start, self._length = (
            column[order] for column in (pieces.at, pieces.start, pieces.length)
        )

    def find(self, layer: int, start: int, end: int) -> list[Placed]:
        """The parts of [start, end) of the layer's device that a file has, in the order of the device."""
        if layer + 1 >= len(self._first):
            return []
        low, high = int(self._first[layer]), int(self._first[layer + 1])
        starts = self._start[low:high]
        # Of honest layers, whose pieces do not overlap, only the one before `start` can reach into the range.
        first = max(int(np.searchsorted(starts, start, side="right")) - 1, 0)
        last = int(np.searchsorted(starts, end, side="left"))
        found = []
        for row in range(low + first, low + last):
            begin = int(self._start[row])
            cut, stop = max(start, begin), min(end, begin + int(self._length[row]))
            if cut < stop:
                found.append(Placed(int(self._at[row]) + cut - begin, cut, stop - cut))
        return found

"""What a TOC says: the columns of a layer's tree, and where its data lies.

`toc` reads and writes them; what must hold of them is in `toc_check`.
"""

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from lazyfs.formats.chunks import ChunkTable
from lazyfs.formats.strings import Strings

CODECS = ("zstd", "gzip", "lz4")
"""What the frames of a layer are; see `frames`."""
MAX_INODES = 4_000_000

WHITEOUT = 0xFFFFFFFF
"""Target of an entry that hides the name in the layers below."""
FLAG_IMPLIED = 1
"""A directory without a member of its own: what lower layers say of it holds."""
FLAG_OPAQUE = 2
"""A directory that hides what lower layers have in it."""

Xattrs = tuple[tuple[bytes, bytes], ...]

INODE_COLUMNS = {
    "mode": "u2",
    "uid": "u4",
    "gid": "u4",
    "size": "u8",
    "mtime": "i8",
    "nsec": "u4",
    "data": "u8",
    "rdev": "u4",
    "flags": "u1",
    "xattrs": "u4",
}


@dataclass(frozen=True, slots=True)
class Inodes:
    """One value per inode in each column.

    `mode` has the type bits of stat(2); type 0 is a hard link to a path of a lower layer, whose path is in
    `Tree.targets`. `data` is the device offset of a regular file's bytes, `rdev` is (major << 20 | minor), `xattrs`
    is 0 or 1 + an index into `Tree.xattr_sets`.
    """

    mode: npt.NDArray[np.uint16]
    uid: npt.NDArray[np.uint32]
    gid: npt.NDArray[np.uint32]
    size: npt.NDArray[np.uint64]
    mtime: npt.NDArray[np.int64]
    nsec: npt.NDArray[np.uint32]
    data: npt.NDArray[np.uint64]
    rdev: npt.NDArray[np.uint32]
    flags: npt.NDArray[np.uint8]
    xattrs: npt.NDArray[np.uint32]

    def __len__(self) -> int:
        return len(self.mode)


@dataclass(frozen=True, slots=True)
class Sparse:
    """Data segments of sparse files, ordered by (inode, file offset); everything else of them is a hole.

    All values are multiples of 512, but for the length of a file's last segment.
    """

    inode: npt.NDArray[np.uint32]
    offset: npt.NDArray[np.uint64]
    data: npt.NDArray[np.uint64]
    length: npt.NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class Tree:
    """The tree that one layer holds.

    `counts` has the number of entries of each directory, `names` and `entries` (the inode each name stands
    for, or WHITEOUT) run through all directories. `targets` has the target of each symlink and of each hard link to
    a lower layer, `sparse_inodes` the inodes whose data is in `sparse`, each in inode order.
    """

    inodes: Inodes
    counts: npt.NDArray[np.uint32]
    names: Strings
    entries: npt.NDArray[np.uint32]
    targets: Strings
    xattr_sets: list[Xattrs]
    sparse_inodes: npt.NDArray[np.uint32]
    sparse: Sparse


@dataclass(frozen=True, slots=True)
class Strays:
    """Data in the stream that no inode of the tree has: of members that a later member of the name replaced."""

    offset: npt.NDArray[np.uint64]
    length: npt.NDArray[np.uint64]


def no_strays() -> Strays:
    return Strays(np.zeros(0, np.uint64), np.zeros(0, np.uint64))


@dataclass(frozen=True, slots=True)
class Toc:
    """What a node must know of a layer: `stream_size` bytes of tar stream (its sha256 is `diff_id`), then
    the appendix, cut into `chunks`; and the `tree` whose files point into them."""

    diff_id: bytes
    stream_size: int
    codec: str
    chunks: ChunkTable
    tree: Tree
    strays: Strays = field(default_factory=no_strays)

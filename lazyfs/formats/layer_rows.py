"""What is known of a layer while its tar is read: inodes and entries, in arrays instead of objects.

A million files take 47 bytes each for what stat(2) tells, and some 40 for the name and to find it again. As objects in
dicts they took ten times as much.
"""

import struct
from array import array
from typing import Any

import numpy as np

from lazyfs.formats.columns import Column
from lazyfs.formats.strings import Strings
from lazyfs.formats.toc_types import INODE_COLUMNS

_FORMATS = {"u1": "B", "u2": "H", "u4": "I", "u8": "Q", "i8": "q"}
_RECORD = struct.Struct("<" + "".join(_FORMATS[dtype] for dtype in INODE_COLUMNS.values()))
_DTYPE = np.dtype([(name, f"<{dtype}") for name, dtype in INODE_COLUMNS.items()])
_DATA, _FLAGS = (
    sum(np.dtype(d).itemsize for d in list(INODE_COLUMNS.values())[: list(INODE_COLUMNS).index(c)])
    for c in ("data", "flags")
)
_FIRST_SLOTS = 1 << 12
_GROWTH = 4

DIRECTORY, SYMLINK, LOWER_LINK = 0o04, 0o12, 0
"""Types of inodes, as the highest four bits of their modes have them."""

assert _RECORD.size == _DTYPE.itemsize


class InodeRows:
    """One record per inode, in the order in which they were made."""

    def __init__(self) -> None:
        self._records = bytearray()

    def __len__(self) -> int:
        return len(self._records) // _RECORD.size

    def add(
        self,
        mode: int,
        uid: int = 0,
        gid: int = 0,
        size: int = 0,
        mtime: int = 0,
        nsec: int = 0,
        data: int = 0,
        rdev: int = 0,
        flags: int = 0,
        xattrs: int = 0,
    ) -> int:
        """A new inode; its number."""
        number = len(self._records) // _RECORD.size
        self._records += _RECORD.pack(mode, uid, gid, size, mtime, nsec, data, rdev, flags, xattrs)
        return number

    def kind(self, inode: int) -> int:
        return self._records[inode * _RECORD.size + 1] >> 4

    def data(self, inode: int) -> int:
        at = inode * _RECORD.size + _DATA
        return int.from_bytes(self._records[at : at + 8], "little")

    def flags(self, inode: int) -> int:
        return self._records[inode * _RECORD.size + _FLAGS]

    def set_flags(self, inode: int, flags: int) -> None:
        self._records[inode * _RECORD.size + _FLAGS] = flags

    def update(
        self, inode: int, mode: int, uid: int, gid: int, mtime: int, nsec: int, flags: int, xattrs: int
    ) -> None:
        """Give a directory other attributes."""
        at = inode * _RECORD.size
        self._records[at : at + _RECORD.size] = _RECORD.pack(
            mode, uid, gid, 0, mtime, nsec, 0, 0, flags, xattrs
        )

    def columns(self) -> np.ndarray[Any, np.dtype[np.void]]:
        """All records, with a field for each column; no inode can be added after this."""
        return np.frombuffer(self._records, _DTYPE)


class Entries:
    """The inode, or WHITEOUT, of each (directory, name): a hash table with open addressing.

    Python's hashes of bytes differ from run to run, so nobody can prepare names that collide; what comes out does not
    depend on them.
    """

    NOTHING = -1

    def __init__(self) -> None:
        # Row 0 is nobody's: in the table it means an empty slot.
        self._directories = array("I", [0])
        self._inodes = array("I", [0])
        self._hashes = array("I", [0])
        self._starts = array("I", [0, 0])
        self._names = bytearray()
        self._table = array("I", bytes(4 * _FIRST_SLOTS))
        self._mask = _FIRST_SLOTS - 1

    def get(self, directory: int, name: bytes) -> int:
        """The inode of the name, WHITEOUT, or NOTHING."""
        code = hash((directory, name)) & 0xFFFFFFFF
        table, mask = self._table, self._mask
        slot = code & mask
        while row := table[slot]:
            if self._hashes[row] == code and self._is(row, directory, name):
                return self._inodes[row]
            slot = (slot + 1) & mask
        return self.NOTHING

    def put(self, directory: int, name: bytes, inode: int) -> int:
        """Let the name stand for an inode; what it stood for before."""
        code = hash((directory, name)) & 0xFFFFFFFF
        table, mask = self._table, self._mask
        slot = code & mask
        while row := table[slot]:
            if self._hashes[row] == code and self._is(row, directory, name):
                old = self._inodes[row]
                self._inodes[row] = inode
                return old
            slot = (slot + 1) & mask
        table[slot] = row = len(self._inodes)
        self._directories.append(directory)
        self._inodes.append(inode)
        self._hashes.append(code)
        self._names += name + b"\0"
        self._starts.append(len(self._names))
        if 2 * row > mask:
            self._grow()
        return self.NOTHING

    def arrays(self) -> tuple[Column, Column, Strings]:
        """Directory, inode and name of each entry; nothing can be put after this."""
        names = Strings(bytes(self._names), np.frombuffer(self._starts, np.uint32)[1:])
        self._names = bytearray()
        self._table = self._hashes = array("I")
        return (
            np.frombuffer(self._directories, np.uint32)[1:],
            np.frombuffer(self._inodes, np.uint32)[1:],
            names,
        )

    def _is(self, row: int, directory: int, name: bytes) -> bool:
        return (
            self._directories[row] == directory
            and self._names[self._starts[row] : self._starts[row + 1] - 1] == name
        )

    def _grow(self) -> None:
        table = array("I", bytes(4 * _GROWTH * len(self._table)))
        mask = len(table) - 1
        for row in range(1, len(self._hashes)):
            slot = self._hashes[row] & mask
            while table[slot]:
                slot = (slot + 1) & mask
            table[slot] = row
        self._table, self._mask = table, mask

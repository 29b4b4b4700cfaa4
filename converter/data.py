"""Which ranges of a tar stream are data of files, and which of them no file of the finished tree has any more."""

from array import array

import numpy as np

from converter.appendix import mappable
from lazyfs.formats.tarwalk import Kind, Member
from lazyfs.formats.toc_types import Strays, Tree


class StreamData:
    """Remembers the data of every member, in stream order."""

    def __init__(self) -> None:
        self._offsets = array("Q")
        self._lengths = array("Q")

    def of(self, member: Member) -> list[tuple[int, int]]:
        """The member's data that is mapped where the stream holds it: (stream offset, length)."""
        ranges: list[tuple[int, int]] = []
        if member.kind is Kind.FILE and member.size:
            if member.sparse is None:
                ranges = [(member.data_offset, member.size)]
            elif mappable(member):
                ranges = [(at, length) for _, at, length in member.sparse if length]
        for offset, length in ranges:
            self._offsets.append(offset)
            self._lengths.append(length)
        return ranges

    def strays(self, tree: Tree) -> Strays:
        """What was remembered and is not in the tree: data of members that a later one replaced. Forgets all."""
        offsets = np.frombuffer(self._offsets, np.uint64)
        # No file has its data at offset 0, where the first header is, so the zeros of other inodes do no harm.
        known = np.concatenate((tree.inodes.data, tree.sparse.data))
        known.sort()
        stray = known[np.searchsorted(known, offsets, side="right") - 1] != offsets
        strays = Strays(offsets[stray], np.frombuffer(self._lengths, np.uint64)[stray])
        self._offsets, self._lengths = array("Q"), array("Q")
        return strays

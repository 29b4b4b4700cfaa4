"""What the kernel keeps of a file.

With read-ahead switched off the pages of a file that are in memory are those that were touched, and no others:
so what a start touches is recorded.
"""

import ctypes
import mmap
import os
from pathlib import Path

from lazyfs.errors import NodeError

PAGE = mmap.PAGESIZE
_libc = ctypes.CDLL(None, use_errno=True)


def resident_pages(path: Path) -> list[int]:
    """The numbers of the pages of a regular file that are in memory, rising. Does not bring any there."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            size = os.fstat(descriptor).st_size
            if not size:
                return []
            # A private mapping that could be written: ctypes takes the address of no other.
            with mmap.mmap(descriptor, size, access=mmap.ACCESS_COPY) as memory:
                return _mincore(memory, size)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise NodeError(f"{path}: {error.strerror}") from error


def _mincore(memory: mmap.mmap, size: int) -> list[int]:
    pages = -(-size // PAGE)
    vector = (ctypes.c_ubyte * pages)()
    first = ctypes.c_char.from_buffer(memory)
    try:
        address = ctypes.c_void_p(ctypes.addressof(first))
        if _libc.mincore(address, ctypes.c_size_t(size), vector):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    finally:
        del first
    return [page for page, flags in enumerate(bytes(vector)) if flags & 1]

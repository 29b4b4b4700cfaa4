"""How the daemon's process is set up for many threads that fetch and one loop that answers the kernel."""

import ctypes
import gc
import sys

# Seconds for which a thread may keep the interpreter from another that wants it. With Python's 5 ms the loop, which
# needs it for a tenth of one, waits behind each of the threads that fetch.
_SWITCH_SECONDS = 0.0005

# Objects made until the collector looks at the young ones. There are no cycles on the way of a read; with Python's
# 700 it runs for every other chunk.
_COLLECT_AFTER = 20_000

# What malloc keeps instead of giving it back at once: the buffers of chunks, which are needed again in the next
# millisecond, and of which each page costs a fault. `give_back` gives them back.
_KEEP_BYTES = 32 << 20
_LARGEST_KEPT = 4 << 20
_ARENAS = 2

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
_libc = ctypes.CDLL(None)


def set_up() -> None:
    """To be called once everything is imported, before threads are started."""
    sys.setswitchinterval(_SWITCH_SECONDS)
    gc.freeze()
    gc.set_threshold(_COLLECT_AFTER, 20, 20)
    if hasattr(_libc, "mallopt"):  # the C library may be another than glibc
        _libc.mallopt(_M_TRIM_THRESHOLD, _KEEP_BYTES)
        _libc.mallopt(_M_MMAP_THRESHOLD, _LARGEST_KEPT)
        _libc.mallopt(_M_ARENA_MAX, _ARENAS)


def give_back() -> None:
    """Give memory that is not used back to the system. Takes milliseconds."""
    if hasattr(_libc, "malloc_trim"):
        _libc.malloc_trim(0)

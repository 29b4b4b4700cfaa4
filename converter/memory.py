"""Large arrays go back to the system when they are no longer needed.

glibc maps large blocks by themselves, and unmaps them when they are freed; but with each one that is freed it
raises what it takes for large, up to 32 MiB, and keeps everything below in a heap full of holes. The columns of a
million files are of just that size: with the threshold nailed down converting them takes 230 MB instead of 300.
"""

import ctypes

_M_MMAP_THRESHOLD = -3
"""mallopt(3)."""
_LARGE = 2 << 20
"""More than the pieces of a stream, which come and go too often to be mapped each time."""


def unmap_large_blocks() -> None:
    """Fix the threshold for this process; where the C library is not glibc, nothing happens."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGE)

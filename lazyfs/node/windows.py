"""Who reads a device in order, and how far ahead of him to fetch.

The window is as large as what was read in order so far: it doubles, up to a download of the whole by many requests,
and what was fetched in vain when a reader stops is never more than he has read. A reader who jumps about has none.

At first it is half of that, since many readers do stop: a start of python3 and numpy (a scientific stack) touches
chunks of 20.2 MB (79.8 MB) and misses 154 (784) times without any windows. With them it is 22.9 MB (87.7 MB) and 131
(587) times, with whole ones from the beginning 24.8 MB (92.3 MB) and 122 (516) times. A miss is a round trip.
"""

from dataclasses import dataclass

KIB, MIB = 1 << 10, 1 << 20

MIN_RUN = 768 * KIB
"""Bytes read in order before anything is fetched ahead."""
SURE_RUN = 4 * MIB
MAX_WINDOW = 32 * MIB
MAX_GAP = 512 * KIB
"""How far a read may lie from where the one before it ended: the kernel's own readahead comes in any order."""
MAX_STREAMS = 8
_DENSE = 0.5
"""Of the bytes between the first and the last read, what must have been read to call it reading in order."""


@dataclass(slots=True)
class _Stream:
    start: int
    end: int
    read: int
    ahead: int
    """Up to here it was asked for already."""


class Windows:
    """For one device. Not thread safe: `LayerDevice` holds a lock."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._streams: list[_Stream] = []

    def observe(self, offset: int, end: int) -> tuple[int, int]:
        """A read of [offset, end): the range of the device to fetch ahead of it now, empty mostly."""
        stream = self._find(offset, end)
        if stream is None:
            self._streams.insert(0, _Stream(offset, end, end - offset, end))
            del self._streams[MAX_STREAMS:]
            return end, end
        stream.read += end - offset
        stream.end = max(stream.end, end)
        run = stream.end - stream.start
        if run < MIN_RUN or stream.read < run * _DENSE:
            return end, end
        window = min(run if run >= SURE_RUN else run // 2, MAX_WINDOW)
        low = max(stream.ahead, stream.end)
        high = min(stream.end + window, self._size)
        # In steps, so that requests are large.
        if high <= low or (high - low < window // 4 and high < self._size):
            return end, end
        stream.ahead = high
        return low, high

    def _find(self, offset: int, end: int) -> _Stream | None:
        for at, stream in enumerate(self._streams):
            if stream.end - MAX_GAP <= offset <= stream.end + MAX_GAP and end > stream.start:
                if at:
                    self._streams.insert(0, self._streams.pop(at))
                return stream
        return None

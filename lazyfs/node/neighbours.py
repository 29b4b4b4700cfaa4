"""What lies behind a chunk that a reader misses, fetched along with it.

A miss is a round trip, and while nothing of it has come the link is idle. What is read at a start lies together: of the
chunks that follow a missed one in the blob two in three are read soon after. So a miss brings as much of them as comes
in the time of two round trips, behind what is waited for and in the same request. A reader who jumps about has no use
for them: where few of those that came were read, nearly none come any more.
"""

from collections import deque
from collections.abc import Callable

from lazyfs.formats.chunks import ChunkTable
from lazyfs.node.pace import Pace

ROUND_TRIPS = 2.0
MAX_BYTES = 1 << 20
"""Of blob. Across a link that brings 100 MB in the time of a round trip, that much would be fetched for each miss."""
NEAR = 1.5e-3
"""Seconds. To ask a store that is no farther away costs less than to decode what nobody reads."""
MAX_DEMANDED = 3
"""Requests of readers that are under way: with more of them no link is idle."""
_JUDGED_AFTER = 12
"""Misses later: by then a reader who comes has come."""
_MEMORY = 16
_USELESS = 0.15
_PROBE = 32
"""Where they are not read, one miss in so many brings some: readers change."""


class Neighbours:
    """For one layer. Not thread safe: `Fetcher` holds a lock.

    `is_touched` says of a range of the device whether it was read; `is_idle` whether the link has nothing better to do.
    """

    def __init__(
        self,
        chunks: ChunkTable,
        is_touched: Callable[[int, int], bool],
        is_idle: Callable[[], bool],
    ) -> None:
        self._chunks = chunks
        self._is_touched = is_touched
        self._is_idle = is_idle
        self._came: deque[tuple[int, int]] = deque()
        self._misses = 0
        self._useful = 0.5
        self._skipped = 0

    def behind(self, index: int, pace: Pace) -> range:
        """The chunks behind chunk `index` worth fetching with it from a store of this pace: none from a near one."""
        nothing = range(index + 1, index + 1)
        self._misses += 1
        self._judge()
        round_trip = pace.round_trip()
        if round_trip < NEAR or not self._is_worth() or not self._is_idle():
            return nothing
        left = min(MAX_BYTES, ROUND_TRIPS * round_trip * pace.rate())
        end = index + 1
        while end < len(self._chunks) and left >= (size := int(self._chunks.blob_length[end])):
            left -= size
            end += 1
        return range(index + 1, end)

    def came(self, index: int) -> None:
        """A chunk is fetched for the last miss that was only a neighbour."""
        self._came.append((index, self._misses))

    def _judge(self) -> None:
        while self._came and self._came[0][1] + _JUDGED_AFTER <= self._misses:
            index, _ = self._came.popleft()
            start, end = int(self._chunks.start[index]), int(self._chunks.start[index + 1])
            self._useful += (self._is_touched(start, end) - self._useful) / _MEMORY

    def _is_worth(self) -> bool:
        if self._useful >= _USELESS:
            return True
        self._skipped = (self._skipped + 1) % _PROBE
        return self._skipped == 0

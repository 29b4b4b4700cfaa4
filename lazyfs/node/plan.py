"""What is to be fetched together: flights, and the runs of neighbours that one ranged read brings."""

import threading
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

from lazyfs.formats.chunks import ChunkTable
from lazyfs.node.crew import Lane
from lazyfs.node.sources import BlobSource

MAX_REQUEST = 4 << 20
"""Blob bytes of one ranged read."""
REQUEST_SIZES = {Lane.DEMAND: MAX_REQUEST, Lane.PREFETCH: 2 << 20, Lane.FILL: 1 << 20}
"""Smaller ahead of a reader, so that several come at once, and smallest in the background: it stands in the way."""


@dataclass(slots=True, eq=False)
class Flight:
    """One chunk on its way; the future gives its plain bytes.

    `run` is what is to bring it, one of `runs`; `demanded` is when somebody first waited for it (`time.monotonic`);
    `settled` says that the future is, or is just being, done.
    """

    index: int
    lane: Lane = Lane.DEMAND
    demanded: float = 0.0
    future: "Future[bytes]" = field(default_factory=Future)
    run: "Run | None" = None
    runs: int = 0
    settled: bool = False


@dataclass(slots=True, eq=False)
class Run:
    """Neighbouring flights that one ranged read brings. `moved` is when something of it came last.

    `source` is where that is asked for now; `avoided` the one that is asked last, since another run waits for it.
    """

    lane: Lane
    flights: list[Flight]
    moved: float = 0.0
    asked: bool = False
    hedged: bool = False
    source: BlobSource | None = None
    avoided: BlobSource | None = None


class Countdown:
    """Tells the last of `count` callers, on whichever thread, that it is the last."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._lock = threading.Lock()

    def last(self) -> bool:
        with self._lock:
            self._count -= 1
            return self._count == 0


def join_neighbours(
    chunks: ChunkTable, flights: Sequence[Flight], limit: int | None = None
) -> list[list[Flight]]:
    """Runs of flights whose frames lie one behind the other, none longer than `limit` bytes of blob."""
    limit = MAX_REQUEST if limit is None else limit
    runs: list[list[Flight]] = []
    size = 0
    for flight in flights:
        length = int(chunks.blob_length[flight.index])
        previous = runs[-1][-1].index if runs else None
        if (
            previous is not None
            and previous + 1 == flight.index
            and int(chunks.blob_offset[previous] + chunks.blob_length[previous])
            == chunks.blob_offset[flight.index]
            and size + length <= limit
        ):
            runs[-1].append(flight)
            size += length
        else:
            runs.append([flight])
            size = length
    return runs

"""The fetch engine of one layer: one flight per chunk, neighbours joined into one ranged read.

A chunk that nobody has is fetched once, however many readers wait for it. Chunks that are asked for together
and lie together in the blob are read by one request and handed out one by one, each as soon as it is verified.
What one source does not give is asked of the next. A flight that fails is forgotten, so that the next read
tries anew.
"""

import logging
import threading
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field

from lazyfs.errors import IntegrityError, LazyfsError, NodeError
from lazyfs.formats.chunks import ChunkTable, chunk_digest
from lazyfs.formats.frames import open_frame
from lazyfs.node.cache import LayerCache
from lazyfs.node.timeline import Timeline
from lazyfs.stores.base import Store

log = logging.getLogger(__name__)

MAX_REQUEST = 4 << 20
"""Blob bytes of one ranged read."""


@dataclass(frozen=True, slots=True)
class BlobSource:
    """Where the blob of a layer is, a store and the blob's digest in it; and the codec of its frames."""

    store: Store
    digest: str
    codec: str


@dataclass(frozen=True, slots=True, eq=False)
class Flight:
    """One chunk on its way; the future gives its plain bytes."""

    index: int
    future: "Future[bytes]" = field(default_factory=Future)


class Fetcher:
    """Fetches, proves and caches the chunks of one layer. Thread safe."""

    def __init__(
        self, layer: str, source: BlobSource, cache: LayerCache, executor: Executor, timeline: Timeline
    ) -> None:
        self._layer = layer
        self._sources: tuple[BlobSource, ...] = (source,)
        self._cache = cache
        self._executor = executor
        self._timeline = timeline
        self._lock = threading.Lock()
        self._flights: dict[int, Flight] = {}

    def prefer(self, source: BlobSource) -> None:
        """Ask `source` first from now on; the others remain, for what it does not give."""
        with self._lock:
            self._sources = (source, *(other for other in self._sources if other != source))

    def flights(self, indexes: Iterable[int]) -> list[Flight]:
        """A flight for each of the chunks: started, already on its way, or landed since the caller looked."""
        joined: list[Flight] = []
        started: list[Flight] = []
        with self._lock:
            for index in indexes:
                flight = self._flights.get(index)
                if flight is None:
                    flight = Flight(index)
                    chunks = self._cache.chunks
                    plain = self._cache.read(int(chunks.start[index]), chunks.length(index))
                    if plain is not None:
                        flight.future.set_result(plain)
                    else:
                        self._flights[index] = flight
                        started.append(flight)
                joined.append(flight)
        for run in join_neighbours(self._cache.chunks, started):
            try:
                self._executor.submit(self._fly, run)
            except RuntimeError as error:  # no thread can be started, or the node is closing
                self._fail(run, NodeError(f"{self._layer}: {error}"))
        return joined

    def _fly(self, run: list[Flight]) -> None:
        try:
            waiting = [
                flight for flight in run if not flight.future.done() and not self._land_from_disk(flight)
            ]
            for part in join_neighbours(self._cache.chunks, waiting):
                self._fetch(part, self._sources)
        except Exception as error:  # a reader must never wait for a flight that is lost
            log.exception("fetching %s", self._layer)
            self._fail(run, NodeError(f"{self._layer}: {type(error).__name__}: {error}"))

    def _land_from_disk(self, flight: Flight) -> bool:
        plain = self._cache.recheck(flight.index)
        if plain is not None:
            self._land(flight, plain)
        return plain is not None

    def _fetch(
        self, run: list[Flight], sources: Sequence[BlobSource], first_error: LazyfsError | None = None
    ) -> None:
        """Land each flight of the run, or fail it with what the first source had to say."""
        source, *others = sources

        def give_up(flights: list[Flight], error: LazyfsError) -> None:
            if others:
                log.warning("%s: %s; trying another store", self._layer, error)
                self._fetch(flights, others, first_error or error)
            else:
                self._fail(flights, first_error or error)

        try:
            frames = self._read(source, run)
        except LazyfsError as error:
            give_up(run, error)
            return
        for flight, frame in zip(run, frames, strict=True):
            try:
                plain = open_chunk(source.codec, self._cache.chunks, flight.index, frame, source.digest)
            except LazyfsError as error:
                give_up([flight], error)
            else:
                self._keep(flight.index, plain)
                self._land(flight, plain)

    def _read(self, source: BlobSource, run: list[Flight]) -> list[memoryview]:
        """The frames of neighbouring chunks, by one ranged read."""
        chunks = self._cache.chunks
        first, last = run[0].index, run[-1].index
        start = int(chunks.blob_offset[first])
        length = int(chunks.blob_offset[last] + chunks.blob_length[last]) - start
        began = time.monotonic()
        data = memoryview(source.store.read(source.digest, start, length))
        self._timeline.fetched(
            self._layer, int(chunks.start[first]), int(chunks.start[last + 1]), length, began
        )
        offsets = [int(chunks.blob_offset[flight.index]) - start for flight in run]
        return [
            data[offset : offset + int(chunks.blob_length[flight.index])]
            for offset, flight in zip(offsets, run, strict=True)
        ]

    def _keep(self, index: int, plain: bytes) -> None:
        try:
            self._cache.put(index, plain)
        except OSError as error:
            # A full or failing disk costs speed, never a read: the bytes go to who waits for them.
            self._timeline.cache_failed(f"{self._layer}: {error.strerror}")

    def _land(self, flight: Flight, plain: bytes) -> None:
        with self._lock:
            self._flights.pop(flight.index, None)
        flight.future.set_result(plain)

    def _fail(self, run: list[Flight], error: LazyfsError) -> None:
        self._timeline.failed(self._layer, error.message)
        for flight in run:
            if not flight.future.done():
                with self._lock:
                    self._flights.pop(flight.index, None)
                flight.future.set_exception(error)


def open_chunk(codec: str, chunks: ChunkTable, index: int, frame: bytes | memoryview, blob: str) -> bytes:
    """What the device shows of chunk `index`, from its frame; IntegrityError unless it has the promised digest."""
    where = f"chunk {index} of blob {blob}"
    plain = chunks.shown(index, open_frame(codec, frame, chunks.length(index), where))
    if chunk_digest(plain) != chunks.digest(index):
        raise IntegrityError(
            f"{where}: the bytes do not match their digest",
            hint="the blob is damaged in its store; `lazyfs check` names all that is wrong, converting again mends it",
        )
    return plain


def join_neighbours(chunks: ChunkTable, flights: list[Flight]) -> list[list[Flight]]:
    """Runs of flights whose frames lie one behind the other, none longer than MAX_REQUEST bytes of blob."""
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
            and size + length <= MAX_REQUEST
        ):
            runs[-1].append(flight)
            size += length
        else:
            runs.append([flight])
            size = length
    return runs

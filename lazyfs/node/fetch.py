"""The fetch engine: one flight per chunk, neighbours joined into one ranged read, what is urgent first.

    demand    -> flights     what is on its way already is joined, or brought forward if it waits behind others
                 behind      what lies behind a chunk that is missed comes along (`neighbours`)
    foresight -> ahead       sequential readers (`windows`), packs and the background (`fill`)
    Run       -> read_pieces -> open_chunk (decode, prove) -> whoever waits -> the cache

A chunk that nobody has is fetched once, however many readers wait for it, and is handed out as soon as it has come
and is proved, while the rest of its run still streams. What one source does not give is asked of the next. A flight
that fails is forgotten, so that the next read tries anew; only what all sources gave damaged is left alone for a
moment (`damage`). A read that gets no answer is asked a second time, of another source if there is one, and is an
error when its time is over.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import closing, suppress
from functools import partial
from typing import TypeVar

from lazyfs.errors import IntegrityError, LazyfsError, NodeError, StoreError
from lazyfs.node.cache import LayerCache
from lazyfs.node.crew import Lane
from lazyfs.node.damage import Damage
from lazyfs.node.engine import Engine
from lazyfs.node.neighbours import Neighbours
from lazyfs.node.plan import REQUEST_SIZES, Flight, Run, join_neighbours
from lazyfs.node.sources import BlobSource, Sources, open_chunk

log = logging.getLogger(__name__)

T = TypeVar("T")

_GRACE = 1.0
"""Seconds that a store has to say itself what is wrong."""
_HURRY_SECONDS = 0.25
"""Who has just asked asks again soon."""
_NO_ROOM_SECONDS = 10.0
_DISK_SECONDS = 1.0
"""After something had to be read from the disk, more of the kind is to be expected."""


class Fetcher:
    """Fetches, proves and caches the chunks of one layer. Thread safe.

    `_lock` guards the table of flights, and which run is to bring which.
    """

    def __init__(
        self,
        layer: str,
        source: BlobSource,
        cache: LayerCache,
        engine: Engine,
        neighbours: Neighbours | None = None,
    ) -> None:
        """Without `neighbours` a miss brings what is missed alone."""
        self._layer = layer
        self._neighbours = neighbours
        self._sources = Sources(source)
        self._cache = cache
        self._chunks = cache.chunks
        self._engine = engine
        self._lock = threading.Lock()
        self._kept = threading.Condition(self._lock)
        self._flights: dict[int, Flight] = {}
        self._no_room_until = 0.0
        self._damage = Damage()
        self._disk_is_read_until = 0.0

    def prefer(self, source: BlobSource) -> None:
        """Ask `source` first from now on; the others remain, for what it does not give."""
        self._sources.prefer(source)
        self._damage.forget()

    def sources(self) -> tuple[BlobSource, ...]:
        """Where the blob can be had, the preferred one first."""
        return self._sources.in_order()

    def flights(self, indexes: Iterable[int]) -> list[Flight]:
        """A flight for each of the chunks: started, already on its way, or landed since the caller looked."""
        joined: list[Flight] = []
        started: list[Flight] = []
        now = time.monotonic()
        with self._lock:
            for index in indexes:
                flight = self._flights.get(index)
                if flight is None:
                    flight = Flight(index, demanded=now)
                    plain = self._cache.read(int(self._chunks.start[index]), self._chunks.length(index))
                    damage = self._damage.of(index)
                    if plain is not None:
                        flight.future.set_result(plain)
                    elif damage is not None:
                        flight.future.set_exception(damage)
                    else:
                        self._flights[index] = flight
                        started.append(flight)
                elif flight.lane is not Lane.DEMAND:
                    flight.demanded = now
                    if self._overtakes(flight, Lane.DEMAND):
                        started.append(flight)
                joined.append(flight)
            runs = self._plan([*started, *self._behind(started)], Lane.DEMAND)
        self._start(runs)
        waiting = tuple(flight.index for flight in joined if not flight.future.done())
        if waiting:
            # A store that was slow so far is given more patience, but never more than a read has time.
            first_look = min(self._engine.patience(), self._engine.timeout + _GRACE)
            self._engine.watch.at(now + first_look, lambda: self._look(waiting, now))
        return joined

    def _behind(self, missed: Sequence[Flight]) -> Iterator[Flight]:
        """Flights for what lies behind the last chunk that is missed, up to what is here or on its way already."""
        if not missed or self._neighbours is None or not self.has_room():
            return
        pace = self._engine.pace(self._sources.in_order()[0].store.url)
        for index in self._neighbours.behind(missed[-1].index, pace):
            if (
                index in self._flights
                or not self._cache.missing_units(index)
                or self._damage.of(index) is not None
            ):
                return
            self._flights[index] = flight = Flight(index, Lane.PREFETCH)
            self._neighbours.came(index)
            yield flight

    def ahead(self, indexes: Iterable[int], lane: Lane) -> "list[Future[bytes]]":
        """Fetch what is missing of these chunks before somebody asks; one that is given up is cancelled."""
        if not self.has_room():
            return []
        started: list[Flight] = []
        with self._lock:
            for index in indexes:
                flight = self._flights.get(index)
                if flight is not None:
                    if flight.lane > lane and self._overtakes(flight, lane):
                        started.append(flight)
                elif self._cache.missing_units(index) and self._damage.of(index) is None:
                    self._flights[index] = flight = Flight(index, lane)
                    started.append(flight)
            runs = self._plan(started, lane)
        self._start(runs)
        return [flight.future for flight in started]

    def ahead_of_reader(self, low: int, high: int) -> None:
        """Somebody comes to [low, high) soon: fetch what is missing of it, and let a slow disk read the rest."""
        self.ahead(self._chunks.covering(low, high - low), Lane.PREFETCH)
        if time.monotonic() < self._disk_is_read_until:
            with suppress(RuntimeError):  # the node is closing
                self._engine.disk.submit(self._cache.will_be_read, low, high)

    def from_disk(self, read: "Callable[[], T]") -> "Future[T]":
        """What this gives, done by a thread that may wait for the disk."""
        self._disk_is_read_until = time.monotonic() + _DISK_SECONDS
        try:
            return self._engine.disk.submit(read)
        except RuntimeError:  # the node is closing
            failed: Future[T] = Future()
            failed.set_exception(NodeError(f"{self._layer}: the node is closing"))
            return failed

    def wait_kept(self, seconds: float) -> None:
        """Wait until the cache has been given what was handed out; so many seconds at most."""
        with self._kept:
            self._kept.wait_for(lambda: not any(each.settled for each in self._flights.values()), seconds)

    def has_room(self) -> bool:
        """Whether the cache has taken what it was given of late: without it there is no use in fetching ahead."""
        return time.monotonic() >= self._no_room_until

    def _overtakes(self, flight: Flight, lane: Lane) -> bool:
        """Somebody more urgent wants a flight; is it to be asked for anew, since its run waits behind others?"""
        flight.lane = lane
        if flight.run is None or flight.run.asked:
            return False
        flight.run.flights.remove(flight)
        flight.runs -= 1
        return True

    def _plan(self, flights: list[Flight], lane: Lane) -> list[Run]:
        runs = [Run(lane, part) for part in join_neighbours(self._chunks, flights, REQUEST_SIZES[lane])]
        for run in runs:
            for flight in run.flights:
                flight.run = run
                flight.runs += 1
        return runs

    def _start(self, runs: Iterable[Run]) -> None:
        for run in runs:
            try:
                self._engine.crew.submit(run.lane, partial(self._fly, run))
            except RuntimeError as error:  # no thread can be started, or the node is closing
                self._fail(run.flights, NodeError(f"{self._layer}: {error}"))

    def _fly(self, run: Run) -> None:
        with self._lock:
            run.asked, run.moved = True, time.monotonic()
            flights = [flight for flight in run.flights if not flight.settled]
        try:
            waiting = [flight for flight in flights if not self._land_from_disk(flight)]
            for part in join_neighbours(self._chunks, waiting, REQUEST_SIZES[run.lane]):
                self._fetch(run, part, self._sources.in_order(run.avoided))
        except Exception as error:  # a reader must never wait for a flight that is lost
            log.exception("fetching %s", self._layer)
            self._fail(flights, NodeError(f"{self._layer}: {type(error).__name__}: {error}"))

    def _land_from_disk(self, flight: Flight) -> bool:
        plain = self._cache.recheck(flight.index)
        if plain is not None:
            self._hand_out(flight, plain)
            self._forget(flight)
        return plain is not None

    def _fetch(
        self,
        run: Run,
        part: list[Flight],
        sources: Sequence[BlobSource],
        earlier: tuple[LazyfsError, ...] = (),
    ) -> None:
        """Land each flight of the part, or fail it with what the first source had to say."""
        source, *others = sources
        left = list(part)
        failed: list[tuple[list[Flight], LazyfsError]] = []
        try:
            self._stream(run, left, source, failed)
        except LazyfsError as error:
            failed.append((left, error))
        for flights, reason in failed:
            if others:
                log.warning("%s: %s; trying another store", self._layer, reason)
                self._fetch(run, flights, others, (*earlier, reason))
                continue
            first, *_ = errors = (*earlier, reason)
            if all(isinstance(error, IntegrityError) for error in errors):
                self._damage.note((flight.index for flight in flights), first)
            self._fail(flights, first)

    def _stream(
        self,
        run: Run,
        left: list[Flight],
        source: BlobSource,
        damaged: list[tuple[list[Flight], LazyfsError]],
    ) -> None:
        """One ranged read; each flight leaves `left` when its frame has come."""
        chunks, first = self._chunks, left[0].index
        start = int(chunks.blob_offset[first])
        lengths = [int(chunks.blob_length[flight.index]) for flight in left]
        began = run.moved = time.monotonic()
        run.source = source
        got, last = 0, first
        came, at_first = began, 0
        try:
            with closing(source.store.read_pieces(source.digest, start, lengths)) as frames:
                while left and not self._is_pointless(run, left):
                    flight = left[0]
                    with self._engine.budget.take(lengths[last - first] + chunks.length(flight.index)):
                        frame = next(frames)
                        run.moved = time.monotonic()
                        if not got:
                            came, at_first = run.moved, len(frame)
                            self._engine.answered(came - began)
                        del left[0]
                        got, last = got + len(frame), last + 1
                        try:
                            self._land(flight, frame, source)
                        except LazyfsError as error:
                            damaged.append(([flight], error))
        finally:
            if got:
                pace = self._engine.pace(source.store.url)
                pace.answered(came - began, at_first, run.moved - came, got - at_first)
                low, high = int(chunks.start[first]), int(chunks.start[last])
                self._engine.timeline.fetched(self._layer, low, high, got, began, fill=run.lane is Lane.FILL)

    def _is_pointless(self, run: Run, left: list[Flight]) -> bool:
        """Whether nobody needs the rest of a run: it came another way, or it is to fill and somebody is in a hurry."""
        if run.lane is Lane.FILL and self._engine.crew.quiet_for() < _HURRY_SECONDS:
            with self._lock:
                if all(flight.lane is Lane.FILL for flight in left):
                    for flight in left:
                        self._flights.pop(flight.index, None)
                        flight.future.cancel()
                        flight.future.set_running_or_notify_cancel()  # who waits for several is told by this alone
                    left.clear()
                    return True
        return all(flight.future.done() for flight in left)

    def _land(self, flight: Flight, frame: bytes, source: BlobSource) -> None:
        """Hand out what is in the frame, then keep it; IntegrityError when it is not what it must be."""
        if flight.future.done():
            return
        plain = open_chunk(source.codec, self._chunks, flight.index, frame, source.digest)
        self._hand_out(flight, plain)
        try:
            if not self._cache.put(flight.index, plain):
                self._no_room_until = time.monotonic() + _NO_ROOM_SECONDS
        except OSError as error:
            # A full or failing disk costs speed, never a read: the bytes went to who waited for them.
            self._no_room_until = time.monotonic() + _NO_ROOM_SECONDS
            self._engine.timeline.cache_failed(f"{self._layer}: {error.strerror}")
        finally:
            self._forget(flight)

    def _hand_out(self, flight: Flight, plain: bytes) -> None:
        with self._lock:
            if flight.settled:
                return
            flight.settled = True
        flight.future.set_result(plain)

    def _forget(self, flight: Flight) -> None:
        """From now on the cache knows of the chunk, or nobody does."""
        with self._lock:
            if self._flights.get(flight.index) is flight:
                del self._flights[flight.index]
            flight.run = None
            self._kept.notify_all()

    def _fail(self, flights: Iterable[Flight], error: LazyfsError, *, for_good: bool = False) -> None:
        """The run that was to bring them does not; those that another one may still bring are left alone."""
        lost = []
        with self._lock:
            for flight in flights:
                flight.runs -= 1
                if not flight.settled and (for_good or flight.runs <= 0):
                    flight.settled = True
                    self._flights.pop(flight.index, None)
                    lost.append(flight)
        if lost:
            self._engine.timeline.failed(self._layer, error.message)
        for flight in lost:
            flight.future.set_exception(error)

    def _look(self, indexes: tuple[int, ...], since: float) -> float | None:
        """Look after a read that began at `since`: ask again what is late, give up what is too late."""
        ends = since + self._engine.timeout + _GRACE
        now = time.monotonic()
        with self._lock:
            late = [
                flight
                for index in indexes
                if (flight := self._flights.get(index)) is not None
                and not flight.settled
                and flight.demanded <= since
            ]
        if not late:
            return None
        if now >= ends:
            self._fail(late, self._too_late(), for_good=True)
            return None
        patience = self._engine.patience()
        for flight in late:
            run = flight.run
            if run is not None and run.asked and not run.hedged and now - run.moved >= patience:
                self._hedge(run)
        return min(ends, now + max(patience, 1.0))

    def _hedge(self, run: Run) -> None:
        run.hedged = True
        if not self._engine.may_hedge():
            return
        with self._lock:
            left = [flight for flight in run.flights if not flight.settled]
            again = Run(Lane.DEMAND, left, hedged=True, avoided=run.source)
            for flight in again.flights:
                flight.runs += 1
        if again.flights:
            log.info("%s: no answer yet, asking a second time", self._layer)
            self._start([again])

    def _too_late(self) -> StoreError:
        source = self._sources.in_order()[0]
        return StoreError(
            f"{source}: no answer within {self._engine.timeout:g} s",
            hint="check the network and the store; the next read tries anew",
        )

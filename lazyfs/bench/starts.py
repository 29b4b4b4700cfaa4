"""One start, from the name of an image to a container that is ready, and what it took.

    resolve   until the first byte of a layer is asked for: manifest and config have come
    prepare   until the container is made: the image is pulled, or known to the snapshotter, and its snapshot is there
    create    until the runtime has made the container: its root is mounted
    start     until the runtime has started its program
    ready     until it is ready, as its user says

The boundaries are what the link has seen and what containerd tells of itself, so they mean the same for every way.
"""

import os
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lazyfs.bench import usage
from lazyfs.bench.cold import Cold, go_cold, undisturbed, warm
from lazyfs.bench.engine import Engine, find, running_engine
from lazyfs.bench.link import Counts, Link, LinkSpec, Trip
from lazyfs.bench.usage import Use
from lazyfs.bench.ways import Way
from lazyfs.daemon.client import DaemonClient
from lazyfs.errors import NodeError
from lazyfs.run.ready import Started, is_ready, parse_probe

PHASES = ("resolve", "prepare", "create", "start", "ready")
_NAME = "c"
REPOSITORY = "app"
_RUNTIMES = ("runc", "containerd-shim-runc-v2")
_TAIL = 800  # characters


@dataclass(frozen=True, slots=True)
class Served:
    """An image in a registry on this machine: what is started of it, and when it is ready.

    `documents` are the digests of what is no layer, `blobs` the files of each tag; `registry` is HOST:PORT.
    """

    name: str
    registry: str
    documents: frozenset[str]
    blobs: Mapping[str, Sequence[Path]]
    ready: str
    words: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    patience: float = 600.0


@dataclass(frozen=True, slots=True)
class Trace:
    """What was fetched and read when, in seconds since the begin: of the wire, and of the daemon where there is one."""

    trips: list[Trip]
    fetched: list[dict[str, Any]]
    reads: list[dict[str, Any]]
    sizes: dict[str, int]


@dataclass(frozen=True, slots=True)
class Start:
    """`seconds` to ready, and of each phase; bytes and requests are those of the link until then."""

    image: str
    link: str
    way: str
    round: int
    order: int
    seconds: float
    phases: dict[str, float]
    down: int
    up: int
    requests: int
    connections: int
    device_reads: int
    waited: int
    uses: list[Use]
    cold: Cold
    load: float

    @property
    def cpu(self) -> float:
        return sum(use.cpu for use in self.uses)

    @property
    def memory(self) -> int:
        return sum(use.memory for use in self.uses)


@dataclass(frozen=True, slots=True)
class _Ready:
    """When, and what was seen right after."""

    at: float
    counts: Counts
    processes: usage.Snapshot


def measure(
    directory: Path, served: Served, spec: LinkSpec, way: Way, place: tuple[int, int]
) -> tuple[Start, Trace]:
    """One start by a way, on an engine that has nothing; `place` are its round, and its order in that."""
    if is_ready(parse_probe(served.ready)):
        raise NodeError(
            f"{served.ready} is ready before the start", hint="something else on this machine answers"
        )
    with ExitStack() as stack:
        link = stack.enter_context(Link(spec, served.registry))
        ours = set(usage.look().processes)
        engine = stack.enter_context(running_engine(directory / "e", directory.name, way))
        ours.add(engine.listener)
        reference = f"{link.address}/{REPOSITORY}:{way.tag}"
        if way.is_local:
            engine.pull(reference)
        cold = go_cold(engine.contents, [Path(find(each)) for each in _RUNTIMES])
        cold.check(local=way.is_local)
        warm(served.blobs[way.tag])
        load = os.getloadavg()[0]
        before = usage.look(ours)
        counted = link.counts()
        with undisturbed():
            began = time.monotonic()
            pulled = None if way.is_local else engine.pull(reference)
            ready = _run(engine, served, reference, link, ours)
        counts = ready.counts.since(counted)
        trips = [trip for trip in link.trips() if trip.began >= began]
        uses = usage.between(before, ready.processes)
        if pulled is not None:
            uses.append(Use("ctr, pulling", 1, round(pulled.cpu, 2), pulled.memory))
        phases = _phases(began, ready, engine.moments(began), trips, served.documents)
        trace = _trace(engine, way, trips, began, ready.at)
    if not (counts.down or way.is_local):
        raise NodeError(
            f"{way.name} fetched nothing through the link",
            hint="its cache was not cold, or it has another way to the registry",
        )
    start = Start(
        served.name,
        spec.name,
        way.name,
        *place,
        ready.at - began,
        phases,
        *_wire(counts),
        len(trace.reads),
        sum(bool(read["waited"]) for read in trace.reads),
        uses,
        cold,
        load,
    )
    return start, trace


def _wire(counts: Counts) -> tuple[int, int, int, int]:
    return counts.down, counts.up, counts.requests, counts.connections


def _run(engine: Engine, served: Served, reference: str, link: Link, ours: Collection[int]) -> _Ready:
    command = engine.run_command(reference, _NAME, served.words, served.env)
    with (
        (engine.directory / "container.log").open("wb") as log,
        Started(command, parse_probe(served.ready), log) as started,
    ):
        try:
            at = started.began + started.wait_ready(served.patience)
        except NodeError as error:
            log.flush()
            raise NodeError(
                f"{engine.way.name}: {error.message}; the container said: {_end(engine)}", hint=error.hint
            ) from error
        counts, processes = link.counts(), usage.look(ours)
        engine.kill(_NAME)
    return _Ready(at, counts, processes)


def _end(engine: Engine) -> str:
    return engine.said("container.log")[-_TAIL:]


def _phases(
    began: float,
    ready: _Ready,
    moments: Mapping[str, float],
    trips: Sequence[Trip],
    documents: frozenset[str],
) -> dict[str, float]:
    layers = [trip.began for trip in trips if _is_of_layer(trip, documents)]
    ends = [
        min(layers, default=began),
        moments["/containers/create"],
        moments["/tasks/create"],
        moments["/tasks/start"],
        ready.at,
    ]
    phases: dict[str, float] = {}
    last = began
    for name, end in zip(PHASES, ends, strict=True):
        # A container can be ready before containerd tells that it was started.
        until = min(max(end, last), ready.at)
        phases[name] = until - last
        last = until
    return phases


def _is_of_layer(trip: Trip, documents: frozenset[str]) -> bool:
    head, blobs, digest = trip.path.partition("/blobs/")
    return bool(head and blobs) and trip.method == "GET" and digest not in documents


def _trace(engine: Engine, way: Way, trips: Sequence[Trip], began: float, ready: float) -> Trace:
    """Times count from the begin."""
    mine = [replace(trip, began=trip.began - began, ended=trip.ended - began) for trip in trips]
    if not way.is_lazyfs:
        return Trace(mine, [], [], {})
    client = DaemonClient(engine.node)
    recorded = client.timeline(began)
    fetched = [
        each | {"began": each["began"] - began, "ended": each["ended"] - began}
        for each in recorded["fetched"]
    ]
    reads = [each | {"at": each["at"] - began} for each in recorded["reads"] if each["at"] <= ready]
    sizes = {layer["blob"]: int(layer["bytes"]) for layer in client.status()["layers"]}
    return Trace(mine, fetched, reads, sizes)

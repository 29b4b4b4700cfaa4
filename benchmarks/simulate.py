"""Many nodes that start one image at once, simulated: who fetches what from whom, and when each is ready.

What is assumed:

- A node's start is a row of steps, as one was measured: so long the node is busy with itself, then it waits for so many
  bytes, and at the end it is busy once more until it is ready. Requests that were under way together are one step.
- Nodes are not alike: each begins within `spread` seconds, and is busy so many times as long as the measured one as a
  logarithmic normal distribution of `sigma` says.
- Whoever serves divides its rate equally among those whom it serves at the moment; nobody gets more than a node's link.
- A step takes one round trip besides its bytes.
- *registry*: all nodes ask one registry. *mirrors*: each region has a mirror, which asks the registry for each step
  once, as soon as one of its nodes wants it, and gives it on when it has it whole. *peers*: as with mirrors, but what
  one node of a region has got the nodes of the region get from each other; each that has something gives as fast as
  its link can.
- Nobody fails, nothing is lost, and no server's processor is the limit.
"""

import heapq
import itertools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from lazyfs.bench.link import Trip

SPREAD, SIGMA = 1.0, 0.15


@dataclass(frozen=True, slots=True)
class Step:
    """Seconds that pass before it is asked for, and its bytes."""

    busy: float
    size: int


@dataclass(frozen=True, slots=True)
class Recipe:
    """A measured start: its steps, and the seconds from the last byte to ready."""

    steps: tuple[Step, ...]
    tail: float

    @property
    def size(self) -> int:
        return sum(step.size for step in self.steps)


@dataclass(frozen=True, slots=True)
class World:
    """Rates in bytes a second, the round trip in seconds. `kind` is registry, mirrors or peers."""

    kind: str
    nodes: int
    regions: int
    registry_rate: float
    mirror_rate: float
    node_rate: float
    round_trip: float
    spread: float = SPREAD
    sigma: float = SIGMA


@dataclass(frozen=True, slots=True)
class Outcome:
    """Seconds to ready of every node, rising, and bytes that the registry gave."""

    ready: list[float]
    origin: int

    def percentile(self, part: float) -> float:
        return self.ready[min(int(part * len(self.ready)), len(self.ready) - 1)]


def recipe(trips: Sequence[Trip], ready: float) -> Recipe:
    """Of the requests of one start until it was ready; times count from its begin."""
    steps: list[Step] = []
    end = 0.0
    began, size = None, 0
    for trip in sorted((each for each in trips if each.began < ready), key=lambda trip: trip.began):
        if began is not None and trip.began >= end:
            steps.append(Step(began, size))
            began = None
        if began is None:
            began, size = max(0.0, trip.began - end), 0
        size += trip.size
        end = max(end, trip.ended)
    if began is not None:
        steps.append(Step(began, size))
    return Recipe(tuple(steps), max(0.0, ready - end))


Then = Callable[[], None]


class _Clock:
    def __init__(self) -> None:
        self.now = 0.0
        self._events: list[tuple[float, int, Then]] = []
        self._count = itertools.count()

    def after(self, seconds: float, then: Then) -> None:
        heapq.heappush(self._events, (self.now + seconds, next(self._count), then))

    def run(self) -> None:
        while self._events:
            self.now, _, then = heapq.heappop(self._events)
            then()


class _Server:
    """Divides its rate equally. Time is counted in bytes that each of those it serves has got since it began."""

    def __init__(self, clock: _Clock, rate: float, most: float) -> None:
        self.given = 0
        self._clock = clock
        self._rate = rate
        self._most = most
        self._got = 0.0
        self._seen = 0.0
        self._waiting: list[tuple[float, int, Then]] = []
        self._count = itertools.count()
        self._version = 0

    def give(self, size: int, then: Then) -> None:
        self._advance()
        self.given += size
        heapq.heappush(self._waiting, (self._got + size, next(self._count), then))
        self._plan()

    def grow(self, rate: float) -> None:
        self._advance()
        self._rate += rate
        self._plan()

    def _each(self) -> float:
        return min(self._most, self._rate / max(len(self._waiting), 1))

    def _advance(self) -> None:
        self._got += (self._clock.now - self._seen) * self._each()
        self._seen = self._clock.now

    def _plan(self) -> None:
        self._version += 1
        if self._waiting and self._rate:
            version = self._version
            left = max(0.0, self._waiting[0][0] - self._got) / self._each()
            self._clock.after(left, lambda: self._finish(version))

    def _finish(self, version: int) -> None:
        if version != self._version:
            return
        self._advance()
        _, _, then = heapq.heappop(self._waiting)
        self._plan()
        then()


@dataclass(slots=True)
class _Region:
    """What it has of the image by now, who waits for what, and who serves it."""

    server: _Server
    here: set[int] = field(default_factory=set)
    asked: set[int] = field(default_factory=set)
    waiting: dict[int, list[Then]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Node:
    """`pace` is how many times as long as the measured one it is busy."""

    region: _Region
    began: float
    pace: float


class _Simulation:
    def __init__(self, world: World, start: Recipe) -> None:
        self._world = world
        self._start = start
        self._clock = _Clock()
        self._origin = _Server(self._clock, world.registry_rate, world.node_rate)
        inner = world.mirror_rate if world.kind == "mirrors" else 0.0
        self._regions = [_Region(_Server(self._clock, inner, world.node_rate)) for _ in range(world.regions)]
        self._ready: list[float] = []
        self._chance = random.Random(1)

    def run(self) -> Outcome:
        for number in range(self._world.nodes):
            begin = self._chance.uniform(0, self._world.spread)
            pace = self._chance.lognormvariate(0, self._world.sigma)
            node = _Node(self._regions[number % len(self._regions)], begin, pace)
            self._clock.after(begin, partial(self._step, node, 0))
        self._clock.run()
        return Outcome(sorted(self._ready), self._origin.given)

    def _step(self, node: _Node, number: int) -> None:
        if number == len(self._start.steps):
            self._clock.after(self._start.tail * node.pace, lambda: self._end(node))
            return
        wait = self._start.steps[number].busy * node.pace + self._world.round_trip
        self._clock.after(wait, lambda: self._ask(node, number))

    def _end(self, node: _Node) -> None:
        self._ready.append(self._clock.now - node.began)

    def _ask(self, node: _Node, number: int) -> None:
        size, region = self._start.steps[number].size, node.region
        if self._world.kind == "registry":
            self._origin.give(size, lambda: self._step(node, number + 1))
        elif number in region.here:
            region.server.give(size, lambda: self._got(node, number))
        elif number in region.asked:
            region.waiting.setdefault(number, []).append(lambda: self._ask(node, number))
        else:
            region.asked.add(number)
            self._origin.give(size, lambda: self._arrived(node, number))

    def _arrived(self, node: _Node, number: int) -> None:
        """At the mirror, or at the first node of the region: everyone else can have it there."""
        region = node.region
        region.here.add(number)
        if self._world.kind == "mirrors":
            region.server.give(self._start.steps[number].size, lambda: self._step(node, number + 1))
        else:
            self._got(node, number)
        for again in region.waiting.pop(number, []):
            again()

    def _got(self, node: _Node, number: int) -> None:
        if self._world.kind == "peers" and number == 0:
            node.region.server.grow(self._world.node_rate)  # one more who gives
        self._step(node, number + 1)


def simulate(world: World, start: Recipe) -> Outcome:
    return _Simulation(world, start).run()

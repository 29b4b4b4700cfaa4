"""A link of a given round trip and rate: a TCP proxy, in a process of its own, before a server on this machine.

    with Link(parse_link("100mbit,20ms"), "127.0.0.1:5000") as link:
        ...  link.address instead of 127.0.0.1:5000 ...
        print(link.counts().requests, link.counts().down)

Each direction is one queue that all connections share: what was read from one end leaves at the rate, and arrives
half a round trip later. A connection is made in one round trip more. There is no loss and no slow start: a link that
has been in use for a while. `link_proxy` is the process, `link_proof` shows that it does what it says.
"""

import json
import math
import re
import subprocess
import sys
from dataclasses import dataclass
from typing import Self

from lazyfs.bench.processes import UNTIL_WE_END
from lazyfs.errors import NodeError, UsageError

LOOPBACK = "loopback"
_UNITS = {"kbit": 1e3 / 8, "mbit": 1e6 / 8, "gbit": 1e9 / 8}
_SPEC = re.compile(r"([0-9]+(?:\.[0-9]+)?)(kbit|mbit|gbit),([0-9]+(?:\.[0-9]+)?)ms")


@dataclass(frozen=True, slots=True)
class LinkSpec:
    """Bytes a second, and seconds there and back."""

    rate: float
    round_trip: float
    name: str


@dataclass(frozen=True, slots=True)
class Trip:
    """One HTTP request: when its line came from the client and the last byte of its answer went there, and its bytes.

    Times are `time.monotonic`.
    """

    method: str
    path: str
    began: float
    ended: float
    size: int


@dataclass(frozen=True, slots=True)
class Counts:
    """Since the link stands: HTTP requests seen, bytes to the server, bytes from it, connections made."""

    requests: int
    up: int
    down: int
    connections: int

    def since(self, earlier: "Counts") -> "Counts":
        return Counts(
            self.requests - earlier.requests,
            self.up - earlier.up,
            self.down - earlier.down,
            self.connections - earlier.connections,
        )


def parse_link(text: str) -> LinkSpec:
    """`1gbit,2ms`, `100mbit,20ms`, `50mbit,100ms`; `loopback`, which only counts."""
    if text == LOOPBACK:
        return LinkSpec(math.inf, 0.0, LOOPBACK)
    found = _SPEC.fullmatch(text)
    if found is None or not float(found[1]):
        raise UsageError(
            f"{text[:60]!r} is not a link",
            hint="RATE,ROUND-TRIP as in 100mbit,20ms and 1gbit,2ms, or loopback",
        )
    return LinkSpec(float(found[1]) * _UNITS[found[2]], float(found[3]) / 1e3, text)


FAST = parse_link("1gbit,2ms")
MIDDLING = parse_link("100mbit,20ms")
FAR = parse_link("50mbit,100ms")


class Link:
    """The proxy as a process; its address stands for the server's."""

    def __init__(self, spec: LinkSpec, target: str) -> None:
        self.spec = spec
        command = [*UNTIL_WE_END, sys.executable, "-m", "lazyfs.bench.link_proxy", spec.name, target]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.process_id = self._process.pid
        self.address = self._line()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def counts(self) -> Counts:
        return Counts(**json.loads(self._ask("counts")))

    def trips(self) -> list[Trip]:
        """Every request since the link stands, in the order in which they came."""
        return [Trip(*each) for each in json.loads(self._ask("trips"))]

    def _ask(self, word: str) -> str:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{word}\n")
        self._process.stdin.flush()
        return self._line()

    def _line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline().strip()
        if not line:
            raise NodeError(f"the link {self.spec.name} ended")
        return line


def split_address(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host, int(port)

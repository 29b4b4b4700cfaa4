"""Small random reads that miss: what the daemon adds to the store's own answer, with many in flight.

    python -m benchmarks.random_reads [--links 1gbit,100ms 1gbit,20ms] [--reads 2000] [--in-flight 32]

Each read is one page of a device, in a chunk that nobody has and that no other read wants. The store's own answer is
the time of a GET of the same chunk's frame across the same link, by plain sockets that stay connected, as many at a
time. 32 in flight across 100 ms are 310 reads a second, which 2 cores can do: there time is measured. Across 20 ms they
would be 1,100, more than 2 cores can decode and prove: there it is throughput, and who waits, waits for others' chunks.
"""

import http.client
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np

from benchmarks.blob_server import serve_layout
from benchmarks.link import Link, parse_link
from benchmarks.node import TAG, convert_recipe, running_node
from benchmarks.process import cpu_of
from benchmarks.report import Row, conclude, parser
from converter.launch import open_tocs
from lazyfs.stores import load_image, open_store, parse_reference

LINKS, READS, IN_FLIGHT = ("1gbit,100ms", "1gbit,20ms"), 2000, 32
IN_FLIGHT_ALSO = 1
BARS_MS = {50: 1.0, 99: 5.0}
PAGE = 4096
_RECIPE = "demo"
_WARM_UP = 64
"""Reads before any counts: connections are made, threads started."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A chunk: where its first page is on the device of its layer, where its frame is in the blob."""

    layer: int
    offset: int
    blob: str
    blob_offset: int
    blob_length: int


@dataclass(frozen=True, slots=True)
class Latencies:
    """Milliseconds, by percentile; `cpu` is what the daemon used for each read."""

    way: str
    link: str
    in_flight: int
    reads: int
    p50: float
    p99: float
    cpu: float = 0.0


def main() -> int:
    options = parser("benchmarks.random_reads", __doc__)
    options.add_argument("--links", nargs="+", default=LINKS)
    options.add_argument("--reads", type=int, default=READS)
    options.add_argument("--in-flight", type=int, default=IN_FLIGHT)
    arguments = options.parse_args()
    found = measure(arguments.cache, arguments.links, arguments.reads, arguments.in_flight)
    return conclude(arguments, found, rows(found))


def measure(
    cache: Path, links: Sequence[str] = LINKS, reads: int = READS, in_flight: int = IN_FLIGHT
) -> list[Latencies]:
    """With so many in flight across each link, and with one alone across the last."""
    with tempfile.TemporaryDirectory(prefix="lazyfs-measure-") as name:
        directory = Path(name)
        layout = convert_recipe(_RECIPE, cache, directory / "layout")
        pieces = _pieces(layout, reads + _WARM_UP)
        few = pieces[: min(len(pieces), 4 * _WARM_UP)]
        tries = [(link, in_flight, pieces) for link in links] + [(links[-1], IN_FLIGHT_ALSO, few)]
        found = []
        with serve_layout(layout, "bench") as address:
            for spec, number, chosen in tries:
                with Link(parse_link(spec), address) as link:
                    found += _both_ways(link, directory / "node", chosen, number)
        return found


def _both_ways(link: Link, root: Path, pieces: Sequence[Piece], in_flight: int) -> list[Latencies]:
    address, spec = link.address, link.spec.name
    seconds = _times(_asker(address), pieces, in_flight)
    alone = _latencies("the store alone", spec, in_flight, seconds)
    with running_node(root) as client, ExitStack() as stack:
        image = client.open_image(f"docker://{address}/bench:{TAG}", fill=False)
        descriptors = [os.open(device, os.O_RDONLY) for device in image["devices"]]
        for descriptor in descriptors:
            stack.callback(os.close, descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)

        def read(piece: Piece) -> None:
            os.pread(descriptors[piece.layer], PAGE, piece.offset)

        daemon = client.status()["pid"]
        before = cpu_of(daemon)
        seconds = _times(read, pieces, in_flight)
        cpu = (cpu_of(daemon) - before) / len(pieces) * 1e3
    return [alone, _latencies("through the daemon", spec, in_flight, seconds, cpu)]


def _pieces(layout: Path, count: int) -> list[Piece]:
    """Chunks that lie apart from one another, in random order: fewer than `count` in a small image."""
    reference = parse_reference(f"oci:{layout}:{TAG}")
    with open_store(reference) as store:
        image = load_image(store, reference)
        found = [
            Piece(
                layer,
                int(document.chunks.start[chunk]),
                image.layers[layer][0].digest,
                int(document.chunks.blob_offset[chunk]),
                int(document.chunks.blob_length[chunk]),
            )
            for layer, document in enumerate(open_tocs(store, image).tocs)
            for chunk in range(0, len(document.chunks), 2)
        ]
    Random(1).shuffle(found)
    return found[:count]


def _asker(address: str) -> Callable[[Piece], None]:
    mine = threading.local()

    def ask(piece: Piece) -> None:
        connection = getattr(mine, "connection", None)
        if connection is None:
            connection = mine.connection = http.client.HTTPConnection(address)
        last = piece.blob_offset + piece.blob_length - 1
        path = f"/v2/bench/blobs/{piece.blob}"
        connection.request("GET", path, headers={"Range": f"bytes={piece.blob_offset}-{last}"})
        connection.getresponse().read()

    return ask


def _times(read: Callable[[Piece], None], pieces: Sequence[Piece], in_flight: int) -> list[float]:
    """Seconds of each read but the first few."""

    def timed(piece: Piece) -> float:
        began = time.perf_counter()
        read(piece)
        return time.perf_counter() - began

    with ThreadPoolExecutor(in_flight) as pool:
        return list(pool.map(timed, pieces))[_WARM_UP:]


def _latencies(way: str, link: str, in_flight: int, seconds: list[float], cpu: float = 0.0) -> Latencies:
    p50, p99 = (float(np.percentile(seconds, each)) * 1e3 for each in BARS_MS)
    return Latencies(way, link, in_flight, len(seconds), p50, p99, cpu)


def rows(found: list[Latencies]) -> list[Row]:
    table = []
    for alone, through in zip(found[::2], found[1::2], strict=True):
        what = f"random reads that miss, {alone.in_flight} in flight, {alone.link}"
        p50, p99 = through.p50 - alone.p50, through.p99 - alone.p99
        table += [
            Row(f"{what}: the store alone, p50", alone.p50, "ms"),
            Row(f"{what}: the daemon adds, p50", p50, "ms", BARS_MS[50]),
            Row(f"{what}: the store alone, p99", alone.p99, "ms"),
            Row(f"{what}: the daemon adds, p99", p99, "ms", BARS_MS[99]),
            Row(f"{what}: CPU of the daemon, for each", through.cpu, "ms"),
        ]
    return table


if __name__ == "__main__":
    sys.exit(main())

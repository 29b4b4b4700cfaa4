"""Results that were made up: two ways, one of them twice as fast."""

from lazyfs.bench.cold import Cold
from lazyfs.bench.link import Trip
from lazyfs.bench.results import Measured, Results, trace_key
from lazyfs.bench.starts import PHASES, Start, Trace
from lazyfs.bench.usage import Use

MACHINE = {
    "when": "2026-01-01T00:00:00Z",
    "processor": "a processor",
    "cores": 2,
    "memory": 8 << 30,
    "kernel": "6.18",
    "python": "3.11.2",
    "lazyfs": "0.1.0",
    "containerd": "2.3.3",
}
WAYS = {"lazyfs": 0.5, "lazyfs-pack": 0.25, "overlayfs": 1.0, "local": 0.2}


def start(image: str, link: str, way: str, number: int, seconds: float) -> Start:
    return Start(
        image,
        link,
        way,
        number,
        0,
        seconds,
        {name: seconds / len(PHASES) for name in PHASES},
        0 if way == "local" else round(20_000_000 * seconds),
        1000,
        0 if way == "local" else 7,
        4,
        90 if way.startswith("lazyfs") else 0,
        30 if way == "lazyfs" else 0,
        [Use("containerd", 1, 0.2, 40_000_000), Use("container", 2, 0.1, 20_000_000)],
        Cold(100 if way == "local" else 0, 0),
        0.5,
    )


def trace(way: str) -> Trace:
    if way == "local":
        return Trace([], [], [], {})
    trips = [Trip("GET", "/v2/app/manifests/lazy", 0.0, 0.02, 900)]
    trips += [
        Trip("GET", f"/v2/app/blobs/sha256:{each:064}", 0.1 * each, 0.1 * each + 0.3, 10**6)
        for each in range(9)
    ]
    if not way.startswith("lazyfs"):
        return Trace(trips, [], [], {})
    layer = "sha256:" + "1" * 64
    fetched = [
        {"layer": layer, "start": each * 10**6, "end": (each + 1) * 10**6, "stored": 400_000, "began": 0.1 * each,
         "ended": 0.1 * each + 0.05}
        for each in range(9)
    ]  # fmt: skip
    reads = [
        {"layer": layer, "offset": each * 10**5, "size": 4096, "waited": each % 3 == 0, "at": 0.01 * each}
        for each in range(90)
    ]
    return Trace(trips, fetched, reads, {layer: 10**7})


def made_up(
    factor: float = 1.0,
    images: tuple[str, ...] = ("app:1.0",),
    links: tuple[str, ...] = ("1gbit,2ms", "100mbit,20ms"),
    rounds: int = 5,
) -> Results:
    """`factor` makes ours slower; a little noise, the same of all of a round."""
    results = Results(dict(MACHINE), 1, rounds)
    for image in images:
        results.images[image] = {"config": "sha256:" + "0" * 64, "layers": 3, "bytes": {"plain": 10**8}}
        for place, link in enumerate(links, 1):
            for way, share in WAYS.items():
                ours = factor if way.startswith("lazyfs") else 1.0
                for number in range(rounds):
                    seconds = share * ours * place * (1 + 0.02 * number)
                    results.starts.append(start(image, link, way, number, seconds))
                results.traces[trace_key(image, link, way)] = trace(way)
    results.links = [Measured(link, 0.999, 1.01) for link in links]
    return results

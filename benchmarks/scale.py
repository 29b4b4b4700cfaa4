"""A thousand nodes that start one image at once: simulated, and checked against a few real ones.

    python -m benchmarks.scale [--results benchmarks/results/starts.json] [--nodes 1000]

One start without and one with a launch pack is measured here, request by request; then the same with several nodes at
once behind one link, each a daemon of its own, and the simulation of it: how far it is off is told. Then a thousand
nodes are simulated behind one registry, with a mirror in each region, and with peers that give on what they have. For
overlayfs the measured start of results (`benchmarks.suite`) is taken where there is one. What is assumed stands in
`benchmarks/simulate.py`.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.blob_server import serve_layout
from benchmarks.demo import drop_page_cache
from benchmarks.link import Link, LinkSpec, parse_link
from benchmarks.node import TAG, convert_recipe, lazyfs, running_node
from benchmarks.process import FailedError
from benchmarks.report import Row, markdown, write_json
from benchmarks.simulate import Recipe, World, recipe, simulate
from lazyfs.bench.link import Trip
from lazyfs.bench.results import read_results
from lazyfs.run.ready import Started, parse_probe

NODES, REGIONS = 1000, 10
REGISTRY, MIRROR, NODE = 10e9 / 8, 10e9 / 8, 1e9 / 8
ROUND_TRIP = 0.002
TOGETHER = (1, 2, 4)
_FAST, _SHARED = parse_link("1gbit,2ms"), parse_link("50mbit,2ms")
_OFF = 0.25
_NAME = "scale"
_SECONDS = 300.0


@dataclass(frozen=True, slots=True)
class Checked:
    """Seconds to ready (median) of so many real nodes behind one link, and of as many simulated ones."""

    way: str
    nodes: int
    link: str
    real: float
    simulated: float


@dataclass(frozen=True, slots=True)
class Scaled:
    """Seconds to ready of simulated nodes, and bytes that the registry gave."""

    way: str
    kind: str
    nodes: int
    median: float
    p90: float
    p99: float
    origin: int


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=__doc__)
    parser.add_argument("--cache", type=Path, default=Path(".cache/images"))
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results/starts.json"))
    parser.add_argument("--nodes", type=int, default=NODES)
    parser.add_argument("--json", type=Path, help="write the figures to this file as well")
    arguments = parser.parse_args()
    checked, scaled = measure(arguments.cache, arguments.results, arguments.nodes)
    for each in scaled:
        print(
            f"{each.nodes} nodes, {each.kind:9}{each.way:12} median {each.median:7.2f} s, 90 % {each.p90:7.2f} s, "
            f"99 % {each.p99:7.2f} s, {each.origin / 1e9:8.3f} GB of the registry"
        )
    print(markdown(rows(checked, scaled)))
    if arguments.json:
        write_json(arguments.json, [*checked, *scaled])
    return 0


def measure(cache: Path, results: Path, nodes: int = NODES) -> tuple[list[Checked], list[Scaled]]:
    recipes: dict[str, Recipe] = {}
    checked: list[Checked] = []
    with tempfile.TemporaryDirectory(prefix="lazyfs-measure-", dir="/var/tmp") as name:
        directory = Path(name)
        layout = convert_recipe("demo", cache, directory / "layout")
        for way in ("lazyfs", "lazyfs-pack"):
            if way == "lazyfs-pack":
                _add_pack(directory, layout)
            recipes[way] = _recipe(directory, layout)
            checked += [_check(way, directory, layout, recipes[way], count) for count in TOGETHER]
    recipes |= _of_overlayfs(results)
    kinds = ("registry", "mirrors", "peers")
    return checked, [_scaled(way, kind, start, nodes) for way, start in recipes.items() for kind in kinds]


def _add_pack(directory: Path, layout: Path) -> None:
    reference = f"oci:{layout}:{TAG}"
    command = [*lazyfs(directory / "recording"), "profile", "record", reference, "--ready", "log:ready"]
    subprocess.run(command, check=True, capture_output=True)


def _recipe(directory: Path, layout: Path) -> Recipe:
    """The median of three starts."""
    found = []
    for _ in range(3):
        (seconds,), trips = _start(directory, layout, _FAST, 1)
        found.append(recipe(trips, seconds))
    return sorted(found, key=lambda each: each.tail + sum(step.busy for step in each.steps))[1]


def _check(way: str, directory: Path, layout: Path, start: Recipe, count: int) -> Checked:
    seconds, _ = _start(directory, layout, _SHARED, count)
    world = World("registry", count, 1, _SHARED.rate, 0.0, _SHARED.rate, _SHARED.round_trip, 0.0, 0.0)
    simulated = simulate(world, start).percentile(0.5)
    return Checked(way, count, _SHARED.name, statistics.median(seconds), simulated)


def _start(directory: Path, layout: Path, spec: LinkSpec, count: int) -> tuple[list[float], list[Trip]]:
    """Seconds to ready of each of so many nodes that start at once, and what was asked for since, by all."""
    seconds: dict[int, float] = {}
    with ExitStack() as stack:
        server = stack.enter_context(serve_layout(layout, _NAME))
        link = stack.enter_context(Link(spec, server))
        roots = [directory / f"node{number}" for number in range(count)]
        for root in roots:
            stack.enter_context(running_node(root))
        drop_page_cache()
        together = threading.Barrier(count)
        begins: list[float] = []
        nowhere = stack.enter_context(Path("/dev/null").open("wb"))

        def start(number: int) -> None:
            command = [*lazyfs(roots[number]), "run", "--no-fill", f"docker://{link.address}/{_NAME}:{TAG}"]
            together.wait()
            with Started(command, parse_probe("log:ready"), nowhere) as started:
                seconds[number] = started.wait_ready(_SECONDS)
                begins.append(started.began)

        threads = [threading.Thread(target=start, args=(number,)) for number in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if len(seconds) < count:
            raise FailedError(f"{count - len(seconds)} of {count} nodes did not get ready")
        began = min(begins)
        trips = [replace(trip, began=trip.began - began, ended=trip.ended - began) for trip in link.trips()]
    return list(seconds.values()), trips


def _of_overlayfs(results: Path) -> dict[str, Recipe]:
    """Of the traced start, which is the one of median time; nothing where it was not measured yet."""
    if not results.exists():
        return {}
    found = read_results(results)
    case = ("numpy", _FAST.name, "overlayfs")
    trace = found.trace(*case)
    if trace is None:
        return {}
    seconds = sorted(start.seconds for start in found.of(*case))
    return {"overlayfs": recipe(trace.trips, seconds[(len(seconds) - 1) // 2])}


def _scaled(way: str, kind: str, start: Recipe, nodes: int) -> Scaled:
    outcome = simulate(World(kind, nodes, REGIONS, REGISTRY, MIRROR, NODE, ROUND_TRIP), start)
    return Scaled(
        way,
        kind,
        nodes,
        outcome.percentile(0.5),
        outcome.percentile(0.9),
        outcome.percentile(0.99),
        outcome.origin,
    )


def rows(checked: Sequence[Checked], scaled: Sequence[Scaled]) -> list[Row]:
    made = []
    for each in checked:
        off = abs(each.simulated / each.real - 1)
        made.append(
            Row(
                f"{each.nodes} {'node' if each.nodes == 1 else 'nodes at once'}, {each.way}: the simulation is off by",
                off * 100,
                "%",
                _OFF * 100,
            )
        )
    for found in scaled:
        what = f"{found.nodes} nodes at once by {found.kind}, {found.way}"
        made.append(Row(f"{what}: 99 % are ready (simulated)", found.p99, "s"))
        made.append(Row(f"{what}: the registry gives (simulated)", found.origin / 1e9, "GB"))
    return made


if __name__ == "__main__":
    sys.exit(main())

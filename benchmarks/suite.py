"""The suite of measured starts, by `lazyfs bench` itself, on images of Debian's packages.

    python -m benchmarks.suite [--quick] [--workloads numpy nginx …] [--links …] [--rounds N] [--results DIR]

Every workload on the first link by lazyfs without and with a launch pack and by containerd's overlayfs, numpy on all
links, and also locally and by overlayfs with the converted image. Those of the README have the rounds that a ratio
needs, the others fewer, so that all of it takes a quarter of an hour; --rounds gives all the same. Writes starts.json,
starts.html and starts.md. A workload that fails is told and left out; what was measured of the others is kept after
each, however it ends.
"""

import argparse
import secrets
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.images import RECIPES, BuildError, ensure
from benchmarks.report import Row
from benchmarks.workloads import QUICK, SUITE
from lazyfs.bench.outside import Wanted, measure
from lazyfs.bench.page import write_page
from lazyfs.bench.results import Results, merge
from lazyfs.bench.text import markdown
from lazyfs.bench.ways import LAZYFS, OVERLAYFS, WITH_PACK, Way, parse_against
from lazyfs.errors import LazyfsError

LINKS = ("1gbit,2ms", "100mbit,20ms", "50mbit,100ms", "loopback")
ROUNDS, FEW_ROUNDS, QUICK_ROUNDS = 5, 2, 2
_WAYS = (LAZYFS, WITH_PACK, OVERLAYFS)
_MORE_WAYS = (parse_against("local"), parse_against("overlayfs-lazy"))
_IN_FULL = "numpy"
_WITH_RATIO = ("numpy", "stack", "nginx")
_SCRATCH = Path("/var/tmp")
_NEAR = ("1gbit,2ms", "loopback")
"""Links over which a start with a launch pack shall take no longer than a local one."""


def run(
    workloads: Sequence[str],
    links: Sequence[str],
    rounds: int | None,
    cache: Path,
    output: Path,
    *,
    quick: bool = False,
) -> Results:
    """Results of all workloads that could be measured; LazyfsError where there is none. `rounds` None: as needed."""
    done: list[Results] = []
    failures: list[str] = []
    seed = secrets.randbelow(1 << 32)
    for name in workloads:
        for some, ways in _parts(name, links, quick=quick):
            began = time.monotonic()
            try:
                needed = ROUNDS if name in _WITH_RATIO else FEW_ROUNDS
                done.append(_measured(name, some, ways, rounds or needed, cache, seed))
            except (BuildError, LazyfsError) as error:
                failures.append(f"{name}: {error}")
                sys.stderr.write(f"{name}: {error}\n")
                continue
            sys.stderr.write(f"{name}: {time.monotonic() - began:.0f} s\n")
            _all_of(done, failures).write(output)
    if not done:
        raise LazyfsError("no workload could be measured", hint="; ".join(failures))
    return _all_of(done, failures)


def _parts(name: str, links: Sequence[str], *, quick: bool) -> list[tuple[Sequence[str], Sequence[Way]]]:
    """The links and ways of a workload."""
    more = _MORE_WAYS if name == _IN_FULL and not quick else ()
    parts: list[tuple[Sequence[str], Sequence[Way]]] = [(links[:1], (*_WAYS, *more))]
    if name == _IN_FULL and links[1:]:
        parts.append((links[1:], _WAYS))
    return parts


def _measured(
    name: str, links: Sequence[str], ways: Sequence[Way], rounds: int, cache: Path, seed: int
) -> Results:
    workload = SUITE[name]
    image = ensure(RECIPES[workload.recipe], cache).reference
    wanted = Wanted(image, workload.ready, name, workload.words)
    chosen = [way for way in ways if workload.with_pack or way != WITH_PACK]
    return measure([wanted], chosen, links, rounds, seed, _SCRATCH)


def _all_of(done: Sequence[Results], failures: Sequence[str]) -> Results:
    results = merge(done)
    results.failures += failures
    return results


def rows(results: Results) -> Iterator[Row]:
    """Medians of ours beside their goals: with a launch pack the local start where the link is fast, else overlayfs."""
    for image in results.image_names:
        for link in results.link_names:
            medians = {
                way: statistics.median(start.seconds for start in starts)
                for way in results.way_names
                if (starts := results.of(image, link, way))
            }
            pulled, local = medians.get("overlayfs"), medians.get("local")
            goals = {
                "lazyfs": pulled,
                "lazyfs-pack": local if link in _NEAR and local is not None else pulled,
            }
            for way, seconds in medians.items():
                yield Row(f"{image}, {link}: {way}", seconds, "s", goals.get(way))


def write(results: Results, directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    results.write(directory / "starts.json")
    write_page(results, directory / "starts.html")
    (directory / "starts.md").write_text(markdown(results))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.suite", description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="three workloads, one link, two rounds: three minutes"
    )
    parser.add_argument("--workloads", nargs="+", choices=SUITE, help="default: all, or three with --quick")
    parser.add_argument("--links", nargs="+", help="default: all, or the first with --quick")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--cache", type=Path, default=Path(".cache/images"))
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results"))
    arguments = parser.parse_args()
    directory = arguments.results / "quick" if arguments.quick else arguments.results
    try:
        results = run(
            arguments.workloads or (QUICK if arguments.quick else list(SUITE)),
            arguments.links or LINKS[: 1 if arguments.quick else None],
            arguments.rounds or (QUICK_ROUNDS if arguments.quick else None),
            arguments.cache,
            directory / "starts.json",
            quick=arguments.quick,
        )
    except LazyfsError as error:
        print(f"{error.message}: {error.hint}", file=sys.stderr)
        return error.exit_code
    write(results, directory)
    print(markdown(results))
    return 1 if results.failures else 0


if __name__ == "__main__":
    sys.exit(main())

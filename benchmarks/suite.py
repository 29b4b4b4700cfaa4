"""The suite of measured starts, by `lazyfs bench` itself, on images of Debian's packages.

    python -m benchmarks.suite [--quick] [--workloads numpy nginx …] [--links …] [--rounds N] [--results DIR]

`PLAN` has what is measured of which workload: all of them by lazyfs without and with a launch pack and by containerd's
overlayfs over the first link; those with bars and in the README in the rounds that a ratio needs, over more links and
beside stargz-snapshotter as well. --workloads, --links and --rounds measure all ways of what they name. Writes
starts.json, starts.html and starts.md, into quick/ if it is not the whole plan. A workload that fails is told and left
out; what was measured of the others is kept after each, however it ends.
"""

import argparse
import math
import secrets
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.estargz import stargz
from benchmarks.images import RECIPES, BuildError, BuiltImage, ensure
from benchmarks.process import FailedError
from benchmarks.report import Row
from benchmarks.workloads import QUICK, SUITE
from lazyfs.bench.link import LinkSpec, parse_link
from lazyfs.bench.outside import Wanted, measure
from lazyfs.bench.page import write_page
from lazyfs.bench.results import Results, merge
from lazyfs.bench.text import markdown
from lazyfs.bench.ways import LAZYFS, OVERLAYFS, WITH_PACK, Way, parse_against
from lazyfs.errors import LazyfsError

NEAR, MIDDLING, FAR = "1gbit,2ms", "100mbit,20ms", "50mbit,100ms"
LINKS = (NEAR, MIDDLING, FAR, "loopback")
ROUNDS, QUICK_ROUNDS = 5, 2
STARGZ = "stargz"
_OURS = ("lazyfs", "lazyfs-pack")
_WAYS = (*_OURS, "overlayfs")
_APART = 1000
_SCRATCH = Path("/var/tmp")
_PACK_OF_LOCAL, _TRIPS = 1.15, 3
"""What a start with a launch pack may take of the pack's own time on a slow link, and round trips besides."""


@dataclass(frozen=True, slots=True)
class Turn:
    """Each of the ways over each of the links, in so many rounds."""

    workload: str
    links: tuple[str, ...]
    ways: tuple[str, ...]
    rounds: int


PLAN = (
    Turn("numpy", (NEAR,), (*_WAYS, STARGZ, "local"), ROUNDS),
    Turn("nginx", (NEAR,), (*_WAYS, STARGZ), ROUNDS),
    Turn("stack", (NEAR,), ("lazyfs-pack", "overlayfs"), ROUNDS),
    Turn("stack", (NEAR,), ("lazyfs", STARGZ, "local"), 1),
    Turn("numpy", (MIDDLING,), _WAYS, ROUNDS),
    Turn("numpy", (FAR, "loopback"), _OURS, 1),
    *(Turn(name, (NEAR,), _WAYS, 1) for name in SUITE if name not in ("numpy", "nginx", "stack")),
)
LEFT_OUT = (
    "five rounds, which a ratio needs, are those of numpy, nginx and the scientific stack; the others have one "
    "(--workloads NAME gives five); of the other links, numpy alone"
)


def run(plan: Sequence[Turn], cache: Path, output: Path, seconds: float = math.inf) -> Results:
    """Results of all workloads that could be measured; LazyfsError where there is none.

    No turn begins when so many seconds have passed; what is not measured then is told.
    """
    ends = time.monotonic() + seconds
    done: list[Results] = []
    failures: list[str] = []
    seed = secrets.randbelow(1 << 32)
    for number, turn in enumerate(plan):
        began = time.monotonic()
        if began > ends:
            failures.append(f"{turn.workload}, {', '.join(turn.links)}: no time was left for it")
            sys.stderr.write(f"{failures[-1]}\n")
            continue
        try:
            found = _measured(turn, cache, seed)
        except (BuildError, FailedError, LazyfsError) as error:
            failures.append(f"{turn.workload}: {error}")
            sys.stderr.write(f"{turn.workload}: {error}\n")
            continue
        # Of two turns with the same workload no rounds are pairs.
        found.starts = [replace(start, round=start.round + number * _APART) for start in found.starts]
        done.append(found)
        sys.stderr.write(f"{turn.workload}: {time.monotonic() - began:.0f} s\n")
        _all_of(done, failures).write(output)
    if not done:
        raise LazyfsError("no workload could be measured", hint="; ".join(failures))
    results = _all_of(done, failures)
    results.write(output)
    return results


def _measured(turn: Turn, cache: Path, seed: int) -> Results:
    workload = SUITE[turn.workload]
    image = ensure(RECIPES[workload.recipe], cache)
    wanted = Wanted(image.reference, workload.ready, turn.workload, workload.words)
    ways = [_way(name, image, cache) for name in turn.ways if workload.with_pack or name != WITH_PACK.name]
    return measure([wanted], ways, turn.links, turn.rounds, seed, _SCRATCH)


def _way(name: str, image: BuiltImage, cache: Path) -> Way:
    known = {way.name: way for way in (LAZYFS, WITH_PACK, OVERLAYFS)}
    return known.get(name) or parse_against(stargz(image, cache) if name == STARGZ else name)


def _all_of(done: Sequence[Results], failures: Sequence[str]) -> Results:
    results = merge(done)
    results.failures += failures
    return results


def rows(results: Results) -> Iterator[Row]:
    """Medians of ours beside their goals: without a launch pack a full pull, with one what `_goal_of_pack` says."""
    for image in results.image_names:
        for link in results.link_names:
            medians = {
                way: statistics.median(start.seconds for start in starts)
                for way in results.way_names
                if (starts := results.of(image, link, way))
            }
            goals = {"lazyfs": medians.get("overlayfs"), "lazyfs-pack": _goal_of_pack(results, image, link)}
            for way, seconds in medians.items():
                yield Row(f"{image}, {link}: {way}", seconds, "s", goals.get(way))


def _goal_of_pack(results: Results, image: str, link: str) -> float | None:
    """Over a link as fast as a data centre's the local start, over others what the bytes of the pack take."""
    spec = parse_link(link)
    local = [start.seconds for start in results.of(image, NEAR, "local")]
    packed = [start.down for start in results.of(image, link, "lazyfs-pack")]
    pulled = [start.seconds for start in results.of(image, link, "overlayfs")]
    if not local or not packed:
        return statistics.median(pulled) if pulled else None
    if spec.rate >= parse_link(NEAR).rate:
        return statistics.median(local)
    return _limit_of_pack(spec, statistics.median(packed), statistics.median(local))


def _limit_of_pack(spec: LinkSpec, size: float, local: float) -> float:
    return _PACK_OF_LOCAL * max(size / spec.rate, local) + _TRIPS * spec.round_trip


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
    plan = _plan(arguments)
    # The results of `make bench` are not for who measures less.
    directory = arguments.results if plan is PLAN else arguments.results / "quick"
    try:
        results = run(plan, arguments.cache, directory / "starts.json")
    except LazyfsError as error:
        print(f"{error.message}: {error.hint}", file=sys.stderr)
        return error.exit_code
    write(results, directory)
    print(markdown(results))
    return 1 if results.failures else 0


def _plan(arguments: argparse.Namespace) -> Sequence[Turn]:
    if not (arguments.quick or arguments.workloads or arguments.links or arguments.rounds):
        return PLAN
    links = tuple(arguments.links or LINKS[: 1 if arguments.quick else None])
    rounds = arguments.rounds or (QUICK_ROUNDS if arguments.quick else ROUNDS)
    names = arguments.workloads or (QUICK if arguments.quick else SUITE)
    return [Turn(name, links, _WAYS, rounds) for name in names]


if __name__ == "__main__":
    sys.exit(main())

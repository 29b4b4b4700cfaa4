"""The parts of `make bench`: each one measurement, with the seconds that it is planned to take on 2 quiet cores.

    TMPDIR=DIR python -m benchmarks.parts NAME CACHE RESULTS

runs one of them, writes its figures into the directory RESULTS and its rows into DIR. `benchmarks.__main__` runs it so,
in namespaces of its own.
"""

import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from subprocess import CalledProcessError, TimeoutExpired, run
from typing import Any, TypeVar

from benchmarks import (
    bootstrap_speed,
    cache_speed,
    cold_start,
    convert_speed,
    dedup,
    docker_start,
    footprint,
    growth,
    kill_daemon,
    link,
    listing,
    many_containers,
    many_images,
    random_reads,
    run_speed,
    scale,
    sequential,
    snapshotter_speed,
    steady,
    suite,
    tree_speed,
    upgrades,
    whole_image,
)
from benchmarks.images import BuildError
from benchmarks.process import FailedError
from benchmarks.report import Row, write_json
from lazyfs.errors import LazyfsError

TREE_RUNS = 5
RUN_RUNS = 9
BOOTSTRAP_RUNS = 5
CONVERT_RUNS = 3
START_SECONDS = 760.0
"""After which no other workload is begun."""
SEQUENTIAL_RUNS = 3
LARGE_GIB = 2
MANY_FILES = (100_000,)
CONTAINERS = (1, 10, 100)
KILLS = 10
SNAPSHOTTER_ROUNDS = 50

ROWS = "rows.json"
STARTS = "starts"
"""The part whose figures are results of `lazyfs bench`."""

Measure = Callable[[Path, Path], Iterable[Row]]
"""(cache of input images, file for the figures) -> rows of the table."""
Found = TypeVar("Found", bound=Sequence[Any])
One = TypeVar("One")


@dataclass(frozen=True, slots=True)
class Part:
    """`left_out` says what of the measurement is not done here, for it would take too long."""

    seconds: int
    about: str
    measure: Measure
    left_out: str = ""


def _kept(measure: Callable[[Path], Found], rows: Callable[[Found], Iterable[Row]]) -> Measure:
    """What a measurement has found becomes the file of its figures."""

    def both(cache: Path, file: Path) -> Iterable[Row]:
        found = measure(cache)
        write_json(file, found)
        return rows(found)

    return both


def _of_one(rows: Callable[[One], Iterable[Row]]) -> Callable[[Sequence[One]], Iterable[Row]]:
    return lambda found: rows(found[0])


def _starts(cache: Path, file: Path) -> Iterable[Row]:
    return suite.rows(suite.run(suite.PLAN, cache, file, START_SECONDS))


def _trees(cache: Path, file: Path) -> Iterable[Row]:
    with (
        tempfile.TemporaryDirectory(prefix="lazyfs-measure-") as directory,
        tree_speed.both_trees(Path(directory), cache, "demo") as trees,
    ):
        figures = tree_speed.measure(trees, TREE_RUNS)
    file.write_text(json.dumps(figures, indent=2) + "\n")
    return tree_speed.rows(figures)


def _runs(cache: Path, file: Path) -> Iterable[Row]:
    with tempfile.TemporaryDirectory(prefix="lazyfs-measure-") as directory:
        figures = run_speed.measure(Path(directory), cache, RUN_RUNS)
    file.write_text(json.dumps(figures, indent=2) + "\n")
    return run_speed.rows(figures)


def _sequential(cache: Path, file: Path) -> Iterable[Row]:
    with tempfile.TemporaryDirectory(prefix="lazyfs-measure-") as directory:
        figures = sequential.measure(Path(directory), cache, SEQUENTIAL_RUNS)
    file.write_text(json.dumps(figures, indent=2) + "\n")
    return sequential.rows(figures)


def _kills(cache: Path, file: Path) -> Iterable[Row]:
    with tempfile.TemporaryDirectory(prefix="lazyfs-measure-") as directory:
        outcome = kill_daemon.measure(Path(directory), cache, KILLS)
    write_json(file, [outcome])
    return outcome.rows()


def _scale(cache: Path, file: Path) -> Iterable[Row]:
    checked, scaled = scale.measure(cache, file.with_name("starts.json"))
    write_json(file, [*checked, *scaled])
    return scale.rows(checked, scaled)


def _links(_: Path) -> list[link.Proof]:
    """The simulated links prove themselves before anything is measured on them."""
    return [link.prove(spec) for spec in (link.FAST, link.MIDDLING, link.FAR)]


def _bootstraps(_: Path) -> list[bootstrap_speed.Result]:
    return [
        bootstrap_speed.measure(inodes, layers, BOOTSTRAP_RUNS)
        for inodes in bootstrap_speed.BARS
        for layers in bootstrap_speed.LAYERS
    ]


def _conversions(cache: Path) -> list[convert_speed.Result]:
    return convert_speed.measure(cache, CONVERT_RUNS, LARGE_GIB, small_files=MANY_FILES)


def _containers(cache: Path) -> list[many_containers.Starts]:
    return many_containers.measure(cache, CONTAINERS)


def _snapshotter(_: Path) -> list[snapshotter_speed.Measured]:
    return [snapshotter_speed.measure(snapshotter_speed.RUNS, SNAPSHOTTER_ROUNDS)]


def _many_images(cache: Path) -> list[many_images.Crowd]:
    return [many_images.measure(cache)]


def _footprint(_: Path) -> list[footprint.Footprint]:
    return [footprint.measure()]


PARTS: Mapping[str, Part] = {
    "links": Part(20, "the simulated links prove their rate and delay", _kept(_links, link.rows)),
    STARTS: Part(760, "cold starts of the suite's images", _starts, suite.LEFT_OUT),
    "launch_packs": Part(
        10,
        "the size of a launch pack",
        _kept(cold_start.pack_sizes, lambda sizes: cold_start.rows([], sizes)),
    ),
    "whole_image": Part(42, "a whole image, read cold", _kept(whole_image.measure, whole_image.rows)),
    "sequential": Part(30, "one large file in order", _sequential),
    "many_containers": Part(
        40, "containers started at once", _kept(_containers, many_containers.rows), "50 at once"
    ),
    "random_reads": Part(22, "small reads that miss", _kept(random_reads.measure, random_reads.rows)),
    "footprint": Part(46, "memory and idle processor time", _kept(_footprint, _of_one(footprint.rows))),
    "tree_speed": Part(23, "find and tar beside ext4", _trees),
    "listing": Part(
        32,
        "large directories in each mode of mounting",
        _kept(lambda _: listing.measure(listing.RUNS), listing.rows),
    ),
    "run_speed": Part(7, "the command itself, and what it adds to the runtime", _runs),
    "bootstrap_speed": Part(9, "metadata made on the node", _kept(_bootstraps, bootstrap_speed.rows)),
    "convert_speed": Part(
        70,
        "converting, beside eStargz and skopeo",
        _kept(_conversions, convert_speed.rows),
        f"a layer of {LARGE_GIB} GiB instead of 8, no million files, no zstd:chunked",
    ),
    "dedup": Part(8, "chunks shared by two images", _kept(dedup.measure, dedup.rows)),
    "upgrades": Part(118, "what the next version of an image costs", _kept(upgrades.measure, upgrades.rows)),
    "cache_speed": Part(12, "the cache, and an upgrade on a node", _kept(cache_speed.measure, cache_speed.rows)),
    "docker_start": Part(20, "Docker's pull and run", _kept(docker_start.measure, docker_start.rows)),
    "snapshotter_speed": Part(30, "calls of the snapshotter", _kept(_snapshotter, _of_one(snapshotter_speed.rows))),
    "kill_daemon": Part(
        21, "readers while the daemon is killed", _kills, f"{KILLS} kills; `make kill` has a thousand, in half an hour"
    ),
    "growth": Part(30, "mounting by bytes, files and layers", _kept(growth.measure, growth.rows)),
    "many_images": Part(26, "a node with 100 images", _kept(_many_images, _of_one(many_images.rows))),
    "steady": Part(56, "roots in use beside overlayfs", _kept(steady.measure, steady.rows)),
    "scale": Part(58, "a thousand nodes, simulated", _scale),
}  # fmt: skip


def main() -> int:
    """In an enclosure: temporary files lie in the directory that TMPDIR names, and go with it."""
    name, cache, results = sys.argv[1], *map(Path, sys.argv[2:4])
    # Both are named by measurements that ask for a disk, or for memory.
    run(["mount", "--bind", os.environ["TMPDIR"], "/var/tmp"], check=True)
    run(["mount", "-t", "tmpfs", "tmpfs", "/dev/shm"], check=True)
    os.environ["TMPDIR"] = tempfile.tempdir = "/var/tmp"
    rows = Path("/var/tmp", ROWS)
    try:
        found = list(PARTS[name].measure(cache, results / f"{name}.json"))
    except (BuildError, FailedError, LazyfsError, CalledProcessError, TimeoutExpired, OSError) as error:
        sys.stderr.write(f"{name}: {error}\n")
        rows.write_text(json.dumps({"failed": f"{type(error).__name__}: {error}", "rows": []}))
        return 1
    rows.write_text(json.dumps({"failed": "", "rows": [asdict(each) for each in found]}))
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""`make bench`: every measurement in turn, with few runs. Takes root, and less than half an hour.

    python -m benchmarks [--only NAME…] [--resume] [--cache DIR] [--results DIR]

Writes the figures of each as JSON, and one table of all that have a bar, in Markdown. Each measurement is a program of
its own with more to choose: `python -m benchmarks.convert_speed --help`. --resume goes on with a run that was ended.
"""

import argparse
import json
import multiprocessing
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

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
    ladder,
    link,
    many_containers,
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
from benchmarks.report import Row, markdown, write_json
from benchmarks.workloads import SUITE
from lazyfs.errors import LazyfsError

TREE_RUNS = 3
LADDER_RUNS = 3
START_RUNS = 7
BOOTSTRAP_RUNS = 5
CONVERT_RUNS = 5
SEQUENTIAL_RUNS = 3
LARGE_GIB = 8
KILLS = 30

Measure = Callable[[Path, Path], list[Row]]
"""(cache of input images, file for the figures) -> rows of the table."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--cache", type=Path, default=Path(".cache/images"), help="default: %(default)s")
    parser.add_argument(
        "--results", type=Path, default=Path("benchmarks/results"), help="default: %(default)s"
    )
    parser.add_argument("--only", nargs="+", choices=MEASURES, default=list(MEASURES), metavar="NAME")
    parser.add_argument("--resume", action="store_true", help="keep what a run that was ended has measured")
    arguments = parser.parse_args()
    kept = arguments.results / "rows"
    if not arguments.resume:
        shutil.rmtree(kept, ignore_errors=True)
    kept.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    failed = False
    for name in arguments.only:
        file = kept / f"{name}.json"
        if file.exists():
            rows += [Row(**each) for each in json.loads(file.read_text())]
            continue
        print(f"{name} …", file=sys.stderr, flush=True)
        began = time.monotonic()
        try:
            found = _in_own_process(MEASURES[name], arguments.cache, arguments.results / f"{name}.json")
            write_json(file, found)
            rows += found
            print(f"{name}: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
        except (BuildError, FailedError, LazyfsError, subprocess.CalledProcessError) as error:
            print(f"{name}: {error}", file=sys.stderr)
            failed = True
    table = f"{_machine()}\n\n{markdown(rows)}\n"
    (arguments.results / "table.md").write_text(table)
    print(table)
    if not failed:
        shutil.rmtree(kept)
    return 1 if failed else 0


def _in_own_process(measure: Measure, cache: Path, results: Path) -> list[Row]:
    """So that what one measurement leaves in memory does not count for the programs of the next."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(measure, cache, results).result()


def _trees(cache: Path, results: Path) -> list[Row]:
    with (
        tempfile.TemporaryDirectory(prefix="lazyfs-bench-") as directory,
        tree_speed.both_trees(Path(directory), cache, "demo") as trees,
    ):
        figures = tree_speed.measure(trees, TREE_RUNS)
    results.write_text(json.dumps(figures, indent=2) + "\n")
    rows = []
    for name, by_tree in figures.items():
        pairs = zip(by_tree["lazyfs"], by_tree["file system"], strict=True)
        ratio = statistics.median(ours / theirs for ours, theirs in pairs)
        rows.append(Row(f"{name}, of the file system's", ratio, "", tree_speed.GOALS.get(name)))
    return rows


def _starts(cache: Path, results: Path) -> list[Row]:
    with tempfile.TemporaryDirectory(prefix="lazyfs-bench-") as directory:
        figures = run_speed.measure(Path(directory), cache, START_RUNS)
    results.write_text(json.dumps(figures, indent=2) + "\n")
    return [
        Row(f"{name}, warm", statistics.median(seconds), "s", run_speed.GOALS.get(name))
        for name, seconds in figures.items()
    ]


def _bootstraps(_: Path, results: Path) -> list[Row]:
    measured = [
        bootstrap_speed.measure(inodes, layers, BOOTSTRAP_RUNS)
        for inodes in bootstrap_speed.BARS
        for layers in bootstrap_speed.LAYERS
    ]
    write_json(results, measured)
    return [
        Row(
            f"bootstrap of {each.inodes:,} inodes in {each.layers} layers",
            each.total * 1e3,
            "ms",
            each.bar * 1e3,
        )
        for each in measured
    ]


def _dedup(cache: Path, results: Path) -> list[Row]:
    measured = dedup.measure(cache)
    write_json(results, measured)
    return dedup.rows(measured)


def _cache(cache: Path, results: Path) -> list[Row]:
    measured = cache_speed.measure(cache)
    write_json(results, measured)
    return cache_speed.rows(measured)


def _conversions(cache: Path, results: Path) -> list[Row]:
    measured = convert_speed.measure(cache, CONVERT_RUNS, LARGE_GIB, with_rivals=True)
    write_json(results, measured)
    return convert_speed.rows(measured)


def _links(_: Path, results: Path) -> list[Row]:
    """The simulated links prove themselves before anything is measured on them."""
    proofs = [link.prove(spec) for spec in (link.FAST, link.MIDDLING, link.FAR)]
    write_json(results, proofs)
    return link.rows(proofs)


def _kills(cache: Path, results: Path) -> list[Row]:
    with tempfile.TemporaryDirectory(prefix="lazyfs-bench-") as directory:
        outcome = kill_daemon.measure(Path(directory), cache, KILLS)
    write_json(results, [outcome])
    return outcome.rows()


def _docker(cache: Path, results: Path) -> list[Row]:
    starts = docker_start.measure(cache, docker_start.RUNS)
    write_json(results, starts)
    return docker_start.rows(starts)


def _snapshotter(_: Path, results: Path) -> list[Row]:
    measured = snapshotter_speed.measure(snapshotter_speed.RUNS, snapshotter_speed.ROUNDS)
    write_json(results, [measured])
    return snapshotter_speed.rows(measured)


def _packs(cache: Path, results: Path) -> list[Row]:
    """The size of a launch pack; starts with it are those of the suite."""
    with tempfile.TemporaryDirectory(prefix="lazyfs-bench-", dir="/var/tmp") as directory:
        size = cold_start.prepare("numpy", cache, Path(directory)).size
    write_json(results, [size])
    return cold_start.rows([], [size])


def _suite(cache: Path, results: Path) -> list[Row]:
    found = suite.run(list(SUITE), suite.LINKS, None, cache, results)
    suite.write(found, results.parent)
    return list(suite.rows(found))


def _growth(_: Path, results: Path) -> list[Row]:
    found = growth.measure()
    write_json(results, found)
    return growth.rows(found)


def _steady(cache: Path, results: Path) -> list[Row]:
    found = steady.measure(cache)
    write_json(results, found)
    return steady.rows(found)


def _scale(cache: Path, results: Path) -> list[Row]:
    checked, scaled = scale.measure(cache, results.with_name("starts.json"))
    write_json(results, [*checked, *scaled])
    return scale.rows(checked, scaled)


def _upgrades(cache: Path, results: Path) -> list[Row]:
    found = upgrades.measure(cache)
    write_json(results, found)
    return upgrades.rows(found)


def _sequential(cache: Path, results: Path) -> list[Row]:
    with tempfile.TemporaryDirectory(prefix="lazyfs-bench-") as directory:
        figures = sequential.measure(Path(directory), cache, SEQUENTIAL_RUNS)
    results.write_text(json.dumps(figures, indent=2) + "\n")
    return sequential.rows(figures)


def _random_reads(cache: Path, results: Path) -> list[Row]:
    found = random_reads.measure(cache)
    write_json(results, found)
    return random_reads.rows(found)


def _many_containers(cache: Path, results: Path) -> list[Row]:
    found = many_containers.measure(cache)
    write_json(results, found)
    return many_containers.rows(found)


def _footprint(_: Path, results: Path) -> list[Row]:
    found = footprint.measure()
    write_json(results, [found])
    return footprint.rows(found)


def _whole_image(cache: Path, results: Path) -> list[Row]:
    found = whole_image.measure(cache)
    write_json(results, found)
    return whole_image.rows(found)


def _machine() -> str:
    load = ", ".join(f"{each:.1f}" for each in os.getloadavg())
    return (
        f"{time.strftime('%Y-%m-%d %H:%M')}, {os.cpu_count()} cores, Linux {platform.release()}, "
        f"Python {platform.python_version()}; load average at the end {load}"
    )


def _ladder(cache: Path, results: Path) -> list[Row]:
    found = ladder.measure(cache, LADDER_RUNS)
    write_json(results, found)
    return ladder.rows(found)


MEASURES: Mapping[str, Measure] = {
    "starts": _suite,
    "launch_packs": _packs,
    "tree_speed": _trees,
    "ladder": _ladder,
    "run_speed": _starts,
    "bootstrap_speed": _bootstraps,
    "dedup": _dedup,
    "cache_speed": _cache,
    "convert_speed": _conversions,
    "links": _links,
    "sequential": _sequential,
    "kill_daemon": _kills,
    "docker_start": _docker,
    "snapshotter_speed": _snapshotter,
    "random_reads": _random_reads,
    "many_containers": _many_containers,
    "footprint": _footprint,
    "whole_image": _whole_image,
    "growth": _growth,
    "upgrades": _upgrades,
    "scale": _scale,
    "steady": _steady,
}


if __name__ == "__main__":
    sys.exit(main())

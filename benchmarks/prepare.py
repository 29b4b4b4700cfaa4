"""What is there before the clock of `make bench` starts: input images, and programs of rivals, built once and kept.

python -m benchmarks.prepare [--cache DIR]
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks import engines, growth, many_images
from benchmarks.dedup import PAIRS
from benchmarks.estargz import estargz
from benchmarks.images import RECIPES, BuildError, ensure
from benchmarks.images.services import UPGRADED
from benchmarks.process import FailedError
from benchmarks.report import CACHE
from benchmarks.suite import PLAN, STARGZ
from benchmarks.workloads import SUITE
from lazyfs.errors import LazyfsError

_SHOWN = 1.0


def prepare(cache: Path) -> None:
    """What cannot be built is told, and fails again where it is needed."""
    for name, build in _all(cache):
        began = time.monotonic()
        try:
            build()
        except (BuildError, FailedError, LazyfsError) as error:
            sys.stderr.write(f"{name}: {error}\n")
        if (seconds := time.monotonic() - began) > _SHOWN:
            sys.stderr.write(f"{name}: built in {seconds:.0f} s\n")


def _all(cache: Path) -> Iterator[tuple[str, Callable[[], object]]]:
    recipes = dict.fromkeys(
        [
            *(workload.recipe for workload in SUITE.values()),
            *(recipe.name for recipe in UPGRADED),
            *(name for pair in PAIRS.values() for name in pair),
            *("science", "small"),
        ]
    )
    for name in recipes:
        yield f"image {name}", lambda name=name: ensure(RECIPES[name], cache)  # type: ignore[misc]
    yield "images that grow", lambda: growth.make_all(cache)
    yield "a hundred images", lambda: many_images.made(cache)
    yield "containerd 2", engines.containerd_2
    yield "docker", engines.docker
    yield "stargz-snapshotter", engines.stargz
    for name in dict.fromkeys(SUITE[turn.workload].recipe for turn in PLAN if STARGZ in turn.ways):
        yield f"{name} as eStargz", lambda name=name: estargz(ensure(RECIPES[name], cache), cache)  # type: ignore[misc]


def main() -> int:
    arguments = argparse.ArgumentParser(prog="python -m benchmarks.prepare", description=__doc__)
    arguments.add_argument("--cache", type=Path, default=CACHE)
    prepare(arguments.parse_args().cache)
    return 0


if __name__ == "__main__":
    sys.exit(main())

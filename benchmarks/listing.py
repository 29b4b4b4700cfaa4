"""Directories of 1,000 to 50,000 files, listed with the attributes of each, in each way to show an image.

    python -m benchmarks.listing [--runs 3]

*Cold* is with an empty page cache and nothing known of the directory, *warm* right after, in microseconds for each
entry. A way that is linear takes as long for an entry of a large directory as for one of a small one; the bar for FUSE
alone (`tree`) is 1.5 times that.
"""

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks import synthetic
from benchmarks.demo import drop_page_cache
from benchmarks.ladder import mounted_in
from benchmarks.node import TAG, convert, running_node
from benchmarks.report import Row, conclude, parser
from lazyfs.config import NodePaths
from lazyfs.mount.ladder import TREE, look

SIZES = (1_000, 5_000, 10_000, 50_000)
RUNS = 3
BAR = 1.5
DISK = "file system"


@dataclass(frozen=True, slots=True)
class Listing:
    """Median microseconds for each entry; `load` is the machine's meanwhile."""

    mode: str
    entries: int
    cold: float
    warm: float
    load: float


def main() -> int:
    options = parser("benchmarks.listing", __doc__)
    options.add_argument("--runs", type=int, default=RUNS)
    arguments = options.parse_args()
    found = measure(arguments.runs)
    print(table(found))
    return conclude(arguments, found, rows(found))


def measure(runs: int, sizes: Sequence[int] = SIZES) -> list[Listing]:
    with tempfile.TemporaryDirectory(prefix="lazyfs-bench-") as name, _trees(Path(name), sizes) as trees:
        return [_listing(mode, tree, size, runs) for size in sizes for mode, tree in trees.items()]


@contextmanager
def _trees(directory: Path, sizes: Sequence[int]) -> Iterator[dict[str, Path]]:
    plain = synthetic.write_image(synthetic.directories(sizes), directory / "plain")
    layout = convert(f"oci:{plain}:{synthetic.TAG}", directory / "layout")
    for size in sizes:
        (directory / DISK / str(size)).mkdir(parents=True)
        for number in range(size):
            (directory / DISK / str(size) / f"entry-{number}").touch()
    root = directory / "node"
    with running_node(root), ExitStack() as mounts:
        trees = {}
        for rung in look(NodePaths.choose(root)):
            if rung.works:
                trees[rung.mode] = directory / rung.mode
                mounts.enter_context(mounted_in(root, f"oci:{layout}:{TAG}", trees[rung.mode], rung.mode))
        yield trees | {DISK: directory / DISK}


def _listing(mode: str, tree: Path, size: int, runs: int) -> Listing:
    cold, warm = [], []
    for _ in range(runs):
        drop_page_cache()
        cold.append(_seconds(tree / str(size), size))
        warm.append(min(_seconds(tree / str(size), size) for _ in range(3)))
    each = 1e6 / size
    return Listing(
        mode, size, statistics.median(cold) * each, statistics.median(warm) * each, os.getloadavg()[0]
    )


def _seconds(directory: Path, size: int) -> float:
    began = time.monotonic()
    with os.scandir(directory) as entries:
        seen = sum(1 for entry in entries if entry.stat(follow_symlinks=False).st_nlink)
    if seen != size:
        raise ValueError(f"{directory} has {seen} entries, not {size}")
    return time.monotonic() - began


def table(found: Sequence[Listing]) -> str:
    modes = list(dict.fromkeys(each.mode for each in found))
    cells = {(each.entries, each.mode): each for each in found}
    lines = ["| entries | " + " | ".join(modes) + " |", "|---" * (len(modes) + 1) + "|"]
    for size in dict.fromkeys(each.entries for each in found):
        shown = (cells[size, mode] for mode in modes)
        lines.append(
            f"| {size:,} | " + " | ".join(f"{each.cold:.1f}, {each.warm:.1f}" for each in shown) + " |"
        )
    loads = [each.load for each in found]
    return "\n".join([*lines, "", f"microseconds, cold and warm; load {min(loads):.0f} to {max(loads):.0f}"])


def rows(found: Sequence[Listing]) -> Iterator[Row]:
    """Of the largest directory."""
    smallest, largest = min(each.entries for each in found), max(each.entries for each in found)
    few = {each.mode: each for each in found if each.entries == smallest}
    for many in found:
        if many.entries == largest:
            name = f"{largest:,} entries, {many.mode}"
            yield Row(f"{name}, cold", many.cold, "us each")
            yield Row(f"{name}, warm", many.warm, "us each")
            if many.mode == TREE:
                of = few[many.mode]
                yield Row(f"{name}, cold, of {smallest:,} entries'", many.cold / of.cold, "", BAR)
                yield Row(f"{name}, warm, of {smallest:,} entries'", many.warm / of.warm, "", BAR)


if __name__ == "__main__":
    sys.exit(main())

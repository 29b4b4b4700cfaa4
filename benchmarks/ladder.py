"""What each way to show an image costs (see docs/design.md, "The mount ladder"), beside the same tree on a disk.

    python -m benchmarks.ladder [--runs 5]

One node has the image's bytes in its cache and shows it in each mode at the same time: `find` and `tar` of all of it,
and a start, `python3 -c 'import numpy'` with the tree as its root directory. *Cold* is with an empty page cache,
*warm* right after. The order changes from run to run; figures are medians.
"""

import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks import tree_speed
from benchmarks.images import RECIPES, ensure
from benchmarks.node import TAG, convert_recipe, lazyfs, running_node
from benchmarks.report import Row, conclude, parser
from benchmarks.unpack import image_layers, unpack
from lazyfs.config import NodePaths
from lazyfs.mount.ladder import look
from lazyfs.stores import parse_reference

COMMANDS = tree_speed.COMMANDS | {"start": ["chroot", ".", "/usr/bin/python3", "-c", "import numpy"]}
DISK = "file system"
RUNS = 3
_RECIPE = "demo"


@dataclass(frozen=True, slots=True)
class Cost:
    """Median seconds of one command in one mode; `ratio` is to the file system's, run by run."""

    mode: str
    command: str
    seconds: float
    ratio: float


def main() -> int:
    options = parser("benchmarks.ladder", __doc__)
    options.add_argument("--runs", type=int, default=RUNS)
    arguments = options.parse_args()
    found = measure(arguments.cache, arguments.runs)
    print(table(found))
    return conclude(arguments, found, rows(found))


def measure(cache: Path, runs: int = RUNS) -> list[Cost]:
    with tempfile.TemporaryDirectory(prefix="lazyfs-measure-") as name, _trees(Path(name), cache) as trees:
        figures = tree_speed.measure(trees, runs, COMMANDS)
    return [
        Cost(
            mode,
            command,
            statistics.median(seconds),
            statistics.median(ours / disk for ours, disk in zip(seconds, by_tree[DISK], strict=True)),
        )
        for command, by_tree in figures.items()
        for mode, seconds in by_tree.items()
    ]


@contextmanager
def _trees(directory: Path, cache: Path) -> Iterator[dict[str, Path]]:
    """The image in each mode that works here, and unpacked."""
    layout = convert_recipe(_RECIPE, cache, directory / "layout")
    source = parse_reference(ensure(RECIPES[_RECIPE], cache).reference)
    layers, _ = image_layers(Path(source.location), source.tag or "latest")
    unpack(layers, directory / DISK)
    root = directory / "node"
    with running_node(root), ExitStack() as mounts:
        trees = {}
        for rung in look(NodePaths.choose(root)):
            if rung.works:
                trees[rung.mode] = directory / rung.mode
                mounts.enter_context(mounted_in(root, f"oci:{layout}:{TAG}", trees[rung.mode], rung.mode))
        yield trees | {DISK: directory / DISK}


@contextmanager
def mounted_in(root: Path, reference: str, target: Path, mode: str) -> Iterator[None]:
    """The image at `target`, which is made, in this mode."""
    target.mkdir()
    subprocess.run([*lazyfs(root), "mount", "--mount-mode", mode, reference, str(target)], check=True)
    try:
        yield
    finally:
        subprocess.run([*lazyfs(root), "umount", str(target)], check=True)


def table(found: list[Cost]) -> str:
    modes = list(dict.fromkeys(each.mode for each in found))
    cells = {(each.command, each.mode): each for each in found}
    lines = ["| | " + " | ".join(modes) + " |", "|---" * (len(modes) + 1) + "|"]
    for command in dict.fromkeys(each.command for each in found):
        shown = (cells[command, mode] for mode in modes)
        lines.append(
            f"| {command} | "
            + " | ".join(
                f"{each.seconds:.3f} s" + ("" if each.mode == DISK else f" ({each.ratio:.2f})")
                for each in shown
            )
            + " |"
        )
    return "\n".join(lines)


def rows(found: list[Cost]) -> list[Row]:
    return [
        Row(f"{each.command}, mode {each.mode}, of the file system's", each.ratio, "")
        for each in found
        if each.mode != DISK
    ]


if __name__ == "__main__":
    sys.exit(main())

"""find and tar of a mounted image beside the same tree on the machine's own file system, as ratios of one run.

    python -m benchmarks.tree_speed [--runs 7]

The node has the image's bytes in its cache, so this measures the path from the kernel through FUSE, not a
network. *Cold* is with an empty page cache, *warm* right after. The order of the two trees changes from run to run;
figures are medians, ratios are medians of the runs' own ratios.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.demo import drop_page_cache
from benchmarks.images import RECIPES, ensure
from benchmarks.report import Row
from benchmarks.unpack import image_layers, unpack
from converter import Settings, convert_image
from lazyfs.stores import open_store, parse_reference

COMMANDS = {
    "find": ["find", ".", "-printf", "%s\n"],
    "tar": ["tar", "--create", "--file=-", "."],
}
GOALS = {"find warm": 0.7, "tar warm": 0.9, "find cold": 0.5}
"""Ours / the file system's, as a prototype reached them."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tree_speed", description=__doc__)
    parser.add_argument("--cache", type=Path, default=Path(".cache/images"))
    parser.add_argument("--image", default="demo", choices=RECIPES)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--json", type=Path, help="write the figures to this file as well")
    arguments = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="lazyfs-measure-") as directory,
        both_trees(Path(directory), arguments.cache, arguments.image) as trees,
    ):
        figures = measure(trees, arguments.runs)
    show(figures)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2))
    return 0


@contextmanager
def both_trees(directory: Path, cache: Path, name: str) -> Iterator[dict[str, Path]]:
    """The image mounted by lazyfs, and the same tree unpacked beside it."""
    image = ensure(RECIPES[name], cache)
    source = parse_reference(image.reference)
    layers, _ = image_layers(Path(source.location), source.tag or "latest")
    unpack(layers, directory / "unpacked")
    target = parse_reference(f"oci:{directory / 'store'}:image")
    with open_store(source) as from_store, open_store(target, create=True) as to_store:
        convert_image(from_store, source, to_store, target, Settings())
    (directory / "mounted").mkdir()
    lazyfs = [sys.executable, "-m", "lazyfs.cli.main", "--root", str(directory / "node")]
    subprocess.run([*lazyfs, "mount", str(target), str(directory / "mounted")], check=True)
    try:
        yield {"lazyfs": directory / "mounted", "file system": directory / "unpacked"}
    finally:
        subprocess.run([*lazyfs, "umount", str(directory / "mounted")], check=True)
        subprocess.run([*lazyfs, "shutdown"], check=True)


def measure(
    trees: dict[str, Path], runs: int, commands: dict[str, list[str]] = COMMANDS
) -> dict[str, dict[str, list[float]]]:
    """Seconds of every run, by measure ("find cold") and tree."""
    figures: dict[str, dict[str, list[float]]] = {
        f"{name} {state}": {tree: [] for tree in trees} for name in commands for state in ("cold", "warm")
    }
    for path in trees.values():
        _seconds(COMMANDS["tar"], path)  # brings every byte into the node's cache
    for run in range(runs):
        order = list(trees.items())[:: 1 if run % 2 == 0 else -1]
        for name, command in commands.items():
            for tree, path in order:
                drop_page_cache()
                figures[f"{name} cold"][tree].append(_seconds(command, path))
                figures[f"{name} warm"][tree].append(min(_seconds(command, path) for _ in range(3)))
    return figures


def rows(figures: dict[str, dict[str, list[float]]]) -> Iterator[Row]:
    for name, by_tree in figures.items():
        pairs = zip(by_tree["lazyfs"], by_tree["file system"], strict=True)
        ratio = statistics.median(ours / theirs for ours, theirs in pairs)
        yield Row(f"{name}, of the file system's", ratio, "", GOALS.get(name))


def _seconds(command: list[str], directory: Path) -> float:
    # GNU tar does not read what it writes to /dev/null, so its output goes to a reader.
    began = time.monotonic()
    with subprocess.Popen(
        command, cwd=directory, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        assert process.stdout is not None
        with open("/dev/null", "wb", buffering=0) as sink:  # noqa: PTH123 - unbuffered
            while piece := process.stdout.read(1 << 20):
                sink.write(piece)
        process.wait()
    return time.monotonic() - began


def show(figures: dict[str, dict[str, list[float]]]) -> None:
    print(f"{'':12}{'lazyfs':>10}{'ext4':>10}{'ratio':>10}{'goal':>8}")
    for measure_name, by_tree in figures.items():
        ours, theirs = by_tree["lazyfs"], by_tree["file system"]
        ratio = statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
        goal = f"{GOALS[measure_name]:.1f}" if measure_name in GOALS else ""
        print(
            f"{measure_name:12}{statistics.median(ours):>9.3f}s{statistics.median(theirs):>9.3f}s{ratio:>10.2f}{goal:>8}"
        )


if __name__ == "__main__":
    sys.exit(main())

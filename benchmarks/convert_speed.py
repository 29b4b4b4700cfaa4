"""How fast layers are converted, how large the results are, and what it takes: beside what else converts layers.

    python -m benchmarks.convert_speed [--runs 5] [--no-rivals] [--large-gib 8] [--json FILE]

One layer of numpy, scipy, pandas and scikit-learn as pip installs them, from its gzip blob to the finished blob, by
`lazyfs convert` as a program of its own; then made-up layers: 10^5 and 10^6 small files, and one far larger than
memory should ever be. Everything lies in memory (/dev/shm) where there is room, so that no disk is measured.

Machines are shared: of several runs the least counts, and CPU seconds (user and system, all threads) say what
seconds on the clock cannot. *Walk* is the CPU time of the thread that walks the tar, builds the tree, its columns
and the TOC, for each member: it cannot be shared among cores.
"""

import argparse
import multiprocessing
import shutil
import sys
import tempfile
import time
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks import synthetic
from benchmarks.images import RECIPES, ensure
from benchmarks.images.layer import PackedLayer
from benchmarks.images.layout import write_layout
from benchmarks.process import FailedError, Usage, best, measured
from benchmarks.report import Row, markdown, write_json
from benchmarks.rivals import rivals
from converter import Settings
from converter.layer import convert_layer
from lazyfs.node.layers import load_toc
from lazyfs.stores import load_image, open_store, parse_reference

BAR_SECONDS = 2.5
BAR_SIZE = 0.98
BAR_MEMORY = 300e6
SMALL_FILES = (100_000, 1_000_000)
IN_TIME = ("eStargz", "skopeo zstd")
"""Rivals of `make bench`; another one takes a minute for its layer."""
_ROOM = 4 << 30
_LAYER = "the layer of wheels"


@dataclass(frozen=True, slots=True)
class Result:
    """Sizes in bytes: of the gzip layer, of its tar stream, of the new blob."""

    layer: str
    by: str
    source_size: int
    plain_size: int
    size: int
    members: int
    usage: Usage
    walk: float | None = None
    """Seconds for each member."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """Of one layer, as in `Result`."""

    source_size: int
    plain_size: int
    size: int
    members: int


@dataclass(frozen=True, slots=True)
class Source:
    """An image of one layer, in an OCI layout."""

    layer: str
    layout: Path
    tag: str

    @property
    def reference(self) -> str:
        return f"oci:{self.layout}:{self.tag}"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.convert_speed", description=__doc__)
    parser.add_argument("--cache", type=Path, default=Path(".cache/images"))
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--no-rivals", action="store_true")
    parser.add_argument(
        "--large-gib", type=int, default=8, help="of the largest layer (default: %(default)s)"
    )
    parser.add_argument("--json", type=Path, help="write the figures to this file as well")
    arguments = parser.parse_args()
    chosen = () if arguments.no_rivals else rivals(arguments.cache)
    results = measure(arguments.cache, arguments.runs, arguments.large_gib, chosen)
    print(describe(results))
    print(markdown(rows(results)))
    if arguments.json:
        write_json(arguments.json, results)
    return 0


def measure(
    cache: Path,
    runs: int,
    large_gib: int,
    names: Collection[str] = IN_TIME,
    small_files: Sequence[int] = SMALL_FILES,
) -> list[Result]:
    results = []
    with _scratch() as scratch:
        layer = _alone(cache, scratch / "science")
        results.append(convert(layer, scratch, runs))
        results += _by_rivals(layer, results[0], cache, scratch, names)
        for count in small_files:
            made = _made_up(f"{count:,} small files", synthetic.many_files(count), scratch / str(count))
            results.append(convert(made, scratch, 1))
            shutil.rmtree(made.layout.parent)
        made = _made_up(f"{large_gib} GiB", synthetic.large_files(large_gib << 30), scratch / "large")
        results.append(convert(made, scratch, 1, walked=False))
    return results


def convert(source: Source, scratch: Path, runs: int, *, walked: bool = True) -> Result:
    """By the command, for what it takes; then once more for what the first thread takes of it."""
    target = scratch / "converted"
    destination = f"oci:{target}:{source.tag}"
    command = [sys.executable, "-m", "lazyfs.cli.main", "convert", source.reference, destination]
    usages = []
    for _ in range(runs):
        shutil.rmtree(target, ignore_errors=True)
        usages.append(measured(command))
    # In processes of their own: what a large layer leaves in this one would count as the next program's memory.
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        sizes = pool.submit(measure_sizes, source.reference, destination).result()
        shutil.rmtree(target)
        seconds = pool.submit(measure_walk, source.reference, destination).result() if walked else None
    shutil.rmtree(target, ignore_errors=True)
    return Result(
        layer=source.layer,
        by="lazyfs",
        source_size=sizes.source_size,
        plain_size=sizes.plain_size,
        size=sizes.size,
        members=sizes.members,
        usage=best(usages),
        walk=None if seconds is None else seconds / sizes.members,
    )


def measure_sizes(source: str, converted: str) -> Sizes:
    before, after = parse_reference(source), parse_reference(converted)
    with open_store(before) as old, open_store(after) as new:
        ((old_layer, _),) = load_image(old, before).layers
        ((layer, diff_id),) = load_image(new, after).layers
        toc = load_toc(new, layer, diff_id)
    return Sizes(old_layer.size, toc.stream_size, layer.size, len(toc.tree.inodes))


def measure_walk(source: str, destination: str) -> float:
    """CPU seconds of the thread that walks the tar."""
    before, after = parse_reference(source), parse_reference(destination)
    with open_store(before) as old, open_store(after, create=True) as new:
        ((layer, diff_id),) = load_image(old, before).layers
        began = time.thread_time()
        convert_layer(old, layer, diff_id, new, Settings())
        return time.thread_time() - began


def _by_rivals(
    source: Source, ours: Result, cache: Path, scratch: Path, names: Collection[str]
) -> Iterator[Result]:
    for name, work in rivals(cache).items():
        if name not in names:
            continue
        try:
            result = work(source.layout, source.tag, scratch)
        except FailedError as error:
            print(f"{name}: {error}", file=sys.stderr)
            continue
        yield Result(
            layer=source.layer,
            by=name,
            source_size=ours.source_size,
            plain_size=ours.plain_size,
            size=result.size,
            members=ours.members,
            usage=result.usage,
        )


def _alone(cache: Path, directory: Path) -> Source:
    """The topmost layer of the image of wheels as an image of its own."""
    image = ensure(RECIPES["science"], cache)
    reference = parse_reference(image.reference)
    with open_store(reference) as store:
        layer, diff_id = load_image(store, reference).layers[-1]
    directory.mkdir()
    blob = directory / "blob"
    shutil.copyfile(image.layout / "blobs" / layer.digest.replace(":", "/"), blob)
    packed = PackedLayer(layer.digest, diff_id, layer.size)
    write_layout(directory / "oci", "science", [(packed, blob, "pip install")], {})
    return Source(_LAYER, directory / "oci", "science")


def _made_up(name: str, pieces: Iterator[bytes], directory: Path) -> Source:
    return Source(name, synthetic.write_image(pieces, directory), synthetic.TAG)


@contextmanager
def _scratch() -> Iterator[Path]:
    memory = Path("/dev/shm")
    in_memory = memory.is_dir() and shutil.disk_usage(memory).free > _ROOM
    with tempfile.TemporaryDirectory(prefix="lazyfs-measure-", dir=memory if in_memory else None) as name:
        yield Path(name)


def describe(results: list[Result]) -> str:
    lines = [
        f"{'layer':22}{'by':14}{'plain':>9}{'blob':>10}{'/ gzip':>8}"
        f"{'wall':>9}{'CPU':>9}{'cores':>7}{'memory':>9}{'walk':>9}"
    ]
    for each in results:
        walk = f"{each.walk * 1e6:.1f} us" if each.walk else ""
        lines.append(
            f"{each.layer:22}{each.by:14}{each.plain_size / 1e6:>6.0f} MB{each.size / 1e6:>7.1f} MB"
            f"{each.size / each.source_size:>8.3f}{each.usage.wall:>7.2f} s{each.usage.cpu:>7.2f} s"
            f"{each.usage.cores:>7.2f}{each.usage.memory / 1e6:>6.0f} MB{walk:>9}"
        )
    return "\n".join(lines)


def rows(results: list[Result]) -> list[Row]:
    ours = results[0]
    table = [
        Row(f"{_LAYER}: wall", ours.usage.wall, "s", BAR_SECONDS),
        Row(f"{_LAYER}: CPU", ours.usage.cpu, "s"),
        Row(f"{_LAYER}: cores busy", ours.usage.cores, ""),
        Row(f"{_LAYER}: blob, of the gzip layer", ours.size / ours.source_size, "", BAR_SIZE),
    ]
    for each in results[1:]:
        if each.by != ours.by:
            table.append(Row(f"{_LAYER}, by {each.by}: wall", each.usage.wall, "s"))
            table.append(Row(f"{_LAYER}, by {each.by}: CPU", each.usage.cpu, "s"))
            table.append(Row(f"{_LAYER}, by {each.by}: blob", each.size / each.source_size, ""))
        elif each.walk:
            table.append(Row(f"{each.layer}: walk of each member", each.walk * 1e6, "µs"))
    table += [
        Row(f"{each.layer}: memory", each.usage.memory / 1e6, "MB", BAR_MEMORY / 1e6)
        for each in results
        if each.by == ours.by
    ]
    return table


if __name__ == "__main__":
    sys.exit(main())

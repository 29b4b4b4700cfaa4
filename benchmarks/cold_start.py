"""From nothing to ready, across a link: lazyfs without and with a launch pack, beside containerd with overlayfs.

    python -m benchmarks.cold_start [--links 1gbit,2ms 100mbit,20ms] [--workloads numpy stack] [--runs 3]

Each start has an empty node, a cold page cache, and its daemon running; the image lies in a registry (nginx) behind a
simulated link. Ready is the first line that the container says. containerd pulls the ordinary image, gzip, through the
same link; then it starts the same image again from its local snapshot, with a cold page cache: the bar for a start
across the network is a start without one.
"""

import argparse
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

import zstandard

from benchmarks.blob_server import serve_layout
from benchmarks.demo import drop_page_cache
from benchmarks.images import RECIPES, ensure
from benchmarks.link import Link, LinkSpec, parse_link
from benchmarks.process import FailedError
from benchmarks.report import Row, markdown, write_json
from benchmarks.rivals import running_containerd
from converter import Settings, convert_image
from converter.launch import OpenedImage, open_tocs
from lazyfs.config import NodePaths
from lazyfs.daemon.client import DaemonClient, ensure_daemon
from lazyfs.formats.image_paths import PAGE, Extent, device_ranges, extents, regular_files
from lazyfs.formats.image_tree import merge
from lazyfs.formats.oci_descriptor import PackLocation
from lazyfs.formats.oci_types import PACK_ANNOTATION
from lazyfs.formats.profile import Touch, parse
from lazyfs.node.sources import open_chunk
from lazyfs.stores import Store, load_image, open_store, parse_reference

LINKS = ("1gbit,2ms", "100mbit,20ms")
READY = b"ready"
PIECE = 16 * 1024
_NAME = "bench"
_RUN_SECONDS = 300
_FAST = 1e8
"""Bytes a second, from which on a start across the link shall not be slower than a local one."""


@dataclass(frozen=True, slots=True)
class Workload:
    """An image of `benchmarks.images`, and the arguments of its entry point."""

    recipe: str
    arguments: tuple[str, ...]


WORKLOADS = {"numpy": Workload("demo", ("ready.py",)), "stack": Workload("stack", ("/srv/app/ready.py",))}


@dataclass(frozen=True, slots=True)
class Start:
    """`seconds` to ready; `down` are bytes that came over the link, `requests` what was asked for them."""

    workload: str
    link: str
    way: str
    seconds: float
    down: int
    requests: int
    device_reads: int = 0
    waited: int = 0


@dataclass(frozen=True, slots=True)
class PackSize:
    workload: str
    pack: int
    touched: int
    reference: int
    """Bytes that the touched 16 KiB pieces of files have as zstd frames of their own, at the pack's level."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """Layouts of the ordinary image, of the converted one, and of the one with a launch pack; all tagged `app`."""

    plain: Path
    lazy: Path
    packed: Path
    size: PackSize


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cold_start", description=__doc__)
    parser.add_argument("--cache", type=Path, default=Path(".cache/images"))
    parser.add_argument("--links", nargs="+", default=LINKS)
    parser.add_argument("--workloads", nargs="+", choices=WORKLOADS, default=list(WORKLOADS))
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument(
        "--no-pull", action="store_true", help="containerd's local start alone, not its pulls"
    )
    parser.add_argument("--json", type=Path, help="write the figures to this file as well")
    arguments = parser.parse_args()
    starts, sizes = measure(
        arguments.cache, arguments.links, arguments.workloads, arguments.runs, with_pull=not arguments.no_pull
    )
    show(starts)
    print(markdown(rows(starts, sizes)))
    if arguments.json:
        write_json(arguments.json, [*starts, *sizes])
    return 0


def measure(
    cache: Path, links: Sequence[str], workloads: Sequence[str], runs: int, *, with_pull: bool
) -> tuple[list[Start], list[PackSize]]:
    starts: list[Start] = []
    sizes: list[PackSize] = []
    for name in workloads:
        with tempfile.TemporaryDirectory(prefix="lazyfs-measure-", dir=_disk()) as directory:
            prepared = prepare(name, cache, Path(directory))
            sizes.append(prepared.size)
            for link in links:
                starts += _starts(name, prepared, parse_link(link), Path(directory), runs, with_pull)
    return starts, sizes


def _disk() -> str:
    """Where snapshots can be made: overlayfs does not lie on tmpfs."""
    return "/var/tmp"


def prepare(name: str, cache: Path, directory: Path) -> Prepared:
    """Convert the image, and record its start by `lazyfs profile` itself."""
    workload = WORKLOADS[name]
    source = parse_reference(ensure(RECIPES[workload.recipe], cache).reference)
    plain = Path(source.location)
    lazy, packed = directory / "lazy", directory / "packed"
    target = parse_reference(f"oci:{lazy}:app")
    with open_store(source) as from_store, open_store(target, create=True) as to_store:
        convert_image(from_store, source, to_store, target, Settings())
    profile = directory / "app.profile"
    command = [
        *_lazyfs(directory / "recording"),
        "profile",
        str(target),
        "--ready",
        "log:ready",
        "--no-attach",
    ]
    subprocess.run(
        [*command, "-o", str(profile), "--", *workload.arguments], check=True, stdout=subprocess.DEVNULL
    )
    touches = parse(profile.read_text())
    # As `lazyfs convert --profile` does it: the layers' annotations name the pack, and nobody has to look for it.
    shutil.copytree(lazy, packed)
    source, target = target, parse_reference(f"oci:{packed}:app")
    with open_store(source) as from_store, open_store(target, create=True) as to_store:
        convert_image(from_store, source, to_store, target, Settings(jobs=2), profile=touches)
    return Prepared(plain, lazy, packed, pack_size(name, str(target), touches))


def _starts(
    name: str, prepared: Prepared, spec: LinkSpec, directory: Path, runs: int, with_pull: bool
) -> list[Start]:
    workload = WORKLOADS[name]
    starts: list[Start] = []
    with ExitStack() as stack:
        servers = {
            way: stack.enter_context(serve_layout(layout, _NAME))
            for way, layout in (
                ("lazy", prepared.lazy),
                ("packed", prepared.packed),
                ("plain", prepared.plain),
            )
        }
        for _ in range(runs):
            for way, label in (("lazy", "lazyfs"), ("packed", "lazyfs, pack")):
                with Link(spec, servers[way]) as link:
                    starts.append(_start_lazily(name, spec, label, link, directory / "node", workload))
        with running_containerd(directory) as (containerd, _), Link(spec, servers["plain"]) as link:
            starts += _start_by_containerd(
                name, spec, link, containerd, workload, _tag_of(prepared.plain), runs, with_pull
            )
    return starts


def _lazyfs(root: Path) -> list[str]:
    return [str(Path(sys.executable).with_name("lazyfs")), "--root", str(root)]


def _start_lazily(name: str, spec: LinkSpec, label: str, link: Link, root: Path, workload: Workload) -> Start:
    paths = NodePaths(root)
    client = ensure_daemon(paths)
    try:
        reference = f"docker://{link.address}/{_NAME}:app"
        drop_page_cache()
        before = link.counts()
        began = time.monotonic()
        seconds = _until_ready([*_lazyfs(root), "run", reference, *workload.arguments], began)
        counts = link.counts().since(before)
        reads = client.timeline(began)["reads"]
        waited = sum(bool(read["waited"]) for read in reads)
        return Start(name, spec.name, label, seconds, counts.down, counts.requests, len(reads), waited)
    finally:
        DaemonClient(paths).shutdown()
        shutil.rmtree(root, ignore_errors=True)


def _start_by_containerd(
    name: str,
    spec: LinkSpec,
    link: Link,
    containerd: Path,
    workload: Workload,
    tag: str,
    runs: int,
    with_pull: bool,
) -> list[Start]:
    ctr = ["ctr", "--address", str(containerd / "sock"), "--namespace", "bench"]
    reference = f"{link.address}/{_NAME}:{tag}"
    pull = [*ctr, "images", "pull", "--plain-http", "--snapshotter", "overlayfs", reference]
    entry = ["python3", *workload.arguments]

    def run(number: int) -> list[str]:
        return [
            *ctr,
            "run",
            "--rm",
            "--net-host",
            "--snapshotter",
            "overlayfs",
            reference,
            f"c{number}",
            *entry,
        ]

    starts = []
    drop_page_cache()
    before = link.counts()
    began = time.monotonic()
    subprocess.run(pull, check=True, stdout=subprocess.DEVNULL)
    seconds = _until_ready(run(0), began)
    if with_pull:
        counts = link.counts().since(before)
        starts.append(Start(name, spec.name, "containerd, pull", seconds, counts.down, counts.requests))
    for number in range(1, runs + 1):
        drop_page_cache()
        seconds = _until_ready(run(number), time.monotonic())
        starts.append(Start(name, spec.name, "containerd, local", seconds, 0, 0))
    return starts


def _until_ready(command: Sequence[str], began: float) -> float:
    with subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        seconds = time.monotonic() - began
        process.stdout.read()
        process.wait(_RUN_SECONDS)
    if not line.startswith(READY) or process.returncode:
        raise FailedError(
            f"{Path(command[0]).name} did not get ready: {line[:100]!r}, code {process.returncode}"
        )
    return seconds


def _tag_of(layout: Path) -> str:
    with open_store(parse_reference(f"oci:{layout}")) as store:
        return store.tags()[0]


def pack_sizes(cache: Path) -> list[PackSize]:
    """Of the smaller workload; starts with it are those of the suite."""
    with tempfile.TemporaryDirectory(prefix="lazyfs-measure-", dir=_disk()) as directory:
        return [prepare("numpy", cache, Path(directory)).size]


def pack_size(name: str, reference: str, touches: Sequence[Touch]) -> PackSize:
    """The pack of an image beside what its touched pages would be in 16 KiB pieces."""
    parsed = parse_reference(reference)
    with open_store(parsed) as store:
        image = load_image(store, parsed)
        opened = open_tocs(store, image)
        tree = merge([each.tree for each in opened.tocs])
        inodes = dict(regular_files(tree))
        pages: dict[bytes, set[int]] = {}
        for touch in touches:
            pages.setdefault(touch.path, set()).update(range(touch.first, touch.last + 1))
        compressor = zstandard.ZstdCompressor(level=3)
        reference_size = 0
        reader = _Devices(store, opened)
        for path, touched in pages.items():
            found = extents(tree, inodes[path])
            last = (int(tree.inodes.size[inodes[path]]) - 1) // PAGE
            for piece in sorted({page * PAGE // PIECE for page in touched}):
                first = piece * PIECE // PAGE
                plain = reader.read(found, first, min(first + PIECE // PAGE - 1, last))
                reference_size += len(compressor.compress(plain))
        location = PackLocation.parse(image.manifest.layers[0].annotations[PACK_ANNOTATION])
        return PackSize(
            name,
            location.size,
            sum(map(len, pages.values())) * PAGE,
            reference_size,
        )


class _Devices:
    """Bytes of the devices of an image, chunk by chunk out of its store; keeps the last few chunks."""

    def __init__(self, store: Store, opened: OpenedImage) -> None:
        self._chunk = lru_cache(64)(partial(_read_chunk, store, opened))
        self._opened = opened

    def read(self, found: list[Extent], first: int, last: int) -> bytes:
        """Pages `first` to `last` of a file."""
        return b"".join(self._range(*each) for each in device_ranges(found, first, last))

    def _range(self, layer: int, start: int, end: int) -> bytes:
        table = self._opened.tocs[layer].chunks
        pieces = []
        for chunk in table.covering(start, end - start):
            low = int(table.start[chunk])
            pieces.append(self._chunk(layer, chunk)[max(start - low, 0) : end - low])
        return b"".join(pieces)


def _read_chunk(store: Store, opened: OpenedImage, layer: int, chunk: int) -> bytes:
    document, blob = opened.tocs[layer], opened.image.layers[layer][0].digest
    table = document.chunks
    frame = store.read(blob, int(table.blob_offset[chunk]), int(table.blob_length[chunk]))
    return open_chunk(document.codec, table, chunk, frame, blob)


def rows(starts: Sequence[Start], sizes: Sequence[PackSize]) -> list[Row]:
    """Medians, each beside its bar."""
    found = []
    packs = {size.workload: size for size in sizes}
    for size in sizes:
        found.append(
            Row(f"pack of {size.workload}, of its touched 16 KiB pieces", size.pack / size.reference, "", 1.2)
        )
    for workload, link in dict.fromkeys((start.workload, start.link) for start in starts):
        mine = [start for start in starts if (start.workload, start.link) == (workload, link)]
        medians = {
            way: statistics.median(start.seconds for start in mine if start.way == way)
            for way in dict.fromkeys(start.way for start in mine)
        }
        spec = parse_link(link)
        local = medians["containerd, local"]
        bar = local
        if spec.rate < _FAST:
            bar = 1.15 * max(packs[workload].pack / spec.rate, local) + 3 * spec.round_trip
        pulled = medians.get("containerd, pull")
        for way, seconds in medians.items():
            goal = {"lazyfs, pack": bar, "lazyfs": pulled}.get(way)
            found.append(Row(f"{workload}, {link}: {way}", seconds, "s", goal))
    return found


def show(starts: Sequence[Start]) -> None:
    print(f"{'':46}{'ready':>8}{'MB':>8}{'requests':>10}{'reads':>8}{'waited':>8}")
    for start in starts:
        name = f"{start.workload}, {start.link}, {start.way}"
        print(
            f"{name:46}{start.seconds:>8.3f}{start.down / 1e6:>8.1f}{start.requests:>10}"
            f"{start.device_reads:>8}{start.waited:>8}"
        )


if __name__ == "__main__":
    sys.exit(main())

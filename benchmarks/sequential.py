"""One file of 512 MB read from one end to the other: from a store, and from the node's cache, beside ext4.

    python -m benchmarks.sequential [--runs 3]

The file is made of the files of a scientific stack, so it compresses as programs do. *Cold* comes from a registry
on loopback (nginx) with an empty cache, *cached* through FUSE from the node's cache, *direct* from a mount of the
cache's own file. The page cache is empty each time; *data warm* then has the cache's file in it, but nothing of what
is mounted, which leaves the disk out of it. `cat` reads to /dev/null: into a pipe no file comes faster than 1.1 GB/s
here, from the page cache neither. CPU seconds are the daemon's; where other work runs on the machine they say more than
rates.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.blob_server import serve_layout
from benchmarks.demo import drop_page_cache
from benchmarks.images import RECIPES, ensure
from benchmarks.process import cpu_of
from benchmarks.report import Row
from benchmarks.synthetic import one_file, write_image
from benchmarks.unpack import image_layers
from converter import Settings, convert_image
from lazyfs.config import NodePaths
from lazyfs.daemon.client import DaemonClient
from lazyfs.errors import LazyfsError
from lazyfs.mount.mountinfo import list_mounts
from lazyfs.stores import open_store, parse_reference

SIZE = 512 << 20
COLD_BAR, CACHED_BAR = 300.0, 1500.0
"""MB/s, at least."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sequential", description=__doc__)
    parser.add_argument("--cache", type=Path, default=Path(".cache/images"))
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the figures to this file as well")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="lazyfs-measure-") as directory:
        figures = measure(Path(directory), arguments.cache, arguments.runs)
    for name, values in figures.items():
        print(f"{name:24}{statistics.median(values):10.2f}   {[round(value, 2) for value in values]}")
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2))
    return 0


def rows(figures: dict[str, list[float]]) -> list[Row]:
    bars = dict.fromkeys(("cached", "direct", "cached, data warm", "direct, data warm"), CACHED_BAR)
    bars["cold"] = COLD_BAR
    return [
        Row(f"512 MB in order, {name}", statistics.median(values), _unit(name), bars.get(name), at_least=True)
        for name, values in figures.items()
    ]


def _unit(name: str) -> str:
    return "s" if "CPU" in name else "MB/s"


def measure(directory: Path, cache: Path, runs: int) -> dict[str, list[float]]:
    """MB/s of each run, and the daemon's CPU seconds."""
    layout = _converted(directory, cache)
    figures: defaultdict[str, list[float]] = defaultdict(list)
    plain = directory / "plain"
    _unpack_to(directory, plain)
    with serve_layout(layout, "app") as address:
        for _ in range(runs):
            figures["ext4"].append(_rate(plain))
            figures["ext4, data warm"].append(_rate(plain, plain))
            with _node(directory / "node") as root:
                _measure_node(root, f"docker://{address}/app:lazy", figures)
    return figures


def _measure_node(root: Path, reference: str, figures: defaultdict[str, list[float]]) -> None:
    with _mounted(root, reference) as (file, process):
        for name, warm in (("cold", None), ("cached", None), ("cached, data warm", _data(root))):
            before = cpu_of(process)
            figures[name].append(_rate(file, warm))
            figures[f"{name}, CPU"].append(cpu_of(process) - before)
    subprocess.run([*_lazyfs(root), "cache", "warm", reference], check=True, capture_output=True)
    with _mounted(root, reference) as (file, _):
        if not [entry for entry in list_mounts(root) if entry.target.name.endswith("-direct")]:
            raise LazyfsError("the image is not mounted from the cache's own file")
        figures["direct"].append(_rate(file))
        figures["direct, data warm"].append(_rate(file, _data(root)))


@contextmanager
def _node(root: Path) -> Iterator[Path]:
    try:
        yield root
    finally:
        subprocess.run([*_lazyfs(root), "shutdown"], check=True)
        shutil.rmtree(root)


def _converted(directory: Path, cache: Path) -> Path:
    image = ensure(RECIPES["science"], cache)
    source = parse_reference(image.reference)
    layers, _ = image_layers(Path(source.location), source.tag or "latest")
    made = write_image(one_file(layers, SIZE), directory / "made")
    target = parse_reference(f"oci:{directory / 'store'}:lazy")
    from_reference = parse_reference(f"oci:{made}:synthetic")
    with open_store(from_reference) as from_store, open_store(target, create=True) as to_store:
        convert_image(from_store, from_reference, to_store, target, Settings())
    return directory / "store"


def _unpack_to(directory: Path, plain: Path) -> None:
    layers, _ = image_layers(directory / "made" / "oci", "synthetic")
    with plain.open("wb") as file:
        subprocess.run(
            ["tar", "--extract", "--gzip", f"--file={layers[0]}", "--to-stdout"], stdout=file, check=True
        )
    shutil.rmtree(directory / "made")


@contextmanager
def _mounted(root: Path, reference: str) -> Iterator[tuple[Path, int]]:
    """The file, and the daemon's process."""
    target = root.with_name("mounted")
    target.mkdir(exist_ok=True)
    subprocess.run([*_lazyfs(root), "mount", "--no-fill", reference, str(target)], check=True)
    try:
        yield next(target.iterdir()), DaemonClient(NodePaths.choose(root)).status()["pid"]
    finally:
        subprocess.run([*_lazyfs(root), "umount", str(target)], check=True)


def _lazyfs(root: Path) -> list[str]:
    return [sys.executable, "-m", "lazyfs.cli.main", "--root", str(root)]


def _data(root: Path) -> Path:
    """The largest file of the cache, which holds the one that is read."""
    return max((root / "cache").glob("*/data"), key=lambda path: path.stat().st_size)


def _rate(file: Path, warm: Path | None = None) -> float:
    """MB/s of reading it, with nothing in the page cache but `warm`."""
    drop_page_cache()
    if warm is not None:
        subprocess.run(["cat", str(warm)], stdout=subprocess.DEVNULL, check=True)
    began = time.monotonic()
    subprocess.run(["cat", str(file)], stdout=subprocess.DEVNULL, check=True)
    return file.stat().st_size / (time.monotonic() - began) / 1e6


if __name__ == "__main__":
    sys.exit(main())

"""`make demo`: the main job on a real image, on an embedded default. No engine, no server, no registry.

Makes a Debian image with python3 and numpy, converts it into a local directory, and starts a container that
imports numpy: once lazily, once after a full unpack. Both from a cold page cache, both measured in this run.
"""

import argparse
import logging
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.images import RECIPES, BuildError, ensure
from benchmarks.unpack import image_layers, unpack
from converter import Settings, convert_image
from lazyfs.config import NodePaths
from lazyfs.daemon.client import DaemonClient, ensure_daemon
from lazyfs.draw import bars, timeline
from lazyfs.draw.svg import byte_words
from lazyfs.errors import LazyfsError, NodeError
from lazyfs.stores import open_store, parse_reference

READY = b"ready"
RUN_TIMEOUT = 300


@dataclass(frozen=True, slots=True)
class Start:
    """One start: seconds to *ready*, bytes read from the store, and what the container said."""

    seconds: float
    store_bytes: int
    said: str


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.demo", description=__doc__)
    parser.add_argument(
        "--cache", type=Path, default=Path(".cache/images"), help="input images (default: %(default)s)"
    )
    parser.add_argument("--out", type=Path, default=Path("demo-out"), help="results (default: %(default)s)")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="   %(message)s")  # what the image builder is at
    try:
        demo(arguments.cache, arguments.out.absolute())
    except BuildError as error:
        print(f"demo: the input image could not be made: {error}", file=sys.stderr)
        return 1
    except LazyfsError as error:
        print(f"demo: {error.message}\n  hint: {error.hint}", file=sys.stderr)
        return error.exit_code
    return 0


def demo(cache: Path, out: Path) -> None:
    """Everything, in the order in which it is told."""
    out.mkdir(parents=True, exist_ok=True)
    print(
        "1. a real image: Debian, python3 and numpy in three layers (cached after the first time)", flush=True
    )
    image = ensure(RECIPES["demo"], cache)
    print(f"   {image.reference}")
    print("2. convert it, as CI would", flush=True)
    lazy = _convert(image.reference, out)
    print("3. start it lazily: nothing unpacked, page cache and node cache cold", flush=True)
    lazily = _start_lazily(lazy, out)
    print(f"   {lazily.said}")
    print("4. the same after a full unpack", flush=True)
    source = parse_reference(image.reference)
    unpacked = _start_unpacked(Path(source.location), source.tag or "latest", out)
    print(f"   {unpacked.said}")
    _report(lazily, unpacked, out)


def _convert(source_text: str, out: Path) -> str:
    source, target = parse_reference(source_text), parse_reference(f"oci:{out / 'store'}:demo")
    with open_store(source) as from_store, open_store(target, create=True) as to_store:
        report = convert_image(from_store, source, to_store, target, Settings(jobs=os.cpu_count() or 1))
    before = sum(layer.source_size for layer in report.layers)
    after = sum(layer.size for layer in report.layers)
    print(f"   {target}: {byte_words(before)} -> {byte_words(after)} in {report.seconds:.1f} s")
    return str(target)


def _start_lazily(reference: str, out: Path) -> Start:
    """With the daemon running, as on any node; its cache is empty."""
    paths = NodePaths(out / "node")
    _end_node(paths)
    shutil.rmtree(paths.root, ignore_errors=True)
    client = ensure_daemon(paths)
    try:
        drop_page_cache()
        began = time.monotonic()
        command = [sys.executable, "-m", "lazyfs.cli.main", "--root", str(paths.root), "run", reference]
        ready, said = _run_until_ready(command, began)
        status = client.status()
        sizes = {layer["blob"]: layer["bytes"] for layer in status["layers"]}
        title = "A cold start of python3 + numpy, lazily"
        picture = timeline.draw(client.timeline(began), sizes, began, began + ready, title)
        (out / "timeline.svg").write_text(picture)
        return Start(ready, status["store_bytes"], said)
    finally:
        _end_node(paths)


def _end_node(paths: NodePaths) -> None:
    client = DaemonClient(paths)
    if client.is_running():
        client.shutdown()


def _start_unpacked(layout: Path, tag: str, out: Path) -> Start:
    """What an engine without lazy loading does: read every blob, unpack all of it, start."""
    rootfs = out / "unpacked"
    shutil.rmtree(rootfs, ignore_errors=True)
    layers, _ = image_layers(layout, tag)
    drop_page_cache()
    began = time.monotonic()
    try:
        store_bytes = unpack(layers, rootfs)
        command = [sys.executable, "-m", "benchmarks.run_unpacked", str(layout), tag, str(rootfs)]
        ready, said = _run_until_ready(command, began)
        return Start(ready, store_bytes, said)
    finally:
        shutil.rmtree(rootfs, ignore_errors=True)


def _run_until_ready(command: list[str], began: float) -> tuple[float, str]:
    """Seconds from `began` until the container said that it is ready, and its words."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        ready = time.monotonic() - began
        process.stdout.read()
        process.wait(timeout=RUN_TIMEOUT)
    if not line.startswith(READY) or process.returncode:
        raise NodeError(f"the container did not get ready (exit code {process.returncode})", hint="see above")
    return ready, line.decode().strip()


def _report(lazily: Start, unpacked: Start, out: Path) -> None:
    """The table on the terminal, and the pictures beside it."""
    ways = ("lazyfs, lazily", "full unpack")
    starts = (lazily, unpacked)
    print()
    print(f"{'':16}{'time to ready':>15}{'bytes from the store':>23}")
    for way, start in zip(ways, starts, strict=True):
        print(f"{way:16}{start.seconds:>13.2f} s{byte_words(start.store_bytes):>23}")
    faster, fewer = unpacked.seconds / lazily.seconds, lazily.store_bytes / unpacked.store_bytes
    print(f"\n{faster:.1f} times sooner, with {100 * fewer:.0f} % of the bytes. Pictures:")
    picture = bars.draw(
        "python3 + numpy: from nothing to ready",
        "Page cache and node cache cold; the store is a local directory",
        ways,
        [
            bars.Group("Time to ready", [(each.seconds, f"{each.seconds:.2f} s") for each in starts]),
            bars.Group(
                "Bytes from the store", [(each.store_bytes, byte_words(each.store_bytes)) for each in starts]
            ),
        ],
    )
    (out / "demo.svg").write_text(picture)
    for name in ("demo.svg", "timeline.svg"):
        print(f"  {os.path.relpath(out / name)}")


def drop_page_cache() -> None:
    """Nothing that was read before may help."""
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3\n")


if __name__ == "__main__":
    sys.exit(main())

"""A node with a hundred images in use: whether the last one is mounted as soon as the first, and what they take.

    python -m benchmarks.many_images [--images 100]

Each image has a layer that all share, of 2,000 files, and one of its own, of 200. They are mounted one after the other
by `lazyfs mount`, on an empty node, from a registry on loopback; all files are looked at once.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from benchmarks import synthetic
from benchmarks.blob_server import serve_layout
from benchmarks.growth import FLAT
from benchmarks.images.layout import write_layout
from benchmarks.node import lazyfs, mounted, running_node
from benchmarks.report import Row, conclude, parser
from converter import Settings, convert_image
from lazyfs.stores import open_store, parse_reference

IMAGES = 100
FEW = 10
"""At the begin, and at the end, that are held against each other."""
_BASE_FILES, _FILES = 2_000, 200
_NAME = "many"
_MADE = "many-images-1"
"""Below the cache: raise the number when something else is made."""


@dataclass(frozen=True, slots=True)
class Crowd:
    """Seconds of each mount, in order; `resident` and `keeper` in bytes, with all of them mounted."""

    seconds: list[float]
    resident: int
    keeper: int
    status_seconds: float


def main() -> int:
    options = parser("benchmarks.many_images", __doc__)
    options.add_argument("--images", type=int, default=IMAGES)
    arguments = options.parse_args()
    found = measure(arguments.cache, arguments.images)
    return conclude(arguments, [found], rows(found))


def measure(cache: Path, images: int = IMAGES) -> Crowd:
    layout = made(cache, images)
    with tempfile.TemporaryDirectory(prefix="lazyfs-measure-", dir="/var/tmp") as name, ExitStack() as stack:
        directory = Path(name)
        server = stack.enter_context(serve_layout(layout, _NAME))
        client = stack.enter_context(running_node(directory / "node"))
        seconds = []
        for number in range(images):
            began = time.monotonic()
            tree = stack.enter_context(
                mounted(
                    directory / "node", f"docker://{server}/{_NAME}:app{number}", directory / f"m{number}"
                )
            )
            seconds.append(time.monotonic() - began)
            subprocess.run(["find", tree, "-printf", "%s"], check=True, stdout=subprocess.DEVNULL)
        began = time.monotonic()
        subprocess.run([*lazyfs(directory / "node"), "status"], check=True, stdout=subprocess.DEVNULL)
        status_seconds = time.monotonic() - began
        daemon = int(client.status()["pid"])
        keeper = int(Path(f"/proc/{daemon}/stat").read_text().rpartition(")")[2].split()[1])
        return Crowd(seconds, _resident(daemon), _resident(keeper), status_seconds)


def _resident(process: int) -> int:
    return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def made(cache: Path, images: int = IMAGES) -> Path:
    """A layout of the converted images, made now unless it is there."""
    layout = (cache / _MADE / str(images)).absolute()
    if not layout.exists():
        layout.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="new-", dir=layout.parent) as name:
            directory = Path(name)
            _make(directory, images)
            (directory / "layout").rename(layout)
    return layout


def _make(directory: Path, images: int) -> None:
    base = directory / "base"
    shared = (synthetic.pack(synthetic.many_files(_BASE_FILES), base), base, "made up")
    for number in range(images):
        blob, plain, tag = directory / "blob", directory / "plain", f"app{number}"
        layer = synthetic.pack(synthetic.many_files(_FILES, b"app%d/" % number), blob)
        write_layout(plain, tag, [shared, (layer, blob, "made up")], {})
        source, target = (
            parse_reference(f"oci:{plain}:{tag}"),
            parse_reference(f"oci:{directory}/layout:{tag}"),
        )
        with open_store(source) as store, open_store(target, create=True) as to_store:
            convert_image(store, source, to_store, target, Settings())
        subprocess.run(["rm", "-r", plain], check=True)


def rows(found: Crowd) -> list[Row]:
    count = len(found.seconds)
    first, last = (statistics.median(each) for each in (found.seconds[:FEW], found.seconds[-FEW:]))
    what = f"{count} images mounted"
    return [
        Row(f"{what}: the last {FEW}, times as long as the first {FEW}", last / first, "", FLAT),
        Row(f"{what}: seconds of one of the last {FEW}", last, "s"),
        Row(f"{what}: memory of the daemon", found.resident / 1e6, "MB"),
        Row(f"{what}: memory of its keeper", found.keeper / 1e6, "MB"),
        Row(f"{what}: `lazyfs status`", found.status_seconds, "s"),
    ]


if __name__ == "__main__":
    sys.exit(main())

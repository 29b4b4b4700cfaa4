"""A whole image read cold through its mount, beside a download and tar: across the same link.

    python -m benchmarks.whole_image [--links 1gbit,2ms 100mbit,20ms] [--recipe demo] [--runs 2]

`tar c | wc -c` of the mounted image, whose node is empty, from before the image is opened. Beside it the same blobs
(zstd) are downloaded at once, each by a curl, and unpacked by tar, lowest layer first, each as soon as it is here.
"""

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.blob_server import serve_layout
from benchmarks.demo import drop_page_cache
from benchmarks.link import Link, LinkSpec, parse_link
from benchmarks.node import TAG, convert_recipe, mounted, running_node
from benchmarks.process import FailedError
from benchmarks.report import Row, conclude, parser
from benchmarks.unpack import image_layers

LINKS = ("1gbit,2ms", "100mbit,20ms")
RECIPE, RUNS = "demo", 2
BAR = 1.0
_NAME = "bench"
_DISK = "/var/tmp"


@dataclass(frozen=True, slots=True)
class Reading:
    """One run: all of the image by that way."""

    link: str
    way: str
    seconds: float
    down: int


def main() -> int:
    options = parser("benchmarks.whole_image", __doc__)
    options.add_argument("--links", nargs="+", default=LINKS)
    options.add_argument("--recipe", default=RECIPE)
    options.add_argument("--runs", type=int, default=RUNS)
    arguments = options.parse_args()
    found = measure(arguments.cache, arguments.links, arguments.recipe, arguments.runs)
    return conclude(arguments, found, rows(found))


def measure(
    cache: Path, links: Sequence[str] = LINKS, recipe: str = RECIPE, runs: int = RUNS
) -> list[Reading]:
    found = []
    with tempfile.TemporaryDirectory(prefix="lazyfs-measure-", dir=_DISK) as name:
        directory = Path(name)
        layout = convert_recipe(recipe, cache, directory / "layout")
        with serve_layout(layout, _NAME) as address:
            for spec in map(parse_link, links):
                for _ in range(runs):
                    found.append(_through_the_mount(spec, address, directory))
                    found.append(_downloaded(spec, address, layout))
    return found


def _through_the_mount(spec: LinkSpec, address: str, directory: Path) -> Reading:
    with Link(spec, address) as link, running_node(directory / "node"):
        drop_page_cache()
        began = time.monotonic()
        with mounted(
            directory / "node", f"docker://{link.address}/{_NAME}:{TAG}", directory / "mounted"
        ) as tree:
            _pipe(["tar", "--create", f"--directory={tree}", "."], ["wc", "--bytes"])
            seconds = time.monotonic() - began
            return Reading(spec.name, "through the mount", seconds, link.counts().down)


def _downloaded(spec: LinkSpec, address: str, layout: Path) -> Reading:
    layers, _ = image_layers(layout, TAG)
    with (
        tempfile.TemporaryDirectory(prefix="lazyfs-measure-", dir=_DISK) as directory,
        Link(spec, address) as link,
    ):
        target = Path(directory, "unpacked")
        target.mkdir()
        drop_page_cache()
        began = time.monotonic()
        downloads = []
        for layer in layers:
            url = f"http://{link.address}/v2/{_NAME}/blobs/sha256:{layer.name}"
            file = Path(directory, layer.name)
            downloads.append((file, subprocess.Popen(["curl", "--silent", "--fail", "--output", file, url])))
        for file, download in downloads:
            if download.wait():
                raise FailedError(f"curl ended with {download.returncode}")
            tar = ["tar", "--extract", f"--directory={target}", "--numeric-owner", "--exclude=.wh.*"]
            _pipe(["zstd", "--decompress", "--stdout", "--quiet", str(file)], tar)
        return Reading(spec.name, "download and tar", time.monotonic() - began, link.counts().down)


def _pipe(first: list[str], second: list[str]) -> None:
    with subprocess.Popen(first, stdout=subprocess.PIPE) as giver:
        subprocess.run(second, stdin=giver.stdout, stdout=subprocess.DEVNULL, check=True)
    if giver.returncode:
        raise FailedError(f"{first[0]} ended with {giver.returncode}")


def rows(found: list[Reading]) -> list[Row]:
    table = []
    for link in dict.fromkeys(each.link for each in found):
        ours, theirs = (
            [each.seconds for each in found if (each.link, each.way) == (link, way)]
            for way in ("through the mount", "download and tar")
        )
        table.append(Row(f"whole image, {link}: download and tar", statistics.median(theirs), "s"))
        table.append(Row(f"whole image, {link}: through the mount", statistics.median(ours), "s"))
        ratio = statistics.median(ours) / statistics.median(theirs)
        table.append(Row(f"whole image, {link}: of download and tar", ratio, "", BAR))
    return table


if __name__ == "__main__":
    sys.exit(main())

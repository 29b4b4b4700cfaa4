"""How mounting grows with an image: with its bytes, its files and its layers.

    python -m benchmarks.growth [--runs 2]

Images are made up, in a registry on loopback behind a link that counts. Of each: seconds of `lazyfs mount` on an empty
node with a cold page cache, its daemon running; bytes that were fetched for it; memory of the daemon afterwards. A
power of the size is fitted to the seconds that the smallest image does not take (least squares of the logarithms), and
told as an exponent: 0 does not grow, 1 grows as the size does. Converted images are made once, and kept beside those of
`benchmarks.images`.
"""

import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import synthetic
from benchmarks.blob_server import serve_layout
from benchmarks.demo import drop_page_cache
from benchmarks.images.layout import write_layout
from benchmarks.link import Link, parse_link
from benchmarks.node import TAG, convert, mounted, running_node
from benchmarks.report import Row, conclude, parser

SIZES = (10 << 20, 100 << 20, 1 << 30, 10 << 30)
FILES = (100, 1_000, 10_000, 100_000, 1_000_000)
LAYERS = (1, 4, 16, 64, 128)
RUNS = 2
FLAT = 1.25
"""Times that a mount of the largest image may take of that of the smallest, where it must not grow."""
_FILES_OF_LAYER = 50
_NAME = "growth"
_MADE = "growth-1"
"""Below the cache: raise the number when something else is made."""


@dataclass(frozen=True, slots=True)
class Mounted:
    """What grows (`bytes`, `files` or `layers`), how much of it there is, and what mounting took; medians."""

    what: str
    size: int
    seconds: float
    fetched: int
    memory: int


def main() -> int:
    options = parser("benchmarks.growth", __doc__)
    options.add_argument("--runs", type=int, default=RUNS)
    arguments = options.parse_args()
    found = measure(arguments.cache, arguments.runs)
    for each in found:
        print(
            f"{each.size:>14,} {each.what:7}{each.seconds:8.3f} s{each.fetched / 1e6:9.2f} MB fetched"
            f"{each.memory / 1e6:8.1f} MB of memory"
        )
    return conclude(arguments, found, rows(found))


def measure(cache: Path, runs: int = RUNS) -> list[Mounted]:
    found = []
    for what, size in _cases():
        layout = made(cache, what, size)
        with tempfile.TemporaryDirectory(prefix="lazyfs-measure-", dir="/var/tmp") as name:
            starts = [_mount(Path(name), layout) for _ in range(runs)]
        seconds, fetched, memory = (statistics.median(each) for each in zip(*starts, strict=True))
        found.append(Mounted(what, size, seconds, int(fetched), int(memory)))
    return found


def make_all(cache: Path) -> None:
    for what, size in _cases():
        made(cache, what, size)


def _cases() -> Iterator[tuple[str, int]]:
    for what, sizes in (("bytes", SIZES), ("files", FILES), ("layers", LAYERS)):
        for size in sizes:
            yield what, size


def made(cache: Path, what: str, size: int) -> Path:
    """A layout of the converted image, made now unless it is there."""
    layout = (cache / _MADE / f"{what}-{size}").absolute()
    if not layout.exists():
        layout.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="new-", dir=layout.parent) as name:
            directory = Path(name)
            convert(f"oci:{_made_up(directory, what, size)}:{TAG}", directory / "layout").rename(layout)
    return layout


def _made_up(directory: Path, what: str, size: int) -> Path:
    match what:
        case "bytes":
            layers = [synthetic.large_files(size, min(size, 1 << 30))]
        case "files":
            layers = [synthetic.many_files(size)]
        case _:
            layers = [synthetic.many_files(_FILES_OF_LAYER, b"layer%d/" % number) for number in range(size)]
    packed = []
    for number, pieces in enumerate(layers):
        file = directory / f"layer-{number}"
        packed.append((synthetic.pack(pieces, file), file, "made up"))
    write_layout(directory / "made", TAG, packed, {})
    return directory / "made"


def _mount(directory: Path, layout: Path) -> tuple[float, int, int]:
    """Seconds, bytes fetched, bytes resident of the daemon."""
    root = directory / "node"
    with (
        serve_layout(layout, _NAME) as server,
        Link(parse_link("loopback"), server) as link,
        running_node(root) as client,
    ):
        drop_page_cache()
        before = link.counts().down
        began = time.monotonic()
        with mounted(root, f"docker://{link.address}/{_NAME}:{TAG}", directory / "mounted"):
            seconds = time.monotonic() - began
            fetched = link.counts().down - before
            statm = Path(f"/proc/{client.status()['pid']}/statm").read_text()
            return seconds, fetched, int(statm.split()[1]) * os.sysconf("SC_PAGE_SIZE")


def exponent(sizes: Sequence[float], values: Sequence[float]) -> float:
    """Of the power of the size that what grows beyond the first value is nearest to; 0 where nothing grows."""
    least = values[0]
    more = [
        (math.log(size), math.log(value - least))
        for size, value in zip(sizes, values, strict=True)
        if value > least * FLAT
    ]
    if len(more) < 2:
        return 0.0
    x, y = zip(*more, strict=True)
    return statistics.linear_regression(x, y).slope


def rows(found: Sequence[Mounted]) -> list[Row]:
    made = []
    for what in dict.fromkeys(each.what for each in found):
        mine = [each for each in found if each.what == what]
        first, last = mine[0], mine[-1]
        of = f"{last.size:,} {what} beside {first.size:,}"
        flat = FLAT if what == "bytes" else None
        made.append(Row(f"mount of {of}, times as long", last.seconds / first.seconds, "", flat))
        made.append(Row(f"mount of {of}, times the bytes fetched", last.fetched / first.fetched, ""))
        made.append(
            Row(f"mount of {of}, memory of the daemon more", (last.memory - first.memory) / 1e6, "MB")
        )
        power = exponent([each.size for each in mine], [each.seconds for each in mine])
        made.append(
            Row(f"mount time grows with {what} as the power", power, "", None if what == "layers" else 1.0)
        )
    return made


if __name__ == "__main__":
    sys.exit(main())

"""Many containers of one image, started at once: each chunk fetched once, and how long until the last has ended.

    python -m benchmarks.many_containers [--containers 1 10 50 100] [--link 1gbit,2ms]

Of each number, first on an empty node with the image in a registry across a link, then again with everything on the
node and an empty page cache. A chunk that was fetched twice shows as bytes of blobs beyond those of the chunks that the
node has then.
"""

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.blob_server import serve_layout
from benchmarks.cold_start import READY, WORKLOADS
from benchmarks.demo import drop_page_cache
from benchmarks.link import Link, parse_link
from benchmarks.node import TAG, convert_recipe, lazyfs, running_node
from benchmarks.process import FailedError
from benchmarks.report import Row, conclude, parser

CONTAINERS = (1, 10, 50, 100)
LINK = "1gbit,2ms"
BAR, ONCE_BAR = 1.5, 1.0
_WORKLOAD = "numpy"


@dataclass(frozen=True, slots=True)
class Starts:
    """Seconds until the last of `containers` had ended; plain bytes that were fetched, and that the node has then."""

    containers: int
    way: str
    seconds: float
    fetched: int
    present: int


def main() -> int:
    options = parser("benchmarks.many_containers", __doc__)
    options.add_argument("--containers", type=int, nargs="+", default=CONTAINERS)
    options.add_argument("--link", default=LINK)
    arguments = options.parse_args()
    found = measure(arguments.cache, arguments.containers, arguments.link)
    return conclude(arguments, found, rows(found))


def measure(cache: Path, containers: Sequence[int] = CONTAINERS, link_name: str = LINK) -> list[Starts]:
    """Two of each number: from the network, and local."""
    # Not /tmp: snapshots do not lie on tmpfs.
    with tempfile.TemporaryDirectory(prefix="lazyfs-measure-", dir="/var/tmp") as name:
        directory = Path(name)
        root = directory / "node"
        layout = convert_recipe(WORKLOADS[_WORKLOAD].recipe, cache, directory / "layout")
        with serve_layout(layout, "bench") as address:
            return [each for count in containers for each in _both(root, address, count, link_name)]


def _both(root: Path, address: str, containers: int, link_name: str) -> Iterator[Starts]:
    with Link(parse_link(link_name), address) as link, running_node(root) as client:
        for way in ("from the network", "local"):
            before = client.status()
            seconds = _start_all(root, f"docker://{link.address}/bench:{TAG}", containers)
            after = client.status()
            fetched = after["fetched_bytes"] - before["fetched_bytes"]
            yield Starts(containers, way, seconds, fetched, _present(after) - _present(before))


def _present(status: dict[str, Any]) -> int:
    return sum(int(layer["present_bytes"]) for layer in status["layers"])


def _start_all(root: Path, reference: str, containers: int) -> float:
    command = [*lazyfs(root), "run", "--no-fill", reference, *WORKLOADS[_WORKLOAD].arguments]
    drop_page_cache()
    began = time.monotonic()
    processes = [
        subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) for _ in range(containers)
    ]
    said = [process.communicate()[0] for process in processes]
    seconds = time.monotonic() - began
    failed = sum(
        process.returncode != 0 or not text.startswith(READY)
        for process, text in zip(processes, said, strict=True)
    )
    if failed:
        raise FailedError(f"{failed} of {containers} containers did not get ready")
    return seconds


def rows(found: list[Starts]) -> list[Row]:
    made = []
    for remote, local in zip(found[::2], found[1::2], strict=True):
        many = remote.containers > 1
        what = f"{remote.containers} containers at once" if many else "1 container"
        made += [
            Row(f"{what}, from the network", remote.seconds, "s"),
            Row(f"{what}, everything local", local.seconds, "s"),
            Row(
                f"{what}: from the network, of local",
                remote.seconds / local.seconds,
                "",
                BAR if many else None,
            ),
            Row(
                f"{what}: bytes fetched, of those the node has then",
                remote.fetched / remote.present,
                "",
                ONCE_BAR,
            ),
        ]
    return made


if __name__ == "__main__":
    sys.exit(main())

"""Figures that are the same on a busy machine: what a cold start asks for, not how long it takes.

    python -m benchmarks.stable [--record]

One start of the demo image without a launch pack and one with: requests and bytes at the link, reads of the devices by
the kernel, read and write calls of the daemon (/proc/PID/io). They are held against `benchmarks/stable.json`, which
--record writes anew; a test keeps them below it, within a quarter. Seconds are no business of a test.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from benchmarks.blob_server import serve_layout
from benchmarks.demo import drop_page_cache
from benchmarks.link import Link, parse_link
from benchmarks.node import TAG, convert_recipe, lazyfs, running_node
from benchmarks.process import FailedError
from lazyfs.bench.cold import in_peace, undisturbed

RECORDED = Path(__file__).with_name("stable.json")
MOST = 1.25
"""Of what was recorded: what the kernel reads ahead, and when, differs a little from start to start."""
_NAME = "stable"
_SECONDS = 120


@dataclass(frozen=True, slots=True)
class Counts:
    requests: int
    down: int
    device_reads: int
    calls: int


MORE = Counts(requests=20, down=1_000_000, device_reads=60, calls=200)
"""Beyond: on a machine that is slow at the moment readers overtake a launch pack, and ask for themselves. A tenth of
what they ask for without one."""


def measure(directory: Path, cache: Path) -> dict[str, Counts]:
    """Of a start without a launch pack, and of one with; `directory` lies on a disk, and is empty."""
    layout = convert_recipe("demo", cache, directory / "layout")
    found = {"without a pack": _start(directory / "node", layout)}
    command = [
        *lazyfs(directory / "recording"),
        "profile",
        "record",
        f"oci:{layout}:{TAG}",
        "--ready",
        "exit",
    ]
    subprocess.run(command, check=True, capture_output=True, timeout=_SECONDS)
    return found | {"with a pack": _start(directory / "node", layout)}


def too_many(found: dict[str, Counts], recorded: dict[str, Counts]) -> list[str]:
    """A line for each figure that is more than was recorded."""
    return [
        f"{start}: {each.name} {getattr(counts, each.name):,}, recorded {getattr(recorded[start], each.name):,}"
        for start, counts in found.items()
        for each in fields(counts)
        if getattr(counts, each.name) > getattr(recorded[start], each.name) * MOST + getattr(MORE, each.name)
    ]


def read_recorded() -> dict[str, Counts]:
    return {start: Counts(**values) for start, values in json.loads(RECORDED.read_text()).items()}


def _start(root: Path, layout: Path) -> Counts:
    return in_peace(lambda: _start_once(root, layout))


def _start_once(root: Path, layout: Path) -> Counts:
    with (
        serve_layout(layout, _NAME) as server,
        Link(parse_link("loopback"), server) as link,
        running_node(root) as client,
    ):
        drop_page_cache()
        io = Path(f"/proc/{client.status()['pid']}/io")
        before, calls = client.status()["device_reads"], _calls(io)
        command = [*lazyfs(root), "run", "--no-fill", f"docker://{link.address}/{_NAME}:{TAG}"]
        with undisturbed():
            done = subprocess.run(command, capture_output=True, timeout=_SECONDS, check=False)
        if done.returncode or not done.stdout.startswith(b"ready"):
            raise FailedError(f"the demo image did not get ready: {done.stderr[-300:]!r}")
        counts = link.counts()
        reads = client.status()["device_reads"] - before
        return Counts(counts.requests, counts.down, reads, _calls(io) - calls)


def _calls(io: Path) -> int:
    values = dict(line.split(": ") for line in io.read_text().splitlines())
    return int(values["syscr"]) + int(values["syscw"])


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.stable", description=__doc__)
    parser.add_argument("--cache", type=Path, default=Path(".cache/images"))
    parser.add_argument("--record", action="store_true", help="from now on these are the figures to hold")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="lazyfs-measure-", dir="/var/tmp") as directory:
        found = measure(Path(directory), arguments.cache)
    text = json.dumps({start: asdict(counts) for start, counts in found.items()}, indent=2)
    print(text)
    if arguments.record:
        RECORDED.write_text(text + "\n")
        return 0
    lines = too_many(found, read_recorded())
    print(*lines, sep="\n", file=sys.stderr)
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())

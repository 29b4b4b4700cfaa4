"""What the daemon takes while it does nothing: memory with 100 layers mounted, CPU in ten idle seconds.

    python -m benchmarks.footprint [--layers 100] [--files 500] [--seconds 10]

The layers are made up, each of so many small files that no other has. All files are looked at once, and some read.
"""

import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks import synthetic
from benchmarks.images.layout import write_layout
from benchmarks.node import TAG, convert, mounted, running_node
from benchmarks.report import Row, conclude, parser

LAYERS, FILES, SECONDS = 100, 500, 10.0
MEMORY_BAR_MB, CPU_BAR = 120.0, 0.0
_SETTLE_SECONDS = 30.0
"""After the last read, until what is written behind readers is written, and threads have ended."""


@dataclass(frozen=True, slots=True)
class Footprint:
    """`resident` and `keeper` in bytes; CPU seconds of daemon and keeper together in `seconds` idle ones."""

    layers: int
    files: int
    resident: int
    keeper: int
    seconds: float
    cpu: float


def main() -> int:
    options = parser("benchmarks.footprint", __doc__)
    options.add_argument("--layers", type=int, default=LAYERS)
    options.add_argument("--files", type=int, default=FILES)
    options.add_argument("--seconds", type=float, default=SECONDS)
    arguments = options.parse_args()
    found = measure(arguments.layers, arguments.files, arguments.seconds)
    return conclude(arguments, [found], rows(found))


def measure(layers: int = LAYERS, files: int = FILES, seconds: float = SECONDS) -> Footprint:
    with tempfile.TemporaryDirectory(prefix="lazyfs-measure-") as name:
        directory = Path(name)
        layout = convert(f"oci:{_made(directory, layers, files)}:{TAG}", directory / "layout")
        root = directory / "node"
        with (
            running_node(root) as client,
            mounted(root, f"oci:{layout}:{TAG}", directory / "mounted") as tree,
        ):
            subprocess.run(["ls", "--recursive", "-l", tree], stdout=subprocess.DEVNULL, check=True)
            for number in range(layers):
                (tree / f"layer{number}/usr/lib/modules0/package0/module_1.py").read_bytes()
            time.sleep(_SETTLE_SECONDS)
            daemon = client.status()["pid"]
            keeper = _parent(daemon)
            before = _worked(daemon) + _worked(keeper)
            time.sleep(seconds)
            cpu = _worked(daemon) + _worked(keeper) - before
            return Footprint(layers, files, _resident(daemon), _resident(keeper), seconds, cpu)


def _made(directory: Path, layers: int, files: int) -> Path:
    """An image layout of so many layers."""
    packed = []
    for number in range(layers):
        file = directory / f"layer-{number}"
        pieces = synthetic.many_files(files, b"layer%d/" % number)
        packed.append((synthetic.pack(pieces, file), file, "made up"))
    write_layout(directory / "made", TAG, packed, {})
    return directory / "made"


def _resident(process: int) -> int:
    return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _worked(process: int) -> float:
    """Seconds of the processor that its threads had; to the microsecond, where `stat` counts hundredths."""
    threads = Path(f"/proc/{process}/task").iterdir()
    return sum(int((each / "schedstat").read_text().split()[0]) for each in threads) / 1e9


def _parent(process: int) -> int:
    return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])


def rows(found: Footprint) -> list[Row]:
    what = f"{found.layers} layers of {found.files} files mounted"
    return [
        Row(f"{what}: memory of the daemon", found.resident / 1e6, "MB", MEMORY_BAR_MB),
        Row(f"{what}: memory of its keeper", found.keeper / 1e6, "MB"),
        Row(f"CPU of both in {found.seconds:g} idle seconds", found.cpu * 1e3, "ms", CPU_BAR),
    ]


if __name__ == "__main__":
    sys.exit(main())

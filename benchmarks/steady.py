"""A container that has long been running: lazyfs beside overlayfs on the machine's own file system.

    python -m benchmarks.steady [--runs 5]

Both roots can be written, and have every byte on this machine. Warm: what is measured has been done once before; cold:
the page cache is empty. Opens are 10,000 files, opened, asked for their size and closed; reads, by fio, are of 4 KiB at
random places of the largest file and of all of it in order; find and tar go through the whole root; the compile is gcc
in the image itself. Ratios are of pairs.
"""

import json
import os
import random
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks.demo import drop_page_cache
from benchmarks.images import RECIPES, ensure
from benchmarks.node import TAG, convert, lazyfs, running_node
from benchmarks.process import FailedError
from benchmarks.report import Row, conclude, parser
from benchmarks.unpack import image_layers, unpack
from lazyfs.bench.figures import ratio
from lazyfs.mount.syscalls import mount_overlay, unmount
from lazyfs.stores import parse_reference

RUNS, COLD_RUNS = 5, 3
OPENS = 10_000
READS = {False: 200_000, True: 5_000}
"""Random ones of fio, warm and cold."""
_IMAGE = "gcc"
_FUNCTIONS = 400
_LAST = 200  # characters
_BLOCK = 4096
_ROUNDS = 20
"""In which a file is read in order when it is warm: once takes a few milliseconds."""
BARS = {
    f"{name}, warm": 1.1
    for name in ("10,000 opens", "random reads", "reads in order", "find", "tar", "a compile")
}
"""Ours / overlayfs's."""


@dataclass(frozen=True, slots=True)
class Steady:
    """Seconds of each run, in the same order."""

    measure: str
    lazyfs: list[float]
    overlayfs: list[float]


def main() -> int:
    options = parser("benchmarks.steady", __doc__)
    options.add_argument("--runs", type=int, default=RUNS)
    arguments = options.parse_args()
    found = measure(arguments.cache, arguments.runs)
    for each in found:
        ours, theirs = statistics.median(each.lazyfs), statistics.median(each.overlayfs)
        print(f"{each.measure:26}{ours:8.3f} s{theirs:8.3f} s   {ratio(each.lazyfs, each.overlayfs)}")
    return conclude(arguments, found, rows(found))


def measure(cache: Path, runs: int = RUNS) -> list[Steady]:
    with (
        tempfile.TemporaryDirectory(prefix="lazyfs-measure-", dir="/var/tmp") as name,
        _both_roots(Path(name), cache) as roots,
    ):
        for root in roots.values():
            _write_source(root)
            for path in _files(root):
                path.read_bytes()
        return [_paired(roots, measure, action, runs, cold=cold) for measure, action, cold in _actions(roots)]


Action = Callable[[Path], float]
"""Seconds that it took in a root."""


def _actions(roots: Mapping[str, Path]) -> Iterator[tuple[str, Action, bool]]:
    files = [path.relative_to(roots["overlayfs"]) for path in _files(roots["overlayfs"])]
    largest = max(files, key=lambda path: (roots["overlayfs"] / path).stat().st_size)
    many = random.Random(1).choices(files, k=OPENS)
    for cold in (False, True):
        state = "cold" if cold else "warm"
        at_random = ["--rw=randread", "--bs=4k", "--norandommap", f"--io_size={READS[cold] * _BLOCK}"]
        in_order = ["--rw=read", "--bs=1M", f"--loops={1 if cold else _ROUNDS}"]
        yield f"10,000 opens, {state}", partial(_timed, lambda root: _open(root, many)), cold
        yield f"random reads, {state}", partial(_fio, largest, at_random), cold
        yield f"reads in order, {state}", partial(_fio, largest, in_order), cold
        yield f"find, {state}", partial(_timed, _find), cold
        yield f"tar, {state}", partial(_timed, _tar), cold
        yield f"a compile, {state}", partial(_timed, _compile), cold


def _paired(roots: Mapping[str, Path], name: str, action: Action, runs: int, *, cold: bool) -> Steady:
    seconds: dict[str, list[float]] = {way: [] for way in roots}
    for root in roots.values():
        action(root)
    for run in range(min(runs, COLD_RUNS) if cold else runs):
        for way, root in list(roots.items())[:: 1 if run % 2 else -1]:
            if cold:
                drop_page_cache()
            seconds[way].append(action(root))
    return Steady(name, seconds["lazyfs"], seconds["overlayfs"])


def _timed(work: Callable[[Path], None], root: Path) -> float:
    began = time.monotonic()
    work(root)
    return time.monotonic() - began


def _fio(file: Path, options: list[str], root: Path) -> float:
    """Seconds of the reads alone, as fio tells them."""
    command = ["fio", "--name=reads", "--readonly", f"--filename={root / file}", "--ioengine=psync"]
    command += ["--invalidate=0", "--randrepeat=1", "--output-format=json", *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise FailedError(f"fio: {done.stderr.strip()[-_LAST:]}")
    reads = json.loads(done.stdout)["jobs"][0]["read"]
    return float(reads["io_bytes"]) / float(reads["bw_bytes"])


def _open(root: Path, files: list[Path]) -> None:
    base = str(root)
    for path in files:
        descriptor = os.open(f"{base}/{path}", os.O_RDONLY)
        os.fstat(descriptor)
        os.close(descriptor)


def _find(root: Path) -> None:
    subprocess.run(["find", root, "-printf", "%s"], check=True, stdout=subprocess.DEVNULL)


def _tar(root: Path) -> None:
    # GNU tar does not read what it writes to /dev/null.
    command = f"tar --create --file=- --directory={shlex.quote(str(root))} . | cat >/dev/null"
    subprocess.run(["sh", "-c", command], check=True)


def _compile(root: Path) -> None:
    command = ["chroot", str(root), "gcc", "-O1", "-o", "/tmp/program", "/srv/app/large.c"]
    subprocess.run(command, check=True, capture_output=True)


def _write_source(root: Path) -> None:
    """A program that takes a moment to compile, in the upper directory."""
    functions = "\n".join(
        f"int f{each}(int x) {{ return x * {each} + (x >> 3); }}" for each in range(_FUNCTIONS)
    )
    calls = "".join(f"sum += f{each}(sum);" for each in range(_FUNCTIONS))
    text = f'#include <stdio.h>\n{functions}\nint main(void) {{ int sum = 1; {calls} printf("%d", sum); return 0; }}\n'
    (root / "srv/app/large.c").write_text(text)


def _files(root: Path) -> Iterator[Path]:
    for parent, _, names in os.walk(root / "usr"):
        for name in names:
            path = Path(parent, name)
            if path.is_file() and not path.is_symlink():
                yield path


@contextmanager
def _both_roots(directory: Path, cache: Path) -> Iterator[dict[str, Path]]:
    """The image by lazyfs and unpacked layer by layer, both below an overlay that can be written."""
    image = ensure(RECIPES[_IMAGE], cache)
    source = parse_reference(image.reference)
    layout = convert(image.reference, directory / "layout")
    ours, theirs = directory / "lazyfs", directory / "overlayfs"
    layers, _ = image_layers(Path(source.location), source.tag or "latest")
    lower = []
    for number, layer in enumerate(layers):
        unpack([layer], directory / f"layer{number}")
        lower.append(directory / f"layer{number}")
    upper, work = directory / "upper", directory / "work"
    for each in (ours, theirs, upper, work):
        each.mkdir()
    with ExitStack() as stack:
        root = directory / "node"
        stack.enter_context(running_node(root))
        subprocess.run([*lazyfs(root), "mount", "--rw", f"oci:{layout}:{TAG}", str(ours)], check=True)
        stack.callback(subprocess.run, [*lazyfs(root), "umount", str(ours)], check=True)
        mount_overlay(theirs, lower[::-1], upper, work)
        stack.callback(unmount, theirs)
        yield {"lazyfs": ours, "overlayfs": theirs}


def rows(found: list[Steady]) -> list[Row]:
    made = []
    for each in found:
        pairs = ratio(each.lazyfs, each.overlayfs)
        made.append(Row(f"{each.measure}, of overlayfs's", pairs.median, "", BARS.get(each.measure)))
    return made


if __name__ == "__main__":
    sys.exit(main())

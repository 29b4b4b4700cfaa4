"""`kill -9` of the daemon again and again, while readers check every byte that they get.

    python -m benchmarks.kill_daemon [--kills 1000] [--readers 16] [--how kill|stop] [--mount-mode loop]

Half of the readers read files of a mounted image, whose pages are dropped before each read; half read the
devices below it with O_DIRECT, past every cache of the kernel. Each read is compared with the same bytes of an
ordinary unpack (of the devices: of a copy made before the first kill). A daemon is killed after it has served for
a random time of up to a second; one in five while it starts.
"""

import argparse
import json
import mmap
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from benchmarks.images import RECIPES, ensure
from benchmarks.report import Row
from benchmarks.unpack import image_layers, unpack
from converter import Settings, convert_image
from lazyfs.config import NodePaths
from lazyfs.daemon.client import DaemonClient, daemon_in_use
from lazyfs.keeper.client import KeeperClient
from lazyfs.mount.images import mount_view, unmount_image
from lazyfs.mount.ladder import AUTO, MODES
from lazyfs.stores import open_store, parse_reference

READERS = 16
LARGEST_READ = 256 << 10
LONGEST_PAUSE = 1.0
EARLY = 0.2
LONGEST_READ = 5.0
"""Seconds: the bar for a reader that waits for the next daemon."""
_ALIGNMENT = 4096
_FILES = 300


@dataclass(frozen=True, slots=True)
class Pair:
    """A file to be read, and one that holds the same bytes."""

    shown: Path
    expected: Path
    direct: bool = False


@dataclass(slots=True)
class Outcome:
    kills: int = 0
    reads: int = 0
    bytes: int = 0
    wrong: int = 0
    longest_read: float = 0.0
    longest_once: float = 0.0
    """Of the reads under which one daemon was killed at most; others waited for several in turn."""
    seconds: float = 0.0
    errors: list[str] = field(default_factory=list)

    def rows(self) -> list[Row]:
        name = f"{self.kills} kills, {self.reads} reads:"
        return [
            Row(f"{name} errors", len(self.errors), "", 0),
            Row(f"{name} reads of wrong bytes", self.wrong, "", 0),
            Row(f"{name} longest read across one kill", self.longest_once, "s", LONGEST_READ),
            Row(f"{name} longest read", self.longest_read, "s"),
        ]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kill_daemon", description=__doc__)
    parser.add_argument("--cache", type=Path, default=Path(".cache/images"))
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--readers", type=int, default=READERS)
    parser.add_argument(
        "--how", choices=["kill", "stop"], default="kill", help="stop: SIGSTOP, for the watchdog"
    )
    parser.add_argument("--mount-mode", choices=MODES, default=AUTO, help="how the image is shown")
    parser.add_argument("--json", type=Path, help="write the figures to this file as well")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="lazyfs-bench-") as directory:
        outcome = measure(
            Path(directory),
            arguments.cache,
            arguments.kills,
            arguments.readers,
            _KINDS[arguments.how],
            show,
            mode=arguments.mount_mode,
        )
    show(outcome)
    if arguments.json:
        arguments.json.write_text(json.dumps(asdict(outcome), indent=2) + "\n")
    return 0 if not outcome.errors and not outcome.wrong and outcome.longest_once <= LONGEST_READ else 1


def show(outcome: Outcome) -> None:
    print(
        f"{outcome.kills} kills in {outcome.seconds:.0f} s; {outcome.reads} reads of {outcome.bytes / 1e6:.0f} MB: "
        f"{len(outcome.errors)} errors, {outcome.wrong} of wrong bytes, the longest across one kill "
        f"{outcome.longest_once:.2f} s, across several {outcome.longest_read:.2f} s",
        flush=True,
    )
    for error in outcome.errors[:10]:
        print(f"  {error}")


def measure(
    directory: Path,
    cache: Path,
    kills: int,
    readers: int = READERS,
    number: signal.Signals = signal.SIGKILL,
    progress: Callable[[Outcome], None] = lambda _: None,
    *,
    mode: str = AUTO,
) -> Outcome:
    """On the demo image, with a node of its own below `directory`."""
    source = parse_reference(ensure(RECIPES["demo"], cache).reference)
    target = parse_reference(f"oci:{directory / 'store'}:image")
    with open_store(source) as from_store, open_store(target, create=True) as to_store:
        convert_image(from_store, source, to_store, target, Settings())
    layers, _ = image_layers(Path(source.location), source.tag or "latest")
    unpack(layers, directory / "unpacked")
    paths = NodePaths.choose(directory / "node")
    mounted = directory / "mounted"
    mounted.mkdir()
    with daemon_in_use(paths) as client:
        image = client.open_image(str(target), mode=mode)
        mount_view(paths, image, mounted)
    try:
        found = _largest(directory / "unpacked")
        pairs = [Pair(mounted / path.relative_to(directory / "unpacked"), path) for path in found]
        pairs += [_copied(Path(device), directory) for device in image["devices"]]
        return torment(paths, pairs, kills, readers, number, progress)
    finally:
        unmount_image(paths, mounted)
        DaemonClient(paths).shutdown()


def _largest(tree: Path) -> list[Path]:
    files = [path for path in tree.rglob("*") if path.is_file() and not path.is_symlink()]
    return sorted(files, key=lambda path: path.stat().st_size, reverse=True)[:_FILES]


def _copied(device: Path, directory: Path) -> Pair:
    copy = directory / f"device-{device.name}"
    copy.write_bytes(device.read_bytes())
    return Pair(device, copy, direct=True)


def torment(
    paths: NodePaths,
    pairs: Sequence[Pair],
    kills: int,
    readers: int,
    number: signal.Signals = signal.SIGKILL,
    progress: Callable[[Outcome], None] = lambda _: None,
) -> Outcome:
    """Read `pairs` with so many readers while the daemon of `paths` is killed so many times."""
    outcome = Outcome()
    lock = threading.Lock()
    over = threading.Event()
    direct = [pair for pair in pairs if pair.direct]
    through = [pair for pair in pairs if not pair.direct]
    began = time.monotonic()

    def read(seed: int) -> None:
        choice = random.Random(seed)
        while not over.is_set():
            _read_one(choice.choice(direct if seed % 2 and direct else through), choice, outcome, lock)

    with ThreadPoolExecutor(readers) as pool:
        reading = [pool.submit(read, seed) for seed in range(readers)]
        try:
            choice = random.Random(kills)
            for count in range(1, kills + 1):
                if choice.random() < EARLY:
                    time.sleep(choice.uniform(0.0, LONGEST_PAUSE / 2))
                else:
                    _wait_for(lambda: _serving(paths))
                    time.sleep(choice.uniform(0.0, LONGEST_PAUSE))
                outcome.kills = count
                _kill(paths, number)
                outcome.seconds = time.monotonic() - began
                if count % 50 == 0:
                    progress(outcome)
            _wait_for(lambda: _serving(paths) is not None)
        finally:
            over.set()
        for each in reading:
            each.result()
    outcome.seconds = time.monotonic() - began
    return outcome


def _read_one(pair: Pair, choice: random.Random, outcome: Outcome, lock: threading.Lock) -> None:
    size = pair.expected.stat().st_size
    offset = choice.randrange(0, max(size, 1), _ALIGNMENT)
    length = choice.randrange(_ALIGNMENT, LARGEST_READ, _ALIGNMENT)
    began, kills = time.monotonic(), outcome.kills
    try:
        data = _read(pair, offset, length)
        error = ""
    except OSError as failure:
        data, error = b"", f"{pair.shown}: {failure.strerror}"
    seconds = time.monotonic() - began
    with pair.expected.open("rb") as file:
        right = os.pread(file.fileno(), length, offset)
    with lock:
        outcome.reads += 1
        outcome.bytes += len(data)
        outcome.longest_read = max(outcome.longest_read, seconds)
        if outcome.kills <= kills + 1:
            outcome.longest_once = max(outcome.longest_once, seconds)
        if error:
            outcome.errors.append(error)
        elif data != right:
            outcome.wrong += 1


def _read(pair: Pair, offset: int, length: int) -> bytes:
    descriptor = os.open(pair.shown, os.O_RDONLY | (os.O_DIRECT if pair.direct else 0))
    try:
        if not pair.direct:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            return os.pread(descriptor, length, offset)
        # O_DIRECT takes memory that begins at a page.
        with mmap.mmap(-1, length) as memory:
            return memory[: os.preadv(descriptor, [memory], offset)]
    finally:
        os.close(descriptor)


def _kill(paths: NodePaths, number: signal.Signals) -> None:
    """The daemon that serves, or is about to; a stopped one is waited for, since the watchdog is to kill it."""
    _wait_for(lambda: _daemons(paths))
    for pid in _daemons(paths):
        with suppress(ProcessLookupError):
            os.kill(pid, number)
            if number == signal.SIGSTOP:
                _wait_for(lambda pid=pid: pid not in _daemons(paths))  # type: ignore[misc]


def _daemons(paths: NodePaths) -> list[int]:
    return [each["pid"] for each in KeeperClient(paths).status()["daemons"]]


def _serving(paths: NodePaths) -> int | None:
    found = [each["pid"] for each in KeeperClient(paths).status()["daemons"] if each["stage"] == "serving"]
    return found[0] if found else None


def _wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError("the node does not come back")
        time.sleep(0.01)


_KINDS = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}


if __name__ == "__main__":
    sys.exit(main())

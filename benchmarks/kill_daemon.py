"""`kill -9` of the daemon again and again, while readers check every byte that they get.

    python -m benchmarks.kill_daemon [--kills 1000] [--readers 16] [--how kill|stop|memory|start] [--mount-mode loop]

Half of the readers read files of a mounted image, whose pages are dropped before each read; half read the
devices below it with O_DIRECT, past every cache of the kernel. Each read is compared with the same bytes of an
ordinary unpack (of the devices: of a copy made before the first kill). A daemon is killed after it has served for
a random time of up to 0.3 s; one in five while it starts. Other ways than SIGKILL: it is stopped, and the watchdog
kills it; it has no memory left, and the kernel kills it (a control group with a limit, cgroup v1); the three that come
after it do not get to serve either.
"""

import argparse
import json
import mmap
import os
import random
import signal
import statistics
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
from lazyfs.mount.images import DIRECT, find_image_mounts, mount_view, unmount_image
from lazyfs.mount.ladder import AUTO, FILE, MODES
from lazyfs.stores import open_store, parse_reference

READERS = 16
LARGEST_READ = 256 << 10
LONGEST_PAUSE = 0.3
LONGEST_START = 1.0
EARLY = 0.2
FAILED_STARTS = 3
MEMORY_LEFT = 4 << 20
LONGEST_READ = 5.0
"""Seconds: the bar for a reader that waits for the next daemon."""
_MEMORY_GROUPS = Path("/sys/fs/cgroup/memory")
_ALIGNMENT = 4096
_FILES = 300
_WARM_SECONDS = 60.0

End = Callable[[NodePaths], None]
"""Ends the daemon of a node in some way."""


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
    gaps: list[float] = field(default_factory=list)
    """Seconds from the end of each daemon that served until the next one did, as far as that one got to it."""
    errors: list[str] = field(default_factory=list)

    def median_gap(self) -> float:
        return statistics.median(self.gaps) if self.gaps else 0.0

    def rows(self) -> list[Row]:
        name = "the daemon is killed:"
        return [
            Row(f"{name} times", self.kills, ""),
            Row(f"{name} reads", self.reads, ""),
            Row(f"{name} errors", len(self.errors), "", 0),
            Row(f"{name} reads of wrong bytes", self.wrong, "", 0),
            Row(f"{name} longest read across one kill", self.longest_once, "s", LONGEST_READ),
            Row(f"{name} longest read", self.longest_read, "s"),
            Row(f"{name} median until the next daemon serves", self.median_gap(), "s"),
        ]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kill_daemon", description=__doc__)
    parser.add_argument("--cache", type=Path, default=Path(".cache/images"))
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--readers", type=int, default=READERS)
    parser.add_argument(
        "--how", choices=list(_ENDS), default="kill", help="stop: for the watchdog; memory: for the kernel"
    )
    parser.add_argument("--mount-mode", choices=(*MODES, DIRECT), default=AUTO, help="how the image is shown")
    parser.add_argument("--json", type=Path, help="write the figures to this file as well")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="lazyfs-measure-") as directory:
        outcome = measure(
            Path(directory),
            arguments.cache,
            arguments.kills,
            arguments.readers,
            _ENDS[arguments.how],
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
        f"{outcome.longest_once:.2f} s, across several {outcome.longest_read:.2f} s; the next daemon served after "
        f"{outcome.median_gap():.2f} s in the median; load {os.getloadavg()[0]:.0f}",
        flush=True,
    )
    for error in outcome.errors[:10]:
        print(f"  {error}")


def measure(
    directory: Path,
    cache: Path,
    kills: int,
    readers: int = READERS,
    end: End | None = None,
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
        if mode == DIRECT:
            warm = {
                "reference": str(target),
                "directory": str(directory),
                "after": 0,
                "seconds": _WARM_SECONDS,
            }
            client.ask("POST /v1/cache/warm", warm)
        image = client.open_image(str(target), mode=FILE if mode == DIRECT else mode)
        mount_view(paths, image, mounted)
        (shown,) = find_image_mounts(paths, image["key"])
        if (mode == DIRECT) != shown.name.endswith(f"-{DIRECT}"):
            raise ValueError(f"{shown} is mounted in another mode than {mode}")
    try:
        found = _largest(directory / "unpacked")
        pairs = [Pair(mounted / path.relative_to(directory / "unpacked"), path) for path in found]
        pairs += [_copied(Path(device), directory) for device in image["devices"]]
        return torment(paths, pairs, kills, readers, end or kill, progress)
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
    end: End | None = None,
    progress: Callable[[Outcome], None] = lambda _: None,
) -> Outcome:
    """Read `pairs` with so many readers while the daemon of `paths` is ended so many times."""
    end = end or kill
    outcome = Outcome()
    lock = threading.Lock()
    over = threading.Event()
    direct = [pair for pair in pairs if pair.direct]
    through = [pair for pair in pairs if not pair.direct]
    began, ended = time.monotonic(), 0.0

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
                    time.sleep(choice.uniform(0.0, LONGEST_START))
                    ended = 0.0
                else:
                    _wait_for(lambda: _serving(paths))
                    if ended:
                        outcome.gaps.append(time.monotonic() - ended)
                    time.sleep(choice.uniform(0.0, LONGEST_PAUSE))
                    ended = time.monotonic()
                outcome.kills = count
                end(paths)
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


def kill(paths: NodePaths) -> None:
    """The daemon that serves, or is about to."""
    _wait_for(lambda: _daemons(paths))
    for pid in _daemons(paths):
        _signal(paths, pid, signal.SIGKILL)


def stop(paths: NodePaths) -> None:
    """It is stopped; the watchdog is to find it, and to kill it."""
    _wait_for(lambda: _daemons(paths))
    for pid in _daemons(paths):
        _signal(paths, pid, signal.SIGSTOP)


def starve(paths: NodePaths) -> None:
    """The kernel kills it, since its control group has no memory left."""
    _wait_for(lambda: _daemons(paths))
    group = _MEMORY_GROUPS / f"lazyfs-bench-{os.getpid()}"
    group.mkdir(exist_ok=True)
    try:
        for pid in _daemons(paths):
            with suppress(ProcessLookupError):
                (group / "cgroup.procs").write_text(str(pid))
                (group / "memory.limit_in_bytes").write_text(str(MEMORY_LEFT))
                _wait_until_gone(paths, pid)
    finally:
        _wait_for(lambda: not (group / "cgroup.procs").read_text())
        group.rmdir()


def fail_starts(paths: NodePaths) -> None:
    """So that it and the next ones end before they serve."""
    ended: set[int] = set()
    while len(ended) <= FAILED_STARTS:
        _wait_for(lambda: set(_daemons(paths)) - ended)
        for pid in set(_daemons(paths)) - ended:
            _signal(paths, pid, signal.SIGKILL)
            ended.add(pid)


def _signal(paths: NodePaths, pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)
    _wait_until_gone(paths, pid)


def _wait_until_gone(paths: NodePaths, pid: int) -> None:
    _wait_for(lambda: pid not in _daemons(paths))


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


_ENDS: dict[str, End] = {"kill": kill, "stop": stop, "memory": starve, "start": fail_starts}


if __name__ == "__main__":
    sys.exit(main())

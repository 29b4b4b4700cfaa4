"""Device servers in processes of their own, and the certainty that none leaves a mount."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from lazyfs.mount.mountinfo import list_mounts
from lazyfs.mount.syscalls import unmount

REPOSITORY = Path(__file__).parents[2]
PATIENCE = 60.0
_TOO_LATE = tuple(
    f"{call}(): fuse_reply_* failed with No such file or directory"
    for call in ("fuse_read", "fuse_release", "fuse_releasedir")
)
"""What nobody waits for (read ahead, closed) and the kernel wants no more when the mount goes."""


class DeviceServer:
    """A running `tests.mount.device_server`; ``expected`` are parts of the errors that its log may show.

    ``devices`` are there before it serves: whoever waits for one of an earlier server would not find it otherwise.
    """

    def __init__(
        self,
        target: Path,
        log: Path,
        descriptor: int | None = None,
        *,
        old: bool = False,
        devices: Sequence[dict[str, Any]] = (),
    ) -> None:
        self.target = target
        self.expected = [*_TOO_LATE]
        self._log = log
        if descriptor is None:
            target.mkdir(exist_ok=True)
        passed = [] if descriptor is None else [descriptor]
        more = ["old"] if old else []
        with log.open("wb") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.mount.device_server", str(target), *map(str, passed), *more],
                pass_fds=passed,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                cwd=REPOSITORY,
                env=os.environ | {"LAZYFS_TEST_DEVICES": json.dumps(devices)},
                text=True,
            )
        self._answer()

    def do(self, command: str, **arguments: Any) -> Any:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"do": command, **arguments}) + "\n")
        self.process.stdin.flush()
        return self._answer()

    def add(self, name: str, *, inode: int = 10, **device: Any) -> Path:
        self.do("add", inode=inode, name=name, **device)
        return self.target / name

    def log_lines(self) -> list[str]:
        return self._log.read_text().splitlines()

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()

    def close(self) -> None:
        """End it, whatever state it is in, and look whether it had something to complain about."""
        self.process.communicate(timeout=PATIENCE)
        while unmount(self.target, detach=True):
            pass
        bad = [line for line in self.log_lines() if not line.startswith("INFO ")]
        assert [line for line in bad if not any(part in line for part in self.expected)] == []
        assert self.process.returncode in (0, -signal.SIGKILL)

    def _answer(self) -> Any:
        assert self.process.stdout is not None
        watchdog = threading.Timer(PATIENCE, self.process.kill)
        watchdog.start()
        try:
            line = self.process.stdout.readline()
        finally:
            watchdog.cancel()
        assert line, f"the device server is gone: {self._log.read_text()}"
        return json.loads(line)


@pytest.fixture
def server(temp_root: Path) -> Iterator[DeviceServer]:
    running = DeviceServer(temp_root / "devices", temp_root / "server.log")
    try:
        yield running
    finally:
        _end(running)


@pytest.fixture(scope="module")
def shared_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DeviceServer]:
    """One server for many examples of a property."""
    directory = tmp_path_factory.mktemp("shared").resolve()
    running = DeviceServer(directory / "devices", directory / "server.log")
    try:
        yield running
    finally:
        _end(running)
        assert list_mounts(directory) == []


def _end(running: DeviceServer) -> None:
    try:
        running.close()
    except BaseException:
        # Once it is dead its readers are freed, and the mount can always be taken away.
        running.kill()
        while unmount(running.target, detach=True):
            pass
        raise


@pytest.fixture(autouse=True)
def deadline() -> Iterator[None]:
    """A test that hangs fails; what it started is ended by the other fixtures."""

    def give_up(number: int, frame: object) -> None:
        raise TimeoutError("the test took too long")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(120)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def drop_pages(path: Path) -> None:
    """Make the kernel forget what it has cached of ``path``."""
    with path.open("rb") as file, suppress(OSError):
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def names(directory: Path) -> list[str]:
    """What is in the directory, sorted."""
    return sorted(entry.name for entry in directory.iterdir())

"""What all tests share: hypothesis profiles, and directories in which no mount may be left."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import pytest
from hypothesis import HealthCheck, settings

from lazyfs.mount.mountinfo import list_mounts
from lazyfs.mount.syscalls import unmount

# How long examples take to be made tells of the machine: the tables for text alone are a second's work on a quiet one.
_calm = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("default", _calm)
settings.register_profile("ci", _calm, derandomize=True, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "default")

# Where these are set, pytest shows all of a difference; to find that of two blobs takes it an hour.
for _name in ("CI", "BUILD_NUMBER"):
    os.environ.pop(_name, None)

# A shell that starts the tests in the background has them ignore SIGINT and SIGQUIT, nohup SIGHUP; their children
# would as well.
signal.signal(signal.SIGINT, signal.default_int_handler)
for _number in (signal.SIGQUIT, signal.SIGHUP):
    signal.signal(_number, signal.SIG_DFL)


@pytest.fixture
def temp_root(tmp_path: Path) -> Iterator[Path]:
    """A directory for a test that mounts; what it leaves mounted is unmounted, and fails it."""
    root = tmp_path.resolve()
    yield root
    left = [entry.target for entry in list_mounts(root)]
    for target in left:
        unmount(target, detach=True)
    assert left == []


@pytest.fixture
def time_limit() -> Iterator[None]:
    """Ends a test that hangs, where a thread or a pipe could be waited for in vain.

    On a machine that others share a test may take ten times as long as on a quiet one.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        raise TimeoutError("the test did not end within 300 s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(300)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)

"""A daemon that was killed and cannot end: one of its threads waits for a page that only a successor unlocks."""

import hashlib
import os
import signal
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from lazyfs.keeper import child, link
from lazyfs.mount.connection import open_and_mount
from lazyfs.mount.syscalls import unmount
from tests.daemon.processes import PATIENCE
from tests.mount.conftest import DeviceServer
from tests.mount.pattern import pattern
from tests.waiting import wait_until

pytestmark = pytest.mark.root

SIZE = 1 << 20


def waits_in_kernel(pid: int) -> bool:
    """One of its threads waits and cannot be interrupted."""
    for thread in Path(f"/proc/{pid}/task").iterdir():
        with suppress(OSError):
            if (thread / "stat").read_text().rpartition(")")[2].split()[0] == "D":
                return True
    return False


def test_its_successor_sets_it_free(temp_root: Path) -> None:
    """The reader is a process of its own: this one holds the connection, and would wait for itself."""
    target = temp_root / "devices"
    target.mkdir()
    descriptor = open_and_mount(target)
    ours, theirs = link.pair()
    started: list[subprocess.Popen[Any]] = []
    try:
        first = DeviceServer(target, temp_root / "first.log", descriptor)
        started.append(first.process)
        first.do("add", inode=10, name="slow", size=SIZE, parts=[(0, SIZE, "stuck")])
        reader = subprocess.Popen(["sha256sum", target / "slow"], stdout=subprocess.PIPE)
        started.append(reader)
        first.do("wait_for_readers", name="slow", count=1)
        first.do("store", inode=10, offset=0, size=4096)
        wait_until(lambda: waits_in_kernel(first.process.pid), "a thread that waits for the page")
        daemon = child.adopted(first.process.pid, ours, ours=False, stage=child.SERVING)
        assert not daemon.dies()
        os.kill(first.process.pid, signal.SIGKILL)
        wait_until(daemon.dies, "a process that is dead to all but the kernel")
        assert first.process.poll() is None, "it has not ended"
        devices = [{"inode": 10, "name": "slow", "size": SIZE}]
        second = DeviceServer(target, temp_root / "second.log", descriptor, devices=devices)
        started.append(second.process)
        said, _ = reader.communicate(timeout=PATIENCE)
        assert said.split()[0].decode() == hashlib.sha256(pattern(0, 0, SIZE)).hexdigest()
        assert first.process.wait(PATIENCE) == -signal.SIGKILL
        daemon.reap()
    finally:
        for process in started:
            process.kill()
        # With the last copy of it the connection ends, and whoever still waits is let go.
        os.close(descriptor)
        for process in started:
            process.communicate()
        ours.close()
        theirs.close()
        unmount(target, detach=True)

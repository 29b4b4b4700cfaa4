"""Whose directory of a run is nobody's any more."""

import os
import signal
import subprocess
from pathlib import Path

from lazyfs.cli import workspace
from tests.waiting import wait_until


def test_who_was_killed_does_not_live() -> None:
    """Not even before it has been waited for: the parent may have other things to do."""
    with subprocess.Popen(["sleep", "600"]) as process:
        directory = Path(f"/nowhere/run-{process.pid}-token")
        assert workspace._owner_lives(directory)
        process.send_signal(signal.SIGSTOP)
        wait_until(lambda: os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT | os.WNOHANG))
        assert workspace._owner_lives(directory)
        process.kill()
        assert not workspace._owner_lives(directory)
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert not workspace._owner_lives(directory), "a zombie"
    assert not workspace._owner_lives(directory)

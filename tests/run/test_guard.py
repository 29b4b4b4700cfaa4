"""What outlives a run that is killed: it cleans up when the dead can no longer make anything anew."""

import os
import signal
import sys
from pathlib import Path

import pytest

from lazyfs.run.process import guarded, no_signals, spawn
from tests.waiting import wait_until


def test_the_guard_waits_for_the_runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A runtime may live a moment longer than the process that the guard watches."""
    go_on, made, cleaned = tmp_path / "go-on", tmp_path / "made", tmp_path / "cleaned"
    script = f"echo > {tmp_path}/started; until [ -e {go_on} ]; do sleep 0.01; done; echo > {made}"

    def clean_up() -> None:
        cleaned.write_text("after" if made.exists() else "before")

    monkeypatch.setattr("lazyfs.run.process.die_with_parent", lambda: None)  # the moment, drawn out
    pid = os.fork()
    if pid == 0:
        with guarded(clean_up) as guard:
            command = ["/bin/sh", "-c", script]
            spawn(command, no_signals(), log=tmp_path / "log", closed=(0, 1, 2), guard=guard)
            signal.pause()
        os._exit(0)
    wait_until((tmp_path / "started").exists, "the runtime")
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    go_on.touch()
    wait_until(lambda: cleaned.exists() and cleaned.read_text(), "the guard")
    assert cleaned.read_text() == "after"


def test_a_guard_that_is_not_needed_does_nothing(tmp_path: Path) -> None:
    with guarded((tmp_path / "cleaned").touch) as guard:
        command = [sys.executable, "-c", ""]
        pid = spawn(command, no_signals(), log=tmp_path / "log", guard=guard)
        os.waitpid(pid, 0)
    assert not (tmp_path / "cleaned").exists()

"""One daemon as its keeper sees it: starting it, hearing of it, and telling whether it is alive."""

import os
import signal
import socket
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lazyfs.config import NodePaths
from lazyfs.keeper import link
from lazyfs.keeper.early import Early, spawn_daemon

STARTING, STANDBY, SERVING, ENDING = "starting", "standby", "serving", "ending"

# Unanswered pings, one a second, until a daemon is given up. Counted in pings and not in time: a keeper that
# was kept from running itself, by load or since the machine slept, counts none.
STOPPED_PINGS = 1
"""It was stopped (SIGSTOP)."""
HUNG_PINGS = 10
"""It does nothing at all."""
BUSY_PINGS = 60
"""It uses the processor or waits for it: more likely the machine is overloaded."""


@dataclass(slots=True)
class Daemon:
    """`process` is a pidfd; `ours` a child of this process, which must be waited for."""

    pid: int
    process: int
    link: socket.socket
    ours: bool
    stage: str = STARTING
    since: float = field(default_factory=time.monotonic)
    error: dict[str, Any] | None = None
    unanswered: int = 0
    idle: int = 0
    work: int = 0
    killed: bool = False
    """By SIGKILL: somebody's, or the OOM killer's. It did not fail by itself."""

    def enter(self, stage: str) -> None:
        self.stage, self.since = stage, time.monotonic()

    def tell(self, do: str, descriptors: list[int] | None = None) -> None:
        """A daemon that reads nothing, or is gone, is found by its silence and its end."""
        with suppress(OSError):
            link.send(self.link, {"do": do}, descriptors or [])

    def kill(self) -> None:
        with suppress(OSError):
            signal.pidfd_send_signal(self.process, signal.SIGKILL)

    def ping(self) -> str:
        """Ask whether it lives. Returns why not, if it is to be given up."""
        if self.unanswered:  # to look costs more than to ask
            work = _work(self.pid)
            self.idle = 0 if work != self.work else self.idle + 1
            self.work = work
        self.unanswered += 1
        self.tell("ping")
        if self.unanswered > STOPPED_PINGS and _state(self.pid) == "T":
            return "is stopped"
        if self.unanswered > HUNG_PINGS and self.idle > HUNG_PINGS:
            return f"has answered nothing and done nothing for {self.unanswered} s"
        if self.unanswered > BUSY_PINGS:
            return f"has answered nothing for {self.unanswered} s"
        return ""

    def answered(self) -> None:
        self.unanswered = self.idle = 0

    def dies(self) -> bool:
        """It is past doing anything, although the kernel still waits for one of its threads.

        Such a thread may wait for a page that only a successor's answer unlocks.
        """
        if _state(self.pid) == "Z":
            return True
        with suppress(OSError, ValueError):
            lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
            pending = [line.split()[1] for line in lines if line.startswith(("SigPnd:", "ShdPnd:"))]
            return any(int(mask, 16) >> (signal.SIGKILL - 1) & 1 for mask in pending)
        return False

    def reap(self) -> str:
        """It has ended: how, in words."""
        os.close(self.process)
        self.link.close()
        if not self.ours:
            return "ended"
        _, status = os.waitpid(self.pid, 0)
        code = os.waitstatus_to_exitcode(status)
        self.killed = code == -signal.SIGKILL
        return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"


def spawn(paths: NodePaths, user: str) -> Daemon:
    """Start a daemon, which stands by until it is told to serve. Raises OSError."""
    return started(spawn_daemon({"--root": str(paths.root), "--user": user}))


def started(early: Early) -> Daemon:
    pid, end = early
    return _daemon(pid, end, ours_to_wait=True)


def adopted(pid: int, end: socket.socket, *, ours: bool, stage: str) -> Daemon:
    """A daemon that another keeper started. Raises OSError when it has ended meanwhile."""
    daemon = _daemon(pid, end, ours_to_wait=ours)
    daemon.stage = stage
    return daemon


def _daemon(pid: int, end: socket.socket, *, ours_to_wait: bool) -> Daemon:
    end.setblocking(False)
    return Daemon(pid, os.pidfd_open(pid), end, ours_to_wait)


def _state(pid: int) -> str:
    """One letter, see proc_pid_stat(5); empty for a process that is gone."""
    fields = _stat(pid)
    return fields[0] if fields else ""


def _work(pid: int) -> int:
    """Grows while the process runs, or waits for a processor."""
    total = sum(int(value) for value in _stat(pid)[11:13])
    with suppress(OSError):
        for thread in os.scandir(f"/proc/{pid}/task"):
            with suppress(OSError, ValueError, IndexError):
                total += int(Path(thread.path, "schedstat").read_text().split()[1])
    return total


def _stat(pid: int) -> list[str]:
    try:
        # The name, which may hold blanks, stands in brackets before the fields.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []

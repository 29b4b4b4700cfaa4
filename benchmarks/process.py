"""Programs that are measured: wall-clock time, CPU time of all their threads, largest memory."""

import os
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lazyfs.bench.processes import UNTIL_WE_END, cpu_of

__all__ = ["UNTIL_WE_END", "FailedError", "Usage", "best", "cpu_of", "measured"]


@dataclass(frozen=True, slots=True)
class Usage:
    """What one run of a program took. Seconds and bytes."""

    wall: float
    cpu: float
    """User and system time. Where other work runs on the machine this says more than the wall."""
    memory: int
    """Largest resident set."""

    @property
    def cores(self) -> float:
        """How many cores were busy with it, on average."""
        return self.cpu / self.wall


class FailedError(Exception):
    """A program that was to be measured ended with an error; the message is one line."""


def measured(command: Sequence[str | Path], **environment: str) -> Usage:
    """Run a program to its end; raises `FailedError` with the last line of what it said."""
    with tempfile.TemporaryFile() as said:
        began = time.monotonic()
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=said, stderr=said, env=os.environ | environment
        )
        # Not wait(), which does not tell what this one child has used.
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.monotonic() - began
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            said.seek(0)
            last = said.read().decode(errors="replace").strip().rpartition("\n")[2]
            raise FailedError(f"{Path(command[0]).name}: {last or f'exit code {process.returncode}'}")
    return Usage(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024)


def best(runs: Sequence[Usage]) -> Usage:
    """The least of each figure: what is above it is other work on the machine."""
    return Usage(min(run.wall for run in runs), min(run.cpu for run in runs), max(run.memory for run in runs))

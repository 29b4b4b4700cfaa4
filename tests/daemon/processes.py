"""Daemons as processes: finding them, ending them, starting them from elsewhere."""

import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from lazyfs.config import NodePaths
from lazyfs.daemon.client import ensure_daemon

REPOSITORY = Path(__file__).parents[2]
PATIENCE = 40.0
ENSURE = "import sys, pathlib; from lazyfs.config import NodePaths; from lazyfs.daemon.client import ensure_daemon;"
ENSURE += "print(ensure_daemon(NodePaths(pathlib.Path(sys.argv[1]))).status()['pid'])"

MakePaths = Callable[[Path], NodePaths]


def daemons(paths: NodePaths) -> list[int]:
    """The processes that are daemons of this root."""
    return running(paths.root, "lazyfs.daemon")


def keepers(paths: NodePaths) -> list[int]:
    return running(paths.root, "lazyfs.keeper")


def running(root: Path, module: str) -> list[int]:
    """The processes that run this module for this root; not what one of them is about to start.

    A child shows the command line of its parent until it has become another program, as the daemon's does that
    looks for a library while it imports.
    """
    found: dict[int, int] = {}
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            words = (process / "cmdline").read_bytes().split(b"\0")
            if module.encode() in words and os.fsencode(root) in words:
                fields = (process / "stat").read_text().rpartition(")")[2].split()
                found[int(process.name)] = int(fields[1])
    return [pid for pid, parent in found.items() if parent not in found]


def kill(paths: NodePaths) -> None:
    """The whole node: its keeper, so that nobody starts another daemon, then the daemon."""
    end(keepers(paths))
    end(daemons(paths))


def end(pids: list[int], number: signal.Signals = signal.SIGKILL) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            process = os.pidfd_open(pid)
            signal.pidfd_send_signal(process, number)
            # When all its threads have ended, that is.
            assert select.select([process], [], [], PATIENCE)[0]
            os.close(process)


def open_made(paths: NodePaths, made: Path) -> dict[str, Any]:
    return ensure_daemon(paths).open_image(f"oci:{made}:lazy")


def ensure_elsewhere(paths: NodePaths) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", ENSURE, str(paths.root)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def may_be_dumped(pid: int) -> bool:
    """A process that cannot be dumped shows its memory to nobody without CAP_SYS_PTRACE, its own user among them."""
    script = "import os, sys; os.close(os.open(f'/proc/{sys.argv[1]}/mem', os.O_RDONLY))"
    drop = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", "--securebits=+noroot"]
    reader = subprocess.run([*drop, sys.executable, "-c", script, str(pid)], check=False, capture_output=True)
    return reader.returncode == 0

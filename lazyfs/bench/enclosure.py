"""Namespaces in which everything that is measured runs, so that nothing of it outlives the measurement.

Mounts, processes and what containerd keeps in /run end with the enclosure, even if that is killed: the kernel takes
them back. What is left by then are files, which lie in one directory, and control groups, which have its name.
"""

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from lazyfs.errors import NodeError

_PREFIX = "lazyfs-bench-"
_ENCLOSE = (
    *("setpriv", "--pdeathsig", "KILL"),
    *("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--propagation", "slave"),
)
_CGROUPS = Path("/sys/fs/cgroup")
ENGINE_STATE = Path("/run/containerd")


@contextmanager
def scratch(parent: Path) -> Iterator[Path]:
    """A directory for all files; also removes what killed measurements have left beside it."""
    _remove_leftovers(parent)
    try:
        # Short: the paths of 128 layers must fit into the options of one mount.
        directory = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
    except OSError as error:
        raise NodeError(
            f"{parent}: {error.strerror}", hint="choose another directory with --scratch"
        ) from error
    lock = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield directory
    finally:
        _remove(directory)
        os.close(lock)


def run_enclosed(module: str, arguments: Sequence[str | Path]) -> int:
    """Run `python -m MODULE ARGUMENTS` in namespaces of its own; returns its exit code, when nothing of it is left."""
    command = [*_ENCLOSE, sys.executable, "-m", "lazyfs.bench.enclosure", module, *map(str, arguments)]
    try:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    except OSError as error:
        raise NodeError(f"{command[0]}: {error.strerror}", hint="it is in util-linux") from error
    try:
        return process.wait()
    finally:
        process.kill()
        process.wait()


def _remove_leftovers(parent: Path) -> None:
    for directory in parent.glob(f"{_PREFIX}*"):
        with suppress(OSError):
            lock = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _remove(directory)
            finally:
                os.close(lock)


def _remove(directory: Path) -> None:
    shutil.rmtree(directory, ignore_errors=True)
    # Those of containers: containerd names them after its namespace, which has the directory's name.
    for pattern in (directory.name, f"*/{directory.name}"):
        for group in _CGROUPS.glob(pattern):
            for each in sorted(group.rglob("*/"), reverse=True):
                with suppress(OSError):
                    each.rmdir()
            with suppress(OSError):
                group.rmdir()


def main() -> int:
    """The first process of the enclosure: takes what orphans leave, as an init does."""
    ENGINE_STATE.mkdir(parents=True, exist_ok=True)
    # Sockets and state of shims and runtimes, apart from those of the machine's own containerd.
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", ENGINE_STATE], check=True)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    worker = subprocess.Popen([sys.executable, "-m", *sys.argv[1:]]).pid
    while True:
        ended, status = os.wait()
        if ended == worker:
            return os.waitstatus_to_exitcode(status) & 0xFF


if __name__ == "__main__":
    sys.exit(main())

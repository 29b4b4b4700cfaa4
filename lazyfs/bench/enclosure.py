"""Namespaces in which everything that is measured runs, so that nothing of it outlives the measurement.

Mounts, processes and what containerd keeps in /run end with the enclosure, even if that is killed: the kernel takes
them back. What is left by then are files, which lie in one directory, and control groups, which have its name.
"""

import fcntl
import os
import secrets
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from lazyfs.errors import NodeError

_PREFIX = "lazyfs-bench-"
_ENCLOSE = (
    *("setpriv", "--pdeathsig", "KILL"),
    *("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--propagation", "slave"),
)
_GRACE_SECONDS = 5.0
_CGROUPS = Path("/sys/fs/cgroup")
ENGINE_STATE = Path("/run/containerd")


@contextmanager
def scratch(parent: Path) -> Iterator[Path]:
    """A directory for all files; also removes what killed measurements have left beside it."""
    _remove_leftovers(parent)
    try:
        # Short, for the paths of 128 layers must fit into the options of one mount, and a name that containerd takes.
        directory = parent / f"{_PREFIX}{secrets.token_hex(4)}"
        directory.mkdir(mode=0o700)
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


def run_enclosed(module: str, arguments: Sequence[str | Path], seconds: float | None = None) -> int:
    """Run `python -m MODULE ARGUMENTS` in namespaces of its own; returns its exit code, when nothing of it is left.

    NodeError where it takes longer than so many seconds.
    """
    command = [*_ENCLOSE, sys.executable, "-m", "lazyfs.bench.enclosure", module, *map(str, arguments)]
    try:
        # A group of its own: what a terminal sends to end it comes to us, and we end it.
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, process_group=0)
    except OSError as error:
        raise NodeError(f"{command[0]}: {error.strerror}", hint="it is in util-linux") from error
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        raise NodeError(f"it took longer than {seconds:.0f} s") from None
    finally:
        _end(process)


def _end(process: "subprocess.Popen[bytes]") -> None:
    """End the first process of the namespaces: the kernel lets it go when all the others have."""
    # unshare complains of a child that was killed, so it is asked first; it hears nothing before it has begun.
    for number, seconds in ((signal.SIGTERM, _GRACE_SECONDS), (signal.SIGKILL, None)):
        if process.poll() is None:
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
            for pid in children.read_text().split() or [str(process.pid)]:
                with suppress(ProcessLookupError):
                    os.kill(int(pid), number)
            with suppress(subprocess.TimeoutExpired):
                process.wait(seconds)


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
    signal.signal(signal.SIGTERM, lambda *_: os._exit(128 + signal.SIGTERM))
    worker = subprocess.Popen([sys.executable, "-m", *sys.argv[1:]]).pid
    while True:
        ended, status = os.wait()
        if ended == worker:
            return os.waitstatus_to_exitcode(status) & 0xFF


if __name__ == "__main__":
    sys.exit(main())

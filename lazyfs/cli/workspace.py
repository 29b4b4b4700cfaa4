"""The directories of runs, and what is left of runs that were killed.

    <root>/mounts/run-<pid>-<token>/    locked (flock) as long as its run lives, or the guard of its container
        rootfs      mount point of the container's root file system
        overlay     what the container writes

A directory that can be locked belongs to nobody any more.
"""

import fcntl
import os
import re
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lazyfs.cli.common import show_error
from lazyfs.config import NodePaths
from lazyfs.errors import NodeError
from lazyfs.mount.images import unmount_below

_PREFIX = "run-"
_GUARD_PATIENCE = 5.0
_PAUSE = 0.01
_FLAGS, _PF_EXITING = 5, 4
"""Of proc_pid_stat(5): which field behind the state, and a bit of it."""


@contextmanager
def run_directory(paths: NodePaths) -> Iterator[Path]:
    """A new directory; in the end it is removed, with whatever is mounted in it."""
    try:
        directory, lock = _make(paths)
    except OSError as error:
        raise NodeError(
            f"{paths.mounts}: {error.strerror}", hint="free some space, or choose another --root"
        ) from error
    try:
        yield directory
    finally:
        _remove(paths, directory)
        os.close(lock)


def remove_leftovers(paths: NodePaths) -> None:
    """End the containers of runs that were killed, and remove their overlays and what was written there."""
    from lazyfs.run.container import cleanup_stale

    found = [(path, _lock_of_the_dead(path)) for path in paths.mounts.glob(f"{_PREFIX}*")]
    left = [(path, lock) for path, lock in found if lock is not None]
    try:
        cleanup_stale(paths.containers)
        for directory, _ in left:
            _remove(paths, directory)
    except NodeError as error:  # somebody else's container is no reason to refuse this command
        show_error(error)
    finally:
        for _, lock in left:
            os.close(lock)


def abandoned_runs(paths: NodePaths) -> list[Path]:
    """Directories of runs that were killed with whoever would have cleaned up after them."""
    found = []
    for path in paths.mounts.glob(f"{_PREFIX}*"):
        lock = _try_lock(path)
        if lock is not None:
            os.close(lock)
            found.append(path)
    return found


def _make(paths: NodePaths) -> tuple[Path, int]:
    paths.mounts.mkdir(mode=0o700, parents=True, exist_ok=True)
    while True:
        directory = paths.mounts / f"{_PREFIX}{os.getpid()}-{os.urandom(6).hex()}"
        directory.mkdir(mode=0o700)
        lock = _try_lock(directory)
        if lock is not None and os.fstat(lock).st_nlink:
            return directory, lock
        # Another command took it for abandoned before it was locked.
        if lock is not None:
            os.close(lock)


def _lock_of_the_dead(directory: Path) -> int | None:
    """The lock of a directory whose run has ended; waits for the guard that cleans up after it was killed."""
    deadline = time.monotonic() + _GUARD_PATIENCE
    while True:
        lock = _try_lock(directory)
        if (
            lock is not None
            or not directory.exists()
            or _owner_lives(directory)
            or time.monotonic() > deadline
        ):
            return lock
        time.sleep(_PAUSE)


def _owner_lives(directory: Path) -> bool:
    """Not who has been killed and only ends yet, or is a zombie since nobody has waited for it."""
    process = Path("/proc", directory.name.split("-")[1])
    try:
        pending = re.search(r"^ShdPnd:\s*([0-9a-f]+)$", (process / "status").read_text(), re.MULTILINE)
        state, *fields = (process / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return False
    is_killed = pending is not None and int(pending[1], 16) & 1 << (signal.SIGKILL - 1)
    return state not in "ZX" and not is_killed and not int(fields[_FLAGS]) & _PF_EXITING


def _try_lock(directory: Path) -> int | None:
    try:
        lock = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        return None
    return lock


def _remove(paths: NodePaths, directory: Path) -> None:
    unmount_below(paths, directory)
    # What cannot be removed now, since its container still ends, the next command removes.
    shutil.rmtree(directory, ignore_errors=True)

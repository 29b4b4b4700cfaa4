"""Which layers the kernel may have mounted from their data files, so that nothing of them may be dropped.

    <cache>/<sha256 of the TOC>/held    the boot id: who mounts the data file is welcome
                                        the boot id and "?": not any more; somebody looks whether it can go

Who mounts a data file looks at the mark after the mount, and mounts something else where it is not plain. Who takes the
mark away puts the question mark there first, and looks for users after that. So one of the two sees the other, whatever
comes between; a mark that a killed process left in whichever state counts, until its users have been looked for.

Who uses it is asked of the kernel: a write lease (fcntl(2)) is granted for a file that nobody has open. Unlike the
table of mounts that knows of mounts in other namespaces, and of one that is detached and in use.
"""

import fcntl
import os
import signal
import time
from pathlib import Path

_NAME = "held"
_GOING = b"?"


class Hold:
    """The mark of one layer. Whoever calls holds the lock of the `LayerCache`."""

    def __init__(self, directory: Path, boot: bytes) -> None:
        self._mark = directory / _NAME
        self._boot = boot
        self._held = False
        self._until = 0.0

    def __bool__(self) -> bool:
        return self._held

    def load(self) -> None:
        """Take over what a daemon before this one held."""
        self._held = self._held or self._mark.exists()

    def take(self, seconds: float) -> None:
        """Hold, for so long also while nobody has it open. Raises OSError when the mark cannot be made."""
        self._mark.write_bytes(self._boot)
        self._held = True
        self._until = max(self._until, time.monotonic() + seconds)

    def is_due(self) -> bool:
        """Is the time over for which it was promised?"""
        return time.monotonic() >= self._until

    def give_back(self, data: str) -> bool:
        """Hold no more if nobody has the data file open, this process included. False where somebody has, or where
        the mark cannot be changed."""
        if is_open(data):
            return False
        try:
            self._mark.write_bytes(self._boot + _GOING)
            if is_open(data):
                self._mark.write_bytes(self._boot)
                return False
            self._mark.unlink()
        except OSError:
            return False
        self._held = False
        return True


def is_held(directory: int, boot: bytes) -> bool:
    """For who has just mounted the data file in this directory (a descriptor): does it stay as it is?"""
    try:
        mark = os.open(_NAME, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=directory)
    except OSError:
        return False
    try:
        return os.read(mark, len(boot) + 1) == boot
    except OSError:
        return False
    finally:
        os.close(mark)


def has_mark(directory: Path) -> bool:
    return (directory / _NAME).exists()


def is_open(path: str) -> bool:
    """Has anybody the file open, the kernel included? Where that cannot be found out: yes."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    try:
        # Who opens it just now makes the kernel send a signal, which by default is SIGIO and ends a process.
        fcntl.fcntl(descriptor, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_WRLCK)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False

"""Files of a store on a local disk: opened without tricks, written so that a crash leaves old or new, whole.

A temporary file is locked (flock) by whoever writes it for as long as it lives, so that one whose lock can be
had was left by a process that is gone, and may be removed.
"""

import errno
import fcntl
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from lazyfs.errors import BusyError, LazyfsError, NotFoundError, StoreError

TEMP_PREFIX = ".lazyfs-tmp-"
_LOCK_PAUSE = 0.02


@contextmanager
def explained(what: str) -> Iterator[None]:
    """Turn an OSError into the error of ours that says what could not be read or written."""
    try:
        yield
    except FileNotFoundError as error:
        raise NotFoundError(
            f"{what}: not there", hint="check the path, and copy the image there again"
        ) from error
    except OSError as error:
        raise _store_error(what, error) from error


def _store_error(what: str, error: OSError) -> LazyfsError:
    hints = {
        errno.ENOSPC: "free some space, or write to another disk",
        errno.EDQUOT: "the quota is used up: free some space, or write to another disk",
        errno.EACCES: "run as a user who may, or change the permissions",
        errno.EPERM: "run as a user who may, or change the permissions",
        errno.EROFS: "the file system is mounted read-only: write elsewhere",
        errno.ELOOP: "a layout holds regular files: put a copy in place of the symbolic link",
        errno.ENOTDIR: "name a directory",
        errno.EIO: "the disk reports an error: see the kernel's log, and copy the image from elsewhere",
    }
    reason = os.strerror(error.errno) if error.errno else str(error)
    return StoreError(f"{what}: {reason}", hint=hints.get(error.errno or 0, ""))


def open_regular(path: Path) -> int:
    """A descriptor for reading a regular file; anything else is an error, and never makes us wait."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise StoreError(f"{path} is not a regular file", hint="copy the image again")
    return descriptor


def read_whole(path: Path, limit: int) -> bytes:
    """The first ``limit`` + 1 bytes of a regular file: one more than the limit shows that it is too large."""
    with open(open_regular(path), "rb") as file:
        return file.read(limit + 1)


@contextmanager
def locked(path: Path, timeout: float, *, create: bool = False) -> Iterator[int]:
    """Hold the lock of a file; yields its descriptor, open for writing.

    The file must be one that is never replaced: another inode would be another lock. BusyError when it
    cannot be had in ``timeout`` seconds.
    """
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    descriptor = os.open(path, flags | os.O_CREAT if create else flags, 0o644)
    try:
        deadline = time.monotonic() + timeout
        while not _try_lock(descriptor):
            if time.monotonic() > deadline:
                raise BusyError(
                    f"{path} was locked by another process for {timeout:.0f} s",
                    hint=f"`fuser -v {path}` shows which",
                )
            time.sleep(_LOCK_PAUSE)
        yield descriptor
    finally:
        os.close(descriptor)


class TempFile:
    """A file being written in ``directory``; `publish` gives it its name, `discard` takes it away."""

    def __init__(self, directory: Path) -> None:
        self.path, self._descriptor = _create_locked(directory)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        view = memoryview(data).cast("B")
        while view:
            view = view[os.write(self._descriptor, view) :]

    def write_at(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        view = memoryview(data).cast("B")
        while view:
            written = os.pwrite(self._descriptor, view, offset)
            view, offset = view[written:], offset + written

    def read_at(self, offset: int, length: int) -> bytes:
        """Exactly ``length`` bytes that were written before."""
        data = os.pread(self._descriptor, length, offset)
        while len(data) < length:  # Linux reads at most 2 GiB at once
            data += os.pread(self._descriptor, length - len(data), offset + len(data))
        return data

    def truncate(self, size: int) -> None:
        os.ftruncate(self._descriptor, size)

    def publish(self, target: Path) -> None:
        """Put it, whole and safe from a crash, in the place of ``target``."""
        os.fsync(self._descriptor)
        self.path.replace(target)
        sync_directory(target.parent)
        self._close()

    def discard(self) -> None:
        """Take it away if it was not published."""
        if self._descriptor >= 0:
            with suppress(FileNotFoundError):
                self.path.unlink()
            self._close()

    def _close(self) -> None:
        os.close(self._descriptor)
        self._descriptor = -1


def remove_stale_temps(directory: Path) -> None:
    """Remove the temporary files of processes that are gone."""
    for path in directory.glob(f"{TEMP_PREFIX}*"):
        with suppress(OSError):
            descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                if _try_lock(descriptor):
                    path.unlink()
            finally:
                os.close(descriptor)


def sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _create_locked(directory: Path) -> tuple[Path, int]:
    while True:
        path = directory / f"{TEMP_PREFIX}{os.urandom(8).hex()}"
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        try:
            # Between open and lock it looks abandoned: then another process may just have removed it.
            ours = _try_lock(descriptor) and os.fstat(descriptor).st_nlink > 0
        except OSError:  # a file system without locks
            path.unlink()
            os.close(descriptor)
            raise
        if ours:
            return path, descriptor
        os.close(descriptor)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True

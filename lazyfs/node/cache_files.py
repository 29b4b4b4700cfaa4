"""The files of the cache: how they are opened, written and punched.

Descriptors are a bounded resource, layers are not: a file is opened when it is needed and closed when others are
needed more. One with writes that were not synced is kept open: the kernel tells of a lost write who has the file
open, and forgets it when nobody has.
"""

import ctypes
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from mmap import PAGESIZE
from pathlib import Path

MAX_OPEN_FILES = 96
"""Of layers that nobody writes to just now: two per layer, so the last half a hundred of them stay open."""

BLOCK = 4096
_KEEP_SIZE, _PUNCH_HOLE = 1, 2
_CACHESTAT = 451
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(slots=True, eq=False)
class _File:
    descriptor: int
    users: int = 0
    dropped: bool = False


class OpenFiles:
    """Descriptors for reading and writing, the least recently used closed first. Thread safe."""

    def __init__(self, limit: int = MAX_OPEN_FILES) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._files: OrderedDict[str, _File] = OrderedDict()
        self._drops = 0

    @contextmanager
    def open(self, path: str) -> Iterator[int]:
        """A descriptor, valid inside. Raises OSError when the file is not there."""
        file = self._take(path)
        try:
            yield file.descriptor
        finally:
            self._give_back(file)

    def keep(self, path: str) -> Callable[[], None]:
        """Keep it open until the function that is returned is called."""
        return partial(self._give_back, self._take(path))

    def drop(self, path: str) -> None:
        """Close it, when its last user is done: it is another file from now on, or none."""
        with self._lock:
            self._drops += 1
            file = self._files.pop(path, None)
            if file is not None:
                file.dropped = True
                self._close_unused(file)

    def close(self) -> None:
        for path in list(self._files):
            self.drop(path)

    def _take(self, path: str) -> _File:
        while True:
            with self._lock:
                file = self._files.get(path)
                if file is not None:
                    file.users += 1
                    self._files.move_to_end(path)
                    return file
                drops = self._drops
            # Not under the lock: a disk that is failing takes its time.
            opened = _File(os.open(path, os.O_RDWR | os.O_CLOEXEC), 1)
            with self._lock:
                if drops == self._drops and self._files.setdefault(path, opened) is opened:
                    self._shrink()
                    return opened
            os.close(opened.descriptor)  # that of another thread, or of a file that is none any more

    def _give_back(self, file: _File) -> None:
        with self._lock:
            file.users -= 1
            if file.dropped:
                self._close_unused(file)

    def _close_unused(self, file: _File) -> None:
        if file.users == 0:
            with suppress(OSError):
                os.close(file.descriptor)

    def _shrink(self) -> None:
        surplus = len(self._files) - self._limit
        if surplus > 0:
            idle = [path for path, file in self._files.items() if file.users == 0]
            for path in idle[:surplus]:
                os.close(self._files.pop(path).descriptor)


def write_all(descriptor: int, data: bytes | bytearray | memoryview, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, offset)
        offset += written
        view = view[written:]


def punch_hole(descriptor: int, start: int, end: int) -> None:
    """Give the blocks of [start, end) back to the file system; they read as zeros. Raises OSError."""
    arguments = (ctypes.c_long(start), ctypes.c_long(end - start))
    if _libc.fallocate(descriptor, _KEEP_SIZE | _PUNCH_HOLE, *arguments) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def is_in_memory(descriptor: int, offset: int, length: int) -> bool:
    """Are these bytes in the page cache, or on their way there? True where the kernel does not say (before 6.5)."""
    asked, answer = (ctypes.c_uint64 * 2)(offset, length), (ctypes.c_uint64 * 5)()
    if _libc.syscall(_CACHESTAT, descriptor, asked, answer, 0) != 0:
        return True
    return bool(answer[0] >= (offset + length - 1) // PAGESIZE - offset // PAGESIZE + 1)


def make_sparse(path: Path, size: int, marks: Path) -> None:
    """Make the file anew where it has not this size; `marks`, which speak of what it held, go first."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        if os.fstat(descriptor).st_size != size:
            _remove_durably(marks)
            os.ftruncate(descriptor, 0)
            os.ftruncate(descriptor, size)
    finally:
        os.close(descriptor)


def _remove_durably(path: Path) -> None:
    try:
        path.unlink()
    except FileNotFoundError:
        return
    descriptor = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

"""Caches that are cold, and the proof of it: what the kernel keeps of files, by cachestat(2) (Linux 6.5)."""

import ctypes
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from lazyfs.errors import NodeError

T = TypeVar("T")

_SYS_CACHESTAT = 451
_DROP = Path("/proc/sys/vm/drop_caches")
_COUNTERS = Path("/proc/vmstat")
_MOST_DISTURBED = 9
"""Starts in a row that do not count, since somebody else was in their way."""
_PIECE = 1 << 20
_MOST = 0.01
"""Of the bytes on the disk: pages that somebody else uses at the moment."""
_ATTEMPTS = 20
_PAUSE = 0.5

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


class _Range(ctypes.Structure):
    _fields_ = (("offset", ctypes.c_uint64), ("length", ctypes.c_uint64))


class _Counts(ctypes.Structure):
    _fields_ = (
        ("cached", ctypes.c_uint64),
        ("dirty", ctypes.c_uint64),
        ("writeback", ctypes.c_uint64),
        ("evicted", ctypes.c_uint64),
        ("recently_evicted", ctypes.c_uint64),
    )


@dataclass(frozen=True, slots=True)
class Cold:
    """Before a start: bytes of the image on this machine, and of these and of the runtime in the page cache."""

    on_disk: int
    in_memory: int

    def check(self, *, local: bool) -> None:
        """NodeError unless there was nothing of the image here; for a local start, nothing of it in memory."""
        if self.on_disk and not local:
            raise NodeError(f"the node was not cold: it had {self.on_disk:,} bytes of the image")
        if local and not self.on_disk:
            raise NodeError("a local start had nothing of its image on the disk")
        if self.is_used():
            raise NodeError(
                f"the page cache was not cold: it had {self.in_memory:,} bytes", hint="who else reads them?"
            )

    def is_used(self) -> bool:
        """Whether somebody has more in memory than what happens to be looked at just now."""
        return self.in_memory > max(self.on_disk * _MOST, _PIECE)


def go_cold(contents: Iterable[Path], programs: Iterable[Path]) -> Cold:
    """Empty the page cache, look, and empty it again of what looking has brought there.

    Whoever still has pages, such as a runtime that is just ending, is waited for a little.
    """
    directories, programs = list(contents), list(programs)
    cold = _empty(directories, programs)
    for _ in range(_ATTEMPTS):
        if not cold.is_used():
            break
        time.sleep(_PAUSE)
        cold = _empty(directories, programs)
    drop_page_cache()
    return cold


def _empty(directories: list[Path], programs: list[Path]) -> Cold:
    drop_page_cache()
    files = [path for directory in directories for path in _files(directory)]
    return Cold(sum(path.lstat().st_size for path in files), sum(map(_resident, [*files, *programs])))


class DisturbedError(NodeError):
    """Somebody else was in the way of a start: it says nothing, and another one may."""


@contextmanager
def undisturbed() -> Iterator[None]:
    """DisturbedError where somebody has emptied the page cache meanwhile: what had come was read again."""
    before = _drops()
    yield
    if _drops() != before:
        raise DisturbedError(
            "somebody else emptied the page cache during the start",
            hint="measure when nobody else does on this machine",
        )


def in_peace(measure: Callable[[], T], tell: Callable[[str], object] = lambda _: None) -> T:
    """What is measured, made once more where somebody was in the way of it: a few times in a row."""
    for _ in range(_MOST_DISTURBED):
        try:
            return measure()
        except DisturbedError as error:
            tell(f"{error.message}: once more")
    return measure()


def _drops() -> int:
    """How often the page cache was emptied since the machine runs."""
    for line in _COUNTERS.read_text().splitlines():
        name, _, number = line.partition(" ")
        if name == "drop_pagecache":
            return int(number)
    return 0


def drop_page_cache() -> None:
    os.sync()
    try:
        _DROP.write_text("3")
    except OSError as error:
        raise NodeError(
            f"{_DROP}: {error.strerror}",
            hint="measuring cold starts needs root, and a /proc/sys that can be written",
        ) from error


def warm(files: Iterable[Path]) -> None:
    """Read what a registry serves: a server far away does not wait for the disk of this machine."""
    for path in files:
        with path.open("rb", buffering=0) as file:
            while file.read(_PIECE):
                pass


def _files(directory: Path) -> Iterator[Path]:
    for parent, _, names in os.walk(directory):
        for name in names:
            path = Path(parent, name)
            if path.is_file() and not path.is_symlink():
                yield path


def _resident(path: Path) -> int:
    """Bytes of a file that are in the page cache."""
    with suppress(FileNotFoundError):
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            whole, counts = _Range(0, 0), _Counts()
            if _libc.syscall(_SYS_CACHESTAT, descriptor, ctypes.byref(whole), ctypes.byref(counts), 0):
                raise NodeError(f"cachestat: {os.strerror(ctypes.get_errno())}", hint="it needs Linux 6.5")
            return int(counts.cached) * os.sysconf("SC_PAGE_SIZE")
        finally:
            os.close(descriptor)
    return 0

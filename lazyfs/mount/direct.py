"""The data files of cached layers, for the kernel to read by itself: no FUSE, no daemon.

A layer that is whole on the disk, each byte proved, is its device. The daemon says of which layers that is true and
keeps them so (`node.cache_hold`); but where their files are is not for it to say, since it may be another user's
process and the kernel reads whatever root gives it: below a directory of the cache, by the layer's name, no symbolic
link, and nobody's to write to but the owner's of that directory.
"""

import logging
import os
import stat
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from lazyfs.config import NodePaths, boot_id
from lazyfs.node.cache_hold import is_held
from lazyfs.node.cache_settings import CacheSettings

log = logging.getLogger(__name__)

DATA = "data"
_NAME_LENGTH = 64
_DIGITS = frozenset("0123456789abcdef")
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW
_FILE = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


@dataclass(frozen=True, slots=True)
class DirectFile:
    """Descriptors of a layer's directory and of its data file."""

    directory: int
    data: int

    @property
    def path(self) -> Path:
        """Of the open file, whatever has its name meanwhile."""
        return Path(f"/proc/self/fd/{self.data}")


def open_direct(paths: NodePaths, layers: Sequence[str], opened: ExitStack) -> list[DirectFile | None]:
    """The data files of layers, named as in the cache; None for "", and where there is none to be trusted.

    `opened` closes what is opened.
    """
    if not any(layers):
        return []
    settings = CacheSettings.read(paths)
    places = []
    for path in [each.path for each in settings.directories] or [paths.cache]:
        try:
            places.append(_open(str(path), _DIRECTORY & ~os.O_NOFOLLOW, None, opened))
        except OSError as error:
            log.warning("%s: %s", path, error.strerror)
    return [_find(places, name, opened) for name in layers]


def are_held(files: Iterable[DirectFile | None]) -> bool:
    """To be asked when they have been mounted: do all of them stay as they are?"""
    boot = boot_id()
    return all(is_held(file.directory, boot) for file in files if file is not None)


def _find(places: Sequence[int], name: str, opened: ExitStack) -> DirectFile | None:
    if len(name) != _NAME_LENGTH or not _DIGITS.issuperset(name):
        return None
    for place in places:
        try:
            directory = _open(name, _DIRECTORY, place, opened)
            data = _open(DATA, _FILE, directory, opened)
        except OSError:
            continue
        found = os.fstat(data)
        if not stat.S_ISREG(found.st_mode) or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            log.warning("the data of layer %s is not the daemon's alone", name)
        elif found.st_uid != os.fstat(place).st_uid:
            log.warning("the data of layer %s is not of who owns the cache", name)
        else:
            return DirectFile(directory, data)
    return None


def _open(name: str, flags: int, place: int | None, opened: ExitStack) -> int:
    descriptor = os.open(name, flags, dir_fd=place)
    opened.callback(os.close, descriptor)
    return descriptor

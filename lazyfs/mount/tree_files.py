"""An image's tree in FUSE's words. What never changes, the kernel may keep for ever: also that a name is not there."""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager

import pyfuse3

from lazyfs.mount.image_files import Attributes, ImageFiles

# Seconds. Not infinite, only because the kernel counts it in jiffies.
FOR_EVER = 1e9

_DIRECTORY_SIZE = 4096


@contextmanager
def stale_numbers() -> Iterator[None]:
    """ESTALE for a number that the image does not have, which the kernel should not know."""
    try:
        yield
    except KeyError:
        raise pyfuse3.FUSEError(errno.ESTALE) from None


def entry(found: Attributes) -> pyfuse3.EntryAttributes:
    attributes = pyfuse3.EntryAttributes()
    attributes.st_ino = found.number
    attributes.st_mode = found.mode
    attributes.st_nlink = found.links
    attributes.st_uid = found.uid
    attributes.st_gid = found.gid
    attributes.st_rdev = os.makedev(found.rdev >> 20, found.rdev & 0xFFFFF)
    attributes.st_size = _DIRECTORY_SIZE if stat.S_ISDIR(found.mode) else found.size
    attributes.st_blocks = -(-attributes.st_size // 512)
    attributes.st_atime_ns = attributes.st_mtime_ns = attributes.st_ctime_ns = found.mtime_ns
    attributes.entry_timeout = attributes.attr_timeout = FOR_EVER
    return attributes


def lookup(tree: ImageFiles, directory: int, name: bytes) -> pyfuse3.EntryAttributes:
    with stale_numbers():
        found = tree.find(directory, name)
    if found is not None:
        return entry(found)
    nothing = pyfuse3.EntryAttributes()
    nothing.st_ino = 0
    nothing.entry_timeout = FOR_EVER
    return nothing


def list_directory(tree: ImageFiles, directory: int, start: int, token: pyfuse3.ReaddirToken) -> None:
    with stale_numbers():
        for name, found, position in tree.entries(directory, start):
            if not pyfuse3.readdir_reply(token, name, entry(found), position):
                return


def xattr(tree: ImageFiles, inode: int, name: bytes) -> bytes:
    with stale_numbers():
        for known, value in tree.xattrs(inode):
            if known == name:
                return value
    raise pyfuse3.FUSEError(pyfuse3.ENOATTR)

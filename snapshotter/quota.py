"""Project quota: a directory tree that may take so much and no more, where the file system keeps count of trees.

XFS and ext4 do when they are mounted with `prjquota` (ext4 besides when it was made with `-O quota,project`). A tree is
given a number (ioctl_xfs_fsgetxattr(2)), which all that is made in it inherits, and the number a limit
(quotactl_fd(2)). Writing beyond it is ENOSPC there, and nowhere else.
"""

import ctypes
import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lazyfs.errors import NodeError

_SYS_QUOTACTL_FD = 443
_PROJECTS = 2
_GET_INFO = 0x800005
_SET_QUOTA = 0x800008
_BLOCK_LIMITS = 1
_BLOCK = 1024
_GET_XATTR = 0x801C581F
_SET_XATTR = 0x401C5820
_INHERIT = 0x200
FIRST_PROJECT = 1 << 30
"""Numbers below may be those of others (/etc/projects); a snapshot's is this and its own."""

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


class _Limits(ctypes.Structure):
    """struct if_dqblk"""

    _fields_ = (
        ("hard", ctypes.c_uint64),
        ("soft", ctypes.c_uint64),
        ("others", ctypes.c_uint64 * 6),
        ("valid", ctypes.c_uint32),
    )


class _Attributes(ctypes.Structure):
    """struct fsxattr"""

    _fields_ = (
        ("flags", ctypes.c_uint32),
        ("others", ctypes.c_uint32 * 2),
        ("project", ctypes.c_uint32),
        ("more", ctypes.c_uint8 * 12),
    )


def has_project_quota(directory: Path) -> bool:
    """Does the file system of this directory limit projects?"""
    with _opened(directory) as descriptor:
        try:
            _quotactl(descriptor, _GET_INFO, 0, ctypes.create_string_buffer(64))
        except OSError as error:
            if error.errno not in (errno.ENOSYS, errno.ESRCH, errno.EINVAL, errno.ENOTSUP, errno.EPERM):
                raise NodeError(f"{directory}: {error.strerror}") from error
            return False
        return True


def limit_tree(directory: Path, project: int, size: int) -> None:
    """All in this directory, and what will be, may take ``size`` bytes together. It has no files yet."""
    try:
        with _opened(directory) as top:
            _quotactl(top, _SET_QUOTA, project, _limits(size))
        for path in (directory, *directory.iterdir()):
            with _opened(path) as descriptor:
                attributes = _Attributes()
                fcntl.ioctl(descriptor, _GET_XATTR, attributes)
                attributes.project = project
                attributes.flags |= _INHERIT
                fcntl.ioctl(descriptor, _SET_XATTR, attributes)
    except OSError as error:
        raise NodeError(f"{directory} cannot be limited to {size} bytes: {error.strerror}") from error


def forget_limit(directory: Path, project: int) -> None:
    """The tree is gone: its number is free."""
    with _opened(directory) as descriptor:
        _quotactl(descriptor, _SET_QUOTA, project, _limits(0))


def _limits(size: int) -> _Limits:
    blocks = -(-size // _BLOCK)
    return _Limits(hard=blocks, soft=blocks, valid=_BLOCK_LIMITS)


@contextmanager
def _opened(directory: Path) -> Iterator[int]:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _quotactl(
    descriptor: int, command: int, project: int, argument: ctypes.Structure | ctypes.Array[ctypes.c_char]
) -> None:
    number = (command << 8) | _PROJECTS
    if _libc.syscall(_SYS_QUOTACTL_FD, descriptor, number, project, ctypes.byref(argument)):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))

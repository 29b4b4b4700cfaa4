"""The connection between the kernel and whoever serves the device files: mounting it, and its first request.

The kernel says FUSE_INIT once per mount. It is answered here, by who mounts, with fixed terms, so that every
server of the connection, first or successor, comes to a connection that is ready and to the same terms (see
`attach`). Structures and flags are those of the kernel's include/uapi/linux/fuse.h.

Mounting needs root, serving needs nothing but the descriptor. This module is all that the keeper needs of
FUSE, so it imports neither pyfuse3 nor an event loop.
"""

import errno
import fcntl
import logging
import os
import struct
from pathlib import Path

from lazyfs.errors import LazyfsError, NodeError, NotFoundError, UnsupportedError
from lazyfs.mount.mountinfo import mount_at
from lazyfs.mount.syscalls import MS_NODEV, MS_NOEXEC, MS_NOSUID, MS_RDONLY, mount, unmount

log = logging.getLogger(__name__)

FUSE_KIND = "fuse.lazyfs"

# KiB that the kernel reads ahead on device files. 2 cores, a 309 MB device below EROFS, every byte local:
#
#     KiB                                        128    256    512   1024   4096
#     sequential read of a device file, GB/s     1.0    1.5    2.3    2.0    2.5
#     cold tar of the tree, s                   0.42   0.30   0.25   0.25   0.45
#     cold import of numpy, MB read from here     29     34     35     39     51
#     ... fetched in 256 KiB chunks, MB           45     47     49     52
#
# On simulated links (100 Mbit/s 20 ms, 1 Gbit/s 2 ms) the import takes the same time with any of them.
READ_AHEAD_KIB = 512

# How many reads ahead may wait in the server. With the kernel's 12, twelve reads of missing data keep
# every reader of the node from what is on its disk.
MAX_BACKGROUND = 512

MAX_REQUEST = 1 << 20
"""Bytes of one read."""

_HEADER_IN = struct.Struct("<IIQQIIIHH")
_HEADER_OUT = struct.Struct("<IiQ")
_INIT_IN = struct.Struct("<4I")
_INIT_IN_REST = bytes(48)
"""What the kernel says more since Linux 5.17."""
_INIT_OUT = struct.Struct("<4I2HII2HIIH22x")
_FUSE_INIT = 26
_MAJOR = 7
_MINOR = 31
"""The youngest protocol whose structures are used here and by libfuse 3.10 and later alike."""
_OLDEST_MINOR = 28  # FUSE_MAX_PAGES: Linux 4.20
_NOTIFY_RESEND = 7
_CLONE = 0x8004E500
_ASYNC_READ = 1 << 0
_BIG_WRITES = 1 << 5
_DO_READDIRPLUS = 1 << 13
_PARALLEL_DIROPS = 1 << 18
_POSIX_ACL = 1 << 20
_MAX_PAGES = 1 << 22
_CACHE_SYMLINKS = 1 << 23
_TERMS = (
    _ASYNC_READ | _BIG_WRITES | _DO_READDIRPLUS | _PARALLEL_DIROPS | _MAX_PAGES | _CACHE_SYMLINKS | _POSIX_ACL
)
_READ_BUFFER = 8192


def open_and_mount(target: Path) -> int:
    """Mount a FUSE front on the directory ``target``; returns the descriptor to serve it on.

    Readers wait until it is served. When the last copy of the descriptor is closed, they get errors
    (ENOTCONN) until it is unmounted.
    """
    try:
        fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise UnsupportedError("this kernel has no FUSE", hint="modprobe fuse") from error
    except OSError as error:
        raise NodeError(f"/dev/fuse: {error.strerror}", hint="mounting needs root") from error
    # allow_other: containers of any user read the devices, through EROFS. Only root can open them.
    options = f"fd={fd},rootmode=40000,user_id=0,group_id=0,allow_other,default_permissions"
    flags = MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC
    try:
        mount("lazyfs", target, FUSE_KIND, flags, options.encode(), what=f"devices on {target}")
        try:
            _agree(fd)
        except BaseException:
            unmount(target, detach=True)
            raise
    except BaseException:
        os.close(fd)
        raise
    _tune(target)
    return fd


def _agree(fd: int) -> None:
    """Answer the kernel's first request, which is there as soon as the mount is."""
    request = os.read(fd, _READ_BUFFER)
    _, opcode, unique, *_ = _HEADER_IN.unpack_from(request)
    major, minor, read_ahead, flags = _INIT_IN.unpack_from(request, _HEADER_IN.size)
    if opcode != _FUSE_INIT or major != _MAJOR or minor < _OLDEST_MINOR:
        raise UnsupportedError(
            f"this kernel ({os.uname().release}) speaks FUSE {major}.{minor}",
            hint=f"{_MAJOR}.{_OLDEST_MINOR} is needed: Linux 4.20 or later",
        )
    pages = MAX_REQUEST // os.sysconf("SC_PAGE_SIZE")
    terms = _INIT_OUT.pack(
        _MAJOR,
        min(minor, _MINOR),
        read_ahead,
        flags & _TERMS,
        MAX_BACKGROUND,
        MAX_BACKGROUND * 3 // 4,
        MAX_REQUEST,
        1,  # time_gran
        pages,
        0,
        0,
        0,
        0,
    )
    os.write(fd, _HEADER_OUT.pack(_HEADER_OUT.size + len(terms), 0, unique) + terms)


def first_request() -> bytes:
    """A FUSE_INIT with the terms that were agreed on, for a server that would not start without one."""
    body = _INIT_IN.pack(_MAJOR, _MINOR, READ_AHEAD_KIB << 10, _TERMS) + _INIT_IN_REST
    return _HEADER_IN.pack(_HEADER_IN.size + len(body), _FUSE_INIT, 1, 0, 0, 0, 0, 0, 0) + body


def check_answer(answer: bytes) -> None:
    """Raise NodeError unless a server took `first_request`."""
    _, error, _ = _HEADER_OUT.unpack_from(answer)
    if error:
        raise NodeError(f"libfuse does not agree to the terms: {os.strerror(-error)}")


def ask_again(fd: int) -> bool:
    """Have the kernel repeat the requests that an earlier server took and did not answer.

    False on a kernel that cannot (before Linux 6.9).
    """
    try:
        os.write(fd, _HEADER_OUT.pack(_HEADER_OUT.size, _NOTIFY_RESEND, 0))
    except OSError as error:
        if error.errno == errno.EINVAL:
            return False
        raise
    return True


def put_own_queue(fd: int, own: int) -> None:
    """Make ``own`` another descriptor of the connection ``fd``, whose unanswered requests end in errors with it.

    For kernels that repeat none: there a reader whom a killed server was serving would wait for ever.
    FUSE_DEV_IOC_CLONE (Linux 4.2) gives the descriptor a queue of its own, which goes with the server's copy.
    """
    clone = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.ioctl(clone, _CLONE, struct.pack("I", fd))
        os.dup2(clone, own, inheritable=False)
    finally:
        os.close(clone)


def _tune(target: Path) -> None:
    """Set the read-ahead, which the kernel lowers to its default of 128 KiB while it connects.

    Without it reads are slower, not wrong, so a failure is logged only. Does not touch the mounted files.
    """
    entry = mount_at(target)
    if entry is None or entry.kind != FUSE_KIND:
        raise NotFoundError(f"no FUSE front is mounted on {target}")
    try:
        Path("/sys/class/bdi", entry.device, "read_ahead_kb").write_text(str(READ_AHEAD_KIB))
    except (OSError, LazyfsError) as error:
        log.warning("cannot set the read-ahead of %s: %s", target, error)

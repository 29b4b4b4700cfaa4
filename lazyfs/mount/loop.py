"""A file system in a file, mounted by a loop device (loop(4), linux/loop.h) that goes with its last user.

The device belongs to the mount: the kernel detaches it when neither a mount nor the process that made it holds
it any more (autoclear), however that process ends.
"""

import ctypes
import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from lazyfs.errors import NodeError, UnsupportedError
from lazyfs.mount.syscalls import mount, mount_erofs, open_erofs

_CTL_GET_FREE = 0x4C82
_CONFIGURE = 0x4C0A
_SET_DIRECT_IO = 0x4C08
_READ_ONLY = 1
_AUTOCLEAR = 4
_ATTEMPTS = 64
_LACKING = (errno.ENOENT, errno.ENXIO, errno.ENODEV, errno.ENOTTY, errno.EINVAL)


class _Info(ctypes.Structure):
    _fields_ = (
        ("numbers", ctypes.c_uint64 * 3),
        ("offset", ctypes.c_uint64),
        ("size_limit", ctypes.c_uint64),
        ("numbers_and_types", ctypes.c_uint32 * 3),
        ("flags", ctypes.c_uint32),
        ("names", ctypes.c_uint8 * 160),
        ("init", ctypes.c_uint64 * 2),
    )


class _Config(ctypes.Structure):
    _fields_ = (
        ("fd", ctypes.c_uint32),
        ("block_size", ctypes.c_uint32),
        ("info", _Info),
        ("reserved", ctypes.c_uint64 * 8),
    )


def mount_file(image: Path, target: Path, kind: str, flags: int, options: bytes) -> None:
    """Mount the file system of this kind in ``image`` on ``target``. NodeError where the kernel cannot."""
    with _loop_device(image, writable=True) as device:
        mount(device, target, kind, flags, options, what=f"{image} on {target}")


def mount_erofs_on_loop(image: Path, target: Path) -> None:
    """Mount the EROFS image in ``image``, metadata and data, on ``target``: as `mount_erofs`, on a loop device."""
    with _loop_device(image) as device:
        mount_erofs(device, [], target)


def open_erofs_on_loop(image: Path) -> int:
    """`mount_erofs_on_loop` nowhere: a descriptor of its root directory, with which mount and device go."""
    with _loop_device(image) as device:
        return open_erofs(device, [])


@contextmanager
def _loop_device(image: Path, *, writable: bool = False) -> Iterator[Path]:
    """A device on ``image``; after the block it lives as long as a mount of it.

    Raises UnsupportedError where there are no loop devices, or none that is set up in one step (Linux 5.8).
    """
    try:
        backing = os.open(image, (os.O_RDWR if writable else os.O_RDONLY) | os.O_CLOEXEC)
        try:
            device, path = _attach(backing, writable)
        finally:
            os.close(backing)
    except OSError as error:
        kind = UnsupportedError if error.errno in _LACKING else NodeError
        raise kind(
            f"{image}: no loop device: {error.strerror}",
            hint="load the kernel's loop module: modprobe loop (Linux 5.8 or later)",
        ) from error
    try:
        yield path
    finally:
        os.close(device)


def _attach(backing: int, writable: bool) -> tuple[int, Path]:
    access = os.O_RDWR if writable else os.O_RDONLY
    control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
    try:
        for _ in range(_ATTEMPTS):
            path = Path(f"/dev/loop{fcntl.ioctl(control, _CTL_GET_FREE)}")
            device = os.open(path, access | os.O_CLOEXEC)
            try:
                flags = _AUTOCLEAR if writable else _AUTOCLEAR | _READ_ONLY
                fcntl.ioctl(device, _CONFIGURE, bytes(_Config(fd=backing, info=_Info(flags=flags))))
            except OSError as error:
                os.close(device)
                if error.errno != errno.EBUSY:  # somebody else was faster
                    raise
                continue
            if writable:
                # What is written is cached once, by the file system in the file. Some file systems cannot.
                # What is only read goes through the page cache of the file, where a launch pack may be already.
                with suppress(OSError):
                    fcntl.ioctl(device, _SET_DIRECT_IO, 1)
            return device, path
    finally:
        os.close(control)
    raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))

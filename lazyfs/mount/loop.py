"""A file system in a file, mounted by a loop device (loop(4), linux/loop.h) that goes with its last user."""

import ctypes
import errno
import fcntl
import os
from contextlib import suppress
from pathlib import Path

from lazyfs.errors import NodeError
from lazyfs.mount.syscalls import mount

_CTL_GET_FREE = 0x4C82
_CONFIGURE = 0x4C0A
_SET_DIRECT_IO = 0x4C08
_AUTOCLEAR = 4
_ATTEMPTS = 64


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
    try:
        backing = os.open(image, os.O_RDWR | os.O_CLOEXEC)
        try:
            device, path = _attach(backing)
        finally:
            os.close(backing)
    except OSError as error:
        raise NodeError(
            f"{image}: no loop device: {error.strerror}", hint="load the kernel's loop module: modprobe loop"
        ) from error
    # Detached by the kernel once neither this descriptor nor a mount holds it.
    try:
        mount(path, target, kind, flags, options, what=f"{image} on {target}")
    finally:
        os.close(device)


def _attach(backing: int) -> tuple[int, Path]:
    control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
    try:
        for _ in range(_ATTEMPTS):
            path = Path(f"/dev/loop{fcntl.ioctl(control, _CTL_GET_FREE)}")
            device = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            try:
                fcntl.ioctl(device, _CONFIGURE, bytes(_Config(fd=backing, info=_Info(flags=_AUTOCLEAR))))
            except OSError as error:
                os.close(device)
                if error.errno != errno.EBUSY:  # somebody else was faster
                    raise
                continue
            # What is written is cached once, by the file system in the file. Some file systems cannot.
            with suppress(OSError):
                fcntl.ioctl(device, _SET_DIRECT_IO, 1)
            return device, path
    finally:
        os.close(control)
    raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))

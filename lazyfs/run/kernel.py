"""The system calls that a run needs and Python 3.11 does not have.

openat2(2) resolves a path of the image as a process in the container would: no symbolic link, and
no "..", leads out of the root file system, however hostile the image is.
"""

import ctypes
import os
import signal

# Numbers that are the same on every architecture that Python runs on, Alpha apart.
_SYS_OPENAT2 = 437
_SYS_PIDFD_GETFD = 438
_RESOLVE_NO_MAGICLINKS = 0x02
_RESOLVE_IN_ROOT = 0x10
_PR_SET_PDEATHSIG = 1
_CLONE_NEWNS = 0x00020000
# The kernel gives up with EAGAIN when a rename races with a ".." and expects to be asked again.
_ATTEMPTS = 32

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


class _OpenHow(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


def open_in_root(root: int, path: str, flags: int) -> int:
    """Open ``path`` with the directory descriptor ``root`` as its "/". Raises OSError."""
    how = _OpenHow(flags | os.O_CLOEXEC, 0, _RESOLVE_IN_ROOT | _RESOLVE_NO_MAGICLINKS)
    raw = ctypes.c_char_p(os.fsencode(path))
    size = ctypes.c_size_t(ctypes.sizeof(how))
    for _ in range(_ATTEMPTS):
        opened = _libc.syscall(ctypes.c_long(_SYS_OPENAT2), ctypes.c_int(root), raw, ctypes.byref(how), size)
        if opened >= 0:
            return int(opened)
        try:
            _raise_errno(path)
        except BlockingIOError:
            continue
    raise BlockingIOError(f"{path} kept changing")


def make_directories(root: int, path: str) -> None:
    """Make the directory ``path`` (absolute, normalised) below ``root``, and its parents. Raises OSError."""
    parent = os.dup(root)
    made = ""
    try:
        for name in path.strip("/").split("/"):
            made = f"{made}/{name}"
            try:
                child = open_in_root(root, made, os.O_PATH | os.O_DIRECTORY)
            except FileNotFoundError:
                _make_directory(parent, name)
                child = open_in_root(root, made, os.O_PATH | os.O_DIRECTORY)
            os.close(parent)
            parent = child
    finally:
        os.close(parent)


def _make_directory(parent: int, name: str) -> None:
    # What an image would have, whatever the caller's umask is.
    umask = os.umask(0o022)
    try:
        os.mkdir(name, 0o755, dir_fd=parent)
    finally:
        os.umask(umask)


def steal_descriptor(pid: int, number: int) -> int:
    """A duplicate of another process's descriptor, see pidfd_getfd(2). Raises OSError."""
    process = os.pidfd_open(pid)
    try:
        stolen = _libc.syscall(
            ctypes.c_long(_SYS_PIDFD_GETFD), ctypes.c_int(process), ctypes.c_int(number), ctypes.c_uint(0)
        )
        if stolen < 0:
            _raise_errno(f"descriptor {number} of {pid}")
        return int(stolen)
    finally:
        os.close(process)


def die_with_parent() -> None:
    """Have the kernel kill this process when the thread that forked it ends. Survives execve(2)."""
    if _libc.prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL), 0, 0, 0):
        _raise_errno("prctl")


def unshare_mounts() -> None:
    """Give this process a mount namespace of its own."""
    if _libc.unshare(_CLONE_NEWNS):
        _raise_errno("unshare")


def _raise_errno(what: str) -> None:
    code = ctypes.get_errno()
    raise OSError(code, os.strerror(code), what)

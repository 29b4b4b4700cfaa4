"""Opening what lies below a directory to which somebody less trusted may write: the daemon's account, a container.

Root must not be led out of it, nor made to wait: no symbolic link is followed below the directory, by openat2(2) with
RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS, or name by name where the kernel (before Linux 5.6) or a filter has no such call.
"""

import ctypes
import errno
import os
import stat
from pathlib import Path, PurePath

from lazyfs.errors import NodeError

_SYS_OPENAT2 = 437
_NO_MAGICLINKS, _NO_SYMLINKS, _BENEATH = 0x02, 0x04, 0x08
_STEP = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_LACKING = frozenset({errno.ENOSYS, errno.EPERM})

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


class _OpenHow(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


def open_beneath(directory: Path, name: str | PurePath, flags: int) -> int:
    """A descriptor of what `name`, a relative path without "..", names below `directory`.

    Raises OSError: ELOOP where there is a symbolic link, EXDEV where the name leads out.
    """
    parts = PurePath(name).parts
    if PurePath(name).is_absolute() or ".." in parts or not parts or "\0" in str(name):
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), str(name))
    base = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return _in_one_step(base, parts, flags)
    except OSError as error:
        if error.errno not in _LACKING:
            raise
        return _step_by_step(base, parts, flags)
    finally:
        os.close(base)


def read_beneath(directory: Path, name: str | PurePath, limit: int) -> bytes:
    """A regular file of at most `limit` bytes. Raises OSError, EINVAL for anything else."""
    with open(open_beneath(directory, name, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode) or status.st_size > limit:
            raise OSError(errno.EINVAL, "not a regular file, or too large", str(directory / name))
        return file.read(limit)


def proc_path(descriptor: int) -> Path:
    """A path of what is open, whatever has its name meanwhile."""
    return Path(f"/proc/self/fd/{descriptor}")


def open_named(directory: Path, path: str, what: str) -> int:
    """An O_PATH descriptor of `path`, as somebody less trusted names it; NodeError unless it is below `directory`."""
    try:
        return open_beneath(directory, PurePath(path).relative_to(directory), os.O_PATH)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it lies elsewhere"
        raise NodeError(
            f"{what} {path} is not to be had below {directory}: {reason}",
            hint="`lazyfs shutdown` and try again; if it stays so, look at who else writes there",
        ) from error


def _in_one_step(base: int, parts: tuple[str, ...], flags: int) -> int:
    how = _OpenHow(flags | os.O_CLOEXEC, 0, _BENEATH | _NO_SYMLINKS | _NO_MAGICLINKS)
    name = os.fsencode("/".join(parts))
    size = ctypes.c_size_t(ctypes.sizeof(how))
    opened = _libc.syscall(
        ctypes.c_long(_SYS_OPENAT2), ctypes.c_int(base), ctypes.c_char_p(name), ctypes.byref(how), size
    )
    if opened < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), "/".join(parts))
    return int(opened)


def _step_by_step(base: int, parts: tuple[str, ...], flags: int) -> int:
    parent = os.dup(base)
    try:
        for part in parts[:-1]:
            child = os.open(part, _STEP, dir_fd=parent)
            os.close(parent)
            parent = child
        opened = os.open(parts[-1], flags | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    finally:
        os.close(parent)
    # With O_PATH it is the link itself that is opened.
    if flags & os.O_PATH and stat.S_ISLNK(os.fstat(opened).st_mode):
        os.close(opened)
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), parts[-1])
    return opened

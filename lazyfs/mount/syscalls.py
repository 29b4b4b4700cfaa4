"""The mount system calls, called directly.

mount(8) is never used: given a file it sets up a loop device behind one's back, and a loop device
cannot take EROFS's ``device=``. See mount(2), umount2(2), fsopen(2), fsconfig(2), fsmount(2) and
move_mount(2). The new ones go by number, which is the same on every architecture, because glibc
knows them only since 2.36.

Every call releases the interpreter's lock, so a process may mount EROFS on files that it serves
itself, as long as another thread serves them.
"""

import ctypes
import errno
import os
import re
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from lazyfs.errors import BusyError, LazyfsError, NodeError, NotFoundError, UnsupportedError, UsageError
from lazyfs.mount.holders import describe_holders

MS_RDONLY = 1
MS_NOSUID = 2
MS_NODEV = 4
MS_NOEXEC = 8
MS_REMOUNT = 32
MS_BIND = 4096
MS_REC = 16384

_MNT_DETACH = 2
_UMOUNT_NOFOLLOW = 8

_SYS_MOVE_MOUNT = 429
_SYS_FSOPEN = 430
_SYS_FSCONFIG = 431
_SYS_FSMOUNT = 432
_CLOEXEC = 1
_FSCONFIG_SET_FLAG = 0
_FSCONFIG_SET_STRING = 1
_FSCONFIG_CMD_CREATE = 6
_MOVE_MOUNT_F_EMPTY_PATH = 4
_AT_FDCWD = -100

# fsconfig(2) takes strings of up to 256 bytes, mount(2) options of up to a page, both with their NUL.
_MAX_FSCONFIG_STRING = 255
_MAX_MOUNT_OPTIONS = 4095

_FILE_BACKED_EROFS_SINCE = (6, 12)

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long
_libc.mount.argtypes = [
    ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p,
]  # fmt: skip
_libc.umount2.argtypes = [ctypes.c_char_p, ctypes.c_int]


def mount_erofs(bootstrap: Path, devices: Sequence[Path], target: Path) -> None:
    """Mount the EROFS image ``bootstrap``, whose device slots are ``devices`` in order, on ``target``.

    The kernel reads the files themselves (file-backed EROFS), there is no loop device. The mount is
    read-only, nosuid and nodev: nobody on this machine should come by a setuid program or a device
    node of a stranger's image. An overlay on top goes by its own flags, so set-user-ID programs,
    file capabilities and device nodes work in a container all the same.
    """
    with _NewMount("erofs", f"image {bootstrap} on {target}") as context:
        _configure_erofs(context, bootstrap, devices)
        context.attach(target, MS_RDONLY | MS_NOSUID | MS_NODEV)


def open_erofs(bootstrap: Path, devices: Sequence[Path]) -> int:
    """`mount_erofs` nowhere: a descriptor of its root directory, with which it goes."""
    with _NewMount("erofs", f"image {bootstrap}") as context:
        _configure_erofs(context, bootstrap, devices)
        return context.mount(MS_RDONLY | MS_NOSUID | MS_NODEV)


def _configure_erofs(context: "_NewMount", bootstrap: Path, devices: Sequence[Path]) -> None:
    context.set_path("source", bootstrap)
    for device in devices:
        context.set_path("device", device)
    context.set_flag("ro")
    try:
        context.create()
    except OSError as error:
        if _lacks_file_backed_erofs(bootstrap, error.errno):
            raise UnsupportedError(
                f"this kernel ({os.uname().release}) cannot mount EROFS from a file",
                hint="Linux 6.12 or later with CONFIG_EROFS_FS_BACKED_BY_FILE can; see lazyfs doctor",
            ) from error
        raise


def mount_overlay(
    target: Path, lower: Sequence[Path], upper: Path | None = None, work: Path | None = None
) -> None:
    """Mount an overlay of ``lower`` (topmost first), below ``upper`` with its ``work`` directory.

    Without ``upper`` it is read-only and needs two lower directories. mount(2) makes it where its
    options fit, so that /proc/mounts shows the line that tools know; else ``lowerdir+`` (Linux 6.8).
    """
    if not lower or (upper is None and len(lower) < 2) or (upper is None) != (work is None):
        raise UsageError(f"overlay on {target} needs an upper and a work directory, or two lower ones")
    what = f"overlay on {target}"
    lowers = b":".join(_escape(path, b"\\:,") for path in lower)
    options = b"lowerdir=" + lowers
    if upper is not None and work is not None:
        options += b",upperdir=" + _escape(upper, b"\\,") + b",workdir=" + _escape(work, b"\\,")
    if len(options) <= _MAX_MOUNT_OPTIONS:
        mount("overlay", target, "overlay", MS_RDONLY if upper is None else 0, options, what=what)
        return
    with _NewMount("overlay", what) as context:
        context.set_string("source", b"overlay")
        for path in lower:
            context.set_path("lowerdir+", path)
        if upper is not None and work is not None:
            context.set_path("upperdir", upper, escape=b"\\")
            context.set_path("workdir", work, escape=b"\\")
        context.create()
        context.attach(target, MS_RDONLY if upper is None else 0)


def bind(source: Path, target: Path) -> None:
    """Show the tree at ``source`` (without mounts below it) at ``target`` as well."""
    mount(source, target, None, MS_BIND, b"", what=f"{source} on {target}")


def bind_image(source: Path, target: Path) -> None:
    """Show the tree at ``source`` at ``target`` as `mount_erofs` shows an image: read-only, nosuid, nodev, no more."""
    bind(source, target)
    flags = MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV
    try:
        mount(None, target, None, flags, b"", what=f"{source} on {target}")
    except LazyfsError:
        unmount(target, detach=True)
        raise


def mount(
    source: str | Path | None, target: Path, kind: str | None, flags: int, options: bytes, *, what: str
) -> None:
    """mount(2); ``what`` names it in the error."""
    raw_source = None if source is None else os.fsencode(source)
    raw_kind = None if kind is None else kind.encode()
    if _libc.mount(raw_source, os.fsencode(target), raw_kind, flags, options):
        raise _explained(what, ctypes.get_errno())


def unmount(target: Path, *, detach: bool = False) -> bool:
    """Unmount what is mounted on ``target``: the topmost mount; True if there was one.

    ``detach`` takes it out of the tree at once, whoever uses it; it ends with its last user.
    Without it raises `BusyError`, naming the processes that hold it as far as /proc tells.
    """
    flags = _UMOUNT_NOFOLLOW | (_MNT_DETACH if detach else 0)
    if _libc.umount2(os.fsencode(target), flags) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.EINVAL, errno.ENOENT):
        return False
    if code == errno.EBUSY:
        raise BusyError(f"{target} is in use", hint=describe_holders(target))
    raise NodeError(f"cannot unmount {target}: {os.strerror(code)}")


class _NewMount:
    """A file system context: fsopen(2) to move_mount(2). An OSError in its block becomes a `LazyfsError`."""

    def __init__(self, kind: str, what: str) -> None:
        self._kind = kind
        self._what = what
        self._open_files = ExitStack()

    def __enter__(self) -> "_NewMount":
        try:
            self._context = self._own(_syscall(_SYS_FSOPEN, self._kind.encode(), _CLOEXEC))
        except OSError as error:
            if error.errno in (errno.ENODEV, errno.ENOSYS):
                raise UnsupportedError(
                    f"this kernel ({os.uname().release}) has no {self._kind}",
                    hint=f"load it with: modprobe {self._kind}; see lazyfs doctor",
                ) from error
            raise _explained(self._what, error.errno or 0) from error
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        with self._open_files:
            if isinstance(error, OSError):
                raise _explained(self._what, error.errno or 0, self._messages()) from error

    def set_string(self, key: str, value: bytes) -> None:
        _syscall(_SYS_FSCONFIG, self._context, _FSCONFIG_SET_STRING, key.encode(), value, 0)

    def set_flag(self, key: str) -> None:
        _syscall(_SYS_FSCONFIG, self._context, _FSCONFIG_SET_FLAG, key.encode(), None, 0)

    def set_path(self, key: str, path: Path, *, escape: bytes = b"") -> None:
        """A path; one that is too long for fsconfig(2) goes by a descriptor of this process."""
        value = _escape(path, escape) if escape else os.fsencode(path)
        if len(value) > _MAX_FSCONFIG_STRING:
            value = b"/proc/self/fd/%d" % self._own(os.open(path, os.O_PATH | os.O_CLOEXEC))
        self.set_string(key, value)

    def create(self) -> None:
        _syscall(_SYS_FSCONFIG, self._context, _FSCONFIG_CMD_CREATE, None, None, 0)

    def mount(self, attributes: int) -> int:
        """The mount, attached nowhere yet. The first four attributes are numbered like the flags of mount(2)."""
        return _syscall(_SYS_FSMOUNT, self._context, _CLOEXEC, attributes)

    def attach(self, target: Path, attributes: int) -> None:
        mounted = self._own(self.mount(attributes))
        _syscall(_SYS_MOVE_MOUNT, mounted, b"", _AT_FDCWD, os.fsencode(target), _MOVE_MOUNT_F_EMPTY_PATH)

    def _own(self, descriptor: int) -> int:
        self._open_files.callback(os.close, descriptor)
        return descriptor

    def _messages(self) -> str:
        """What the kernel has to say about the failure: lines such as ``e erofs: ...``."""
        lines = []
        try:
            while True:
                lines.append(os.read(self._context, 4096).decode(errors="replace").strip())
        except OSError:  # ENODATA: that was all
            return "; ".join(lines)


def _syscall(number: int, *arguments: int | bytes | None) -> int:
    values = [ctypes.c_long(each) if isinstance(each, int) else ctypes.c_char_p(each) for each in arguments]
    result: int = _libc.syscall(ctypes.c_long(number), *values)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def _explained(what: str, code: int, detail: str = "") -> LazyfsError:
    """The error for a failed mount: which class it is depends on what can be done about it."""
    kind = {errno.ENOENT: NotFoundError, errno.EBUSY: BusyError}.get(code, NodeError)
    hint = {
        errno.EPERM: "mounting needs root (CAP_SYS_ADMIN)",
        errno.EINVAL: "the kernel says why in its log: dmesg",
    }.get(code, "")
    message = f"cannot mount {what}: {os.strerror(code)}"
    return kind(f"{message} ({detail})" if detail else message, hint=hint)


def _lacks_file_backed_erofs(bootstrap: Path, code: int | None) -> bool:
    if code == errno.ENOTBLK:
        return bootstrap.is_file()
    version = tuple(int(number) for number in re.findall(r"\d+", os.uname().release)[:2])
    return code == errno.EINVAL and version < _FILE_BACKED_EROFS_SINCE


def _escape(path: Path, special: bytes) -> bytes:
    """Put a backslash before each special byte, as overlayfs expects it in its options."""
    return re.sub(b"([" + re.escape(special) + b"])", rb"\\\1", os.fsencode(path))

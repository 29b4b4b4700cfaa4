"""How a keeper comes by what it keeps: made new, from systemd, or back from a daemon whose keeper has died."""

import fcntl
import json
import logging
import os
import socket
import stat
import struct
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from lazyfs.config import NodePaths
from lazyfs.errors import BusyError, NodeError
from lazyfs.keeper import link, systemd
from lazyfs.keeper.child import SERVING, Daemon, adopted
from lazyfs.keeper.link import Possessions
from lazyfs.mount.connection import FUSE_KIND, open_and_mount
from lazyfs.mount.mountinfo import list_mounts, mount_at
from lazyfs.mount.syscalls import unmount

log = logging.getLogger(__name__)

ADOPT = "POST /v1/keeper HTTP/1.1\r\nHost: lazyfs\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
PATIENCE = 20.0
_PAUSE = 0.05
_FUSE_DEVICE = os.makedev(10, 229)
_CREDENTIALS = struct.Struct("3i")


def lock_alone(path: Path, is_answering: Callable[[], bool]) -> int:
    """The keeper's own lock. BusyError while another keeper holds it that answers, or ends too slowly."""
    descriptor = _open_lock(path)
    deadline = time.monotonic() + PATIENCE
    while not _try_lock(descriptor):
        # One that does not answer is about to end, or has just begun.
        if is_answering() or time.monotonic() >= deadline:
            os.close(descriptor)
            raise BusyError(f"another daemon serves {path.parent}", hint="lazyfs status names it")
        time.sleep(_PAUSE)
    return descriptor


def lock_node(paths: NodePaths) -> int | tuple[Possessions, Daemon]:
    """The node's lock if nobody serves it; else what is served, and the daemon that goes on serving it.

    BusyError when a daemon holds it and does not answer.
    """
    descriptor = _open_lock(paths.lock)
    deadline = time.monotonic() + PATIENCE
    while not _try_lock(descriptor):
        survivor = _adopt(paths)
        if survivor is not None:
            os.close(descriptor)
            return survivor
        if time.monotonic() >= deadline:
            os.close(descriptor)
            raise BusyError(
                f"a daemon without keeper serves {paths.root} and does not answer",
                hint=f"end process {_named_in(paths.lock)}; what is mounted is lost then",
            )
        time.sleep(_PAUSE)
    return descriptor


def make(paths: NodePaths, lock: int, group: int | None, stored: dict[str, int]) -> Possessions:
    """The connection and the control socket: what systemd gives back, else new ones."""
    fuse = stored.get("fuse")
    here = mount_at(paths.fuse)
    if fuse is None or here is None or here.kind != FUSE_KIND or not _is_fuse(fuse):
        _clear(paths)
        try:
            paths.fuse.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise NodeError(
                f"{paths.fuse}: {error.strerror}", hint="free some space, or choose another --root"
            ) from error
        fuse = open_and_mount(paths.fuse)
    try:
        listener = link.listen(paths.socket, socket.SOCK_STREAM, group)
        listener.setblocking(False)
    except BaseException:
        unmount(paths.fuse, detach=True)
        os.close(fuse)
        raise
    systemd.keep("fuse", fuse)
    return Possessions(fuse, listener, lock)


def _clear(paths: NodePaths) -> None:
    """Unmount what is left of a connection that nobody has any more, and the images that nobody uses."""
    if list_mounts(paths.fuse):
        log.warning("%s was left mounted, and its connection is lost; unmounting it", paths.fuse)
        unmount(paths.fuse, detach=True)
    if list_mounts(paths.images):
        from lazyfs.mount.images import release_unused

        release_unused(paths)


def _adopt(paths: NodePaths) -> tuple[Possessions, Daemon] | None:
    """Ask the daemon that lives for what it serves. None where none answers."""
    try:
        with socket.socket(socket.AF_UNIX) as connection, link.short_path(paths.socket) as address:
            connection.settimeout(PATIENCE / 4)
            connection.connect(address)
            connection.sendall(ADOPT.encode())
            answer, descriptors = _read_answer(connection)
    except OSError:
        return None
    if len(descriptors) != 4 or not _is_fuse(descriptors[0]):
        for descriptor in descriptors:
            os.close(descriptor)
        log.error("the daemon of %s hands nothing over: %s", paths.root, answer.get("message"))
        return None
    end = socket.socket(fileno=descriptors.pop())
    # Who made the socket pair, by the kernel's word and not by its own.
    pid, _, _ = _CREDENTIALS.unpack(end.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    log.warning("daemon %d has lost its keeper; taking it over", pid)
    possessions = Possessions.received(descriptors)
    systemd.keep("fuse", possessions.fuse)
    try:
        return possessions, adopted(pid, end, ours=False, stage=SERVING)
    except OSError:
        possessions.close()
        end.close()
        return None


def _read_answer(connection: socket.socket) -> tuple[dict[str, Any], list[int]]:
    raw, descriptors, _, _ = socket.recv_fds(connection, link.MAX_MESSAGE, 8, socket.MSG_CMSG_CLOEXEC)
    values: dict[str, Any] = {}
    with suppress(ValueError, RecursionError, OSError):
        while len(raw) < link.MAX_MESSAGE and (piece := connection.recv(link.MAX_MESSAGE)):
            raw += piece
        said = json.loads(raw.partition(b"\r\n\r\n")[2])
        values = said if isinstance(said, dict) else {}
    return values, descriptors


def _is_fuse(descriptor: int) -> bool:
    status = os.fstat(descriptor)
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == _FUSE_DEVICE


def _open_lock(path: Path) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise NodeError(
            f"{path}: {error.strerror}", hint="free some space, or choose another directory with --root"
        ) from error


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _named_in(lock: Path) -> str:
    with suppress(OSError):
        return lock.read_text().strip() or "?"
    return "?"

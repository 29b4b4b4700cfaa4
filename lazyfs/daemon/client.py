"""Talking to the daemon, and starting it when it does not run."""

import fcntl
import json
import os
import select
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from lazyfs.config import NodePaths
from lazyfs.daemon.request import IMAGES, connect, encode, image_request, locate, take
from lazyfs.errors import BusyError, LazyfsError, NodeError, NotFoundError, from_dict
from lazyfs.keeper.client import KeeperClient, NoKeeperError
from lazyfs.mount.ladder import look

START_TIMEOUT = 30.0
STOP_TIMEOUT = 60.0
USE_PATIENCE = 5.0
_MAX_RESPONSE = 64 << 20
_MAX_LINE = 16 << 20
_PAUSE = 0.01
_started: set[int] = set()
"""Keepers that are children of this process: not by a thread, which would take the signals of `lazyfs run`."""


class NoDaemonError(NotFoundError):
    """No daemon runs."""


class DaemonGoneError(NodeError):
    """The daemon ended before it answered."""


class DaemonClient:
    """The control API of one node's daemon. Raises the LazyfsError that the daemon raised."""

    def __init__(self, paths: NodePaths) -> None:
        self._paths = paths

    def open_image(
        self,
        reference: str,
        lowest: int | None = None,
        meanwhile: Callable[[], None] = lambda: None,
        *,
        fill: bool = True,
        mode: str = "",
        command: str | None = None,
        prove: bool = False,
    ) -> dict[str, Any]:
        """See `Node.open_image`. A relative path in `reference` counts from this process's directory.

        `meanwhile` is called once while the daemon is at work. `mode` is one of `mount.ladder.MODES`; without one
        what the node's settings say.
        """
        body = image_request(
            self._paths, reference, mode=mode, fill=fill, lowest=lowest, command=command, prove=prove
        )
        return self._ask_for(IMAGES, body, meanwhile)

    def look_at(self, reference: str) -> Iterator[dict[str, Any]]:
        """See `Node.look_at`."""
        lines = self._look_at(reference)
        try:
            yield next(lines)
        except (NoDaemonError, DaemonGoneError):
            # It ended just now, or was about to when it was asked.
            ensure_daemon(self._paths)
            lines = self._look_at(reference)
        yield from lines

    def _look_at(self, reference: str) -> Iterator[dict[str, Any]]:
        with self._connect() as connection:
            try:
                _send(connection, encode("POST", "/v1/chain", locate(reference)))
                with connection.makefile("rb") as answer:
                    yield from self._lines(answer)
            except OSError as error:
                raise self._gone() from error

    def _lines(self, answer: BinaryIO) -> Iterator[dict[str, Any]]:
        while answer.readline(_MAX_LINE).strip():
            pass  # the head
        while line := answer.readline(_MAX_LINE):
            values = self._object(line)
            if not values:
                return
            if "error" in values:
                raise from_dict(values)
            yield values
        raise self._gone()

    def _ask_for(
        self, path: str, body: dict[str, Any], meanwhile: Callable[[], None] = lambda: None
    ) -> dict[str, Any]:
        try:
            return self._call("POST", path, body, meanwhile)
        except (NoDaemonError, DaemonGoneError):
            # It ended just now, or was about to when it was asked.
            ensure_daemon(self._paths)
            return self._call("POST", path, body)

    def release(self) -> None:
        """See `Node.release`; nothing, this time, while somebody is about to mount an image."""
        with suppress(BusyError), locked(self._paths.use_lock, fcntl.LOCK_EX, 0.0):
            self._call("POST", "/v1/release")

    def status(self) -> dict[str, Any]:
        return self._call("GET", "/v1/status")

    def timeline(self, since: float) -> dict[str, Any]:
        """What was fetched and read since `time.monotonic` was `since`."""
        return self._call("POST", "/v1/timeline", {"since": since})

    def ask(self, call: str, body: dict[str, Any]) -> dict[str, Any]:
        """Any call of `docs/operations.md`: "METHOD /path"."""
        method, _, path = call.partition(" ")
        return self._call(method, path, body)

    def record(self) -> None:
        """Let the daemon remember each read, however many; `timeline` gives them."""
        self._call("POST", "/v1/record")

    def shutdown(self) -> None:
        """End the node; BusyError while an image is mounted. Returns when its processes have ended."""
        if not self.is_running():
            raise self._no_daemon()
        with locked(self._paths.use_lock, fcntl.LOCK_EX, USE_PATIENCE):
            if not self.is_running():  # somebody else has ended it meanwhile
                raise self._no_daemon()
            # A daemon that has lost its keeper gets one first, who knows what to clean up.
            ensure_daemon(self._paths)
            _refuse_if_mounted(self._paths)
            try:
                pid = KeeperClient(self._paths).stop()
            except NoKeeperError as error:
                raise self._no_daemon() from error
            try:
                process = os.pidfd_open(pid)
            except ProcessLookupError:
                return
            try:
                if not select.select([process], [], [], STOP_TIMEOUT)[0]:
                    raise NodeError(f"the keeper {pid} does not end", hint=f"see {self._paths.log}")
            finally:
                os.close(process)
            _reap()

    def is_running(self) -> bool:
        """Whether somebody listens: a daemon, or a keeper that is about to start one."""
        try:
            self._connect().close()
        except NoDaemonError:
            return False
        return True

    def _object(self, content: bytes) -> dict[str, Any]:
        try:
            values = json.loads(content)
        except (ValueError, RecursionError):
            values = None
        if not isinstance(values, dict):
            raise self._broken_off()
        return values

    def _broken_off(self) -> NodeError:
        return NodeError(
            f"the daemon of {self._paths.root} broke off its answer", hint=f"see {self._paths.log}"
        )

    def _gone(self) -> DaemonGoneError:
        return DaemonGoneError(
            f"the daemon of {self._paths.root} ended before it answered", hint=f"see {self._paths.log}"
        )

    def _no_daemon(self) -> NoDaemonError:
        return NoDaemonError(
            f"no daemon runs for {self._paths.root}", hint="`lazyfs run` and `lazyfs mount` start one"
        )

    def _connect(self) -> socket.socket:
        try:
            return connect(self._paths.socket)
        except PermissionError as error:
            raise NodeError(
                f"{self._paths.socket}: {error.strerror}", hint="only root may talk to the daemon"
            ) from error
        except OSError as error:
            raise self._no_daemon() from error

    def _call(
        self,
        method: str,
        path: str,
        body: dict[str, Any] | None = None,
        meanwhile: Callable[[], None] = lambda: None,
    ) -> dict[str, Any]:
        request = encode(method, path, body or {})
        early = take(self._paths.socket, request)
        with early or self._connect() as connection:
            try:
                if early is None:
                    _send(connection, request)
                meanwhile()
                answer = _read_all(connection)
            except OSError as error:
                raise NodeError(
                    f"the daemon of {self._paths.root} did not answer: {error}", hint=f"see {self._paths.log}"
                ) from error
        if not answer:
            raise self._gone()
        head_bytes, _, content = answer.partition(b"\r\n\r\n")
        values = self._object(content)
        try:
            status = int(head_bytes.split(b" ", 2)[1])
        except (ValueError, IndexError) as error:
            raise self._broken_off() from error
        if status != 200:
            raise from_dict(values)
        return values


@contextmanager
def daemon_in_use(paths: NodePaths) -> Iterator[DaemonClient]:
    """`ensure_daemon`, and the daemon is not shut down meanwhile: until what it opened is mounted."""
    _make_root(paths)
    with locked(paths.use_lock, fcntl.LOCK_SH, STOP_TIMEOUT):
        yield ensure_daemon(paths)


def ensure_daemon(paths: NodePaths) -> DaemonClient:
    """A client of the running daemon; it and its keeper are started first if need be. Needs root then."""
    _reap()
    client = DaemonClient(paths)
    keeper = KeeperClient(paths)
    if client.is_running() and keeper.is_running():
        return client
    _make_root(paths)
    # A keeper holds this lock while it starts, even when the command that started it was killed.
    with locked(paths.start_lock, fcntl.LOCK_EX, START_TIMEOUT) as lock:
        if not (client.is_running() and keeper.is_running()):
            try:
                _start(paths, lock)
            except BusyError:
                # A service, which takes no such lock, may have begun at the same time.
                if not _comes_up(client, keeper):
                    raise
    return client


def _comes_up(client: DaemonClient, keeper: KeeperClient) -> bool:
    """Whether a node that another keeper has just begun can be asked; waits for that."""
    deadline = time.monotonic() + START_TIMEOUT
    while not client.is_running():
        if not keeper.is_running() or time.monotonic() >= deadline:
            return False
        time.sleep(_PAUSE)
    return keeper.is_running()


def _refuse_if_mounted(paths: NodePaths) -> None:
    """BusyError while an image of the node is mounted. With `use_lock` held no command opens one to mount it."""
    from lazyfs.mount.images import release_unused
    from lazyfs.mount.mountinfo import list_mounts

    release_unused(paths)
    mounted = list_mounts(paths.images)
    if mounted:
        one = len(mounted) == 1
        raise BusyError(
            f"{len(mounted)} {'image' if one else 'images'} of {paths.root} {'is' if one else 'are'} mounted",
            hint="end their containers, or lazyfs umount DIR; `lazyfs status` lists them",
        )


def _reap() -> None:
    """Leave no zombie of the keepers that were started here and have ended."""
    for pid in _started.copy():
        try:
            ended = os.waitpid(pid, os.WNOHANG)[0] != 0
        except ChildProcessError:  # another thread was quicker
            ended = True
        if ended:
            _started.discard(pid)


def _make_root(paths: NodePaths) -> None:
    try:
        paths.root.mkdir(mode=0o711, parents=True, exist_ok=True)
    except OSError as error:
        raise NodeError(
            f"{paths.root}: {error.strerror}", hint="choose another directory with --root, or run as root"
        ) from error


def _start(paths: NodePaths, lock: int) -> None:
    command = [sys.executable, "-m", "lazyfs.keeper", "--root", str(paths.root)]
    ready, ready_child = os.pipe()
    try:
        with paths.log.open("ab") as log:
            process = subprocess.Popen(
                [*command, "--ready-fd", str(ready_child), "--start-lock-fd", str(lock)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=[ready_child, lock],
                start_new_session=True,
                cwd="/",
            )
    except OSError as error:
        os.close(ready)
        raise NodeError(f"cannot start the daemon: {error}", hint="it needs root") from error
    finally:
        os.close(ready_child)
    try:
        _look_at_kernel(paths)
        if not select.select([ready], [], [], START_TIMEOUT)[0]:
            process.kill()
            process.wait()
            raise NodeError(f"the daemon was not ready within {START_TIMEOUT:.0f} s", hint=f"see {paths.log}")
        said = os.read(ready, 65536)
    finally:
        os.close(ready)
    values = json.loads(said or b"{}")
    if "pid" not in values:
        process.wait()
        if "error" in values:
            raise from_dict(values)
        raise NodeError("the daemon ended while it started", hint=f"see {paths.log}")
    # It outlives most callers, and is waited for by one that outlives it, such as the snapshotter.
    process.returncode = 0
    _started.add(process.pid)


def _look_at_kernel(paths: NodePaths) -> None:
    """What the first mount needs to know, found while the daemon starts; who mounts hears of any error."""
    with suppress(LazyfsError, OSError):
        look(paths)


def _send(connection: socket.socket, request: bytes) -> None:
    """An answer may be there although nobody takes the request: a keeper without a daemon does not wait for one."""
    with suppress(BrokenPipeError, ConnectionResetError):
        connection.sendall(request)


def _read_all(connection: socket.socket) -> bytes:
    """What came before the end of the connection, also where that is a reset."""
    pieces = []
    size = 0
    with suppress(ConnectionResetError):
        while piece := connection.recv(1 << 16):
            pieces.append(piece)
            size += len(piece)
            if size > _MAX_RESPONSE:
                break
    return b"".join(pieces)


@contextmanager
def locked(path: Path, kind: int, timeout: float) -> Iterator[int]:
    """Hold a lock file, LOCK_SH or LOCK_EX; BusyError when it cannot be had in `timeout` seconds."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise NodeError(f"{path}: {error.strerror}", hint="only root may use this node") from error
    try:
        deadline = time.monotonic() + timeout
        while not _try_lock(descriptor, kind):
            if time.monotonic() >= deadline:
                raise BusyError(
                    f"{path} is locked by another command", hint=f"`fuser -v {path}` shows which; try again"
                )
            time.sleep(_PAUSE)
        yield descriptor
    finally:
        os.close(descriptor)


def _try_lock(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True

"""Talking to the daemon, and starting it when it does not run.

HTTP/1.1 on a unix socket, one request per connection. Written on plain sockets, since importing an HTTP
library would take longer than everything else that a warm `lazyfs run` does.
"""

import fcntl
import json
import os
import select
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lazyfs.config import NodePaths
from lazyfs.errors import BusyError, NodeError, NotFoundError, from_dict

START_TIMEOUT = 30.0
REQUEST_TIMEOUT = 120.0
_MAX_RESPONSE = 64 << 20
_SOCKET_PATH_LIMIT = 107


class DaemonClient:
    """The control API of one node's daemon. Raises the LazyfsError that the daemon raised."""

    def __init__(self, paths: NodePaths) -> None:
        self._paths = paths

    def open_image(self, reference: str) -> dict[str, Any]:
        """See `Node.open_image`. A relative path in `reference` counts from this process's directory."""
        return self._call("POST", "/v1/images", {"reference": reference, "directory": str(Path.cwd())})

    def status(self) -> dict[str, Any]:
        return self._call("GET", "/v1/status")

    def timeline(self, since: float) -> dict[str, Any]:
        """What was fetched and read since `time.monotonic` was `since`."""
        return self._call("POST", "/v1/timeline", {"since": since})

    def shutdown(self) -> dict[str, Any]:
        """End the daemon; BusyError while an image is mounted. Returns when it has ended."""
        answer = self._call("POST", "/v1/shutdown")
        with _lock_file(self._paths, "daemon.lock", fcntl.LOCK_EX):
            return answer

    def is_running(self) -> bool:
        try:
            self._connect().close()
        except NotFoundError:
            return False
        return True

    def _connect(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        connection.settimeout(REQUEST_TIMEOUT)
        try:
            with short_socket_path(self._paths) as path:
                connection.connect(path)
        except OSError as error:
            connection.close()
            raise NotFoundError(
                f"no daemon runs for {self._paths.root}", hint="`lazyfs run` and `lazyfs mount` start one"
            ) from error
        return connection

    def _call(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        payload = json.dumps(body or {}).encode()
        headers = f"Host: lazyfs\r\nConnection: close\r\nContent-Length: {len(payload)}"
        head = f"{method} {path} HTTP/1.1\r\n{headers}\r\n\r\n"
        with self._connect() as connection:
            try:
                connection.sendall(head.encode() + payload)
                answer = _read_all(connection)
            except OSError as error:
                raise NodeError(
                    f"the daemon of {self._paths.root} did not answer: {error}", hint=f"see {self._paths.log}"
                ) from error
        head_bytes, _, content = answer.partition(b"\r\n\r\n")
        try:
            status = int(head_bytes.split(b" ", 2)[1])
            values: dict[str, Any] = json.loads(content)
        except (ValueError, IndexError) as error:
            raise NodeError(
                f"the daemon of {self._paths.root} broke off its answer", hint=f"see {self._paths.log}"
            ) from error
        if status != 200:
            raise from_dict(values)
        return values


def ensure_daemon(paths: NodePaths) -> DaemonClient:
    """A client of the running daemon, which is started first if need be. Needs root then."""
    client = DaemonClient(paths)
    if client.is_running():
        return client
    try:
        paths.root.mkdir(mode=0o711, parents=True, exist_ok=True)
    except OSError as error:
        raise NodeError(
            f"{paths.root}: {error.strerror}", hint="choose another directory with --root, or run as root"
        ) from error
    with _lock_file(paths, "start.lock", fcntl.LOCK_EX):
        if not client.is_running():
            _start(paths)
    return client


def _start(paths: NodePaths) -> None:
    ready, ready_child = os.pipe()
    try:
        with paths.log.open("ab") as log:
            process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "lazyfs.daemon",
                    "--root",
                    str(paths.root),
                    "--ready-fd",
                    str(ready_child),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=[ready_child],
                start_new_session=True,
                cwd="/",
            )
    finally:
        os.close(ready_child)
    try:
        if not select.select([ready], [], [], START_TIMEOUT)[0]:
            process.kill()
            raise NodeError(f"the daemon was not ready within {START_TIMEOUT:.0f} s", hint=f"see {paths.log}")
        said = os.read(ready, 65536)
    finally:
        os.close(ready)
    if not said:
        raise NodeError("the daemon ended while it started", hint=f"see {paths.log}")
    values = json.loads(said)
    if "error" in values:
        process.wait()
        raise from_dict(values)
    # The daemon outlives this process and is not waited for.
    process.returncode = 0


def _read_all(connection: socket.socket) -> bytes:
    pieces = []
    size = 0
    while piece := connection.recv(1 << 16):
        pieces.append(piece)
        size += len(piece)
        if size > _MAX_RESPONSE:
            break
    return b"".join(pieces)


@contextmanager
def _lock_file(paths: NodePaths, name: str, kind: int) -> Iterator[None]:
    try:
        descriptor = os.open(paths.root / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise NodeError(f"{paths.root / name}: {error.strerror}") from error
    try:
        fcntl.flock(descriptor, kind)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def short_socket_path(paths: NodePaths) -> Iterator[str]:
    """The control socket by a path that fits a socket address (107 bytes), however long the root's is."""
    path = str(paths.socket)
    if len(os.fsencode(path)) <= _SOCKET_PATH_LIMIT:
        yield path
        return
    try:
        directory = os.open(paths.root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise BusyError(f"{paths.root}: {error.strerror}") from error
    try:
        yield f"/proc/self/fd/{directory}/{paths.socket.name}"
    finally:
        os.close(directory)

"""A request to the daemon's control API, as bytes on a socket; and one that is sent before it is due.

HTTP/1.1 on a unix socket, one request per connection. Written on plain sockets, since importing an HTTP
library would take longer than everything else that a warm `lazyfs run` does.
"""

import fcntl
import json
import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lazyfs.config import NodePaths
from lazyfs.errors import UsageError
from lazyfs.keeper.link import short_path
from lazyfs.mount.ladder import choose_mode

IMAGES = "/v1/images"
TIMEOUT = 120.0


def locate(reference: str) -> dict[str, Any]:
    """What names an image to another process: a relative path in ``reference`` counts from this one's directory."""
    try:
        return {"reference": reference, "directory": str(Path.cwd())}
    except OSError as error:
        raise UsageError(
            f"the working directory: {error.strerror}", hint="change to another directory"
        ) from error


def image_request(
    paths: NodePaths,
    reference: str,
    *,
    mode: str = "",
    fill: bool = True,
    lowest: int | None = None,
    command: str | None = None,
    prove: bool = False,
) -> dict[str, Any]:
    """The body of a request to open an image, see `DaemonClient.open_image`."""
    body = {**locate(reference), "mode": choose_mode(paths, mode)}
    if not fill:
        body["fill"] = False
    if lowest is not None:
        body["lowest"] = lowest
    if command is not None:
        body["command"] = command
    if prove:
        body["prove"] = True
    return body


def encode(method: str, path: str, body: dict[str, Any]) -> bytes:
    payload = json.dumps(body).encode()
    headers = f"Host: lazyfs\r\nConnection: close\r\nContent-Length: {len(payload)}"
    return f"{method} {path} HTTP/1.1\r\n{headers}\r\n\r\n".encode() + payload


def connect(path: Path) -> socket.socket:
    """Raises OSError where nobody listens."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    connection.settimeout(TIMEOUT)
    try:
        with short_path(path) as name:
            connection.connect(name)
    except BaseException:
        connection.close()
        raise
    return connection


@dataclass(frozen=True, slots=True)
class _Early:
    """A request on its way, and the shared lock that keeps what it opens until somebody has taken it."""

    path: Path
    request: bytes
    connection: socket.socket
    lock: int


_early: list[_Early] = []


def send_early(paths: NodePaths, reference: str, *, fill: bool) -> None:
    """Ask for an image that will be asked for in a moment; `take` gives the connection to who asks just that.

    Raises OSError where no daemon can be asked, or it is about to end, and what `image_request` raises.
    """
    lock = os.open(paths.use_lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        connection = connect(paths.socket)
        try:
            request = encode("POST", IMAGES, image_request(paths, reference, fill=fill, command=""))
            connection.sendall(request)
        except BaseException:
            connection.close()
            raise
    except BaseException:
        os.close(lock)
        raise
    _early.append(_Early(paths.socket, request, connection, lock))


def take(path: Path, request: bytes) -> socket.socket | None:
    """The connection on which this very request was sent early, once; the caller reads the answer.

    The caller holds the lock `NodePaths.use_lock` itself by now, where it matters.
    """
    while _early:
        early = _early.pop()
        os.close(early.lock)
        if (early.path, early.request) == (path, request):
            return early.connection
        early.connection.close()
    return None

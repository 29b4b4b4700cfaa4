"""What keeper and daemon say to each other: one JSON object per packet, with descriptors where they change hands.

    daemon -> keeper    {"say": "standby"}     imported and waiting; touches nothing yet
                        {"say": "serving"}     answers the kernel and the control API
                        {"say": "failed", "error": ...}    why it is about to end
                        {"say": "pong"}        from the loop that answers the kernel
                        {"say": "settled", "mounts": [...]}    images that were launched: the kernel is to read
                                               ahead in them again, which only root may tell it
    keeper -> daemon    {"do": "serve"}        with what it serves: see `Possessions`
                        {"do": "ping"}
                        {"do": "end"}          finish, flush and exit

The end of the link tells a daemon that serves that its keeper is gone: it goes on. One that does not
serve yet ends.
"""

import json
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MAX_MESSAGE = 64 << 10
_MAX_DESCRIPTORS = 8
_PATH_LIMIT = 107


@dataclass(frozen=True, slots=True)
class Possessions:
    """What outlives every daemon: the connection to the kernel, the socket of the control API, the node's lock."""

    fuse: int
    listener: socket.socket
    lock: int

    def descriptors(self) -> list[int]:
        return [self.fuse, self.listener.fileno(), self.lock]

    @classmethod
    def received(cls, descriptors: Sequence[int]) -> "Possessions":
        fuse, listener, lock = descriptors
        return cls(fuse, socket.socket(fileno=listener), lock)

    def close(self) -> None:
        os.close(self.fuse)
        self.listener.close()
        os.close(self.lock)


def send(link: socket.socket, values: dict[str, Any], descriptors: Sequence[int] = ()) -> None:
    """Raises OSError: BlockingIOError where the other side reads nothing, BrokenPipeError where it is gone."""
    socket.send_fds(link, [json.dumps(values).encode()], descriptors)


def receive(link: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """The next message and what came with it. EOFError when the other side is gone."""
    try:
        raw, descriptors, _, _ = socket.recv_fds(link, MAX_MESSAGE, _MAX_DESCRIPTORS, socket.MSG_CMSG_CLOEXEC)
    except ConnectionResetError as error:
        raise EOFError from error
    return _decoded(raw), descriptors


def hear(link: socket.socket) -> dict[str, Any]:
    """The next message alone: descriptors that nobody expects are not taken. EOFError as from `receive`."""
    try:
        return _decoded(link.recv(MAX_MESSAGE))
    except ConnectionResetError as error:
        raise EOFError from error


def _decoded(raw: bytes) -> dict[str, Any]:
    if not raw:
        raise EOFError
    try:
        values = json.loads(raw)
    except (ValueError, RecursionError):
        values = None
    return values if isinstance(values, dict) else {}


def pair() -> tuple[socket.socket, socket.socket]:
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


@contextmanager
def short_path(path: Path) -> Iterator[str]:
    """The path of a socket so that it fits an address (107 bytes), however long it is.

    Raises OSError when there is no such directory.
    """
    text = str(path)
    if len(os.fsencode(text)) <= _PATH_LIMIT:
        yield text
        return
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{directory}/{path.name}"
    finally:
        os.close(directory)


def listen(path: Path, kind: int, group: int | None = None) -> socket.socket:
    """A socket at `path` that only root may connect to, or the group as well. Replaces one that was left."""
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, kind)
    # Nobody else may connect, not even between bind and chmod.
    before = os.umask(0o177)
    try:
        with short_path(path) as address:
            listener.bind(address)
            if group is not None:
                os.chown(address, 0, group)
                Path(address).chmod(0o660)
        listener.listen(256)
    except BaseException:
        listener.close()
        raise
    finally:
        os.umask(before)
    return listener

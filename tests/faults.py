"""An HTTP server that does what the test says: every fault of a network, a proxy or a hostile registry.

It speaks HTTP/1.1 with keep-alive by hand, so that an answer can be short, long, slow, false or missing. A test
gives a function from a request to a `Reply`.
"""

import errno
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from io import BufferedReader
from typing import Self

_TLS_HANDSHAKE = 0x16
_DRIP_PAUSE = 0.02  # between two bytes
_PAUSE = 0.01


@dataclass(frozen=True)
class Seen:
    """A request as it came."""

    method: str
    target: str
    headers: dict[str, str]  # names in lower case
    body: bytes

    @property
    def path(self) -> str:
        return self.target.partition("?")[0]

    def range(self) -> tuple[int, int]:
        """First byte and the one after the last."""
        first, _, last = self.headers["range"].removeprefix("bytes=").partition("-")
        return int(first), int(last) + 1 if last else 1 << 62


@dataclass(frozen=True)
class Reply:
    """An answer; ``length`` is the Content-Length that is announced, the body's own unless given.

    ``after`` is what happens when the body has been sent: ``keep``, ``close``, ``reset``, ``hang`` (nothing
    more comes). A body may be an iterator, for what would be too large; ``drip`` sends it byte by byte.
    """

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes | Iterator[bytes] = b""
    length: int | None = None
    after: str = "keep"
    chunked: bool = False
    drip: bool = False
    raw: bytes | None = None  # instead of all that


HANG = Reply(raw=b"", after="hang")
RESET = Reply(raw=b"", after="reset")


def ranged(request: Seen, data: bytes) -> Reply:
    """The right answer to a GET or HEAD for these bytes."""
    if "range" not in request.headers:
        return Reply(body=data)
    start, end = request.range()
    if start >= len(data):
        return Reply(416)
    end = min(end, len(data))
    return Reply(206, {"Content-Range": f"bytes {start}-{end - 1}/{len(data)}"}, data[start:end])


class FaultServer:
    """A server at ``host`` that answers by ``script``; ``seen`` are the requests so far."""

    def __init__(self, script: Callable[[Seen], Reply]) -> None:
        self.script = script
        self.seen: list[Seen] = []
        self.connections = 0
        self._socket = socket.create_server(("127.0.0.1", 0), reuse_port=True)
        self.host = f"127.0.0.1:{self._socket.getsockname()[1]}"
        self.url = f"http://{self.host}"
        # Keeps the port while nobody listens, so that nobody else is given it.
        self._port = socket.socket()
        self._port.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        self._port.bind(self._socket.getsockname())
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._open: list[tuple[socket.socket, threading.Thread]] = []
        self._opening = threading.Lock()
        self._acceptor = threading.Thread(target=self._accept)

    def __enter__(self) -> Self:
        self._acceptor.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stopping.set()
        self._stop_accepting()
        self._socket.close()
        self.hang_up()
        self._port.close()

    def refuse(self) -> None:
        """Connections are refused from now on, and those that were made end."""
        self._stop_accepting()
        self._socket.close()
        self.hang_up()

    def listen_again(self) -> None:
        """At the same address, after `refuse`."""
        name, _, port = self.host.partition(":")
        self._socket = socket.create_server((name, int(port)), reuse_port=True)
        self._acceptor = threading.Thread(target=self._accept)
        self._acceptor.start()

    def _stop_accepting(self) -> None:
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._acceptor.join()

    def hang_up(self) -> None:
        """End the connections that were made; new ones are taken."""
        with self._opening:
            made, self._open = self._open, []
        for connection, thread in made:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            thread.join()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                try:
                    connection, _ = self._socket.accept()
                except OSError as error:
                    if error.errno != errno.EMFILE:
                        raise
                    self._stopping.wait(_PAUSE)  # the test has taken all descriptors of this process
                    continue
                self.connections += 1
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                thread = threading.Thread(target=self._serve, args=(connection,))
                with self._opening:
                    self._open.append((connection, thread))
                    thread.start()

    def _serve(self, connection: socket.socket) -> None:
        after = "close"
        with suppress(OSError), connection.makefile("rb") as file:
            while (first := file.peek(1)) and first[0] != _TLS_HANDSHAKE:
                request = _receive(file)
                with self._lock:
                    self.seen.append(request)
                    reply = self.script(request)
                self._send(connection, request, reply)
                after = reply.after
                if after == "hang":
                    self._stopping.wait()
                if after != "keep":
                    break
        if after == "reset":
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.close()

    def _send(self, connection: socket.socket, request: Seen, reply: Reply) -> None:
        if reply.raw is not None:
            connection.sendall(reply.raw)
            return
        connection.sendall(_head(reply))
        if request.method == "HEAD":
            return
        for piece in [reply.body] if isinstance(reply.body, bytes) else reply.body:
            if reply.chunked:
                connection.sendall(b"%x\r\n%b\r\n" % (len(piece), piece))
            elif reply.drip:
                for byte in piece:
                    connection.sendall(bytes([byte]))
                    self._stopping.wait(_DRIP_PAUSE)
            else:
                connection.sendall(piece)
        if reply.chunked and reply.after == "keep":
            connection.sendall(b"0\r\n\r\n")


def _head(reply: Reply) -> bytes:
    headers = dict(reply.headers)
    if reply.chunked:
        headers["Transfer-Encoding"] = "chunked"
    elif "Content-Length" not in headers:
        size = len(reply.body) if isinstance(reply.body, bytes) else 0
        headers["Content-Length"] = str(size if reply.length is None else reply.length)
    lines = [f"HTTP/1.1 {reply.status} -", *(f"{name}: {value}" for name, value in headers.items())]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def _receive(file: BufferedReader) -> Seen:
    method, target, _ = file.readline().decode().split(" ", 2)
    headers: dict[str, str] = {}
    while line := file.readline().decode().strip():
        name, _, value = line.partition(":")
        headers[name.lower()] = value.strip()
    return Seen(method, target, headers, file.read(int(headers.get("content-length", "0"))))


class Tunnel:
    """A proxy that knows CONNECT alone; ``targets`` are the addresses that it led to."""

    def __init__(self) -> None:
        self.targets: list[str] = []
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.host = f"127.0.0.1:{self._socket.getsockname()[1]}"
        self._threads: list[threading.Thread] = []
        self._open: list[socket.socket] = []

    def __enter__(self) -> Self:
        self._start(self._accept)
        return self

    def __exit__(self, *exc_info: object) -> None:
        for end in (self._socket, *self._open):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        for end in (self._socket, *self._open):
            end.close()

    def _start(self, target: Callable[..., None], *arguments: object) -> None:
        self._threads.append(threading.Thread(target=target, args=arguments))
        self._threads[-1].start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._socket.accept()
                self._open.append(near)
                head = b""
                while not head.endswith(b"\r\n\r\n"):
                    head += near.recv(1)
                self.targets.append(head.split()[1].decode())
                name, _, port = self.targets[-1].rpartition(":")
                far = socket.create_connection((name, int(port)))
                self._open.append(far)
                near.sendall(b"HTTP/1.1 200 Connection established\r\nX-Proxy: tests\r\n\r\n")
                self._start(_pass_on, near, far)
                self._start(_pass_on, far, near)


def _pass_on(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)

"""The control API: HTTP/1.1 on a unix socket, JSON in and out. `docs/operations.md` lists the calls."""

import json
import logging
import socket
import socketserver
import struct
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from typing import Any

from lazyfs.daemon.server_thread import ServerThread
from lazyfs.errors import LazyfsError, NodeError, NotFoundError, UsageError

log = logging.getLogger(__name__)

MAX_BODY = 1 << 20
REQUEST_TIMEOUT = 30.0
_MAX_DIGITS = 10
_CREDENTIALS = struct.Struct("3i")


@dataclass(frozen=True, slots=True)
class Handover:
    """An answer that takes descriptors along; for root alone. `closing` is closed when it has left."""

    values: dict[str, Any]
    descriptors: tuple[int, ...]
    closing: socket.socket


Answer = dict[str, Any] | Handover | Iterator[dict[str, Any]]
"""What comes in pieces is one object a line, the last of them empty, or an error."""
Call = Callable[[dict[str, Any]], Answer]


class ControlServer:
    """Serves `calls` ("METHOD /path" -> function) until `close`; each request has a thread of its own.

    The listening socket stays the caller's: who connects while nobody serves waits for the next server.
    """

    def __init__(self, listener: socket.socket, calls: dict[str, Call]) -> None:
        self._server = _Server(listener, calls)
        self._thread = ServerThread(self._server, "api")

    def close(self) -> None:
        """Answer what was asked; a connection that asks nothing is not waited for."""
        self._thread.close()
        self._server.hang_up()
        self._server.server_close()


class _Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    # Threads are waited for on close, so that the last answer leaves.
    daemon_threads = False

    def __init__(self, listener: socket.socket, calls: dict[str, Call]) -> None:
        self.calls = calls
        self._connections: set[socket.socket] = set()
        super().__init__("", _Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = listener.dup()

    def process_request(self, request: Any, client_address: Any) -> None:
        self._connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._connections.discard(request)
        super().shutdown_request(request)

    def hang_up(self) -> None:
        """Nothing more is read from the connections; answers still leave."""
        for connection in self._connections.copy():
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RD)

    def handle_error(self, request: Any, client_address: Any) -> None:
        log.debug("a client of the control API went away")


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = REQUEST_TIMEOUT
    server: _Server

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def _answer(self) -> None:
        try:
            call = self.server.calls.get(f"{self.command} {self.path}")
            if call is None:
                raise NotFoundError(f"the control API has no {self.command} {self.path[:100]}")
            answer = call(self._body())
            if isinstance(answer, Handover):
                self._hand_over(answer)
                return
            if not isinstance(answer, dict):
                self._stream(next(answer), answer)
                return
            status, values = 200, answer
        except LazyfsError as error:
            status, values = 400, error.as_dict()
        except Exception as error:
            log.exception("%s %s", self.command, self.path)
            status, values = 500, _defect(error)
        self._send(status, values)

    def _stream(self, first: dict[str, Any], others: Iterator[dict[str, Any]]) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        values = first
        while values:
            self._send_line(values)
            try:
                values = next(others, {})
            except LazyfsError as error:
                values, others = error.as_dict(), iter(())
            except Exception as error:
                log.exception("%s %s", self.command, self.path)
                values, others = _defect(error), iter(())
        self._send_line(values)

    def _send_line(self, values: dict[str, Any]) -> None:
        self.wfile.write(json.dumps(values).encode() + b"\n")

    def _hand_over(self, answer: Handover) -> None:
        with answer.closing:
            raw = self.connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
            if _CREDENTIALS.unpack(raw)[1] != 0:
                raise UsageError("only root may be the keeper")
            content = json.dumps(answer.values).encode()
            head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(content)}\r\nConnection: close\r\n\r\n"
            socket.send_fds(self.connection, [head.encode() + content], answer.descriptors)
            self.close_connection = True

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What `BaseHTTPRequestHandler` says of a request that it cannot parse."""
        self.request_version = self.protocol_version  # to HTTP/0.9, its guess, it would answer without a head
        self._send(400, UsageError(f"not a request of the control API: {message or explain}").as_dict())

    def _send(self, status: int, values: dict[str, Any]) -> None:
        content = json.dumps(values).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(content)
        self.close_connection = True

    def _body(self) -> dict[str, Any]:
        length = self.headers.get("Content-Length", "0")
        if not length.isdecimal() or len(length) > _MAX_DIGITS or int(length) > MAX_BODY:
            raise UsageError("a request body that is too large, or of unknown length")
        try:
            values = json.loads(self.rfile.read(int(length)) or b"{}")
        except TimeoutError as error:
            raise UsageError("a request body that ends too soon") from error
        except (ValueError, RecursionError) as error:
            raise UsageError(f"a request body that is not JSON ({error})") from error
        if not isinstance(values, dict):
            raise UsageError("a request body that is not a JSON object")
        return values

    def address_string(self) -> str:
        return "local"

    def log_message(self, format: str, *args: Any) -> None:
        log.debug(format, *args)


def _defect(error: Exception) -> dict[str, Any]:
    return NodeError(f"the daemon failed: {type(error).__name__}: {error}").as_dict()

"""Sockets whose every wait has an end, and what they raise.

A deadline holds for a whole exchange and not for each recv(2), so that a server that sends a byte a second is
no better than a silent one; and what a server can make us receive is bounded by what was asked of it.
"""

import base64
import http.client
import io
import socket
import ssl
import time
from contextlib import suppress
from typing import TYPE_CHECKING
from urllib.parse import SplitResult, unquote

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

Body = bytes | bytearray | memoryview | None

SLACK = 1 << 20
"""What may be received beyond what was asked for: headers, and what a buffer reads ahead."""
CONNECT_SECONDS = 10.0
_BUFFER = 64 << 10
_SEND_PIECE = 256 << 10
_NO_TLS = frozenset(
    {"WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "PACKET_LENGTH_TOO_LONG", "HTTP_REQUEST"}
)


class ExchangeError(Exception):
    """An exchange did not come to its end: ``reason`` says why, with the server as its subject.

    ``at`` is the server, once that is known; ``final`` when trying again cannot help; ``no_tls`` when it
    may be spoken to without TLS.
    """

    def __init__(
        self, reason: str, *, at: object = None, hint: str = "", final: bool = False, no_tls: bool = False
    ) -> None:
        super().__init__(reason)
        self.reason = reason
        self.at = at
        self.hint = hint
        self.final = final
        self.no_tls = no_tls


class Deadline:
    """When an exchange must be done, and how long it may stand still meanwhile (seconds)."""

    __slots__ = ("ends", "idle", "waiting_on")

    def __init__(self, seconds: float, idle: float) -> None:
        self.ends = time.monotonic() + seconds
        self.idle = idle
        self.waiting_on: socket.socket | None = None

    def left(self) -> float:
        """Seconds left, never negative."""
        return max(0.0, self.ends - time.monotonic())

    def cut(self) -> None:
        """Make this moment the end, also for a thread that is waiting just now."""
        self.ends = 0.0
        if self.waiting_on is not None:
            with suppress(OSError):
                # The plain one: that of an SSLSocket meddles with what the waiting thread uses.
                socket.socket.shutdown(self.waiting_on, socket.SHUT_RDWR)

    def next_wait(self) -> float:
        """How long the next wait may be; ExchangeError when the time is over."""
        left = self.ends - time.monotonic()
        if left <= 0:
            raise ExchangeError("it took too long")
        return min(left, self.idle)


class TimedSocket:
    """What http.client needs of a socket, with a deadline over all of it."""

    def __init__(self, sock: socket.socket, deadline: Deadline) -> None:
        self.sock = sock
        self.deadline = deadline
        self.allowed = SLACK
        self.ended = False
        self._timeout = -1.0

    def makefile(self, _mode: str) -> io.BufferedReader:
        return io.BufferedReader(_Reader(self), _BUFFER)

    def receive(self, buffer: "WriteableBuffer") -> int:
        self._set_timeout()
        count = self.sock.recv_into(buffer)
        self.allowed -= count
        self.ended = count == 0
        if self.allowed < 0:
            raise ExchangeError("it sent more than was asked for", final=True)
        return count

    def sendall(self, data: Body) -> None:
        view = memoryview(data or b"").cast("B")
        while view:
            self._set_timeout()
            view = view[self.sock.send(view[:_SEND_PIECE]) :]

    def close(self) -> None:
        """Nothing: http.client calls it before it has read the body of an answer that ends the connection."""

    def hang_up(self) -> None:
        self.sock.close()

    def _set_timeout(self) -> None:
        self.deadline.waiting_on = self.sock
        wait = self.deadline.next_wait()
        if wait != self._timeout:  # it costs a system call
            self.sock.settimeout(wait)
            self._timeout = wait


class _Reader(io.RawIOBase):
    def __init__(self, sock: TimedSocket) -> None:
        self._sock = sock

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "WriteableBuffer", /) -> int:
        return self._sock.receive(buffer)


class explained:  # noqa: N801 - a context manager that is a class because it is on the path of every read
    """Turns what sockets, TLS and http.client raise into ExchangeError, and says where it happened."""

    __slots__ = ("_at",)

    def __init__(self, at: object) -> None:
        self._at = at

    def __enter__(self) -> None:
        return None

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, ExchangeError):
            error.at = error.at or self._at
        elif isinstance(error, OSError | http.client.HTTPException | ValueError):
            raise _translated(error, self._at) from None


def _translated(error: Exception, at: object) -> ExchangeError:
    match error:
        case TimeoutError():
            return ExchangeError("it did not answer in time", at=at)
        case ssl.SSLCertVerificationError():
            return ExchangeError(
                f"its certificate is not trusted: {error.verify_message}",
                at=at,
                hint="put its authority's certificate into /etc/docker/certs.d/HOST/ca.crt, "
                "or name it in a hosts.toml of containerd",
                final=True,
            )
        case ssl.SSLError():
            reason = error.reason or ""
            return ExchangeError(
                f"TLS failed: {reason or 'it closed the connection'}",
                at=at,
                hint="if it asks for a client certificate: /etc/docker/certs.d/HOST/client.cert and client.key",
                final="CERTIFICATE" in reason,
                # Which of the two an end in the handshake is differs from one release of OpenSSL to the next.
                no_tls=isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError) or reason in _NO_TLS,
            )
        case socket.gaierror():
            hint = "check the name, and the name server of this machine"
            return ExchangeError("its name is not known", at=at, hint=hint)
        case ConnectionRefusedError():
            hint = "check host and port, and that the server runs"
            return ExchangeError("the connection was refused", at=at, hint=hint, no_tls=True)
        case ConnectionError() | http.client.IncompleteRead():
            reset = isinstance(error, ConnectionResetError)
            return ExchangeError("it closed the connection", at=at, no_tls=reset)
        case OSError():
            return ExchangeError(error.strerror or type(error).__name__, at=at)
        case _:
            return ExchangeError("it did not answer as HTTP requires", at=at)


def dial(host: str, port: int, deadline: Deadline) -> socket.socket:
    """Connect to the first address of a host that takes the connection."""
    failure: OSError = socket.gaierror(socket.EAI_NONAME, "no address")
    for family, kind, protocol, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
        sock = socket.socket(family, kind, protocol)
        try:
            sock.settimeout(min(deadline.next_wait(), CONNECT_SECONDS))
            sock.connect(address)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except OSError as error:
            failure = error
            sock.close()
        except BaseException:
            sock.close()
            raise
        else:
            return sock
    raise failure


def proxy_authorization(proxy: SplitResult) -> dict[str, str]:
    """The header that a proxy wants, from the user and the password in its URL."""
    if proxy.username is None:
        return {}
    pair = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}"
    return {"Proxy-Authorization": f"Basic {base64.b64encode(pair.encode()).decode()}"}


def tunnel(sock: socket.socket, target: str, proxy: SplitResult, deadline: Deadline) -> None:
    """Ask a proxy for a way to ``target``, host:port (RFC 9110, section 9.3.6)."""
    timed = TimedSocket(sock, deadline)
    lines = [f"CONNECT {target} HTTP/1.1", f"Host: {target}"]
    lines += [f"{name}: {value}" for name, value in proxy_authorization(proxy).items()]
    timed.sendall(("\r\n".join(lines) + "\r\n\r\n").encode())
    # Byte by byte: what follows the answer belongs to TLS.
    head, byte = b"", bytearray(1)
    while not head.endswith(b"\r\n\r\n"):
        if len(head) > 1 << 16 or timed.receive(byte) == 0:
            raise ExchangeError("the proxy did not answer as it must", hint="see HTTPS_PROXY and NO_PROXY")
        head += byte
    status = head[9:12]
    if status != b"200":
        raise ExchangeError(
            f"the proxy {proxy.hostname} answered {status.decode('ascii', 'replace')!r}",
            hint="see HTTPS_PROXY and NO_PROXY",
        )

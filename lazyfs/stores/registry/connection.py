"""HTTP/1.1 connections, and the pools that keep them warm.

http.client speaks the protocol: with keep-alive and 32 threads it makes 5,400 ranged GETs of 64 KiB a second
at 0.17 ms of CPU each, urllib3 2,300 at 0.42 ms. What an answer means is not known here; every failure below
HTTP is an `ExchangeError`.
"""

import http.client
import select
import ssl
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Self
from urllib.parse import SplitResult, urljoin, urlsplit
from urllib.request import getproxies, proxy_bypass

from lazyfs import __version__
from lazyfs.stores.registry.hosts import Tls, is_loopback
from lazyfs.stores.registry.wire import (
    CONNECT_SECONDS,
    SLACK,
    Body,
    Deadline,
    ExchangeError,
    TimedSocket,
    dial,
    explained,
    proxy_authorization,
    tunnel,
)

MAX_CONNECTIONS = 64
"""To one origin at a time."""
_MAX_IDLE = 32
_IDLE_SECONDS = 90.0
_MAX_POOLS = 32
_MAX_URL = 16 << 10
_MAX_DRAINED = 64 << 10
_STEP = 1 << 20
_DEFAULT_PORTS = {"https": 443, "http": 80}
# What writes may have been done although its answer was lost: whoever asked for it decides.
_RESENDABLE = frozenset({"GET", "HEAD"})


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a server answers: RFC 6454's scheme, host (no brackets) and port."""

    scheme: str
    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.scheme}://{self.address}"

    @property
    def address(self) -> str:
        """Host and port as a URL has them, the port left out where it is the usual one."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"


def split_url(url: str) -> tuple[Origin, str]:
    """Origin and request target of an absolute URL from a server; ExchangeError when it is none to follow."""
    if len(url) > _MAX_URL or not url.isascii() or not url.isprintable() or " " in url:
        raise ExchangeError("it named an address that cannot be used", final=True)
    try:
        parts = urlsplit(url)
        origin = Origin(parts.scheme, parts.hostname or "", parts.port or _DEFAULT_PORTS[parts.scheme])
    except (ValueError, KeyError) as error:
        raise ExchangeError("it named an address that is neither https nor http", final=True) from error
    if not origin.host or "@" in parts.netloc:
        raise ExchangeError("it named an address that cannot be used", final=True)
    return origin, f"{parts.path or '/'}?{parts.query}" if parts.query else parts.path or "/"


def join_url(base: str, url: str) -> str:
    """The absolute URL that a server means which was asked for `base`; ExchangeError when it can mean none."""
    try:
        return urljoin(base, url)
    except ValueError as error:
        raise ExchangeError("it named an address that cannot be used", final=True) from error


class Response:
    """An answer whose body is still to be read. Leaving the context keeps the connection if it can be kept."""

    def __init__(
        self, pool: "Pool", connection: "_Connection", raw: http.client.HTTPResponse, target: str
    ) -> None:
        self._pool = pool
        self._connection = connection
        self._raw = raw
        self._open = True
        self.status = raw.status
        self.headers = raw.headers
        self.origin = pool.origin
        self.url = f"{pool.origin}{target}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self.close(keep=kind is None)

    @property
    def length(self) -> int | None:
        """The body's length as announced; None when it comes in chunks. ExchangeError when it has no end."""
        if self._raw.chunked:
            return None
        if self._raw.length is None:
            raise ExchangeError("it did not say how long its answer is", at=self.origin, final=True)
        return self._raw.length

    def extend(self, deadline: Deadline) -> None:
        """Give the rest of the body a new deadline."""
        self._connection.wire.deadline = deadline

    def read(self, count: int) -> bytes:
        """The next ``count`` bytes, fewer only at the end of the body; ExchangeError when that comes too early."""
        pieces: list[bytes] = []
        while count > 0:
            # In steps, so that memory grows with what came and not with what was announced.
            step = min(count, _STEP)
            self._connection.wire.allowed = step + SLACK
            with explained(self.origin):
                piece = self._raw.read(step)
            if not piece:
                if self._raw.length:
                    raise ExchangeError("it closed the connection in the middle", at=self.origin)
                break
            pieces.append(piece)
            count -= len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def read_all(self, limit: int) -> bytes:
        """The whole body, of which more than ``limit`` bytes are cut to one more than that."""
        _ = self.length  # a body that only the end of the connection ends may be cut off unnoticed
        return self.read(limit + 1)

    def close(self, *, keep: bool = False) -> None:
        if not self._open:
            return
        self._open = False
        try:
            if keep and not self._raw.isclosed():
                self.read(_MAX_DRAINED)
        except ExchangeError:
            keep = False
        # Nothing may be left over: the next answer on this connection must start at its own first byte.
        kept = keep and self._raw.isclosed() and not self._raw.will_close
        self._raw.close()
        self._pool.give_back(self._connection, keep=kept)


class _Connection(http.client.HTTPConnection):
    """A connection that `Pool` makes, and that never makes itself again."""

    auto_open = 0
    sock: Any

    def __init__(self, origin: Origin, wire: TimedSocket) -> None:
        super().__init__(origin.host, origin.port)
        self.sock = self.wire = wire
        self.idle_since = 0.0

    def hang_up(self) -> None:
        self.close()
        self.wire.hang_up()

    def stale(self) -> bool:
        """Whether the server has ended it, or sent what nobody asked for, while it lay idle."""
        poll = select.poll()  # select(2) knows no descriptors above 1023
        poll.register(self.wire.sock, select.POLLIN)
        return time.monotonic() - self.idle_since > _IDLE_SECONDS or bool(poll.poll(0))


class Pool:
    """Connections to one origin, at most MAX_CONNECTIONS at a time; the one used last is used next."""

    def __init__(
        self,
        origin: Origin,
        context: ssl.SSLContext | None,
        proxy: SplitResult | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self.origin = origin
        self.answered = False
        self._context = context
        self._proxy = proxy
        self._headers = {**(headers or {}), "Host": origin.address, "User-Agent": f"lazyfs/{__version__}"}
        if proxy is not None and context is None:
            self._headers |= proxy_authorization(proxy)
        self._lock = threading.Lock()
        self._idle: list[_Connection] = []
        self._slots = threading.BoundedSemaphore(MAX_CONNECTIONS)
        self._closed = False

    def exchange(
        self, method: str, target: str, headers: Mapping[str, str], body: Body, deadline: Deadline
    ) -> Response:
        """Send one request and read the head of its answer.

        A kept connection that turns out to be dead is replaced at once, if the request may be sent twice.
        """
        asked = target if self._proxy is None or self._context is not None else f"{self.origin}{target}"
        while True:
            connection, fresh = self._take(deadline)
            connection.wire.deadline, connection.wire.allowed = deadline, SLACK
            try:
                with explained(self.origin):
                    connection.request(method, asked, body, {**self._headers, **headers})
                    raw = connection.getresponse()
                    if connection.wire.ended:  # http.client takes half a head for a whole one
                        raise ExchangeError("it closed the connection")
            except BaseException as error:
                self.give_back(connection, keep=False)
                again = isinstance(error, ExchangeError) and not fresh and method in _RESENDABLE
                if not again or deadline.left() <= 0:
                    raise
            else:
                self.answered = True
                return Response(self, connection, raw, target)

    def connect(self, deadline: Deadline) -> None:
        """Make a connection and keep it, to see whether it can be made."""
        connection, _ = self._take(deadline)
        self.give_back(connection, keep=True)

    def give_back(self, connection: _Connection, *, keep: bool) -> None:
        connection.wire.deadline.waiting_on = None
        with self._lock:
            kept = keep and not self._closed and len(self._idle) < _MAX_IDLE
            if kept:
                connection.idle_since = time.monotonic()
                self._idle.append(connection)
        if not kept:
            connection.hang_up()
        self._slots.release()

    def close(self) -> None:
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.hang_up()

    def _take(self, deadline: Deadline) -> tuple[_Connection, bool]:
        with explained(self.origin):
            if not self._slots.acquire(timeout=deadline.next_wait()):
                raise ExchangeError(f"all {MAX_CONNECTIONS} connections to it are busy")
            try:
                while True:
                    with self._lock:
                        connection = self._idle.pop() if self._idle else None
                    if connection is None:
                        return self._new(deadline), True
                    if not connection.stale():
                        return connection, False
                    connection.hang_up()
            except BaseException:
                self._slots.release()
                raise

    def _new(self, deadline: Deadline) -> _Connection:
        host, port = self.origin.host, self.origin.port
        if self._proxy is not None:
            host, port = self._proxy.hostname or "", self._proxy.port or 80
        sock = dial(host, port, deadline)
        try:
            if self._context is not None:
                if self._proxy is not None:
                    name = f"[{self.origin.host}]" if ":" in self.origin.host else self.origin.host
                    tunnel(sock, f"{name}:{self.origin.port}", self._proxy, deadline)
                sock.settimeout(min(deadline.next_wait(), CONNECT_SECONDS))
                sock = self._context.wrap_socket(sock, server_hostname=self.origin.host)
        except BaseException:
            sock.close()
            raise
        return _Connection(self.origin, TimedSocket(sock, deadline))


class Pools:
    """The pools of one store, by origin and by how to speak TLS to it. Thread safe.

    ``proxy`` and ``headers`` are those of `StoreOptions`.
    """

    def __init__(self, proxy: str | None = None, headers: Iterable[tuple[str, str]] = ()) -> None:
        self._proxy = proxy
        self._headers = dict(headers)
        self._lock = threading.Lock()
        self._pools: dict[tuple[Origin, Tls], Pool] = {}
        self._contexts: dict[Tls, ssl.SSLContext] = {}
        self._closed = False

    def get(self, origin: Origin, tls: Tls) -> Pool:
        """UsageError when a certificate cannot be used."""
        key = origin, tls
        with self._lock:
            pool = self._pools.get(key)
            if pool is None:
                while len(self._pools) >= _MAX_POOLS:
                    self._pools.pop(next(iter(self._pools))).close()
                pool = self._pools[key] = Pool(
                    origin, self._context(origin, tls), _proxy(origin, self._proxy), self._headers
                )
                if self._closed:
                    pool.close()
            return pool

    def ever_answered(self) -> bool:
        with self._lock:
            return any(pool.answered for pool in self._pools.values())

    def close(self) -> None:
        with self._lock:
            self._closed = True
            for pool in self._pools.values():
                pool.close()

    def _context(self, origin: Origin, tls: Tls) -> ssl.SSLContext | None:
        if origin.scheme == "http":
            return None
        if tls not in self._contexts:
            self._contexts[tls] = tls.context()
        return self._contexts[tls]


def _proxy(origin: Origin, chosen: str | None) -> SplitResult | None:
    """The proxy that was chosen, else the one that HTTPS_PROXY, HTTP_PROXY and NO_PROXY name for an origin."""
    url = chosen or ""
    if not url and not is_loopback(origin.host) and not proxy_bypass(origin.host):
        url = getproxies().get(origin.scheme, "")
    if not url:
        return None
    parts = urlsplit(url if "://" in url else f"http://{url}")
    if parts.scheme != "http" or not parts.hostname:
        raise ExchangeError(
            "its proxy is not http://HOST:PORT", hint="see HTTPS_PROXY and NO_PROXY", final=True
        )
    return parts

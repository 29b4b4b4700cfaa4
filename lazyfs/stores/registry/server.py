"""One server of a registry: finding out how it speaks, asking it, following where it leads.

Authorization goes to the server itself and nowhere else; what it redirects to gets the request alone. Where a
blob was redirected to is remembered for as long as that holds.
"""

import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar
from urllib.parse import quote

from lazyfs.errors import LazyfsError, StoreError
from lazyfs.stores.options import StoreOptions
from lazyfs.stores.registry.answers import TemporaryError, broken, refused
from lazyfs.stores.registry.auth import Authorizer, parse_challenges
from lazyfs.stores.registry.connection import Origin, Pools, Response, join_url, split_url
from lazyfs.stores.registry.credentials import find_credentials
from lazyfs.stores.registry.hosts import Host
from lazyfs.stores.registry.names import RepositoryName
from lazyfs.stores.registry.redirects import Address, Redirects, lifetime
from lazyfs.stores.registry.waits import Waits
from lazyfs.stores.registry.wire import Body, Deadline, ExchangeError

T = TypeVar("T")

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_MAX_STEPS = 8  # redirects and renewed tokens together
_MAX_RENEWALS = 2
_STORAGE_HINT = "the registry led there: try again, and tell who runs it"


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked of a registry. ``path`` counts from the repository; ``url``, if given, is used instead.

    ``what`` names the thing in errors. ``accepted`` are the statuses that are answers; any other is an error.
    """

    method: str
    path: str
    what: str
    capability: str = "pull"
    headers: dict[str, str] = field(default_factory=dict)
    body: Body = field(default=None, repr=False)
    accepted: frozenset[int] = frozenset({200})
    keep_redirect: bool = False
    mount_from: str = ""  # another repository that a token must allow to read
    url: str = field(default="", repr=False)


class Server:
    """Asks one host, once. Thread safe."""

    def __init__(
        self, host: Host, name: RepositoryName, options: StoreOptions, pools: Pools, actions: str
    ) -> None:
        self.host = host
        self.aside_until = 0.0
        self.waits = Waits()
        self._name = name
        self._insecure = options.insecure
        self._pools = pools
        self._actions = actions
        self._lock = threading.Lock()
        self._home: Origin | None = None
        self._redirects = Redirects()
        # A mirror has passwords of its own; docker.io keeps its name, whatever its server is called.
        keeper = RepositoryName(str(host), name.path) if host.is_mirror else name
        self._authorizer = Authorizer(
            keeper.host,
            f"docker://{name}",
            partial(find_credentials, keeper, options),
            self._send,
            [*(value for _, value in options.headers), *host.headers.values()],
        )

    def ask(self, request: Request, use: Callable[[Response], T], deadline: Deadline) -> T:
        """What ``use`` makes of the answer; raises LazyfsError, or TemporaryError when trying again may help."""
        where = f"{request.what} in docker://{self._name}"
        try:
            address = self._redirects.get(request.path) if request.keep_redirect else None
            if address is not None:
                with suppress(LazyfsError, TemporaryError, ExchangeError):
                    return self._again(address, request, use, deadline)
                # It may have come to its end early: the registry knows a new one.
                self._redirects.forget(request.path)
            return use(self._walk(where, request, deadline))
        except ExchangeError as error:
            raise broken(where, self.host, error) from None

    def _again(
        self, address: Address, request: Request, use: Callable[[Response], T], deadline: Deadline
    ) -> T:
        headers = request.headers
        response = self._send(request.method, address.origin, address.target, headers, request.body, deadline)
        if response.status in request.accepted:
            return use(response)
        response.close()
        raise ExchangeError(f"it answered {response.status}", at=response.origin)

    def _walk(self, where: str, request: Request, deadline: Deadline) -> Response:
        home = self._find_home(deadline)
        address = self._start(home, request)
        scopes = self._scopes(request)
        renewals, seconds = 0, float("inf")
        for _ in range(_MAX_STEPS):
            headers, used = request.headers, None
            if address.origin == home:
                used = self._authorizer.header(scopes, home, deadline)
                headers = headers | self.host.headers | ({"Authorization": used} if used else {})
            response = self._send(
                request.method, address.origin, address.target, headers, request.body, deadline
            )
            if response.status in request.accepted:
                if request.keep_redirect and address.origin != home:
                    self._redirects.keep(request.path, address, seconds)
                return response
            with response:
                if response.status in _REDIRECTS and request.method in ("GET", "HEAD"):
                    address = self._follow(response)
                    seconds = min(seconds, lifetime(address.target, response.headers))
                    continue
                hint = self._authorizer.hint() if address.origin == home else _STORAGE_HINT
                secrets = [*self._authorizer.secrets(), *address.secrets()]
                failure = refused(where, response, hint, secrets)
                challenges = parse_challenges(response.headers.get_all("WWW-Authenticate", []))
            if response.status == 401 and address.origin == home and renewals < _MAX_RENEWALS:
                renewals += 1
                if self._authorizer.renew(challenges, scopes, used, home, deadline):
                    continue
                if isinstance(failure, StoreError):
                    failure.hint = self._authorizer.hint()
            raise failure
        raise StoreError(
            f"{where}: {self.host} redirects in circles",
            hint="tell who runs the registry, or the proxy before it",
        )

    def _send(
        self,
        method: str,
        origin: Origin,
        target: str,
        headers: dict[str, str],
        body: Body,
        deadline: Deadline,
    ) -> Response:
        pool = self._pools.get(origin, self.host.tls)
        with self.waits.waiting():
            return pool.exchange(method, target, headers, body, deadline)

    def _start(self, home: Origin, request: Request) -> Address:
        if request.url:
            return self._leading_from(home, request.url)
        target = f"{self.host.prefix}/{self._name.path}/{request.path}"
        if self.host.is_mirror:
            # As containerd: one mirror may serve many registries.
            target += f"{'&' if '?' in target else '?'}ns={quote(self._name.host, safe='')}"
        return Address(home, target)

    def _follow(self, response: Response) -> Address:
        location = response.headers.get("Location", "")
        if not location:
            raise ExchangeError("it redirects to nowhere", at=response.origin, final=True)
        return self._leading_from(response.origin, join_url(response.url, location))

    def _leading_from(self, here: Origin, url: str) -> Address:
        """The address that a server names; one on itself is never taken for another scheme's."""
        origin, target = split_url(url)
        if origin.scheme == "http" and here.scheme == "https":
            # Behind a proxy that ends TLS, a registry may not know how it is spoken to.
            if origin.host == here.host and origin.port in (80, here.port):
                origin = here
            elif not self._insecure:
                raise ExchangeError(f"it leads to {origin}, without TLS", at=here, final=True)
        return Address(origin, target)

    def _scopes(self, request: Request) -> tuple[str, ...]:
        own = f"repository:{self._name.path}:{self._actions}"
        return (own, f"repository:{request.mount_from}:pull") if request.mount_from else (own,)

    def _find_home(self, deadline: Deadline) -> Origin:
        """The server's origin; the first to ask finds out whether it speaks TLS, if nobody says."""
        with self._lock:
            if self._home is None:
                self._home = self._detect(deadline)
            return self._home

    def _detect(self, deadline: Deadline) -> Origin:
        host = self.host
        if host.scheme:
            return Origin(host.scheme, host.name, host.port or (443 if host.scheme == "https" else 80))
        secure = Origin("https", host.name, host.port or 443)
        try:
            self._pools.get(secure, host.tls).connect(deadline)
        except ExchangeError as error:
            if not error.no_tls:
                raise
            return Origin("http", host.name, host.port or 80)
        return secure

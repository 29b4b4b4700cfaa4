"""A request to a registry: its servers in order, and trying again.

It is tried at each server that can answer it: mirrors first, the registry's own server last, whose word
decides. A mirror that failed a short while ago, or lets somebody wait just now, is asked behind it: so a read
that is asked for a second time, because nothing of it came, goes elsewhere. What may pass (a broken connection,
429, 5xx) is tried again with growing, jittered pauses until the request's deadline; what will not pass (any other
4xx, a wrong answer) is an error at once.
"""

import itertools
import logging
import random
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from lazyfs.errors import LazyfsError, StoreError, UsageError
from lazyfs.stores.options import StoreOptions
from lazyfs.stores.registry.answers import TemporaryError
from lazyfs.stores.registry.connection import Pools, Response
from lazyfs.stores.registry.hosts import find_hosts
from lazyfs.stores.registry.names import RepositoryName
from lazyfs.stores.registry.server import Request, Server
from lazyfs.stores.registry.wire import Deadline

log = logging.getLogger(__name__)
T = TypeVar("T")

_FIRST_PAUSE = 0.1
_MAX_PAUSE = 5.0
_UNKNOWN_ATTEMPTS = 3
"""At a registry that never answered: rather a wrong name than a short failure."""
_LEAST_SHARE = 0.1
_ASIDE_SECONDS = 30.0
"""For how long a mirror that failed is asked last."""


class RegistryClient:
    """Speaks for one repository; with ``push`` only to the server that takes uploads. Thread safe."""

    def __init__(self, name: RepositoryName, options: StoreOptions, *, push: bool) -> None:
        self.name = name
        self.url = f"docker://{name}"
        self._timeout = options.timeout
        self._pools = Pools(options.proxy, options.headers)
        self._closing = threading.Event()
        hosts = find_hosts(name.host, options)
        if push:
            hosts = [host for host in hosts if "push" in host.capabilities][:1]
        actions = "pull,push" if push else "pull"
        self._servers = [Server(host, name, options, self._pools, actions) for host in hosts]

    def deadline(self, more: float = 0.0, *, patient: bool = False) -> Deadline:
        """For one request; ``more`` is how many seconds its size adds, ``patient`` bears silence all the while."""
        seconds = self._timeout + more
        # A third, so that a server that falls silent leaves time for another attempt.
        return Deadline(seconds, seconds if patient else self._timeout / 3)

    def run(self, request: Request, use: Callable[[Response], T], deadline: Deadline | None = None) -> T:
        """Ask until there is an answer, and give what ``use`` makes of it; it reads the body."""
        return self._try(request, _closing(use), deadline or self.deadline())

    def open(self, request: Request, deadline: Deadline) -> Response:
        """Ask until there is an answer; the caller reads its body and closes it."""
        return self._try(request, lambda response: response, deadline)

    def once(self, request: Request, use: Callable[[Response], T], deadline: Deadline) -> T:
        """Ask the registry's own server a single time; TemporaryError when trying again may help."""
        self._check_open()
        return self._servers[-1].ask(request, _closing(use), deadline)

    def pause(self, failure: TemporaryError, attempt: int, deadline: Deadline) -> None:
        """Wait before the next attempt; raises the failure when there is no time for one."""
        wait = min(_MAX_PAUSE, _FIRST_PAUSE * 2 ** min(attempt - 1, 10)) * random.uniform(0.5, 1)
        wait = max(wait, failure.after or 0)
        hopeless = attempt >= _UNKNOWN_ATTEMPTS and not self._pools.ever_answered()
        # What has hardly any time would only end with a less telling error.
        if hopeless or wait >= deadline.left() - _LEAST_SHARE * self._timeout:
            raise failure.error
        log.info("trying again in %.1f s: %s", wait, failure.error.message)
        self._closing.wait(wait)
        self._check_open()

    def close(self) -> None:
        self._closing.set()
        self._pools.close()

    def _check_open(self) -> None:
        if self._closing.is_set():
            raise StoreError(f"the store {self.url} is closed")

    def _try(self, request: Request, use: Callable[[Response], T], deadline: Deadline) -> T:
        servers = self._servers_for(request.capability)
        own, decisive = servers[-1], None
        for attempt in itertools.count(1):
            for server in _in_order(servers):
                self._check_open()
                try:
                    answer = server.ask(request, use, deadline)
                except (LazyfsError, TemporaryError) as error:
                    log.debug("%s: %s", server.host, error)
                    if isinstance(error, TemporaryError):
                        server.aside_until = time.monotonic() + _ASIDE_SECONDS
                    if server is own:
                        decisive = error
                else:
                    server.aside_until = 0.0
                    return answer
            if isinstance(decisive, TemporaryError):
                self.pause(decisive, attempt, deadline)
            elif decisive is not None:
                raise decisive
        raise AssertionError

    def _servers_for(self, capability: str) -> list[Server]:
        servers = [server for server in self._servers if capability in server.host.capabilities]
        if not servers:
            raise UsageError(
                f"{self.url}: no server in its hosts.toml is for {capability}",
                hint=f'add "{capability}" to the capabilities of one',
            )
        return servers


def _in_order(servers: list[Server]) -> list[Server]:
    """Mirrors that are not well go behind the registry's own server."""
    now = time.monotonic()
    own = servers[-1]
    return sorted(
        servers, key=lambda each: each is not own and (each.aside_until > now or each.waits.too_long())
    )


def _closing(use: Callable[[Response], T]) -> Callable[[Response], T]:
    def consume(response: Response) -> T:
        with response:
            return use(response)

    return consume

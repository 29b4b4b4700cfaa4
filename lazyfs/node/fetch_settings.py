"""What a node's owner may choose for fetching: section `[fetch]` of `config.toml`.

[fetch]
timeout = 60                        # seconds until a read that gets no answer is an error
memory = "64M"                      # of what is being fetched and decoded at a time
fill = true                         # fetch the rest of images that are in use while the link is idle
proxy = "http://127.0.0.1:65001"    # for registries: an HTTP proxy, such as Dragonfly's on this node
headers = { X-Dragonfly-Tag = "lazyfs" }   # sent with each request to registries, and to what they lead to
"""

import re
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from lazyfs.config import NodePaths, read_settings
from lazyfs.errors import UsageError
from lazyfs.node.cache_settings import Limit
from lazyfs.node.engine import MEMORY, TIMEOUT
from lazyfs.stores.options import StoreOptions

MIN_MEMORY = 16 << 20
MAX_TIMEOUT = 3600.0
_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,100}")
_RESERVED = frozenset({"authorization", "host", "range", "content-length", "transfer-encoding", "connection"})


@dataclass(frozen=True, slots=True)
class FetchSettings:
    """Seconds, bytes; `headers` are pairs."""

    timeout: float = TIMEOUT
    memory: int = MEMORY
    fill: bool = True
    proxy: str | None = field(default=None, repr=False)  # there may be a password in it
    headers: tuple[tuple[str, str], ...] = ()

    @classmethod
    def read(cls, paths: NodePaths) -> "FetchSettings":
        """From the node's `config.toml`; UsageError names what cannot be meant."""
        where = f"{paths.settings}: [fetch]"
        values = read_settings(paths, "fetch")
        for name in values:
            if name not in cls.__dataclass_fields__:
                raise UsageError(
                    f"{where}: there is no {name!r}", hint=f"there are: {', '.join(cls.__dataclass_fields__)}"
                )
        return cls(
            _timeout(where, values.get("timeout", TIMEOUT)),
            parse_memory(where, values.get("memory", str(MEMORY))),
            _flag(where, values.get("fill", True)),
            _proxy(where, values.get("proxy")),
            _headers(where, values.get("headers", {})),
        )

    def store_options(self) -> StoreOptions:
        return StoreOptions(timeout=self.timeout, proxy=self.proxy, headers=self.headers)


def parse_memory(where: str, value: Any) -> int:
    """Bytes of `64M` or of a number; UsageError when that is no size, or too little to fetch anything."""
    limit = Limit.parse(str(value)) if isinstance(value, str | int) else Limit()
    if limit.bytes is None or limit.bytes < MIN_MEMORY:
        raise UsageError(f"{where}: memory = {value!r} is too little, or no size", hint='such as "64M"')
    return limit.bytes


def _timeout(where: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= MAX_TIMEOUT:
        raise UsageError(f"{where}: timeout = {value!r} is no number of seconds", hint="such as 60")
    return float(value)


def _flag(where: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise UsageError(f"{where}: fill = {value!r} is neither true nor false")
    return value


def _proxy(where: str, value: Any) -> str | None:
    if value is None:
        return None
    try:
        parts = urlsplit(value) if isinstance(value, str) else urlsplit("")
        usable = parts.scheme == "http" and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        usable = False
    if not usable:
        # The value is not shown: there may be a password in it.
        raise UsageError(f"{where}: proxy is not http://HOST:PORT", hint='such as "http://127.0.0.1:65001"')
    return str(value)


def _headers(where: str, value: Any) -> tuple[tuple[str, str], ...]:
    if not isinstance(value, dict):
        raise UsageError(f"{where}: headers is no table", hint='such as { X-Dragonfly-Tag = "lazyfs" }')
    for name, text in value.items():
        if not _NAME.fullmatch(name) or name.lower() in _RESERVED:
            raise UsageError(f"{where}: headers: {name[:40]!r} cannot be set")
        if not isinstance(text, str) or not text.isprintable() or not text.isascii():
            raise UsageError(f"{where}: headers: {name} is not a text of one line")
    return tuple(value.items())

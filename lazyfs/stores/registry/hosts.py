"""Which servers answer for a registry, and how to speak to each: the files of ``certs.d``.

Two layouts share one tree, ``<base>/<host[:port]>/``. With a ``hosts.toml`` it is containerd's (docs/hosts.md
of containerd): mirrors in order, each with capabilities, certificates and a path. Without one it is Docker's:
``*.crt`` are authorities, ``*.cert`` with ``*.key`` of the same name is the client's own certificate.
"""

import ipaddress
import os
import ssl
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from lazyfs.errors import UsageError
from lazyfs.formats.strict_json import short
from lazyfs.stores.options import StoreOptions
from lazyfs.stores.registry.names import DOCKER_HUB, DOCKER_HUB_API

_MAX_FILE = 1 << 20
_SYSTEM_DIRS = (Path("/etc/containerd/certs.d"), Path("/etc/containers/certs.d"), Path("/etc/docker/certs.d"))
_CAPABILITIES = frozenset({"pull", "resolve", "push"})


@dataclass(frozen=True, slots=True)
class Tls:
    """Whom to trust, and what to show: files in PEM. ``client`` has pairs of certificate and key."""

    authorities: tuple[Path, ...] = ()
    client: tuple[tuple[Path, Path], ...] = ()
    verify: bool = True

    def context(self) -> ssl.SSLContext:
        """UsageError when one of the files cannot be used."""
        if self == Tls():
            return _system_context(os.environ.get("SSL_CERT_FILE"), os.environ.get("SSL_CERT_DIR"))
        context = ssl.create_default_context()
        if not self.verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        path = Path()
        try:
            for path in self.authorities:
                context.load_verify_locations(path)
            for path, key in self.client:
                # An empty password instead of a question on the terminal.
                context.load_cert_chain(path, key, password="")
        except (OSError, ssl.SSLError) as error:
            reason = error.strerror or getattr(error, "reason", None) or "not a certificate"
            raise UsageError(
                f"{path} cannot be used: {reason}",
                hint="it must be PEM, the key of a client without a password",
            ) from error
        return context


@lru_cache(1)
def _system_context(file: str | None, directory: str | None) -> ssl.SSLContext:
    """The authorities of this machine, as OpenSSL finds them; to parse them takes 25 ms, longer than a request."""
    return ssl.create_default_context()


@dataclass(frozen=True, slots=True)
class Host:
    """One server of a registry. ``scheme`` is empty when it must be found out: https, else http."""

    scheme: str
    name: str  # without brackets
    port: int | None
    prefix: str = "/v2"
    capabilities: frozenset[str] = _CAPABILITIES
    tls: Tls = Tls()
    headers: dict[str, str] = field(default_factory=dict, hash=False, repr=False)
    is_mirror: bool = False

    def __str__(self) -> str:
        name = f"[{self.name}]" if ":" in self.name else self.name
        return name if self.port is None else f"{name}:{self.port}"


def find_hosts(registry: str, options: StoreOptions) -> list[Host]:
    """The servers of a registry in the order in which to ask them; its own is the last.

    UsageError when a file of its certs.d is not what it must be.
    """
    directory, toml = _directory(registry, options)
    if toml is not None:
        hosts = _from_toml(registry, toml, options)
    else:
        tls = _docker_tls(directory) if directory is not None else Tls()
        hosts = [_own_host(registry, tls, options)]
    if options.insecure:
        hosts = [replace(host, tls=replace(host.tls, verify=False)) for host in hosts]
    return hosts


def is_loopback(name: str) -> bool:
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _directory(registry: str, options: StoreOptions) -> tuple[Path | None, Path | None]:
    """The directory for this registry, and its hosts.toml if it has one."""
    bases = options.certs_dirs
    if bases is None:
        config = Path(os.environ.get("XDG_CONFIG_HOME") or Path("~/.config").expanduser())
        bases = (config / "containers/certs.d", *_SYSTEM_DIRS)
    name, _, port = registry.rpartition(":")
    # containerd's other spelling, for file systems that know no colon.
    spellings = [f"{name}_{port}_", registry] if name and not port.endswith("]") else [registry]
    for spelling in spellings:
        for base in bases:
            directory = base / spelling
            if (directory / "hosts.toml").is_file():
                return directory, directory / "hosts.toml"
            if directory.is_dir():
                return directory, None
    for base in bases:
        if (base / "_default/hosts.toml").is_file():
            return base / "_default", base / "_default/hosts.toml"
    return None, None


def _docker_tls(directory: Path) -> Tls:
    try:
        files = sorted(directory.iterdir())
    except OSError as error:
        raise UsageError(f"{directory}: {error.strerror}", hint="make it readable, or remove it") from error
    pairs = [(path, path.with_suffix(".key")) for path in files if path.suffix == ".cert"]
    return Tls(tuple(path for path in files if path.suffix == ".crt"), tuple(pairs))


def _own_host(registry: str, tls: Tls, options: StoreOptions) -> Host:
    """The server that the registry's name itself leads to."""
    parts = urlsplit(f"//{DOCKER_HUB_API if registry == DOCKER_HUB else registry}")
    name = parts.hostname or ""
    # As Docker and skopeo: what has a certificate set up for it is never spoken to without.
    plain = options.insecure or (is_loopback(name) and tls == Tls())
    return Host("" if plain else "https", name, parts.port, tls=tls)


def _from_toml(registry: str, path: Path, options: StoreOptions) -> list[Host]:
    try:
        data = path.read_bytes()
        if len(data) > _MAX_FILE:
            raise UsageError(f"{path} has {len(data)} bytes", hint=f"the limit is {_MAX_FILE}")
        tree = tomllib.loads(data.decode())
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}", hint="make it readable, or remove it") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(
            f"{path} is not TOML: {short(str(error))}", hint="see hosts.md of containerd"
        ) from error
    table = _Table(path, "", tree)
    hosts = [
        _toml_host(url, _Table(path, f'host."{url}"', values), is_mirror=True)
        for url, values in table.table("host").items()
    ]
    server = table.text("server")
    if server:
        own = _toml_host(server, table, is_mirror=False)
    else:
        own = replace(_own_host(registry, table.tls(), options), headers=table.headers())
    # containerd asks a mirror that is the server itself but once.
    return [*hosts, own] if not any(str(host) == str(own) for host in hosts) else hosts


def _toml_host(url: str, table: "_Table", *, is_mirror: bool) -> Host:
    try:
        parts = urlsplit(url if "://" in url else f"https://{url}")
        name, port = parts.hostname or "", parts.port
    except ValueError:
        name = ""
    if not name or parts.scheme not in ("https", "http"):
        raise table.bad(short(url), "be https://HOST or http://HOST")
    prefix = parts.path.rstrip("/")
    if not table.flag("override_path") and not prefix.endswith("/v2"):
        prefix += "/v2"
    capabilities = frozenset(table.texts("capabilities", default=_CAPABILITIES))
    if capabilities - _CAPABILITIES:
        raise table.bad("capabilities", f"be of {', '.join(sorted(_CAPABILITIES))}")
    return Host(
        parts.scheme,
        name,
        port,
        prefix,
        capabilities if is_mirror else _CAPABILITIES,
        table.tls(),
        table.headers(),
        is_mirror,
    )


class _Table:
    """One table of a hosts.toml; each getter checks its field's type."""

    def __init__(self, path: Path, name: str, values: object) -> None:
        self._path = path
        self._name = name
        if not isinstance(values, dict):
            raise self.bad("it", "be a table")
        self._values: dict[str, Any] = values

    def bad(self, field_name: str, wanted: str) -> UsageError:
        where = f"{self._path} [{self._name}]" if self._name else str(self._path)
        return UsageError(f"{where}: {field_name} must {wanted}", hint="see hosts.md of containerd")

    def text(self, key: str) -> str:
        value = self._values.get(key, "")
        if not isinstance(value, str):
            raise self.bad(key, "be a text")
        return value

    def flag(self, key: str) -> bool:
        value = self._values.get(key, False)
        if not isinstance(value, bool):
            raise self.bad(key, "be true or false")
        return value

    def table(self, key: str) -> dict[str, Any]:
        value = self._values.get(key, {})
        if not isinstance(value, dict):
            raise self.bad(key, "be a table")
        return value

    def texts(self, key: str, default: Iterable[str] = ()) -> list[str]:
        value = self._values.get(key)
        if value is None:
            return list(default)
        items = [value] if isinstance(value, str) else value
        if not isinstance(items, list) or not all(isinstance(item, str) for item in items):
            raise self.bad(key, "be a text or a list of texts")
        return items

    def tls(self) -> Tls:
        authorities = tuple(self._file(item) for item in self.texts("ca"))
        return Tls(authorities, tuple(self._client()), verify=not self.flag("skip_verify"))

    def headers(self) -> dict[str, str]:
        headers = _Table(self._path, f"{self._name}.header", self.table("header"))
        return {name: ", ".join(headers.texts(name)) for name in headers._values}

    def _client(self) -> list[tuple[Path, Path]]:
        """A file that has both, or a list of such files or of [certificate, key]."""
        value = self._values.get("client", [])
        pairs: list[tuple[Path, Path]] = []
        for item in [value] if isinstance(value, str) else value if isinstance(value, list) else [None]:
            match item:
                case str() | [str()]:
                    file = self._file(item if isinstance(item, str) else item[0])
                    pairs.append((file, file))
                case [str(), str()]:
                    certificate, key = self._file(item[0]), self._file(item[1])
                    pairs.append((certificate, key if item[1] else certificate))
                case _:
                    raise self.bad("client", "be a file, or a list of files or of pairs of them")
        return pairs

    def _file(self, name: str) -> Path:
        return self._path.parent / name

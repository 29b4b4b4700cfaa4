"""What a node's owner says of stores: section `[stores]` of `config.toml`.

[stores]
listen = "127.0.0.1:7957"       # where the daemon shows them to the engines of this machine
serve = [
    "s3://models",              # s3.lazyfs/models/team/app:v1 is s3://models/team/app:v1
    "oci:/srv/images",          # oci.lazyfs/srv/images:v1 is oci:/srv/images:v1
]

[[stores.mirror]]               # whose bytes may come from elsewhere, and from where, the first one first
of = "docker://registry.example/team"
by = ["s3://nearby/images/app", "oci:/mnt/images"]

`serve` names a store or a place above several: a bucket, a prefix in it, a directory. `of` names a repository or what
stands before several. Blobs go by their digests, so it does not matter which repository of a mirror is named.
"""

import ipaddress
from dataclasses import dataclass, replace
from typing import Any

from lazyfs.config import NodePaths, read_settings
from lazyfs.errors import LazyfsError, UsageError
from lazyfs.formats.strict_json import short
from lazyfs.stores.reference import Reference, parse_reference
from lazyfs.stores.registry.names import parse_repository

S3_HOST = "s3.lazyfs"
OCI_HOST = "oci.lazyfs"
HOSTS = (S3_HOST, OCI_HOST)
"""The registries that engines believe these stores to be."""

DEFAULT_LISTEN = ("127.0.0.1", 7957)


@dataclass(frozen=True, slots=True)
class Mirror:
    of: str
    by: tuple[Reference, ...]


@dataclass(frozen=True, slots=True)
class NodeStores:
    """``served`` are places as in `Reference.location`, each behind the transport of its store."""

    listen: tuple[str, int] = DEFAULT_LISTEN
    served: tuple[tuple[str, str], ...] = ()
    mirrors: tuple[Mirror, ...] = ()

    @classmethod
    def read(cls, paths: NodePaths) -> "NodeStores":
        """From the node's `config.toml`; UsageError names what cannot be meant."""
        where = f"{paths.settings}: [stores]"
        values = read_settings(paths, "stores")
        _only(where, values, "listen", "serve", "mirror")
        listen = values.get("listen")
        return cls(
            DEFAULT_LISTEN if listen is None else _address(where, listen),
            tuple(_place(where, each) for each in _list(where, values, "serve")),
            tuple(_mirror(where, each) for each in _list(where, values, "mirror")),
        )

    def locate(self, reference: Reference) -> Reference:
        """What an image in one of our registries is really called; any other reference as it is.

        UsageError when it is in none of the places that are served.
        """
        # Engines that no hosts.toml leads here may as well name the address.
        location = reference.location.removeprefix(f"{self._authority}/")
        host, _, path = location.partition("/")
        if reference.transport != "docker" or host not in HOSTS:
            return reference
        transport, location = ("s3", path) if host == S3_HOST else ("oci", f"/{path}")
        if not any(transport == kind and _is_below(location, place) for kind, place in self.served):
            raise UsageError(
                f"{host}/{path} is in no store that this node serves",
                hint="name its bucket or directory in `serve`, section [stores] of the node's config.toml",
            )
        found = replace(reference, transport=transport, location=location)
        return replace(found, tag=None) if found.digest is not None else found

    @property
    def _authority(self) -> str:
        host, port = self.listen
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    @property
    def url(self) -> str:
        """Where the daemon shows the stores."""
        return f"http://{self._authority}"

    def mirrors_of(self, reference: Reference) -> list[Reference]:
        """The stores to ask for blobs before the one that `reference` names, in order."""
        name = str(replace(reference, tag=None, digest=None))
        return [store for mirror in self.mirrors if _is_below(name, mirror.of) for store in mirror.by]


def engine_name(reference: Reference) -> str | None:
    """What an engine calls an image in a bucket or a directory; None where it has no name for it."""
    if reference.transport not in ("s3", "oci"):
        return None
    name = f"{S3_HOST if reference.transport == 's3' else OCI_HOST}/{reference.location.lstrip('/')}"
    try:
        parse_repository(name)
    except UsageError:
        return None
    tag = f":{reference.tag}" if reference.tag is not None else ""
    return f"{name}{tag}{f'@{reference.digest}' if reference.digest is not None else ''}"


def _is_below(name: str, place: str) -> bool:
    return name == place or name.startswith(place if place.endswith("/") else f"{place}/")


def _address(where: str, text: object) -> tuple[str, int]:
    host, _, port = text.rpartition(":") if isinstance(text, str) else ("", "", "")
    host = host.removeprefix("[").removesuffix("]")
    try:
        loopback = ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = False
    if not loopback or not (port.isdecimal() and len(port) < 6 and 0 < int(port) < 65536):
        raise UsageError(
            f"{where}: listen = {short(str(text))} is no loopback address with a port",
            hint=f'such as "{DEFAULT_LISTEN[0]}:{DEFAULT_LISTEN[1]}": the stores are shown to this machine alone',
        )
    return host, int(port)


def _place(where: str, text: object) -> tuple[str, str]:
    """The transport and the location of a store, or of a place above several."""
    transport, _, location = text.partition(":") if isinstance(text, str) else ("", "", "")
    location = location.rstrip("/")
    location = location.removeprefix("//") if transport == "s3" else location
    named = engine_name(Reference(transport, f"{location}/x"))
    if named is None or location.startswith("/") != (transport == "oci"):
        raise UsageError(
            f"{where}: serve: {short(str(text))} is no bucket or directory that an engine has a name for",
            hint="s3://BUCKET[/PREFIX] or oci:/DIRECTORY, of lower-case letters, digits and ._-",
        )
    return transport, location


def _mirror(where: str, values: object) -> Mirror:
    if not isinstance(values, dict):
        raise UsageError(f"{where}: mirror is no table", hint="write [[stores.mirror]]")
    _only(f"{where}: mirror", values, "of", "by")
    of = values.get("of")
    if not isinstance(of, str) or not of:
        raise UsageError(f"{where}: mirror: `of` is missing", hint='such as of = "docker://registry.example"')
    by = [_store(f"{where}: mirror", each) for each in _list(where, values, "by")]
    return Mirror(of.rstrip("/"), tuple(by))


def _store(where: str, text: object) -> Reference:
    try:
        if not isinstance(text, str):
            raise UsageError(f"{short(str(text))} is no text")
        reference = parse_reference(text)
    except LazyfsError as error:
        raise UsageError(f"{where}: {error.message}", hint=error.hint) from error
    if reference.transport == "oci" and not reference.location.startswith("/"):
        raise UsageError(f"{where}: {text} is not absolute")
    return reference


def _list(where: str, values: dict[str, Any], name: str) -> list[object]:
    value = values.get(name, [])
    if not isinstance(value, list):
        raise UsageError(f"{where}: {name} is no list", hint="see docs/operations.md")
    return value


def _only(where: str, values: dict[str, Any], *names: str) -> None:
    for name in values:
        if name not in names:
            raise UsageError(f"{where}: there is no {short(name)}", hint=f"there are: {', '.join(names)}")

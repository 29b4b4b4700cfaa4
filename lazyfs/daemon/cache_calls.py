"""The control API's calls about the cache, by the daemon or, when none runs, by the process that asks."""

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import UnionType
from typing import Any

from lazyfs.config import NodePaths, boot_id
from lazyfs.daemon.client import DaemonClient, locked
from lazyfs.errors import NotFoundError, UsageError
from lazyfs.mount.mountinfo import list_mounts
from lazyfs.node.cache_care import CacheCare, open_care
from lazyfs.node.cache_settings import CacheSettings, Limit
from lazyfs.node.cache_store import NodeCache, open_cache
from lazyfs.stores import parse_reference
from lazyfs.stores.node_stores import NodeStores

PATIENCE = 10.0

Calls = dict[str, Callable[[dict[str, Any]], dict[str, Any]]]
Ask = Callable[[str, dict[str, Any]], dict[str, Any]]


def cache_calls(
    cache: NodeCache,
    care: CacheCare,
    stores: NodeStores,
    verify: Callable[[str], dict[str, Any]] | None = None,
) -> Calls:
    """All but `warm`, which needs the rest of a node. `verify` does more than `care`'s where there is one."""

    def reference(body: dict[str, Any]) -> str:
        text = _value(body, "reference", str, None)
        directory = Path(_value(body, "directory", str, "/"))
        if text is None:
            raise UsageError("the control API needs 'reference': str")
        return str(stores.locate(parse_reference(text).absolute(directory)))

    def prune(body: dict[str, Any]) -> dict[str, Any]:
        return care.prune(
            reference(body) if body.get("reference") is not None else None,
            _value(body, "unused_for", int | float, None),
            _value(body, "size", int, None),
            _value(body, "dry_run", bool, False),
        )

    def choose(body: dict[str, Any]) -> dict[str, Any]:
        limit = _value(body, "limit", str, None)
        if limit is not None:
            cache.room.set_limit(Limit.parse(limit))
        cache.paranoid = _value(body, "paranoid", bool, cache.paranoid)
        return cache.status()

    return {
        "GET /v1/cache": lambda _: care.show(),
        "POST /v1/cache/prune": prune,
        "POST /v1/cache/pin": lambda body: care.pin(reference(body), _value(body, "pinned", bool, True)),
        "POST /v1/cache/verify": lambda body: (verify or care.verify)(_value(body, "layer", str, "")),
        "POST /v1/cache/settings": choose,
    }


def mounted_keys(paths: NodePaths) -> set[str]:
    """The bootstraps that are mounted."""
    return {entry.target.name.rpartition("-")[0] for entry in list_mounts(paths.images)}


@contextmanager
def asking(paths: NodePaths) -> Iterator[Ask]:
    """A function that answers the calls above: the daemon's, else one that does it here while none can start.

    Raises NotFoundError when there is no node.
    """
    client = DaemonClient(paths)
    if client.is_running():
        yield client.ask
        return
    if not paths.root.is_dir():
        raise NotFoundError(f"{paths.root} is no node's directory", hint="choose one with --root")
    with locked(paths.lock, fcntl.LOCK_EX, PATIENCE), _as_owner(paths):
        settings = CacheSettings.read(paths)
        cache = open_cache(paths, settings, boot_id(), lambda reason: None)
        try:
            care = open_care(paths, cache, lambda: mounted_keys(paths))
            calls = cache_calls(cache, care, NodeStores.read(paths))
            yield lambda call, body: calls[call](body)
        finally:
            cache.close()


@contextmanager
def _as_owner(paths: NodePaths) -> Iterator[None]:
    """As whom the daemon runs, so that it can go on with what is written here."""
    try:
        owner = paths.cache.stat()
    except FileNotFoundError:
        owner = paths.root.stat()
    before = os.geteuid(), os.getegid()
    if before[0] == 0:
        os.setegid(owner.st_gid)
        os.seteuid(owner.st_uid)
    try:
        yield
    finally:
        if before[0] == 0:
            os.seteuid(before[0])
            os.setegid(before[1])


def _value(body: dict[str, Any], name: str, kind: type | UnionType, default: Any) -> Any:
    value = body.get(name)
    if value is None:
        return default
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise UsageError(f"the control API needs {name!r}: {getattr(kind, '__name__', kind)}")
    return value

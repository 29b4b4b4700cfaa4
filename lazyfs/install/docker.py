"""Docker Engine 23 and later: `/etc/docker/daemon.json`, and the proxy plugin in the containerd below it.

JSON has no comments: what was there before is kept in a file beside it.
"""

import json
from pathlib import Path
from typing import Any

from lazyfs.errors import UsageError
from lazyfs.install.containerd import NAME, Target, hosts_files, proxy_change
from lazyfs.install.files import Plan, changes, read_text

CONFIG = "etc/docker/daemon.json"
_KEPT = "etc/docker/lazyfs-install.json"
CERTS = "/etc/docker/certs.d"
_DRIVER, _FEATURES, _STORE = "storage-driver", "features", "containerd-snapshotter"
_MADE = "made"  # there was no daemon.json
_INDENT = 4


def plan_docker(target: Target, *, remove: bool = False) -> Plan:
    """What to change, or with ``remove`` what takes it back."""
    path, kept_path = target.prefix / CONFIG, target.prefix / _KEPT
    before, kept_before = read_text(path), read_text(kept_path)
    settings = _load(before, path)
    if remove:
        earlier = _load(kept_before, kept_path)
        _take_back(settings, earlier)
        after = before and (None if earlier.get(_MADE) and not settings else _dump(settings, before))
        kept = None
    else:
        kept = kept_before
        if not is_chosen(target):
            earlier = {_DRIVER: settings.get(_DRIVER), _STORE: _features(settings, path).get(_STORE)}
            earlier[_MADE] = True if before is None else None
            kept = json.dumps({name: value for name, value in earlier.items() if value is not None}) + "\n"
        settings[_DRIVER] = NAME
        settings[_FEATURES] = _features(settings, path) | {_STORE: True}
        after = _dump(settings, before)
    wanted = [
        (kept_path, kept_before, kept),
        (path, before, after),
        proxy_change(target, remove=remove),
        *hosts_files(target, CERTS, remove=remove),
    ]
    notes = ["restart both: systemctl restart containerd docker"]
    if not remove:
        notes.append(
            "Docker keeps images per storage driver: those of the other one are seen again after --remove"
        )
    return Plan(changes(wanted), tuple(notes))


def is_chosen(target: Target) -> bool:
    """Does Docker use the proxy plugin?"""
    path = target.prefix / CONFIG
    return _load(read_text(path), path).get(_DRIVER) == NAME


def _take_back(settings: dict[str, Any], kept: dict[str, Any]) -> None:
    if settings.get(_DRIVER) != NAME:
        return
    del settings[_DRIVER]
    if _DRIVER in kept:
        settings[_DRIVER] = kept[_DRIVER]
    features = settings.get(_FEATURES)
    if isinstance(features, dict):
        features.pop(_STORE, None)
        if _STORE in kept:
            features[_STORE] = kept[_STORE]
        if not features:
            del settings[_FEATURES]


def _features(settings: dict[str, Any], path: Path) -> dict[str, Any]:
    features = settings.get(_FEATURES, {})
    if not isinstance(features, dict):
        raise UsageError(f"{path}: {_FEATURES} is no object", hint="mend it first: dockerd --validate")
    return features


def _load(text: str | None, path: Path) -> dict[str, Any]:
    try:
        values = json.loads(text) if text and text.strip() else {}
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} is not JSON: {error}", hint="mend it first: dockerd --validate") from error
    if not isinstance(values, dict):
        raise UsageError(f"{path} is not a JSON object", hint="mend it first: dockerd --validate")
    return values


def _dump(settings: dict[str, Any], before: str | None) -> str:
    """As it was written: indented as its second line is."""
    lines = (before or "").splitlines()
    indent = len(lines[1]) - len(lines[1].lstrip()) if len(lines) > 1 else _INDENT
    tab = "\t" if len(lines) > 1 and lines[1].startswith("\t") else None
    return json.dumps(settings, indent=tab or indent or _INDENT, ensure_ascii=False) + "\n"

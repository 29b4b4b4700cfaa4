"""Containers in user namespaces of their own: labels `containerd.io/snapshot/uidmapping` and `…/gidmapping`.

Each is a list of `container:host:size`. containerd 2 mounts the lower directories with that mapping (idmapped mounts,
mount_setattr(2)) when it finds it among a mount's options, so nothing is copied; what the container writes belongs to
the host's ids, as its root directory must from the start. Snapshotters that can do so have the capability `remap-ids`
in containerd's configuration.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from lazyfs.errors import UsageError

UID_MAPPING = "containerd.io/snapshot/uidmapping"
GID_MAPPING = "containerd.io/snapshot/gidmapping"
_MAX_ID = (1 << 32) - 2
_MAPPING = re.compile(r"(\d{1,10}):(\d{1,10}):(\d{1,10})")


@dataclass(frozen=True, slots=True)
class IdMapping:
    """Both mappings as the labels have them, and who is root on the host."""

    uids: str
    gids: str
    root_uid: int
    root_gid: int

    @property
    def options(self) -> tuple[str, str]:
        return f"uidmap={self.uids}", f"gidmap={self.gids}"


def id_mapping(labels: Mapping[str, str]) -> IdMapping | None:
    """None where there is none; UsageError where the labels cannot be meant."""
    uids, gids = labels.get(UID_MAPPING, ""), labels.get(GID_MAPPING, "")
    if not uids and not gids:
        return None
    return IdMapping(uids, gids, _root(UID_MAPPING, uids), _root(GID_MAPPING, gids))


def _root(label: str, text: str) -> int:
    """The host's id for 0."""
    found = None
    for part in text.split(","):
        match = _MAPPING.fullmatch(part)
        inside, outside, size = map(int, match.groups()) if match else (0, 0, 0)
        if not size or inside + size - 1 > _MAX_ID or outside + size - 1 > _MAX_ID:
            raise UsageError(f"label {label}: {text[:100]!r} is no list of container:host:size")
        if inside == 0:
            found = outside
    if found is None:
        raise UsageError(f"label {label}: {text[:100]!r} maps no root")
    return found

"""What a node's owner may choose for snapshots: section `[snapshots]` of the node's `config.toml`.

[snapshots]
limit = "10G"                            # of what each container may write; none by default
trust = ["registry.example/team"]        # whose images start before they are proved; all by default
"""

import re
from dataclasses import dataclass
from typing import Any

from lazyfs.config import NodePaths, read_settings
from lazyfs.errors import UsageError
from lazyfs.stores import parse_reference
from snapshotter.limits import NO_LIMIT, parse_limit

_NAMES = ("limit", "trust")
_PLACE = re.compile(r"[a-z0-9.:\[\]_-]+(/[a-z0-9._-]+)*", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Trust:
    """Whose word is taken for what a DiffID is, until it is proved: of all (None), or of images below these places."""

    places: tuple[str, ...] | None = None

    def covers(self, reference: str) -> bool:
        """Is the image, `docker://HOST/REPO@DIGEST`, one of those? A place is a host, or a path below one."""
        if self.places is None:
            return True
        name = f"{parse_reference(reference).location}/"
        return any(name.startswith(f"{place}/") for place in self.places)


EVERYBODY = Trust()


@dataclass(frozen=True, slots=True)
class SnapshotSettings:
    """`limit` in bytes."""

    limit: int | None = None
    trust: Trust = EVERYBODY

    @classmethod
    def read(cls, paths: NodePaths) -> "SnapshotSettings":
        """UsageError where they cannot be meant."""
        where = f"{paths.settings}: [snapshots]"
        values = read_settings(paths, "snapshots")
        for name in values:
            if name not in _NAMES:
                raise UsageError(f"{where}: there is no {name!r}", hint=f"there are: {', '.join(_NAMES)}")
        return cls(parse_limit(str(values.get("limit", NO_LIMIT))), _trust(where, values.get("trust")))


def _trust(where: str, value: Any) -> Trust:
    if value is None:
        return EVERYBODY
    if not isinstance(value, list) or not all(
        isinstance(each, str) and _PLACE.fullmatch(each) for each in value
    ):
        raise UsageError(
            f"{where}: trust = {value!r} is no list of registries or repositories",
            hint='such as ["registry.example/team", "s3.lazyfs"]',
        )
    return Trust(tuple(value))

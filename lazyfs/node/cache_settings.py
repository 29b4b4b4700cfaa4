"""What a node's owner may choose for its cache: section `[cache]` of `config.toml`.

[cache]
limit = "80%"               # or bytes: "200G". Of each directory; "90%" where nothing is said
forget-days = 30            # images that nobody has opened for so long are removed; 0: never
paranoid = false            # verify on each read from the disk

[[cache.directory]]         # one or several, instead of <root>/cache
path = "/mnt/ssd/lazyfs"    # must exist: a disk that is not mounted must not fill the one below it
weight = 4                  # its share of the layers
limit = "500G"              # instead of the limit above
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lazyfs.config import NodePaths, read_settings
from lazyfs.errors import UsageError

DEFAULT_FORGET_DAYS = 30
_UNITS = {"": 0, "k": 10, "m": 20, "g": 30, "t": 40, "p": 50}
_SIZE = re.compile(r"(\d{1,15}(?:\.\d{1,6})?)\s*(?:([kmgtp]?)(?:i?b)?|(%))", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Limit:
    """Bytes, or a share of the file system where the directory lies."""

    bytes: int | None = None
    share: float = 0.0

    @classmethod
    def parse(cls, text: str) -> "Limit":
        """`200G`, `512 MiB`, `1000000` (units are powers of 1024) or `80%`; UsageError for anything else."""
        match = _SIZE.fullmatch(text.strip())
        if match is None or (match[3] and float(match[1]) > 100):
            raise UsageError(f"{text[:40]!r} is not a size", hint="such as 200G, 512M or 80%")
        if match[3]:
            return cls(share=float(match[1]) / 100)
        return cls(int(float(match[1]) * (1 << _UNITS[(match[2] or "").lower()])))

    def of(self, directory: Path) -> int:
        """In bytes, for this directory. Raises OSError when it is not there."""
        if self.bytes is not None:
            return self.bytes
        system = os.statvfs(directory)
        return int(system.f_blocks * system.f_frsize * self.share)


DEFAULT_LIMIT = Limit(share=0.9)


@dataclass(frozen=True, slots=True)
class DirectorySettings:
    path: Path
    weight: float = 1.0
    limit: Limit | None = None


@dataclass(frozen=True, slots=True)
class CacheSettings:
    """`directories` is empty where the cache lies below the node's root."""

    limit: Limit = DEFAULT_LIMIT
    forget_days: float = DEFAULT_FORGET_DAYS
    paranoid: bool = False
    directories: tuple[DirectorySettings, ...] = ()

    @classmethod
    def read(cls, paths: NodePaths) -> "CacheSettings":
        """From the node's `config.toml`; UsageError names what cannot be meant."""
        table = _Table(f"{paths.settings}: [cache]", read_settings(paths, "cache"))
        table.only("limit", "forget-days", "paranoid", "directory")
        places = table.get("directory", list, [])
        directories = tuple(_directory(f"{paths.settings}: [[cache.directory]]", each) for each in places)
        if len({each.path for each in directories}) != len(directories):
            raise UsageError(f"{paths.settings}: a cache directory is named twice")
        days = table.get("forget-days", int | float, DEFAULT_FORGET_DAYS)
        if days < 0:
            raise UsageError(f"{paths.settings}: forget-days = {days} is negative")
        limit = table.limit() or DEFAULT_LIMIT
        return cls(limit, days, table.get("paranoid", bool, False), directories)


def _directory(where: str, values: Any) -> DirectorySettings:
    if not isinstance(values, dict):
        raise UsageError(f"{where} is not a table", hint="see docs/operations.md")
    table = _Table(where, values)
    table.only("path", "weight", "limit")
    path = Path(table.get("path", str, ""))
    if not path.is_absolute():
        raise UsageError(f"{where}: path = {str(path)!r} is not absolute")
    weight = table.get("weight", int | float, 1)
    if not 0 < weight <= 1e6:
        raise UsageError(f"{where}: weight = {weight} is not above 0")
    return DirectorySettings(path, float(weight), table.limit())


@dataclass(frozen=True, slots=True)
class _Table:
    where: str
    values: dict[str, Any]

    def only(self, *names: str) -> None:
        for name in self.values:
            if name not in names:
                raise UsageError(f"{self.where}: there is no {name!r}", hint=f"there are: {', '.join(names)}")

    def get(self, name: str, kind: Any, default: Any) -> Any:
        value = self.values.get(name, default)
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise UsageError(
                f"{self.where}: {name} = {value!r} cannot be meant", hint="see docs/operations.md"
            )
        return value

    def limit(self) -> Limit | None:
        value = self.get("limit", str | int, "")
        return Limit.parse(str(value)) if value != "" else None

"""What a recipe is made of; see `recipes`."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

INSTALL = "apt-get update -q && apt-get install -yq --no-install-recommends"
PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True, slots=True)
class Debootstrap:
    """A base layer: Debian's minbase, without what apt can fetch again."""

    suite: str


@dataclass(frozen=True, slots=True)
class Busybox:
    """A base layer: the machine's own static busybox, one hard link for each of its commands."""


@dataclass(frozen=True, slots=True)
class GoProgram:
    """A base layer: one static program at /app, made of this source by the machine's Go, and nothing else."""

    source: str


Base = Debootstrap | Busybox | GoProgram


@dataclass(frozen=True, slots=True)
class Recipe:
    """An image: a base layer, one more for each script, and the config's own ``config`` object.

    A flat image has one layer, with all that base and scripts made.
    """

    name: str
    base: Base
    scripts: tuple[str, ...]
    config: Mapping[str, Any]
    flat: bool = False

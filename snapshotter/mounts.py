"""What containerd is to mount to see a snapshot.

    nothing below     a bind mount of its own directory
    a view, one below a read-only bind mount of that
    else              an overlay, the nearest below first

A lazy snapshot shows all that is below it as well, in one directory. So a container on an image of many lazy
layers has one lower directory.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from snapshotter.directories import Directories
from snapshotter.idmap import id_mapping
from snapshotter.records import Kind, Snapshot

_INDEX = Path("/sys/module/overlay/parameters/index")
_UID_MAP = Path("/proc/self/uid_map")
_ALL_IDS = "4294967295"


@dataclass(frozen=True, slots=True)
class Mount:
    """containerd.types.Mount, which has no target: containerd knows where."""

    type: str
    source: str
    options: tuple[str, ...]


def lower_snapshots(ancestors: Sequence[Snapshot]) -> list[Snapshot]:
    """Those whose directories are the lower ones, the nearest first: down to a lazy one, or to the ground."""
    lower = []
    for snapshot in ancestors:
        lower.append(snapshot)
        if snapshot.lazy is not None:
            break
    return lower


def mounts_of(directories: Directories, snapshot: Snapshot, ancestors: Sequence[Snapshot]) -> list[Mount]:
    """`ancestors` has the parent first."""
    lower = [str(directories.fs(each.id)) for each in lower_snapshots(ancestors)]
    view = snapshot.kind is Kind.VIEW
    mapping = id_mapping(snapshot.labels)
    mapped = mapping.options if mapping else ()
    if not lower:
        access = "ro" if view else "rw"
        return [Mount("bind", str(directories.fs(snapshot.id)), (*mapped, access, "rbind"))]
    if view and len(lower) == 1:
        return [Mount("bind", lower[0], (*mapped, "ro", "rbind"))]
    own = (
        ()
        if view
        else (f"workdir={directories.work(snapshot.id)}", f"upperdir={directories.fs(snapshot.id)}")
    )
    options = (*mapped, *own, f"lowerdir={':'.join(lower)}", *_overlay_options())
    return [Mount("overlay", "overlay", options)]


@cache
def _overlay_options() -> tuple[str, ...]:
    options = []
    if _UID_MAP.read_text().split()[2] == _ALL_IDS:
        # Renames of directories that lie below: without it they are EXDEV, with which few programs can live.
        options.append("redirect_dir=on")
    else:
        # overlayfs keeps its notes in trusted.* attributes, which only the first user namespace may set.
        options.append("userxattr")
    if os.access(_INDEX, os.R_OK) and _INDEX.read_text().strip() == "Y":
        # An index ties an upper directory to the very lower file systems that it was first mounted with.
        options.append("index=off")
    return tuple(options)

"""What is mounted, read from /proc/self/mountinfo (proc_pid_mountinfo(5))."""

import os
import re
from dataclasses import dataclass
from pathlib import Path

_MOUNTINFO = Path("/proc/self/mountinfo")
_OCTAL = re.compile(rb"\\([0-7]{3})")


@dataclass(frozen=True, slots=True)
class MountEntry:
    """One line of mountinfo. ``device`` is "major:minor", ``root`` the shown part of the file system."""

    mount_id: int
    parent_id: int
    device: str
    root: Path
    target: Path
    options: tuple[str, ...]
    kind: str
    source: str
    super_options: str


def parse_mountinfo(raw: bytes) -> list[MountEntry]:
    """The mounts in the order of ``raw``, the content of a mountinfo file."""
    # Not splitlines: a carriage return may stand in a path as it is.
    return [_parse_line(line) for line in raw.split(b"\n") if line]


def all_mounts() -> list[MountEntry]:
    return parse_mountinfo(_MOUNTINFO.read_bytes())


def list_mounts(below: Path) -> list[MountEntry]:
    """The mounts on ``below`` and under it, deepest first, of those on one directory the topmost first.

    So they can be unmounted in this order. ``below`` must be absolute and without symlinks.
    """
    mounts = list(enumerate(all_mounts()))
    mounts.sort(key=lambda each: (len(each[1].target.parts), each[0]), reverse=True)
    return [entry for _, entry in mounts if entry.target.is_relative_to(below)]


def mount_at(target: Path) -> MountEntry | None:
    """The topmost mount on exactly ``target``, found without touching it: it may be dead."""
    return next((entry for entry in list_mounts(target) if entry.target == target), None)


def _parse_line(line: bytes) -> MountEntry:
    # Optional fields of any number stand between the sixth field and a lone hyphen.
    fields = line.split(b" ")
    end = fields.index(b"-", 6)
    mount_id, parent_id, device, root, target, options = fields[:6]
    kind, source, super_options = fields[end + 1 : end + 4]
    return MountEntry(
        mount_id=int(mount_id),
        parent_id=int(parent_id),
        device=device.decode(),
        root=Path(_unescape(root)),
        target=Path(_unescape(target)),
        options=tuple(options.decode().split(",")),
        kind=kind.decode(),
        source=_unescape(source),
        super_options=_unescape(super_options),
    )


def _unescape(field: bytes) -> str:
    return os.fsdecode(_OCTAL.sub(lambda match: bytes([int(match[1], 8)]), field))

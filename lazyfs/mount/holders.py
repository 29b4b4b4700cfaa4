"""Who keeps a mount busy, as far as /proc tells: the remedy that a `BusyError` names."""

import os
from pathlib import Path

from lazyfs.mount.mountinfo import list_mounts

_SHOWN = 5


def describe_holders(target: Path) -> str:
    """One line that names mounts below ``target`` and processes that work in it."""
    names = [f"mount {entry.target}" for entry in list_mounts(target)[:-1]]
    names += [f"process {pid} ({_command(pid)})" for pid in _processes(target)]
    if not names:
        return "no process has it open; a mount made from it, or in another namespace, may still use it"
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"held by {', '.join(names[:_SHOWN])}{more}"


def _processes(target: Path) -> list[int]:
    """Processes whose directory, root, program or open file lies in ``target``."""
    pids = sorted(int(entry.name) for entry in os.scandir("/proc") if entry.name.isdigit())
    return [pid for pid in pids if any(link.is_relative_to(target) for link in _links(pid))]


def _links(pid: int) -> list[Path]:
    process = Path("/proc", str(pid))
    found = []
    try:
        for link in (process / "cwd", process / "root", process / "exe", *(process / "fd").iterdir()):
            found.append(link.readlink())
    except OSError:
        # It ended meanwhile, is a thread of the kernel, or is not ours to look into.
        pass
    return found


def _command(pid: int) -> str:
    try:
        return Path("/proc", str(pid), "comm").read_text(errors="replace").strip()
    except OSError:
        return "ended"

"""What the cgroups of this machine allow, and how to get rid of a container's.

Three layouts are met: ``unified`` (cgroup v2), ``legacy`` (v1, one hierarchy a controller) and hybrid
(v1 with a v2 hierarchy at /sys/fs/cgroup/unified). Where none is writable a container runs without:
without limits, and without the device filter, so that the bundle takes CAP_MKNOD away as well.
"""

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lazyfs.errors import NodeError
from lazyfs.mount.mountinfo import all_mounts

MOUNT = Path("/sys/fs/cgroup")
_UNIFIED = MOUNT / "unified"
# Without these a runtime cannot make a container in v1.
_NEEDED_V1 = {"devices", "freezer", "pids"}
_GONE_WITHIN = 10.0
_POLL = 0.005


@dataclass(frozen=True, slots=True)
class Cgroups:
    """``usable``: a container can have one; ``memory`` and ``swap``: it can be limited in these.

    ``hide`` is where crun must see an empty file system instead. It refuses a hybrid layout whose v2
    hierarchy has any controller (hugetlb is enough), and a machine without cgroups even if it is to
    use none; and where no v2 hierarchy is mounted, it leaves a plain directory behind.
    """

    usable: bool
    memory: bool = False
    swap: bool = False
    hide: Path | None = None


def survey() -> Cgroups:
    """Look at this machine."""
    kinds = {entry.target: entry.kind for entry in all_mounts() if entry.target.is_relative_to(MOUNT)}
    if kinds.get(MOUNT) == "cgroup2":
        if not os.access(MOUNT, os.W_OK):
            return Cgroups(False, hide=MOUNT)
        memory = "memory" in (MOUNT / "cgroup.controllers").read_text().split()
        return Cgroups(True, memory, swap=memory and Path("/proc/swaps").exists())
    v1 = {path.name: os.access(path, os.W_OK) for path, kind in kinds.items() if kind == "cgroup"}
    if not v1.keys() >= _NEEDED_V1 or not all(v1.values()):
        return Cgroups(False, hide=MOUNT)
    swap = (MOUNT / "memory/memory.memsw.limit_in_bytes").exists()
    return Cgroups(True, "memory" in v1, swap, hide=_UNIFIED if _UNIFIED.is_dir() else None)


def remove_cgroup(path: str) -> None:
    """Kill what still runs in the cgroup ``path`` (absolute), in every hierarchy, and remove it.

    Returns only when no process is left: then its mounts are gone too. Raises `NodeError` if that
    takes longer than ten seconds (a process in an uninterruptible wait).
    """
    patience = time.monotonic() + _GONE_WITHIN
    while left := [place for place in _places(path) if _remove_tree(place)]:
        if time.monotonic() > patience:
            raise NodeError(f"{left[0]} does not become empty", hint="a process in its cgroup.procs is stuck")
        time.sleep(_POLL)


def _places(path: str) -> Iterator[Path]:
    relative = path.lstrip("/")
    for parent in (MOUNT, *MOUNT.iterdir()) if MOUNT.is_dir() else ():
        # Not a mount: cpu -> cpu,cpuacct and the like.
        if parent.is_mount() and (parent / relative).is_dir():
            yield parent / relative


def _remove_tree(directory: Path) -> bool:
    """One attempt; True if something is left."""
    for folder, _, _ in os.walk(directory, topdown=False):
        for pid in _processes(Path(folder)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        try:
            Path(folder).rmdir()
        except FileNotFoundError:
            continue
        except OSError:
            return True
    return False


def _processes(directory: Path) -> list[int]:
    try:
        listed = (directory / "cgroup.procs").read_text().split()
    except OSError:
        return []
    # 0 stands for a process outside our pid namespace, and would be our own group to kill(2).
    return [int(pid) for pid in listed if pid != "0"]

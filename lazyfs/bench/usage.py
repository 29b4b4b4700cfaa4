"""What each process of a start has used: processor time with that of its children that ended, and largest memory.

In an enclosure all processes are those of the measurement. What ended unseen counts with who waited for it.
"""

import os
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from lazyfs.bench.processes import largest_memory

_TICKS = os.sysconf("SC_CLK_TCK")
_CONTAINER = "container"
_ENDED = "container and shim, ended"
_MODULES = {
    "snapshotter": "lazyfs-snapshotter",
    "lazyfs.keeper": "lazyfs keeper",
    "lazyfs.daemon": "lazyfs daemon",
}


@dataclass(frozen=True, slots=True)
class Use:
    """Seconds and bytes, of all processes of a name; `memory` is the sum of what each had at most."""

    name: str
    processes: int
    cpu: float
    memory: int


@dataclass(frozen=True, slots=True)
class _Process:
    name: str
    parent: int
    began: int
    cpu: float
    memory: int


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Processes by number, and the seconds of orphans that have ended."""

    processes: Mapping[int, _Process]
    orphans: float


def look(without: Collection[int] = ()) -> Snapshot:
    """Every process that can be seen, but for those."""
    found: dict[int, _Process] = {}
    for directory in Path("/proc").iterdir():
        if directory.name.isdigit() and int(directory.name) not in without:
            with suppress(OSError, ValueError, IndexError):
                found[int(directory.name)] = _read(directory)
    fields = Path("/proc/1/stat").read_text().rpartition(")")[2].split()
    return Snapshot(found, sum(map(int, fields[13:15])) / _TICKS)


def between(before: Snapshot, after: Snapshot) -> list[Use]:
    """What was used between two looks, the most of processor time first."""
    uses: dict[str, Use] = {}
    if (orphans := after.orphans - before.orphans) > 0:
        uses[_ENDED] = Use(_ENDED, 0, round(orphans, 2), 0)
    for pid, each in after.processes.items():
        then = before.processes.get(pid)
        cpu = each.cpu - (then.cpu if then is not None and then.began == each.began else 0.0)
        name = _role(pid, after.processes)
        use = uses.get(name, Use(name, 0, 0.0, 0))
        uses[name] = Use(name, use.processes + 1, round(use.cpu + cpu, 2), use.memory + each.memory)
    return sorted(uses.values(), key=lambda use: -use.cpu)


def _read(directory: Path) -> _Process:
    fields = (
        (directory / "stat").read_text().rpartition(")")[2].split()
    )  # proc_pid_stat(5), from the third on
    words = (directory / "cmdline").read_bytes().split(b"\0")
    # utime, stime, and the same of children that were waited for
    cpu = sum(map(int, fields[11:15])) / _TICKS
    return _Process(_name(words), int(fields[1]), int(fields[19]), cpu, largest_memory(int(directory.name)))


def _name(words: list[bytes]) -> str:
    if b"-m" in words[:4]:
        module = words[words.index(b"-m") + 1].decode(errors="replace")
        if module in _MODULES:
            return _MODULES[module]
    return os.path.basename(words[0]).decode(errors="replace") or "kernel"  # noqa: PTH119 (bytes)


def _role(pid: int, processes: Mapping[int, _Process]) -> str:
    """Its name; what a shim has started is the container."""
    each = processes[pid]
    ancestor = processes.get(each.parent)
    while ancestor is not None:
        if ancestor.name.startswith("containerd-shim"):
            return _CONTAINER
        ancestor = processes.get(ancestor.parent)
    return each.name

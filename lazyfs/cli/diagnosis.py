"""What `lazyfs doctor` looks at."""

import os
import re
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lazyfs.cli.leftovers import find_leftovers
from lazyfs.config import NodePaths
from lazyfs.daemon.client import DaemonClient
from lazyfs.errors import LazyfsError, NotFoundError
from lazyfs.keeper.client import KeeperClient
from lazyfs.mount import ladder
from lazyfs.mount.probe import probe

MIN_FREE = 1 << 30
REPEATING_KERNEL = (6, 9)
"""Where FUSE_NOTIFY_RESEND begins, see `mount.connection.ask_again`."""
RUNTIMES = ("crun", "runc")


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at: what was found, and what to do where it is not ok."""

    name: str
    ok: bool
    found: str
    remedy: str

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def diagnose(paths: NodePaths) -> list[Finding]:
    looks: list[Callable[[], Finding]] = [
        _root_rights,
        _fuse,
        lambda: _mount_mode(paths),
        lambda: _file_system("overlay", "modprobe overlay (CONFIG_OVERLAY_FS)"),
        _packages,
        _runtime,
        lambda: _space(paths),
        lambda: _daemon(paths),
        lambda: _leftovers(paths),
    ]
    return [look() for look in looks]


def _root_rights() -> Finding:
    return Finding(
        "rights",
        os.geteuid() == 0,
        f"uid {os.geteuid()}",
        "mounting needs root; convert, check and inspect do not",
    )


def _fuse() -> Finding:
    there = Path("/dev/fuse").exists()
    found = "/dev/fuse is there" if there else "no /dev/fuse"
    version = tuple(int(number) for number in re.findall(r"\d+", os.uname().release)[:2])
    if there and version < REPEATING_KERNEL:
        found += "; before Linux 6.9 reads that a killed daemon was serving may fail"
    return Finding("fuse", there, found, "modprobe fuse")


def _mount_mode(paths: NodePaths) -> Finding:
    """What images are shown by here, and what is wrong with the ways that would be better."""
    remedy = "run it as root; `modprobe fuse erofs loop` loads what is not loaded yet"
    try:
        preferred = ladder.preferred_mode(paths)
        rungs = probe(_existing(paths.root))
    except LazyfsError as error:
        return Finding("mount mode", False, str(error), error.hint or remedy)
    release = f"Linux {os.uname().release}"
    for at, rung in enumerate(rungs):
        if rung.mode == preferred or (rung.works and preferred == ladder.AUTO):
            said = [release]
            if preferred == ladder.AUTO:
                said += [f"not {better.mode}: {better.reason}" for better in rungs[:at]]
            else:
                said += [f"{paths.settings} says so"]
            return Finding(
                "mount mode", rung.works, f"{rung.mode}: {rung.reason} ({'; '.join(said)})", remedy
            )
    reasons = "; ".join(f"{each.mode}: {each.reason}" for each in rungs)
    return Finding("mount mode", False, f"none ({release}; {reasons})", remedy)


def _file_system(name: str, remedy: str) -> Finding:
    known = {line.split()[-1] for line in Path("/proc/filesystems").read_text().splitlines()}
    # A module that is not loaded yet is loaded by the first mount.
    module = list(Path("/lib/modules", os.uname().release).glob(f"kernel/fs/*/{name}.ko*"))
    ok = name in known or bool(module)
    return Finding(name, ok, "the kernel has it" if ok else "not in /proc/filesystems", remedy)


def _packages() -> Finding:
    missing = [name for name in ("pyfuse3", "trio") if find_spec(name) is None]
    return Finding(
        "packages",
        not missing,
        f"missing: {', '.join(missing)}" if missing else "pyfuse3 and trio are installed",
        "pip install 'lazyfs[node]' (pyfuse3 needs libfuse3-dev, pkg-config and a C compiler)",
    )


def _runtime() -> Finding:
    found = [path for name in RUNTIMES if (path := shutil.which(name))]
    return Finding(
        "runtime", bool(found), ", ".join(found) or "neither crun nor runc on PATH", "apt-get install crun"
    )


def _space(paths: NodePaths) -> Finding:
    existing = _existing(paths.root)
    free = shutil.disk_usage(existing).free
    return Finding(
        "space",
        free >= MIN_FREE,
        f"{free / 1e9:.1f} GB free below {existing}",
        "free at least 1 GB, or choose --root",
    )


def _daemon(paths: NodePaths) -> Finding:
    try:
        keeper = KeeperClient(paths).status()
    except NotFoundError:
        running = DaemonClient(paths).is_running()
        found = "runs without keeper" if running else "does not run; it is started when needed"
        return Finding("daemon", not running, found, "the next command starts a keeper, or --repair does")
    serves = any(each["stage"] == "serving" for each in keeper["daemons"])
    found = f"runs as {keeper['user']}" if serves else f"does not serve: {keeper['last_end'] or 'it starts'}"
    return Finding("daemon", serves, f"{found}; restarts: {keeper['restarts']}", f"see {paths.log}")


def _leftovers(paths: NodePaths) -> Finding:
    left = [each.what for each in find_leftovers(paths)]
    return Finding(
        "leftovers", not left, "; ".join(left) or "nothing is left behind", "lazyfs doctor --repair"
    )


def _existing(path: Path) -> Path:
    return next(each for each in (path, *path.parents) if each.exists())

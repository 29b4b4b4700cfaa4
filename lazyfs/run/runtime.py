"""The OCI runtime: crun, else runc, else what was asked for; how it is called, and what its errors mean."""

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path

from lazyfs.errors import LazyfsError, NodeError
from lazyfs.run.cgroups import Cgroups
from lazyfs.run.command import CommandNotExecutableError, CommandNotFoundError

_PREFERRED = ("crun", "runc")
# sudo and cron have short PATHs, and runc lives in sbin.
_ALSO_IN = ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin")
_MAX_LOG = 64 << 10
# crun: "executable file `x` not found in $PATH", "open executable: Permission denied",
# "exec container process `/x`: Exec format error". runc: 'exec: "x": permission denied'.
_ABOUT_PROGRAM = re.compile(r"\bexecutable\b|\bexec (container process|/)|\bexec: ")
_NOT_FOUND = re.compile(r"not found|no such file", re.IGNORECASE)
# The codes that runtimes end with when they, not the container, failed.
_FAILED = (1, 126, 127)


@dataclass(frozen=True, slots=True)
class Runtime:
    """``hide`` is to be covered by an empty file system in the runtime's own view; see `Cgroups`."""

    program: str
    options: tuple[str, ...] = ()
    hide: Path | None = None

    def command(self, directory: Path, *words: str) -> list[str]:
        """The command line that keeps state and log in the container's ``directory``."""
        places = ["--root", str(state_of(directory)), "--log", str(log_of(directory)), "--log-format", "json"]
        return [self.program, *self.options, *places, *words]


def state_of(directory: Path) -> Path:
    return directory / "runtime"


def log_of(directory: Path) -> Path:
    return directory / "runtime.log"


def find_runtime(wanted: str, cgroups: Cgroups) -> Runtime:
    """Raises `NodeError` where there is none, or none that can do with this machine's ``cgroups``."""
    names = (wanted,) if wanted else _PREFERRED
    program = next((path for path in map(_which, names) if path), None)
    if program is None:
        raise NodeError(
            f"no OCI runtime: {' or '.join(names)} is not to be found",
            hint="install one: apt-get install crun",
        )
    if not Path(program).name.startswith("crun"):
        if not cgroups.usable:
            raise NodeError(
                f"{program} needs cgroups, and this machine has none that can be written to",
                hint="crun can do without: apt-get install crun, and --runtime crun",
            )
        return Runtime(program)
    return Runtime(program, () if cgroups.usable else ("--cgroup-manager=disabled",), cgroups.hide)


def _which(name: str) -> str | None:
    folders = [""] if "/" in name else [*os.get_exec_path(), *_ALSO_IN]
    found = (Path(folder, name).absolute() for folder in folders)
    return next((str(path) for path in found if path.is_file() and os.access(path, os.X_OK)), None)


def failure(runtime: Runtime, directory: Path, code: int) -> LazyfsError | None:
    """Why the runtime ended with ``code`` and ran nothing, or None if it is the container's own code."""
    said = _logged_errors(log_of(directory)) if code in _FAILED else []
    if not said:
        return None
    reason = said[-1]
    if _ABOUT_PROGRAM.search(reason):
        kind = CommandNotFoundError if _NOT_FOUND.search(reason) else CommandNotExecutableError
        return kind(f"{Path(runtime.program).name}: {reason}")
    return NodeError(f"{runtime.program} could not run the container: {reason}")


def _logged_errors(log: Path) -> list[str]:
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - _MAX_LOG))
            lines = file.read(_MAX_LOG).decode(errors="replace").splitlines()
    except FileNotFoundError:
        return []
    said = []
    for line in lines:
        try:
            entry = json.loads(line)
            if entry["level"] in ("error", "fatal"):
                said.append(" ".join(str(entry["msg"]).split()))
        except (ValueError, KeyError, TypeError):
            continue
    return said

"""What is to be changed on this machine: shown first, then written whole or not at all."""

import difflib
import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from lazyfs.errors import NodeError, UsageError

_MAX_FILE = 4 << 20
_NEW_MODE = 0o644


@dataclass(frozen=True, slots=True)
class Change:
    """A file as it is and as it shall be; None where there is none."""

    path: Path
    before: str | None
    after: str | None

    @property
    def done(self) -> str:
        return "removed" if self.after is None else "made" if self.before is None else "changed"

    def difference(self) -> str:
        """As diff -u shows it."""
        lines = difflib.unified_diff(
            (self.before or "").splitlines(keepends=True),
            (self.after or "").splitlines(keepends=True),
            "/dev/null" if self.before is None else str(self.path),
            "/dev/null" if self.after is None else str(self.path),
        )
        return "".join(line if line.endswith("\n") else f"{line}\n" for line in lines)


@dataclass(frozen=True, slots=True)
class Plan:
    """All changes of one command; ``notes`` are for the owner: what he must do, or know."""

    changes: tuple[Change, ...]
    notes: tuple[str, ...] = ()


def read_text(path: Path) -> str | None:
    """None where there is no file; UsageError where there is something else."""
    try:
        data = path.read_bytes()
        if len(data) > _MAX_FILE:
            raise UsageError(f"{path} has {len(data)} bytes", hint=f"the limit is {_MAX_FILE}")
        return data.decode()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}", hint="try again as root") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8", hint="mend it first") from error


def changes(wanted: Iterable[tuple[Path, str | None, str | None]]) -> tuple[Change, ...]:
    """Those of (path, before, after) that change something."""
    return tuple(Change(*each) for each in wanted if each[1] != each[2])


def apply(change: Change) -> None:
    """Write, atomically, or remove. A directory that was made for the file and is empty goes with it."""
    path = Path(os.path.realpath(change.path))
    try:
        if change.after is None:
            path.unlink(missing_ok=True)
            with suppress(OSError):
                path.parent.rmdir()
            return
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.lazyfs-new")
        mode = path.stat().st_mode & 0o7777 if change.before is not None else _NEW_MODE
        with temporary.open("w", encoding="utf-8") as file:
            file.write(change.after)
            file.flush()
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise NodeError(f"{path}: {error.strerror}", hint="try again as root") from error

"""Engines and builders of others, each with a directory, locks and limits of its own."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from lazyfs.mount.mountinfo import list_mounts
from lazyfs.mount.syscalls import unmount

TIMEOUT = 120.0

# The machine's locks may belong to another engine, its limits be more than this one may give.
_CONTAINERS_CONF = """
[containers]
default_ulimits = ["nofile=4096:4096", "nproc=4096:4096"]
[engine]
lock_type = "file"
"""


def tool(*words: str | Path, cwd: Path | None = None, environment: dict[str, str] | None = None) -> str:
    """What a command of others says; it has to succeed."""
    result = subprocess.run(
        words,
        check=False,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        cwd=cwd,
        env=os.environ | (environment or {}),
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@dataclass(frozen=True)
class Engine:
    """podman or buildah with storage of its own; call it with the words of a command."""

    words: tuple[str | Path, ...]
    environment: dict[str, str]

    def __call__(self, *words: str | Path, cwd: Path | None = None) -> str:
        return tool(*self.words, *words, cwd=cwd, environment=self.environment)


@contextmanager
def storage() -> Iterator[tuple[Path, dict[str, str]]]:
    """A directory for the storage of an engine, and its environment."""
    # Not in tmp_path: podman wants its runroot named in 50 characters.
    with TemporaryDirectory(prefix="podman") as name:
        directory = Path(name)
        (directory / "containers.conf").write_text(_CONTAINERS_CONF)
        try:
            yield directory, {"CONTAINERS_CONF": str(directory / "containers.conf"), "TMPDIR": name}
        finally:
            for entry in list_mounts(directory):
                unmount(entry.target, detach=True)


@contextmanager
def podman() -> Iterator[Engine]:
    with storage() as (directory, environment):
        words: list[str | Path] = ["podman", "--root", directory / "root", "--runroot", directory / "run"]
        words += ["--tmpdir", directory / "tmp", "--storage-driver", "overlay", "--events-backend", "none"]
        words += ["--cgroup-manager", "cgroupfs", "--runtime", "runc"]
        yield Engine(tuple(words), environment)


@contextmanager
def buildah() -> Iterator[Engine]:
    with storage() as (directory, environment):
        words: list[str | Path] = ["buildah", "--root", directory / "root", "--runroot", directory / "run"]
        yield Engine((*words, "--storage-driver", "overlay"), environment)

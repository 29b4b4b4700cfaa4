"""What `lazyfs run` is asked for: those options of ``docker run`` that it knows, read as docker does.

Parsers turn what was typed into values, and raise `UsageError` with the remedy. They do not look
at the image: `lazyfs.run.bundle` brings the two together.
"""

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lazyfs.errors import UsageError

NETWORKS = ("host", "none")
MIN_MEMORY = 6 << 20  # docker's own: below it a container dies before its program starts
_MAX_ENV_FILE = 1 << 20

_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,63}")
_HOSTNAME = re.compile(
    r"(?=.{1,64}$)[a-zA-Z0-9]([a-zA-Z0-9-]*[a-zA-Z0-9])?(\.[a-zA-Z0-9]([a-zA-Z0-9-]*[a-zA-Z0-9])?)*"
)
_SIZE = re.compile(r"(\d+(?:\.\d+)?) ?([bkmgt]?)(?:i?b)?", re.IGNORECASE)
_UNITS = {"": 1, "b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


@dataclass(frozen=True, slots=True)
class Volume:
    """A host file or directory to be seen at ``target`` (absolute, normalised) in the container."""

    source: Path
    target: str
    read_only: bool = False


@dataclass(frozen=True, slots=True)
class RunOptions:
    """One run. Empty strings and None mean: as the image says, else as docker does.

    ``args`` replace the image's Cmd. ``entrypoint`` replaces its Entrypoint and drops its Cmd, and
    "" leaves no entrypoint. An ``env`` entry without "=" takes the variable away. ``memory`` is in
    bytes. ``tty`` needs a terminal on standard input and gives it to the container both ways.
    ``runtime`` is a name or a path.
    """

    args: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    volumes: tuple[Volume, ...] = ()
    entrypoint: str | None = None
    workdir: str = ""
    user: str = ""
    interactive: bool = False
    tty: bool = False
    name: str = ""
    read_only: bool = False
    network: str = "host"
    memory: int | None = None
    hostname: str = ""
    runtime: str = ""


def parse_options(
    args: Sequence[str] = (),
    *,
    env: Iterable[str] = (),
    env_files: Iterable[Path] = (),
    volumes: Iterable[str] = (),
    entrypoint: str | None = None,
    workdir: str = "",
    user: str = "",
    interactive: bool = False,
    tty: bool = False,
    name: str = "",
    read_only: bool = False,
    network: str = "host",
    memory: str = "",
    hostname: str = "",
    runtime: str = "",
    environ: Mapping[str, str] = os.environ,
) -> RunOptions:
    """`RunOptions` from the words of a command line; ``environ`` is where ``-e NAME`` finds its value."""
    from_files = [entry for path in env_files for entry in read_env_file(path, environ)]
    return RunOptions(
        args=tuple(args),
        env=(*from_files, *(parse_env(text, environ) for text in env)),
        volumes=_without_clash([parse_volume(text) for text in volumes]),
        entrypoint=entrypoint,
        workdir=parse_workdir(workdir) if workdir else "",
        user=user,
        interactive=interactive,
        tty=tty,
        name=parse_name(name) if name else "",
        read_only=read_only,
        network=parse_network(network),
        memory=parse_memory(memory) if memory else None,
        hostname=parse_hostname(hostname) if hostname else "",
        runtime=runtime,
    )


def parse_env(text: str, environ: Mapping[str, str]) -> str:
    """NAME=VALUE as it is; NAME with the caller's value, or as it is (take it away) if there is none."""
    name, equals, _ = text.partition("=")
    if not name or any(char.isspace() for char in name):
        raise UsageError(f"environment {text!r} has no valid name", hint="write -e NAME=VALUE or -e NAME")
    if equals or name not in environ:
        return text
    return f"{name}={environ[name]}"


def read_env_file(path: Path, environ: Mapping[str, str]) -> list[str]:
    """Docker's format: one `parse_env` entry a line, no quoting; blank lines and ``#`` lines are skipped."""
    try:
        with path.open("rb") as file:
            raw = file.read(_MAX_ENV_FILE + 1)
        if len(raw) > _MAX_ENV_FILE:
            raise UsageError(f"environment file {path} is larger than {_MAX_ENV_FILE} bytes")
        lines = [line.lstrip() for line in raw.decode().splitlines()]
    except OSError as error:
        raise UsageError(f"cannot read environment file {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"environment file {path} is not UTF-8") from error
    return [parse_env(line, environ) for line in lines if line and not line.startswith("#")]


def parse_volume(text: str) -> Volume:
    """SRC:DST or SRC:DST:ro or SRC:DST:rw; SRC must exist, and is relative to the working directory."""
    usage = "write -v SRC:DST or -v SRC:DST:ro, with DST absolute"
    parts = text.split(":")
    if not 2 <= len(parts) <= 3 or not all(parts):
        raise UsageError(f"volume {text!r} is not SRC:DST[:ro|rw]", hint=usage)
    mode = parts[2] if len(parts) == 3 else "rw"
    if mode not in ("ro", "rw"):
        raise UsageError(f"volume {text!r} has the unknown mode {mode!r}", hint=usage)
    target = absolute_path(parts[1])
    if target is None or target == "/":
        raise UsageError(f"volume {text!r} cannot be mounted on {parts[1]!r}", hint=usage)
    # Not resolved: what is a symbolic link now may be meant to point elsewhere by the time of the mount.
    source = Path(parts[0]).absolute()
    if not source.exists():
        raise UsageError(
            f"volume source {source} does not exist",
            hint="volumes are files or directories of this machine; make it first",
        )
    return Volume(source, target, mode == "ro")


def parse_memory(text: str) -> int:
    """Bytes from docker's sizes: 512m, 1g, 1.5g, 268435456; units are powers of 1024."""
    match = _SIZE.fullmatch(text.strip())
    if not match:
        raise UsageError(
            f"memory {text!r} is not a size", hint="write for example --memory 512m or --memory 2g"
        )
    size = int(float(match[1]) * _UNITS[match[2].lower()])
    if not MIN_MEMORY <= size < 1 << 63:
        raise UsageError(f"memory {text!r} is out of range", hint="the least is 6m")
    return size


def parse_name(text: str) -> str:
    if not _NAME.fullmatch(text):
        raise UsageError(
            f"container name {text!r} is not valid",
            hint="letters, digits, '_', '.' and '-', beginning with a letter or digit, 64 at most",
        )
    return text


def parse_hostname(text: str) -> str:
    if not _HOSTNAME.fullmatch(text):
        raise UsageError(
            f"host name {text!r} is not valid", hint="letters, digits and '-', in parts joined by '.'"
        )
    return text


def parse_network(text: str) -> str:
    if text not in NETWORKS:
        raise UsageError(f"unknown network {text!r}", hint="--network host or --network none")
    return text


def parse_workdir(text: str) -> str:
    path = absolute_path(text)
    if path is None:
        raise UsageError(
            f"working directory {text!r} is not absolute", hint="it is a path inside the container"
        )
    return path


def absolute_path(text: str) -> str | None:
    """The path without ".", ".." and double slashes, or None for a relative one."""
    # normpath keeps a leading double slash, which POSIX leaves to the system and Linux ignores.
    return "/" + os.path.normpath(text).lstrip("/") if text.startswith("/") else None


def _without_clash(volumes: list[Volume]) -> tuple[Volume, ...]:
    targets = [volume.target for volume in volumes]
    for target in targets:
        if targets.count(target) > 1:
            raise UsageError(f"two volumes are to be mounted on {target}")
    return tuple(volumes)

"""Programs of others, built once by Go into .cache/tools and kept: containerd 2 takes half a minute, Docker two."""

import fcntl
import os
import shutil
import subprocess
from pathlib import Path

from benchmarks.process import FailedError

_TOOLS = Path(__file__).parent.parent / ".cache" / "tools"
_GO = shutil.which("go", path=f"{os.environ['PATH']}:/usr/local/go/bin")
_CONTAINERD = "github.com/containerd/containerd/v2/cmd"
_STARGZ = "github.com/containerd/stargz-snapshotter"
_STARGZ_VERSION = "v0.18.2"
STARGZ = _TOOLS / f"stargz-{_STARGZ_VERSION}" / "containerd-stargz-grpc"
_MAIN = Path(__file__).parent / "stargz" / "main.go"
_REASON = 300  # characters


def containerd_2() -> Path:
    """The directory of containerd 2, ctr and the shim; FailedError where they are not there and cannot be built."""
    names = ("containerd", "ctr", "containerd-shim-runc-v2")
    return _built("containerd-2.3.3", [["install", *(f"{_CONTAINERD}/{name}@v2.3.3" for name in names)]])


def docker() -> Path:
    """The directory of dockerd."""
    return _built("dockerd-2.0.0-beta.5", [["install", "github.com/moby/moby/v2/cmd/dockerd@v2.0.0-beta.5"]])


def stargz() -> Path:
    """stargz-snapshotter as a program, which takes a socket and a directory: its library, and a main of ours."""
    build = [
        ["mod", "init", "lazyfs.bench/stargz"],
        ["get", f"{_STARGZ}@{_STARGZ_VERSION}"],
        ["build", "-mod=mod", "-o", STARGZ.name, "."],
    ]
    _built(STARGZ.parent.name, build, _MAIN)
    return STARGZ


def _built(name: str, commands: list[list[str]], source: Path | None = None) -> Path:
    directory = _TOOLS / name
    if not (directory / ".complete").exists():
        if _GO is None:
            raise FailedError(f"{name} is not there, and no Go to build it")
        directory.mkdir(parents=True, exist_ok=True)
        with (directory / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not (directory / ".complete").exists():
                _build(directory, commands, source)
    return directory


def _build(directory: Path, commands: list[list[str]], source: Path | None) -> None:
    # Without cgo no headers of nftables are asked for, and what is built runs everywhere.
    environment = os.environ | {
        "GOBIN": str(directory),
        "CGO_ENABLED": "0",
        "GOFLAGS": "-buildvcs=false",
    }
    if source is not None:
        (directory / "go.mod").unlink(missing_ok=True)
        shutil.copy(source, directory)
    for command in commands:
        done = subprocess.run(
            [str(_GO), *command],
            cwd=directory,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise FailedError(f"{directory.name} cannot be built here: {done.stderr[-_REASON:]}")
    (directory / ".complete").touch()

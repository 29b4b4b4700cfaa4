"""Engines of today for tests, built once by Go into .cache/tools and kept there.

containerd 2 takes half a minute, Docker Engine two. Where neither they nor Go are there, tests of them are skipped.
"""

import fcntl
import os
import shutil
import subprocess
from pathlib import Path

import pytest

_TOOLS = Path(__file__).parent.parent / ".cache" / "tools"
_GO = shutil.which("go", path=f"{os.environ['PATH']}:/usr/local/go/bin")
_CONTAINERD = "github.com/containerd/containerd/v2/cmd"


def containerd_2() -> Path:
    """The directory of containerd 2, ctr and the shim."""
    names = ("containerd", "ctr", "containerd-shim-runc-v2")
    return _built("containerd-2.3.3", [f"{_CONTAINERD}/{name}@v2.3.3" for name in names])


def docker() -> Path:
    """The directory of dockerd."""
    return _built("dockerd-2.0.0-beta.5", ["github.com/moby/moby/v2/cmd/dockerd@v2.0.0-beta.5"])


def _built(name: str, packages: list[str]) -> Path:
    directory = _TOOLS / name
    if not (directory / ".complete").exists():
        if _GO is None:
            pytest.skip(f"{name} is not there, and no Go to build it")
        directory.mkdir(parents=True, exist_ok=True)
        with (directory / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not (directory / ".complete").exists():
                _build(directory, packages)
    return directory


def _build(directory: Path, packages: list[str]) -> None:
    # Without cgo no headers of nftables are asked for, and what is built runs everywhere.
    environment = os.environ | {"GOBIN": str(directory), "CGO_ENABLED": "0", "GOFLAGS": "-buildvcs=false"}
    done = subprocess.run(
        [str(_GO), "install", *packages], env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"{directory.name} cannot be built here: {done.stderr[-300:]}")
    (directory / ".complete").touch()

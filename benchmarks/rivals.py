"""What else turns a layer into another: eStargz and zstd:chunked by stargz-snapshotter, plain zstd by skopeo."""

import contextlib
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.process import FailedError, Usage, cpu_of, measured

_START_TIMEOUT = 30
_START_PAUSE = 0.1
_CONFIG = """
version = 2
root = "{0}/root"
state = "{0}/state"
disabled_plugins = ["io.containerd.grpc.v1.cri"]
[grpc]
address = "{0}/sock"
"""


@dataclass(frozen=True, slots=True)
class Result:
    """Size in bytes of the new layer blob."""

    usage: Usage
    size: int


Convert = Callable[[Path, str, Path], Result]
"""Converts the image of one layer in an OCI layout, of this tag; everything it makes is below the directory."""


def skopeo_zstd(layout: Path, tag: str, scratch: Path) -> Result:
    with tempfile.TemporaryDirectory(dir=scratch) as directory:
        usage = measured(
            [
                *("skopeo", "copy", "--insecure-policy", "--dest-compress-format", "zstd"),
                *(f"oci:{layout}:{tag}", f"oci:{directory}:{tag}"),
            ]
        )
        blobs = Path(directory) / "blobs" / "sha256"
        return Result(usage, max(blob.stat().st_size for blob in blobs.iterdir()))


def stargz(options: tuple[str, ...], cache: Path) -> Convert:
    """`ctr-remote images optimize`, whose work is done by the command, and its storing by containerd."""

    def convert(layout: Path, tag: str, scratch: Path) -> Result:
        tool = ctr_remote(cache)
        with running_containerd(scratch) as (directory, process):
            remote = [str(tool), "--address", str(directory / "sock"), "--namespace", "bench", "images"]
            archive = directory / "source.tar"
            subprocess.run(["tar", "--create", f"--file={archive}", f"--directory={layout}", "."], check=True)
            measured([*remote, "import", "--no-unpack", "--base-name", "bench", archive])
            blobs = directory / "root" / "io.containerd.content.v1.content" / "blobs" / "sha256"
            old = set(blobs.iterdir())
            before = cpu_of(process)
            usage = measured(
                [
                    *remote,
                    "optimize",
                    "--oci",
                    "--no-optimize",
                    *options,
                    f"bench:{tag}",
                    f"bench:{tag}-converted",
                ]
            )
            usage = replace(usage, cpu=usage.cpu + cpu_of(process) - before)
            return Result(usage, max(blob.stat().st_size for blob in set(blobs.iterdir()) - old))

    return convert


def rivals(cache: Path) -> Mapping[str, Convert]:
    return {
        "eStargz": stargz((), cache),
        "zstd:chunked": stargz(("--zstdchunked",), cache),
        "skopeo zstd": skopeo_zstd,
    }


def ctr_remote(cache: Path) -> Path:
    """The machine's own, or that of Debian's package, which is unpacked and not installed."""
    if found := shutil.which("ctr-remote"):
        return Path(found)
    tool = cache / "stargz-snapshotter" / "usr" / "bin" / "ctr-remote"
    if not tool.exists():
        with tempfile.TemporaryDirectory() as directory:
            # apt's own user, which downloads, must be able to write there.
            Path(directory).chmod(0o777)
            commands = [
                ["apt-get", "download", "-q", "stargz-snapshotter"],
                ["sh", "-c", f'dpkg-deb --extract *.deb "{tool.parents[2].absolute()}"'],
            ]
            for command in commands:
                done = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False)
                if done.returncode:
                    raise FailedError(f"ctr-remote is not here: {done.stderr.strip().splitlines()[-1]}")
    return tool


@contextlib.contextmanager
def running_containerd(scratch: Path) -> Iterator[tuple[Path, int]]:
    """A containerd of our own: its directory, in which `sock` is, and its process."""
    with tempfile.TemporaryDirectory(dir=scratch) as name:
        directory = Path(name)
        (directory / "config.toml").write_text(_CONFIG.format(directory))
        with (directory / "log").open("wb") as log:
            process = subprocess.Popen(
                ["containerd", "--config", directory / "config.toml"], stdout=log, stderr=log
            )
        try:
            version = ["ctr", "--address", str(directory / "sock"), "version"]
            deadline = time.monotonic() + _START_TIMEOUT
            while subprocess.run(version, capture_output=True, check=False).returncode:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise FailedError("containerd does not start")
                time.sleep(_START_PAUSE)
            yield directory, process.pid
        finally:
            process.terminate()
            process.wait()

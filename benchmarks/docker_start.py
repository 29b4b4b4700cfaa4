"""Docker Engine: how long `docker pull` and the first `docker run` take, by lazyfs and by overlayfs.

    python -m benchmarks.docker_start [--runs 3]

Each run has a registry on loopback (nginx), containerd 2, Docker Engine and lazyfs of its own, with nothing of the
image on the machine; another image has been pulled before, as on any node. The lazy image is the same one, converted.
Ready is when a container has imported numpy. Figures are medians.
"""

import argparse
import http.client
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from benchmarks.blob_server import serve_layout
from benchmarks.engines import containerd_2, docker
from benchmarks.images import RECIPES, ensure
from benchmarks.process import FailedError
from benchmarks.report import Row, write_json
from converter import Settings, convert_image
from lazyfs.config import NodePaths
from lazyfs.daemon.client import DaemonClient, NoDaemonError, ensure_daemon
from lazyfs.install.containerd import Target, plan_containerd
from lazyfs.install.files import apply
from lazyfs.mount.mountinfo import list_mounts
from lazyfs.mount.syscalls import unmount
from lazyfs.stores import open_store, parse_reference

PULL_GOAL = 0.1
COMMAND = ["python3", "-c", "import numpy"]
RUNS = 2
_SECONDS = 120.0
_PAUSE = 0.02
_CONTAINERD = """
version = 3
root = "{0}/root"
state = "{0}/state"
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.nri.v1.nri"]
[grpc]
  address = "{0}/c.sock"
[ttrpc]
  address = "{0}/t.sock"
"""


@dataclass(frozen=True, slots=True)
class Start:
    """Seconds."""

    driver: str
    pull: float
    run: float


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.docker_start", description=__doc__)
    parser.add_argument("--cache", type=Path, default=Path(".cache/images"))
    parser.add_argument("--runs", type=int, default=RUNS)
    parser.add_argument("--json", type=Path, help="write the figures to this file as well")
    arguments = parser.parse_args()
    starts = measure(arguments.cache, arguments.runs)
    for row in rows(starts):
        print(f"{row.measure:40}{row.value:8.2f} s")
    if arguments.json:
        write_json(arguments.json, starts)
    return 0


def measure(cache: Path, runs: int = RUNS) -> list[Start]:
    with tempfile.TemporaryDirectory(prefix="lazyfs-measure-") as name:
        layout = Path(name) / "layout"
        for recipe in ("demo", "small"):
            _put(ensure(RECIPES[recipe], cache).reference, layout, recipe)
        with serve_layout(layout, "app") as host:
            return [
                _start(Path(name) / f"{number}-{driver}", f"{host}/app", driver, tag)
                for number in range(runs)
                for driver, tag in (("lazyfs", "lazy"), ("overlayfs", "plain"))
            ]


def _put(source: str, layout: Path, name: str) -> None:
    """The image as it is, `name`-plain, and converted, `name`-lazy."""
    command = ["skopeo", "copy", "--quiet", "--insecure-policy", source, f"oci:{layout}:{name}-plain"]
    subprocess.run(command, check=True)
    reference, target = parse_reference(source), parse_reference(f"oci:{layout}:{name}-lazy")
    with open_store(reference) as store, open_store(target, create=True) as to_store:
        convert_image(store, reference, to_store, target, Settings())


def rows(starts: list[Start]) -> list[Row]:
    found = []
    for driver in ("lazyfs", "overlayfs"):
        ours = [each for each in starts if each.driver == driver]
        goal = PULL_GOAL if driver == "lazyfs" else None
        found.append(Row(f"docker pull, {driver}", statistics.median(each.pull for each in ours), "s", goal))
        ready = statistics.median(each.pull + each.run for each in ours)
        found.append(Row(f"docker pull and run until numpy is there, {driver}", ready, "s"))
    return found


def _start(directory: Path, image: str, driver: str, tag: str) -> Start:
    directory.mkdir()
    try:
        with ExitStack() as stack:
            Path("/proc/sys/vm/drop_caches").write_text("3")
            stack.enter_context(_service(directory / "s", _snapshotter(directory), directory / "s.sock"))
            _write_config(directory)
            config = directory / "etc/containerd/config.toml"
            program = [str(containerd_2() / "containerd"), "--config", str(config)]
            stack.enter_context(_service(directory / "c", program, directory / "c.sock"))
            stack.enter_context(_service(directory / "d", _dockerd(directory, driver), directory / "d.sock"))
            ensure_daemon(NodePaths(directory / "l" / "node"))  # the service is starting it
            _pull(directory, image, f"small-{tag}")  # what programs do but once, they have done
            began = time.monotonic()
            _pull(directory, image, f"demo-{tag}")
            pulled = time.monotonic()
            body = {
                "Image": f"{image}:demo-{tag}",
                "Entrypoint": COMMAND,
                "HostConfig": {"NetworkMode": "host"},
            }
            container = json.loads(_ask(directory, "POST", "/containers/create", body))["Id"]
            _ask(directory, "POST", f"/containers/{container}/start")
            code = json.loads(_ask(directory, "POST", f"/containers/{container}/wait"))["StatusCode"]
            ended = time.monotonic()
            if code:
                raise FailedError(f"{COMMAND} in {image}:{tag} exits with {code}")
            _ask(directory, "DELETE", f"/containers/{container}")
        return Start(driver, pulled - began, ended - pulled)
    finally:
        for entry in list_mounts(directory):
            if "/node/" not in str(entry.target):
                unmount(entry.target, detach=True)
        with suppress(NoDaemonError):
            DaemonClient(NodePaths(directory / "l" / "node")).shutdown()


def _pull(directory: Path, image: str, tag: str) -> None:
    _ask(directory, "POST", "/images/create?" + urlencode({"fromImage": image, "tag": tag}))


def _snapshotter(directory: Path) -> list[str]:
    return [
        *(sys.executable, "-m", "snapshotter", "--root", str(directory / "l")),
        *("--address", str(directory / "s.sock")),
    ]


def _write_config(directory: Path) -> None:
    config = directory / "etc/containerd/config.toml"
    config.parent.mkdir(parents=True)
    config.write_text(_CONTAINERD.format(directory))
    for change in plan_containerd(Target(directory, directory / "s.sock", directory / "l")).changes:
        apply(change)


def _dockerd(directory: Path, driver: str) -> list[str]:
    (directory / "daemon.json").write_text("{}")
    return [
        *(
            str(docker() / "dockerd"),
            "-H",
            f"unix://{directory}/d.sock",
            "--containerd",
            f"{directory}/c.sock",
        ),
        *("--config-file", f"{directory}/daemon.json", "--data-root", f"{directory}/data"),
        *("--exec-root", f"{directory}/exec", "--pidfile", f"{directory}/pid", "--bridge", "none"),
        *("--iptables=false", "--ip6tables=false", "--userland-proxy=false", "--storage-driver", driver),
        *("--feature", "containerd-snapshotter=true"),
    ]


@contextmanager
def _service(log: Path, command: list[str], address: Path) -> Iterator[None]:
    """A process that listens at `address` before the block begins."""
    tools = f"{containerd_2()}:{os.environ['PATH']}"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=os.environ | {"PATH": tools}
        )
    try:
        deadline = time.monotonic() + _SECONDS
        while not _listens(address):
            if process.poll() is not None or time.monotonic() > deadline:
                raise FailedError(f"{command[0]} does not start: {log.read_text()[-500:]}")
            time.sleep(_PAUSE)
        yield
    finally:
        process.terminate()
        process.wait(_SECONDS)


def _listens(address: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(address)) == 0


def _ask(directory: Path, method: str, path: str, body: Any = None) -> bytes:
    connection = http.client.HTTPConnection("docker", timeout=_SECONDS)
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.connect(f"{directory}/d.sock")
    connection.request(method, path, json.dumps(body) if body else None, {"Content-Type": "application/json"})
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    if answer.status >= 400 or b'"error"' in content:
        raise FailedError(f"{method} {path}: {answer.status} {content[-500:].decode()}")
    return content


if __name__ == "__main__":
    sys.exit(main())

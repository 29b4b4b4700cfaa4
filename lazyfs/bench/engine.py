"""A containerd of our own with the snapshotters that are measured, empty and for one start."""

import logging
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from lazyfs.bench.enclosure import ENGINE_STATE
from lazyfs.bench.processes import UNTIL_WE_END, largest_memory
from lazyfs.bench.ways import Way
from lazyfs.config import NodePaths
from lazyfs.daemon.client import DaemonClient, ensure_daemon
from lazyfs.errors import LazyfsError, NodeError
from lazyfs.mount.mountinfo import list_mounts
from lazyfs.mount.syscalls import unmount
from lazyfs.stores.image import host_platform

_log = logging.getLogger(__name__)

_CONFIG_1 = """
version = 2
root = "{0}/c/root"
state = "{0}/c/state"
disabled_plugins = ["io.containerd.grpc.v1.cri"]
[grpc]
  address = "{3}/c.sock"
[ttrpc]
  address = "{3}/t.sock"
"""
_CONFIG_2 = (
    _CONFIG_1.replace("version = 2", "version = 3").replace('"]', '", "io.containerd.nri.v1.nri"]')
    + """
[[plugins."io.containerd.transfer.v1.local".unpack_config]]
  platform = "{1}"
  snapshotter = "{2}"
"""
)
_PROXY = """
[proxy_plugins.{name}]
  type = "snapshot"
  address = "{address}"
  [proxy_plugins.{name}.exports]
    enable_remote_snapshot_annotations = "true"
"""
SOCKETS = ENGINE_STATE / "lazyfs-bench"
"""Of the enclosure, with a name short enough for a socket."""
_SECONDS = 60.0
_PULL_SECONDS = 3600.0
_PAUSE = 0.02
_TAIL = 600  # characters
_EVENT = re.compile(r"(\d+-\d+-\d+ \d+:\d+:\d+)(\.\d+)? \+0000 UTC \S+ (/\S+) ")
_STARTED = "/tasks/start"


@dataclass(frozen=True, slots=True)
class Event:
    """`at` is `time.monotonic`."""

    at: float
    topic: str


@dataclass(frozen=True, slots=True)
class Pulled:
    """CPU seconds and memory of the client that asked for it."""

    cpu: float
    memory: int


class _Watch:
    """Looks at the memory of a process until it ends, or has taken too long. Its ru_maxrss counts ours, before exec."""

    def __init__(self, process: "subprocess.Popen[bytes]") -> None:
        self.memory = 0
        self._process = process
        self._deadline = time.monotonic() + _PULL_SECONDS
        threading.Thread(target=self._look, daemon=True).start()

    def _look(self) -> None:
        while self._process.returncode is None:
            try:
                self.memory = max(self.memory, largest_memory(self._process.pid))
            except OSError:  # it ends just now
                return
            if time.monotonic() > self._deadline:
                self._process.kill()
            time.sleep(_PAUSE)


class Engine:
    """A running containerd; `directory` is empty before, and `namespace` containerd's."""

    def __init__(self, directory: Path, namespace: str, way: Way) -> None:
        self.directory = directory
        self.namespace = namespace
        self.way = way
        self.version = engine_version()
        self.events: list[Event] = []
        self.listener = 0
        """The process that tells us of events."""

    @property
    def node(self) -> NodePaths:
        return NodePaths(self.directory / "l" / "node")

    @property
    def contents(self) -> list[Path]:
        """Where the bytes of images lie: what was downloaded, what is unpacked, the cache of our own node."""
        root = self.directory / "c" / "root"
        return [
            root / "io.containerd.content.v1.content" / "blobs",
            root / "io.containerd.snapshotter.v1.overlayfs" / "snapshots",
            self.node.cache,
        ]

    def pull(self, reference: str) -> Pulled:
        """Download and unpack the image, or let the snapshotter say that it has it."""
        words = ["--plain-http", "--snapshotter", self.way.snapshotter, reference]
        lazily = self.version[0] == 1 and self.way.snapshotter != "overlayfs"
        command = self._ctr("images", *(["rpull"] if lazily else ["pull"]), *words, remote=lazily)
        with (self.directory / "pull.log").open("wb") as log:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
            watch = _Watch(process)
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise NodeError(f"the pull of {reference} by {self.way.name} failed: {self.said('pull.log')}")
        return Pulled(usage.ru_utime + usage.ru_stime, watch.memory)

    def run_command(self, reference: str, name: str, words: Sequence[str], env: Sequence[str]) -> list[str]:
        options = ["--rm", "--net-host", "--snapshotter", self.way.snapshotter]
        return self._ctr("run", *options, *(f"--env={each}" for each in env), reference, name, *words)

    def kill(self, name: str) -> None:
        """End a container, if it runs; a containerd that hangs is ended later, with all that it has."""
        if not answers(self._ctr("tasks", "kill", "--signal", "SIGKILL", name)):
            _log.debug("%s could not be killed", name)

    def moments(self, since: float) -> dict[str, float]:
        """When which event came first since a moment; waits for the start of a container."""
        deadline = time.monotonic() + _SECONDS
        while True:
            found: dict[str, float] = {}
            for event in list(self.events):
                if event.at >= since:
                    found.setdefault(event.topic, event.at)
            if _STARTED in found:
                return found
            if time.monotonic() > deadline:
                raise NodeError("containerd does not say that the container was started")
            time.sleep(_PAUSE)

    def said(self, log: str) -> str:
        text = (self.directory / log).read_text(errors="replace").strip()
        return " ".join(text[-_TAIL:].split()) or "it says nothing"

    def listen(self, process: "subprocess.Popen[str]") -> None:
        assert process.stdout is not None
        for line in process.stdout:
            if found := _EVENT.match(line):
                moment = datetime.strptime(found[1], "%Y-%m-%d %H:%M:%S").replace(tzinfo=UTC).timestamp()
                at = moment + float(found[2] or 0) - time.time() + time.monotonic()
                self.events.append(Event(at, found[3]))

    def ctr(self, *words: str) -> list[str]:
        return self._ctr(*words)

    def _ctr(self, *words: str, remote: bool = False) -> list[str]:
        program = find("ctr-remote" if remote else "ctr")
        return [program, "--address", f"{SOCKETS}/c.sock", "--namespace", self.namespace, *words]


@contextmanager
def running_engine(directory: Path, namespace: str, way: Way) -> Iterator[Engine]:
    """containerd, the snapshotter of the way and its daemon, ready and with nothing of any image."""
    directory.mkdir()
    shutil.rmtree(SOCKETS, ignore_errors=True)
    SOCKETS.mkdir()
    engine = Engine(directory, namespace, way)
    try:
        address = _address(engine)
        if way.is_lazyfs:
            snapshotter = [
                sys.executable,
                "-m",
                "snapshotter",
                "--root",
                f"{directory}/l",
                "--address",
                address,
            ]
            with _running(snapshotter, Path(address), directory / "snapshotter.log"):
                ensure_daemon(engine.node)
                with _containerd(engine, address):
                    yield engine
        elif "{socket}" in way.address:
            words = [each.format(socket=address, root=directory / "r") for each in shlex.split(way.address)]
            with _running(words, Path(address), directory / "snapshotter.log"), _containerd(engine, address):
                yield engine
        else:
            with _containerd(engine, address):
                yield engine
    finally:
        _clear(engine)


def _clear(engine: Engine) -> None:
    """A daemon ends when none of its images is mounted any more."""
    for entry in reversed(list_mounts(engine.directory)):
        if not entry.target.is_relative_to(engine.node.root):
            unmount(entry.target, detach=True)
    with suppress(LazyfsError):
        DaemonClient(engine.node).shutdown()
    for entry in reversed(list_mounts(engine.directory)):
        unmount(entry.target, detach=True)
    shutil.rmtree(engine.directory, ignore_errors=True)


def _address(engine: Engine) -> str:
    """Of the snapshotter's socket, "" where containerd has it itself."""
    if engine.way.is_lazyfs or "{socket}" in engine.way.address:
        return f"{SOCKETS}/s.sock"
    return engine.way.address


@contextmanager
def _containerd(engine: Engine, address: str) -> Iterator[None]:
    template = _CONFIG_1 if engine.version[0] == 1 else _CONFIG_2
    text = template.format(engine.directory, host_platform(), engine.way.snapshotter, SOCKETS)
    if address:
        text += _PROXY.format(name=engine.way.snapshotter, address=address)
    config = engine.directory / "config.toml"
    config.write_text(text)
    command = [find("containerd"), "--config", str(config)]
    # Its shim is the one beside it.
    path = f"{Path(command[0]).parent}:{os.environ.get('PATH', os.defpath)}:/usr/sbin"
    with _running(command, SOCKETS / "c.sock", engine.directory / "c.log", {"PATH": path}):
        _await_answer(engine)
        with _events(engine):
            yield


def _await_answer(engine: Engine) -> None:
    deadline = time.monotonic() + _SECONDS
    while not answers(engine.ctr("version")):
        if time.monotonic() > deadline:
            raise NodeError(f"containerd does not answer: {engine.said('c.log')}")
        time.sleep(_PAUSE)


@contextmanager
def _events(engine: Engine) -> Iterator[None]:
    command = [*UNTIL_WE_END, *engine.ctr("events")]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True) as process:
        engine.listener = process.pid
        listener = threading.Thread(target=engine.listen, args=(process,), daemon=True)
        listener.start()
        try:
            _await_events(engine)
            yield
        finally:
            process.terminate()
            listener.join()


def _await_events(engine: Engine) -> None:
    """Until it hears of a namespace label that is set again and again."""
    deadline = time.monotonic() + _SECONDS
    while not engine.events:
        answers(engine.ctr("namespaces", "label", engine.namespace, "a=b"))
        answers(engine.ctr("namespaces", "create", engine.namespace))
        if time.monotonic() > deadline:
            raise NodeError("containerd tells no events")
        time.sleep(_PAUSE)


@contextmanager
def _running(
    command: Sequence[str], address: Path, log: Path, environment: Mapping[str, str] | None = None
) -> Iterator[None]:
    """A program that listens at `address` before the block begins."""
    with log.open("wb") as output:
        try:
            process = subprocess.Popen(
                [*UNTIL_WE_END, *command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=os.environ | dict(environment or {}),
            )
        except OSError as error:
            raise NodeError(f"{command[0]}: {error.strerror}") from error
    try:
        deadline = time.monotonic() + _SECONDS
        while not _listens(address):
            if process.poll() is not None or time.monotonic() > deadline:
                tail = " ".join(log.read_text(errors="replace")[-_TAIL:].split())
                raise NodeError(f"{command[0]} does not start: {tail}")
            time.sleep(_PAUSE)
        yield
    finally:
        process.terminate()
        try:
            process.wait(_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _listens(address: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(address)) == 0


def find(program: str) -> str:
    """Its path; NodeError says what brings it."""
    found = shutil.which(program, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin")
    if found is None:
        packages = {
            "ctr-remote": "stargz-snapshotter, or containerd 2, which needs none",
            "ctr": "containerd",
        }
        raise NodeError(f"{program} is not on the PATH", hint=f"install {packages.get(program, program)}")
    return found


def answers(command: Sequence[str], seconds: float = _SECONDS) -> bool:
    """Whether a program does what it shall, in that time; one that hangs is killed."""
    try:
        return not subprocess.run(command, capture_output=True, check=False, timeout=seconds).returncode
    except subprocess.TimeoutExpired:
        return False


def engine_version() -> tuple[int, ...]:
    """Of the containerd on the PATH: (1, 6, 20)."""
    said = subprocess.run(
        [find("containerd"), "--version"], capture_output=True, text=True, check=False
    ).stdout
    found = re.search(r" v?(\d+)\.(\d+)\.(\d+)", said)
    if found is None:
        raise NodeError(f"containerd --version says {said[:100]!r}")
    return tuple(map(int, found.groups()))

"""containerd's snapshotter: what each call takes, and what many pulls and removals leave.

    python -m benchmarks.snapshotter_speed [--runs 40] [--rounds 200]

Ordinary snapshots: Prepare on a parent, Mounts, Commit and Remove through the socket of one containerd, by its
overlayfs snapshotter and by lazyfs, in turn; figures are medians, and what lazyfs takes more.

Lazy layers: an image of 12, in a registry on loopback (nginx), on a node that has pulled another one before. What the
first Prepare takes there is what it takes beyond round trips. Behind a link of 100 ms there and back it is held against
that of an image of one layer: what more it takes says whether layers wait for each other.

Rounds: all layers prepared, the image mounted for a container, everything removed again.
"""

import argparse
import hashlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.empty_pb2 import Empty

from benchmarks.blob_server import serve_layout
from benchmarks.images.layout import write_layout
from benchmarks.link import FAR, Link
from benchmarks.process import FailedError
from benchmarks.report import Row, write_json
from benchmarks.synthetic import many_files, pack
from converter import Settings, convert_image
from lazyfs.config import NodePaths
from lazyfs.daemon.client import DaemonClient, NoDaemonError, ensure_daemon
from lazyfs.mount.mountinfo import list_mounts
from lazyfs.mount.syscalls import unmount
from lazyfs.stores import load_image, open_store, parse_reference
from snapshotter.proto import snapshots_pb2 as pb
from snapshotter.service import NAME

RUNS = 40
STARTS = 5
ROUNDS = 200
LAYERS = 12
MORE_GOAL = 2.0
LAZY_GOAL = 15.0
TRIPS_GOAL = 2.0
"""The TOCs of all layers travel at once: most of them on new connections, which is one, and then they are decoded."""
_WARM_UP = 20
_FILES = 200
_SECONDS = 30.0
_PAUSE = 0.02
_ROOT = {"containerd.io/gc.root": "now"}
_REF = "containerd.io/snapshot.ref"
_CRI = "containerd.io/snapshot/cri."
_CONFIG = """
version = 2
root = "{0}/root"
state = "{0}/state"
disabled_plugins = ["io.containerd.grpc.v1.cri"]
[grpc]
  address = "{0}/c.sock"
[ttrpc]
  address = "{0}/t.sock"
[proxy_plugins.lazyfs]
  type = "snapshot"
  address = "{0}/s.sock"
"""


@dataclass(frozen=True, slots=True)
class Ordinary:
    """Milliseconds of a call, of each run."""

    call: str
    lazyfs: list[float]
    overlayfs: list[float]


@dataclass(frozen=True, slots=True)
class Lazy:
    """Milliseconds until the first layer's Prepare is answered, and all; requests that the registry got."""

    layers: int
    round_trip: float
    first: float
    all: float
    requests: int


@dataclass(frozen=True, slots=True)
class Rounds:
    """What there is more after them than before: of the service and its daemon, and mounts of the machine."""

    rounds: int
    seconds: float
    mounts: int
    descriptors: int
    threads: int
    resident_mib: float


@dataclass(frozen=True, slots=True)
class Measured:
    ordinary: list[Ordinary]
    lazy: list[Lazy]
    rounds: Rounds


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.snapshotter_speed", description=__doc__)
    parser.add_argument("--runs", type=int, default=RUNS)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--json", type=Path, help="write the figures to this file as well")
    arguments = parser.parse_args()
    measured = measure(arguments.runs, arguments.rounds)
    for row in rows(measured):
        print(f"{row.measure:60}{row.value:8.2f} {row.unit}")
    if arguments.json:
        write_json(arguments.json, [measured])
    return 0


def measure(runs: int, rounds: int) -> Measured:
    with tempfile.TemporaryDirectory(prefix="lazyfs-measure-") as name:
        directory = Path(name)
        layout = _image(directory)
        ordinary = _ordinary(directory / "o", runs)
        with serve_layout(layout, "app") as host, Link(FAR, host) as link:
            near = [_lazy(directory / f"n{run}", layout, host, None) for run in range(STARTS)]
            far = [_lazy(directory / f"f{run}", layout, host, link) for run in range(STARTS)]
            one = [_lazy(directory / f"o{run}", layout, host, link, "other") for run in range(STARTS)]
            return Measured(ordinary, near + far + one, _rounds(directory / "r", layout, host, rounds))


def rows(measured: Measured) -> list[Row]:
    found = []
    for each in measured.ordinary:
        pairs = zip(each.lazyfs, each.overlayfs, strict=True)
        more = statistics.median(ours - theirs for ours, theirs in pairs)
        found.append(Row(f"{each.call}, more than overlayfs", more, "ms", MORE_GOAL))
    near = [each for each in measured.lazy if not each.round_trip]
    far = [each for each in measured.lazy if each.round_trip and each.layers > 1]
    one = [each for each in measured.lazy if each.layers == 1]
    first = statistics.median(each.first for each in near)
    # The quickest of each: what is above it is other work on the machine.
    trips = min(each.first for each in far) - min(each.first for each in one)
    rest = statistics.median((each.all - each.first) / (LAYERS - 1) for each in far)
    mean = statistics.median(each.all / LAYERS for each in near)
    name = f"of {LAYERS} lazy layers"
    left = measured.rounds
    after = f"more after {left.rounds} pulls and removals"
    return [
        *found,
        Row(f"Prepare of the first {name}, beyond the network", first, "ms", LAZY_GOAL),
        Row(f"Prepare {name}, mean, beyond the network", mean, "ms", LAZY_GOAL),
        Row(f"Prepare of each other {name}, 100 ms away", rest, "ms", LAZY_GOAL),
        Row(
            f"round trips for {LAYERS} lazy layers, more than for one",
            trips / (FAR.round_trip * 1e3),
            "",
            TRIPS_GOAL,
        ),
        Row(f"mounts {after}", left.mounts, "", 0),
        Row(f"descriptors {after}", left.descriptors, "", 8),
        Row(f"threads {after}", left.threads, "", 8),
        Row(f"resident memory {after}", left.resident_mib, "MiB", 8),
    ]


def _image(directory: Path) -> Path:
    """A layout with `lazy`, of 12 layers of some files each, and `other`, of one."""
    packed = []
    for number in range(LAYERS + 1):
        file = directory / f"layer{number}"
        packed.append((pack(many_files(_FILES + number), file), file, "made up"))
    for tag, layers in (("lazy", packed[:LAYERS]), ("other", packed[LAYERS:])):
        write_layout(directory / tag, "plain", layers, {})
        source = parse_reference(f"oci:{directory}/{tag}:plain")
        target = parse_reference(f"oci:{directory}/layout:{tag}")
        with open_store(source) as store, open_store(target, create=True) as to_store:
            convert_image(store, source, to_store, target, Settings())
    return directory / "layout"


def _ordinary(directory: Path, runs: int) -> list[Ordinary]:
    with _service(directory), _containerd(directory):
        clients = {name: _Client(directory / "c.sock", name) for name in ("lazyfs", "overlayfs")}
        for client in clients.values():
            client.prepare("base", labels=_ROOT)
            client.commit("below", "base", _ROOT)
        taken: dict[str, dict[str, list[float]]] = {}
        for run in range(-3, runs):  # the first ones are to warm up
            for name, client in list(clients.items())[:: 1 if run % 2 else -1]:
                for call, seconds in _life(client, run):
                    if run >= 0:
                        taken.setdefault(call, {}).setdefault(name, []).append(seconds * 1e3)
        return [Ordinary(call, by["lazyfs"], by["overlayfs"]) for call, by in taken.items()]


def _life(client: "_Client", run: int) -> Iterator[tuple[str, float]]:
    calls: dict[str, Callable[[], None]] = {
        "Prepare": lambda: client.prepare(f"active{run}", "below", _ROOT),
        "Mounts": lambda: client.mounts(f"active{run}"),
        "Commit": lambda: client.commit(f"done{run}", f"active{run}", _ROOT),
        "Remove": lambda: client.remove(f"done{run}"),
    }
    for name, call in calls.items():
        began = time.monotonic()
        call()
        yield name, time.monotonic() - began


def _lazy(directory: Path, layout: Path, host: str, link: Link | None, tag: str = "lazy") -> Lazy:
    layers = _labels(layout, tag, link.address if link else host)
    before_it = "other" if tag == "lazy" else "lazy"
    with _service(directory):
        client = _Client(directory / "s.sock", "")
        _offer(client, _labels(layout, before_it, host))
        before = link.counts() if link else None
        began = time.monotonic()
        _offer(client, layers[:1])
        first = time.monotonic()
        _offer(client, layers[1:], layers[0][_REF])
        ended = time.monotonic()
        requests = link.counts().since(before).requests if link and before else 0
    round_trip = link.spec.round_trip if link else 0.0
    return Lazy(len(layers), round_trip, (first - began) * 1e3, (ended - began) * 1e3, requests)


def _rounds(directory: Path, layout: Path, host: str, rounds: int) -> Rounds:
    layers = _labels(layout, "lazy", host)
    with _service(directory) as process:
        client = _Client(directory / "s.sock", "")
        pids = process, DaemonClient(NodePaths(directory / "l" / "node")).status()["pid"]
        for _ in range(_WARM_UP):
            _round(client, layers)
        mounts, before = len(list_mounts(Path("/"))), [_held(pid) for pid in pids]
        began = time.monotonic()
        for _ in range(rounds):
            _round(client, layers)
        seconds = time.monotonic() - began
        differences = [
            [now - then for now, then in zip(_held(pid), had, strict=True)]
            for pid, had in zip(pids, before, strict=True)
        ]
        descriptors, threads, kib = (sum(each) for each in zip(*differences, strict=True))
        return Rounds(rounds, seconds, len(list_mounts(Path("/"))) - mounts, descriptors, threads, kib / 1024)


def _round(client: "_Client", layers: list[dict[str, str]]) -> None:
    names = [each[_REF] for each in layers]
    _offer(client, layers)
    client.prepare("container", names[-1])
    for name in ("container", *reversed(names)):
        client.remove(name)
    client.cleanup()


def _held(pid: int) -> tuple[int, int, int]:
    """Descriptors, threads, KiB of resident memory."""
    process = Path(f"/proc/{pid}")
    status = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines())
    return (
        len(list((process / "fd").iterdir())),
        int(status["Threads"]),
        int(status["VmRSS"].split()[0]),
    )


def _labels(layout: Path, tag: str, host: str) -> list[dict[str, str]]:
    """What CRI says of each layer, the lowest first."""
    reference = parse_reference(f"oci:{layout}:{tag}")
    with open_store(reference) as store:
        image = load_image(store, reference)
    chain_id = ""
    found = []
    name = f"{host}/app:{tag}"
    for layer, diff_id in image.layers:
        text = f"{chain_id} {diff_id}".encode()
        chain_id = f"sha256:{hashlib.sha256(text).hexdigest()}" if chain_id else diff_id
        about = {"image-ref": name, "layer-digest": layer.digest, "manifest-digest": image.descriptor.digest}
        cri = {f"{_CRI}{key}": value for key, value in about.items()}
        found.append({_REF: chain_id, **layer.annotations, **cri})
    return found


def _offer(client: "_Client", layers: list[dict[str, str]], parent: str = "") -> None:
    for labels in layers:
        try:
            client.prepare("key", parent, labels)
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.ALREADY_EXISTS:
                raise FailedError(f"Prepare of a lazy layer: {error.details()}") from error
        else:
            raise FailedError("a lazy layer was not taken")
        parent = labels[_REF]


class _Client:
    """Of a snapshotter through a socket: its own, or containerd's."""

    def __init__(self, address: Path, snapshotter: str) -> None:
        options = [("grpc.default_authority", "localhost")]
        self._channel = grpc.insecure_channel(f"unix:{address}", options=options)
        grpc.channel_ready_future(self._channel).result(_SECONDS)
        self._snapshotter = snapshotter

    def prepare(self, key: str, parent: str = "", labels: Mapping[str, str] | None = None) -> None:
        request = pb.PrepareSnapshotRequest(
            snapshotter=self._snapshotter, key=key, parent=parent, labels=labels
        )
        self._call("Prepare", request, pb.PrepareSnapshotResponse)

    def mounts(self, key: str) -> None:
        self._call("Mounts", pb.MountsRequest(snapshotter=self._snapshotter, key=key), pb.MountsResponse)

    def commit(self, name: str, key: str, labels: Mapping[str, str]) -> None:
        request = pb.CommitSnapshotRequest(snapshotter=self._snapshotter, name=name, key=key, labels=labels)
        self._call("Commit", request, Empty)

    def remove(self, key: str) -> None:
        self._call("Remove", pb.RemoveSnapshotRequest(snapshotter=self._snapshotter, key=key), Empty)

    def cleanup(self) -> None:
        self._call("Cleanup", pb.CleanupRequest(snapshotter=self._snapshotter), Empty)

    def _call(self, method: str, request: Any, answer: type[Any]) -> None:
        call = self._channel.unary_unary(
            f"/{NAME}/{method}",
            request_serializer=type(request).SerializeToString,
            response_deserializer=answer.FromString,
        )
        call(request, timeout=_SECONDS, metadata=(("containerd-namespace", "default"),))


@contextmanager
def _service(directory: Path) -> Iterator[int]:
    """A snapshotter of its own and its daemon, ready."""
    directory.mkdir()
    paths = NodePaths(directory / "l" / "node")
    command: list[str | Path] = [
        sys.executable,
        "-m",
        "snapshotter",
        "--root",
        directory / "l",
        "--address",
        directory / "s.sock",
    ]
    try:
        with _running(command, directory / "s.sock", directory / "s.log") as pid:
            ensure_daemon(paths)
            yield pid
    finally:
        for entry in list_mounts(directory):
            if "/node/" not in str(entry.target):
                unmount(entry.target, detach=True)
        with suppress(NoDaemonError):
            DaemonClient(paths).shutdown()


@contextmanager
def _containerd(directory: Path) -> Iterator[None]:
    (directory / "config.toml").write_text(_CONFIG.format(directory))
    command: list[str | Path] = ["containerd", "--config", directory / "config.toml"]
    with _running(command, directory / "c.sock", directory / "c.log"):
        yield


@contextmanager
def _running(command: list[str | Path], address: Path, log: Path) -> Iterator[int]:
    with ExitStack() as stack:
        output = stack.enter_context(log.open("wb"))
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
        stack.callback(process.wait, _SECONDS)
        stack.callback(process.terminate)
        deadline = time.monotonic() + _SECONDS
        while not address.exists():
            if process.poll() is not None or time.monotonic() > deadline:
                raise FailedError(f"{command[0]} does not start: {log.read_text()[-500:]}")
            time.sleep(_PAUSE)
        yield process.pid


if __name__ == "__main__":
    sys.exit(main())

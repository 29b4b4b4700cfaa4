"""A client of the gRPC service as containerd is one, and the service as a process."""

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.empty_pb2 import Empty
from google.protobuf.field_mask_pb2 import FieldMask

from lazyfs.config import NodePaths
from lazyfs.daemon.client import DaemonClient
from lazyfs.mount.syscalls import MS_BIND, MS_RDONLY, mount
from snapshotter.proto import mount_pb2
from snapshotter.proto import snapshots_pb2 as pb
from snapshotter.service import NAME
from tests.daemon.processes import kill
from tests.waiting import wait_until

REPOSITORY = Path(__file__).parents[2]
PATIENCE = 60.0
PROGRAM = ("-m", "snapshotter")
PATIENT = (
    "-c",
    "import snapshotter.images, snapshotter.__main__ as program\n"
    "snapshotter.images.PATIENCE = 60.0; program.main()",
)
"""The same, but that it lets containerd download nothing because a machine is busy."""
_MS_REMOUNT = 32
_BACKOFF = [
    (f"grpc.{which}_reconnect_backoff_ms", milliseconds)
    for which, milliseconds in (("initial", 100), ("min", 1000), ("max", 1000))
]


class Client:
    """The calls, each with the fields of its message."""

    def __init__(self, socket: Path) -> None:
        # It may start just now: the first attempts come soon after another.
        options = [("grpc.default_authority", "localhost"), *_BACKOFF]
        self._channel = grpc.insecure_channel(f"unix:{socket}", options=options)
        grpc.channel_ready_future(self._channel).result(PATIENCE)

    def close(self) -> None:
        self._channel.close()

    def prepare(
        self, key: str, parent: str = "", labels: Mapping[str, str] | None = None
    ) -> list[mount_pb2.Mount]:
        request = pb.PrepareSnapshotRequest(snapshotter="any", key=key, parent=parent, labels=labels)
        return list(self._call("Prepare", request, pb.PrepareSnapshotResponse).mounts)

    def view(
        self, key: str, parent: str = "", labels: Mapping[str, str] | None = None
    ) -> list[mount_pb2.Mount]:
        request = pb.ViewSnapshotRequest(key=key, parent=parent, labels=labels)
        return list(self._call("View", request, pb.ViewSnapshotResponse).mounts)

    def mounts(self, key: str) -> list[mount_pb2.Mount]:
        return list(self._call("Mounts", pb.MountsRequest(key=key), pb.MountsResponse).mounts)

    def commit(self, name: str, key: str, labels: Mapping[str, str] | None = None, parent: str = "") -> None:
        self._call(
            "Commit", pb.CommitSnapshotRequest(name=name, key=key, labels=labels, parent=parent), Empty
        )

    def remove(self, key: str) -> None:
        self._call("Remove", pb.RemoveSnapshotRequest(key=key), Empty)

    def stat(self, key: str) -> pb.Info:
        info: pb.Info = self._call("Stat", pb.StatSnapshotRequest(key=key), pb.StatSnapshotResponse).info
        return info

    def update(self, key: str, labels: Mapping[str, str], *fields: str) -> pb.Info:
        request = pb.UpdateSnapshotRequest(
            info=pb.Info(name=key, labels=labels), update_mask=FieldMask(paths=fields)
        )
        updated: pb.Info = self._call("Update", request, pb.UpdateSnapshotResponse).info
        return updated

    def batches(self, *filters: str) -> list[list[pb.Info]]:
        call = self._channel.unary_stream(
            f"/{NAME}/List",
            request_serializer=pb.ListSnapshotsRequest.SerializeToString,
            response_deserializer=pb.ListSnapshotsResponse.FromString,
        )
        answers = call(pb.ListSnapshotsRequest(filters=filters), timeout=PATIENCE)
        return [list(answer.info) for answer in answers]

    def names(self, *filters: str) -> list[str]:
        return [info.name for batch in self.batches(*filters) for info in batch]

    def usage(self, key: str) -> tuple[int, int]:
        answer = self._call("Usage", pb.UsageRequest(key=key), pb.UsageResponse)
        return answer.size, answer.inodes

    def cleanup(self) -> None:
        self._call("Cleanup", pb.CleanupRequest(), Empty)

    def _call(self, method: str, request: Any, answer: type[Any]) -> Any:
        call = self._channel.unary_unary(
            f"/{NAME}/{method}",
            request_serializer=type(request).SerializeToString,
            response_deserializer=answer.FromString,
        )
        return call(request, timeout=PATIENCE)


class Service:
    """`lazyfs-snapshotter` as a process of its own."""

    def __init__(self, directory: Path) -> None:
        self.root = directory / "root"
        self.socket = directory / "s.sock"
        self.log = directory / "log"
        self.node = NodePaths(self.root / "node")
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *options: str, wait: bool = True, program: Sequence[str] = PATIENT) -> "Service":
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [
                    sys.executable,
                    *program,
                    "--root",
                    self.root,
                    "--address",
                    self.socket,
                    *options,
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
            )
        if wait:
            self.client().close()
            # Who ends the service just now would end with it who starts the daemon.
            daemon = DaemonClient(self._node_of(options))
            wait_until(daemon.is_running, "the daemon")
            daemon.status()
        return self

    def _node_of(self, options: Sequence[str]) -> NodePaths:
        return NodePaths(Path(options[options.index("--node") + 1])) if "--node" in options else self.node

    def client(self) -> Client:
        return Client(self.socket)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        code = self.process.wait(PATIENCE)
        self.process = None
        return code

    def close(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
        kill(self.node)


def perform(mounts: Sequence[mount_pb2.Mount], target: Path) -> Path:
    """Mount what containerd would be told to, as containerd does."""
    target.mkdir(exist_ok=True)
    for each in mounts:
        options = set(each.options)
        if each.type == "bind":
            mount(each.source, target, None, MS_BIND, b"", what=str(target))
            if "ro" in options:
                mount(None, target, None, MS_BIND | MS_RDONLY | _MS_REMOUNT, b"", what=str(target))
        else:
            readonly = not any(option.startswith("upperdir=") for option in options)
            text = ",".join(each.options).encode()
            mount(each.source, target, each.type, MS_RDONLY if readonly else 0, text, what=str(target))
    return target


def code_of(error: grpc.RpcError) -> str:
    name: str = error.code().name
    return name


def resident_kib(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    raise AssertionError(pid)


def threads_of(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/task").iterdir()))


def descriptors_of(pid: int) -> int:
    with suppress(OSError):
        return len(list(Path(f"/proc/{pid}/fd").iterdir()))
    return 0

"""What callers say: of the control API, of containerd's services, and the daemon to its keeper."""

import json
import os
import selectors
import socket
from contextlib import closing
from functools import cache
from io import BytesIO
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

from google.protobuf.message import DecodeError, Message

from lazyfs.config import NodePaths
from lazyfs.daemon import api, cache_calls, client, node, service
from lazyfs.errors import BadInputError, LazyfsError
from lazyfs.formats.oci_types import TOC_ANNOTATION
from lazyfs.keeper import child, keeper, link, taking
from lazyfs.mount.device_table import DeviceTable
from lazyfs.node.cache_settings import CacheSettings
from snapshotter import filters, idmap, labels, lifecycle, limits, mounts
from snapshotter import service as snapshots
from snapshotter.directories import Directories
from snapshotter.proto import snapshots_pb2 as pb
from snapshotter.records import Kind, Lazy, Snapshot
from tests.layouts import convert, put_image
from tests.snapshotter.samples import EveryImage
from tests.trees import Entry, layer_tar

from .mutate import change_bytes, change_document
from .parser import Parser, any_json, any_text, scratch

_REFERENCE = {"reference": "oci:LAYOUT:lazy", "directory": "/"}
_REQUESTS: list[tuple[str, dict[str, Any]]] = [
    (
        "POST /v1/images",
        {**_REFERENCE, "lowest": 1, "fill": False, "mode": "file", "command": "sh", "prove": True},
    ),
    ("POST /v1/chain", _REFERENCE),
    ("POST /v1/release", {}),
    ("GET /v1/status", {}),
    ("POST /v1/timeline", {"since": 1.5}),
    ("POST /v1/cache/warm", {**_REFERENCE, "after": 0, "seconds": 0.0}),
    ("POST /v1/cache/warm-pack", {**_REFERENCE, "seconds": 0.0}),
    ("POST /v1/record", {}),
    ("POST /v1/fetch/settings", {"memory": "64M"}),
    ("GET /v1/cache", {}),
    ("POST /v1/cache/prune", {**_REFERENCE, "unused_for": 3600.0, "size": 1 << 30, "dry_run": True}),
    ("POST /v1/cache/pin", {**_REFERENCE, "pinned": True}),
    ("POST /v1/cache/verify", {"layer": "sha256:"}),
    ("POST /v1/cache/settings", {"limit": "10G", "paranoid": False}),
]


def _make_request(rng: Random) -> bytes:
    call, body = rng.choice(_REQUESTS)
    for _ in range(rng.randint(0, 2)):
        body = change_document(body, rng)
    payload = json.dumps(body).encode("utf-8", "surrogatepass")
    head = f"{call} HTTP/1.1\r\nHost: lazyfs\r\nContent-Length: {len(payload)}\r\n\r\n".encode()
    return change_bytes(head, rng) + payload if rng.random() < 0.2 else head + payload


@cache
def _node(_root: Path) -> tuple[bytes, dict[str, api.Call]]:
    """A layout with one image, and the calls of a node that nobody mounts from."""
    layout = _root / "layout"
    convert(put_image(layout, [layer_tar([Entry(b"a", content=b"b" * 9000)])], "app"), f"oci:{layout}:lazy")
    table = DeviceTable()
    served: Any = service._Service(
        node.Node(NodePaths(_root / "node"), table, CacheSettings()), table, _nothing(), _nothing()
    )
    served._house = SimpleNamespace(stir=lambda: None)
    calls = served._calls()
    del calls["POST /v1/keeper"]  # hands descriptors over, and reads nothing
    return str(layout).encode(), calls


def _nothing() -> Any:
    return None


def _request(data: bytes) -> None:
    """One connection to the control API; 500 is what it answers when it has failed."""
    layout, calls = _node(scratch("api"))
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.settimeout(5.0)
        ours.sendall(data.replace(b"LAYOUT", layout))
        ours.shutdown(socket.SHUT_WR)
        server: Any = SimpleNamespace(calls=calls)
        api._Handler(theirs, "", server)
        theirs.close()
        answer = b""
        while piece := ours.recv(1 << 16):
            answer += piece
    status = answer[9:12]
    assert status != b"500", answer
    if status != b"200":
        raise BadInputError("refused")


_SAID = [
    {"say": "standby"},
    {"say": "serving"},
    {"say": "failed", "error": {"error": "NodeError", "message": "m", "hint": "h", "exit_code": 1}},
    {"say": "pong"},
    {"say": "settled", "mounts": ["a-b", "c"]},
]


def _daemon_says(data: bytes) -> None:
    """What the keeper makes of a packet of its daemon, and of the daemon's end after it."""
    ours, theirs = link.pair()
    listening: Any = keeper.Keeper.__new__(keeper.Keeper)
    with ours, theirs, closing(selectors.DefaultSelector()) as selector:
        ours.setblocking(False)
        daemon = child.Daemon(os.getpid(), -1, ours, ours=False)
        listening._selector, listening._paths = selector, NodePaths(scratch("keeper"))
        listening._serving = listening._possessions = None
        listening._coming, listening._waiting, listening._has_served = daemon, [], False
        theirs.send(data or b"{}")
        listening._listen(daemon)
        listening._note(daemon, "ended")
        listening._report(daemon.error or {})
    if daemon.stage == child.STARTING and daemon.error is None:
        raise BadInputError("nothing was understood")


_ANSWERS = [
    b'HTTP/1.1 200 OK\r\nContent-Length: 11\r\nConnection: close\r\n\r\n{"pid": 12}',
    b'HTTP/1.1 400 x\r\n\r\n{"error": "BusyError", "message": "the daemon has a keeper", "hint": "", "exit_code": 8}',
]


def _adopted(data: bytes) -> None:
    """A daemon that is asked to hand over, and hands over nothing."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(data)
        theirs.shutdown(socket.SHUT_WR)
        values, descriptors = taking._read_answer(ours)
    assert not descriptors
    if values.get("pid") != 12:
        raise BadInputError("it hands nothing over")


_TOLD = [
    b'HTTP/1.1 200 OK\r\nContent-Length: 11\r\n\r\n{"pid": 12}',
    b'HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n{"digest": "sha256:00", "chain": []}\n{"toc": "ab"}\n{}\n',
    b'HTTP/1.1 400 x\r\n\r\n{"error": "BusyError", "message": "m", "hint": "h", "exit_code": 8}\n',
]


def _daemon_answers(data: bytes) -> None:
    """What a command, which may be root's, makes of the daemon's answer: line by line, and in one piece."""
    asking = client.DaemonClient(NodePaths(scratch("asking")))
    for values in asking._lines(BytesIO(data)):
        assert isinstance(values, dict)
    if b"chain" in data:
        return
    ours, theirs = socket.socketpair()
    theirs.sendall(data)
    theirs.shutdown(socket.SHUT_WR)
    with theirs, patch.object(asking, "_connect", lambda: ours):
        assert isinstance(asking.ask("GET /v1/status", {}), dict)


_CHAIN = "sha256:" + "ab" * 32
_LABELS: list[dict[str, str]] = [
    {
        labels.TARGET: f"k8s.io/12/{_CHAIN}",
        TOC_ANNOTATION: f"10:20:{'cd' * 32}",
        "containerd.io/snapshot/cri.image-ref": "r.example/a/b:v1",
        "containerd.io/snapshot/cri.layer-digest": _CHAIN,
        "containerd.io/snapshot/cri.manifest-digest": _CHAIN,
    },
    {
        labels.TARGET: "buildkit-sha256-" + "ab" * 32,
        TOC_ANNOTATION: "",
        "containerd.io/snapshot/remote/stargz.reference": f"r.example/a/b@{_CHAIN}",
        "containerd.io/snapshot/remote/stargz.digest": _CHAIN,
    },
    {limits.LIMIT: "10G", idmap.UID_MAPPING: "0:1000:65536", idmap.GID_MAPPING: "0:1:5,5:9:1"},
]


def _labels(data: bytes) -> None:
    """All that is read of the labels of a Prepare, and the mounts that come of it."""
    try:
        given = json.loads(data)
        json.dumps(given, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise BadInputError("not sent") from error
    if not isinstance(given, dict) or not all(isinstance(each, str) for each in given.values()):
        raise BadInputError("not sent")
    lifecycle._check_labels(given)
    labels.wanted_layer(given)
    limits.wanted_limit(given, 1 << 30)
    directories = _directories(scratch("directories"))
    found = mounts.mounts_of(directories, Snapshot(1, "k", Kind.ACTIVE, "", 0, 0, 0, given), [])
    assert str(directories.fs(1)) in found[0].source


@cache
def _directories(root: Path) -> Directories:
    return Directories(root, _NoLimits())


_FILTERS = [
    b'name==a,labels."containerd.io/x"~=^b.*,kind!=view',
    b'parent~=/a\\/b/,labels.x,name=="\\x41\\u00e9\\101\\""',
    b"labels.a.b==c , name~=|x|",
]
_SHOWN = Snapshot(1, "a", Kind.COMMITTED, "p", 2, 0, 0, {"a.b": "c", "containerd.io/x": "bb"})


def _filter(data: bytes) -> None:
    filters.parse_filters([data.decode(errors="replace")])(_SHOWN)


class _NoLimits:
    def limit(self, directory: Path, number: int, size: int) -> None: ...
    def show(self, directory: Path) -> None: ...
    def forget(self, directory: Path, number: int) -> None: ...


class _Unseen(EveryImage):
    def show(self, number: int, lazy: Lazy, target: Path) -> None: ...
    def forget(self, numbers: set[int]) -> None: ...


_Step = tuple[str, type[Message], dict[str, Any]]
_STEPS: list[_Step] = [
    ("prepare", pb.PrepareSnapshotRequest, {"key": "a", "parent": "", "labels": _LABELS[2]}),
    ("prepare", pb.PrepareSnapshotRequest, {"key": "b", "parent": "", "labels": _LABELS[0]}),
    ("view", pb.ViewSnapshotRequest, {"key": "v", "parent": "c", "labels": {"x": "y"}}),
    ("mounts", pb.MountsRequest, {"key": "a"}),
    ("commit", pb.CommitSnapshotRequest, {"name": "c", "key": "a", "parent": "", "labels": {"x": "y"}}),
    ("stat", pb.StatSnapshotRequest, {"key": "a"}),
    (
        "update",
        pb.UpdateSnapshotRequest,
        {"info": {"name": "a", "labels": {"x": "z"}}, "update_mask": {"paths": ["labels.x"]}},
    ),
    ("list", pb.ListSnapshotsRequest, {"filters": ["name==a"]}),
    ("usage", pb.UsageRequest, {"key": "a"}),
    ("remove", pb.RemoveSnapshotRequest, {"key": "a"}),
]
"""The calls in an order in which each has something to do."""


def _make_calls(rng: Random) -> bytes:
    """Some of the calls, one of them changed: the number of the call, the size of its message, and that."""
    chosen = sorted(rng.sample(range(len(_STEPS)), rng.randint(1, 4)))
    changed = rng.choice(chosen)
    pieces = []
    for number in chosen:
        _, kind, fields = _STEPS[number]
        message = kind(**fields) if number != changed else _changed(kind, fields, rng)
        data = message if isinstance(message, bytes) else message.SerializeToString()
        pieces.append(bytes([number]) + len(data).to_bytes(2, "big") + data)
    return b"".join(pieces)


def _changed(kind: type[Message], fields: dict[str, Any], rng: Random) -> bytes:
    try:
        data = kind(**change_document(fields, rng)).SerializeToString()
    except (TypeError, ValueError):  # nothing that can be sent
        data = kind(**fields).SerializeToString()
    return change_bytes(data, rng) if rng.random() < 0.3 else data


@cache
def _snapshots(root: Path) -> lifecycle.Snapshots:
    return lifecycle.Snapshots(root, _Unseen(), limiter=_NoLimits())


def _calls(data: bytes) -> None:
    """Calls of the snapshotter, which starts with nothing and is left with nothing."""
    opened = _snapshots(scratch("snapshots"))
    served = snapshots.SnapshotsService(opened)
    refused: LazyfsError | None = None
    try:
        while len(data) > 3:
            name, kind, _ = _STEPS[data[0] % len(_STEPS)]
            end = 3 + int.from_bytes(data[1:3], "big")
            message, data = data[3:end], data[end:]
            try:
                answer = getattr(served, name)(kind.FromString(message))
                for each in [answer] if isinstance(answer, Message) else answer:
                    each.SerializeToString()
            except DecodeError as error:
                raise BadInputError("not a message") from error
            except LazyfsError as error:
                refused = error
    finally:
        for snapshot in sorted(opened.walk([]), key=lambda each: -each.id):
            opened.remove(snapshot.key)
        opened.cleanup()
    if refused is not None:
        raise refused


_containerd = (lifecycle, snapshots)
CALLERS = [
    Parser("control API", _make_request, _request, (api, cache_calls, service)),
    Parser("daemon to keeper", any_json(_SAID), _daemon_says, (keeper, child, link)),
    Parser("answer to a new keeper", any_text(_ANSWERS), _adopted, (taking,)),
    Parser("answer of the daemon", any_text(_TOLD), _daemon_answers, (client,)),
    Parser("snapshot labels", any_json(_LABELS), _labels, (labels, limits, idmap, mounts)),
    Parser("snapshot filters", any_text(_FILTERS), _filter, (filters,)),
    Parser("snapshot calls", _make_calls, _calls, _containerd),
]

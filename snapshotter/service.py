"""The gRPC service `containerd.services.snapshots.v1.Snapshots`: requests in, answers and status codes out.

Each error of ours has its code (`LazyfsError.grpc_code`), and its message is what containerd shows to people. The
`snapshotter` in requests is not looked at: the socket says which one is meant.
"""

import logging
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

import grpc
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import DecodeError, Message
from google.protobuf.timestamp_pb2 import Timestamp

from lazyfs.errors import BusyError, LazyfsError, NodeError, UsageError
from snapshotter.lifecycle import Snapshots
from snapshotter.mounts import Mount
from snapshotter.proto import mount_pb2
from snapshotter.proto import snapshots_pb2 as pb
from snapshotter.records import Snapshot

log = logging.getLogger(__name__)

NAME = "containerd.services.snapshots.v1.Snapshots"
BATCH = 100
"""Snapshots in one message of a List."""
THREADS = 128
"""Calls at once. A remote Prepare may wait for a registry; it must not keep others waiting."""
MESSAGE_LIMITS = (("grpc.max_receive_message_length", 16 << 20), ("grpc.max_send_message_length", 16 << 20))
"""As containerd has it: a List of CRI's images may be long."""
_END_SECONDS = 10.0


class SnapshotsService:
    """One method per call; each takes and returns what the .proto file says."""

    def __init__(self, snapshots: Snapshots) -> None:
        self._snapshots = snapshots

    def prepare(self, request: pb.PrepareSnapshotRequest) -> pb.PrepareSnapshotResponse:
        mounts = self._snapshots.prepare(request.key, request.parent, request.labels)
        return pb.PrepareSnapshotResponse(mounts=_mounts(mounts))

    def view(self, request: pb.ViewSnapshotRequest) -> pb.ViewSnapshotResponse:
        mounts = self._snapshots.view(request.key, request.parent, request.labels)
        return pb.ViewSnapshotResponse(mounts=_mounts(mounts))

    def mounts(self, request: pb.MountsRequest) -> pb.MountsResponse:
        return pb.MountsResponse(mounts=_mounts(self._snapshots.mounts(request.key)))

    def commit(self, request: pb.CommitSnapshotRequest) -> Empty:
        self._snapshots.commit(request.name, request.key, request.labels, request.parent)
        return Empty()

    def remove(self, request: pb.RemoveSnapshotRequest) -> Empty:
        self._snapshots.remove(request.key)
        return Empty()

    def stat(self, request: pb.StatSnapshotRequest) -> pb.StatSnapshotResponse:
        return pb.StatSnapshotResponse(info=_info(self._snapshots.stat(request.key)))

    def update(self, request: pb.UpdateSnapshotRequest) -> pb.UpdateSnapshotResponse:
        info = request.info
        updated = self._snapshots.update(info.name, info.labels, request.update_mask.paths)
        return pb.UpdateSnapshotResponse(info=_info(updated))

    def list(self, request: pb.ListSnapshotsRequest) -> Iterator[pb.ListSnapshotsResponse]:
        found = self._snapshots.walk(request.filters)
        for start in range(0, len(found), BATCH):
            yield pb.ListSnapshotsResponse(info=[_info(each) for each in found[start : start + BATCH]])

    def usage(self, request: pb.UsageRequest) -> pb.UsageResponse:
        usage = self._snapshots.usage(request.key)
        return pb.UsageResponse(size=usage.size, inodes=usage.inodes)

    def cleanup(self, request: pb.CleanupRequest) -> Empty:
        self._snapshots.cleanup()
        return Empty()


def serving(snapshots: Snapshots, address: Path) -> AbstractContextManager[None]:
    """Answer for `snapshots` on `address`, see `listening`."""
    return listening(_handler(SnapshotsService(snapshots)), address)


@contextmanager
def listening(handler: grpc.GenericRpcHandler, address: Path) -> Iterator[None]:
    """Answer on the unix socket `address` (mode 0600) while the block runs; then end the calls that are under way.

    BusyError when another process serves there.
    """
    _clear(address)
    pool = ThreadPoolExecutor(THREADS, thread_name_prefix="call")
    server = grpc.server(pool, options=[("grpc.so_reuseport", 0), *MESSAGE_LIMITS])
    server.add_generic_rpc_handlers((handler,))
    before = os.umask(0o177)
    try:
        server.add_insecure_port(f"unix:{address}")
        server.start()
    except RuntimeError as error:
        raise NodeError(f"cannot listen on {address}: {error}", hint="choose another --address") from error
    finally:
        os.umask(before)
    try:
        yield
    finally:
        server.stop(_END_SECONDS).wait()
        pool.shutdown()
        with suppress(OSError):
            address.unlink()


def _clear(address: Path) -> None:
    """Remove the socket of a process that was killed."""
    try:
        address.parent.mkdir(mode=0o711, parents=True, exist_ok=True)
        with socket.socket(socket.AF_UNIX) as probe:
            probe.connect(os.fspath(address))
    except FileNotFoundError:
        return
    except ConnectionRefusedError:
        address.unlink(missing_ok=True)
        return
    except OSError as error:
        raise NodeError(f"{address}: {error}", hint="choose another --address") from error
    raise BusyError(f"another process serves {address}", hint="end it, or choose another --address")


def _handler(service: SnapshotsService) -> grpc.GenericRpcHandler:
    calls: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}
    for method in pb.DESCRIPTOR.services_by_name["Snapshots"].methods:
        function = getattr(service, method.name.lower())
        parse = getattr(pb, method.input_type.name).FromString
        # Messages come as bytes, so that one which cannot be read gets an answer like any other.
        calls[method.name] = (
            grpc.unary_stream_rpc_method_handler(_stream(function, parse))
            if method.server_streaming
            else grpc.unary_unary_rpc_method_handler(_unary(function, parse))
        )
    return grpc.method_handlers_generic_handler(NAME, calls)


def _unary(
    function: Callable[[Any], Message], parse: Callable[[bytes], Any]
) -> Callable[[bytes, grpc.ServicerContext], bytes]:
    def answer(request: bytes, context: grpc.ServicerContext) -> bytes:
        try:
            return function(parse(request)).SerializeToString()
        except Exception as error:  # noqa: BLE001 - the boundary: an answer whatever happens
            _fail(context, error)

    return answer


def _stream(
    function: Callable[[Any], Iterator[Message]], parse: Callable[[bytes], Any]
) -> Callable[[bytes, grpc.ServicerContext], Iterator[bytes]]:
    def answer(request: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        try:
            for message in function(parse(request)):
                yield message.SerializeToString()
        except Exception as error:  # noqa: BLE001 - the boundary: an answer whatever happens
            _fail(context, error)

    return answer


def _fail(context: grpc.ServicerContext, error: Exception) -> NoReturn:
    if isinstance(error, DecodeError):
        error = UsageError(f"not a message of {NAME}: {error}")
    if not isinstance(error, LazyfsError):
        log.error("a call failed", exc_info=error)
        error = NodeError(f"{type(error).__name__}: {error}")
    message = f"{error.message} ({error.hint})" if error.hint else error.message
    context.abort(grpc.StatusCode[error.grpc_code], message)


def _mounts(mounts: Sequence[Mount]) -> list[mount_pb2.Mount]:
    return [mount_pb2.Mount(type=each.type, source=each.source, options=each.options) for each in mounts]


def _info(snapshot: Snapshot) -> pb.Info:
    return pb.Info(
        name=snapshot.key,
        parent=snapshot.parent,
        kind=pb.Kind.Name(int(snapshot.kind)),
        created_at=_timestamp(snapshot.created),
        updated_at=_timestamp(snapshot.updated),
        labels=snapshot.labels,
    )


def _timestamp(nanoseconds: int) -> Timestamp:
    seconds, rest = divmod(nanoseconds, 10**9)
    return Timestamp(seconds=seconds, nanos=rest)

"""Kubernetes' CRI image service with somebody who listens: kubelet asks here, and containerd answers.

Each call is passed on as it came, and its answer passed back. Of a pull the password is kept for the repository
(`lazyfs.stores.registry.learned`): kubelet gives imagePullSecrets and what its credential provider plugins say with
the pull alone, and a lazy image is read long after it.
"""

import base64
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import grpc
from google.protobuf.message import DecodeError

from lazyfs.errors import LazyfsError
from lazyfs.stores.registry.credentials import Credentials
from lazyfs.stores.registry.learned import Entry, keep_credentials, take_back
from lazyfs.stores.registry.names import DOCKER_HUB, DOCKER_HUB_API, RepositoryName, parse_repository
from snapshotter.proto import image_service_pb2 as pb
from snapshotter.service import MESSAGE_LIMITS, listening

log = logging.getLogger(__name__)

_SERVICES = ("/runtime.v1.ImageService/", "/runtime.v1alpha2.ImageService/")
_PULL = "PullImage"
_HUB_NAMES = frozenset({DOCKER_HUB, "index.docker.io", DOCKER_HUB_API})
_AUTHORITY = ("grpc.default_authority", "localhost")  # containerd takes no other of a unix socket


@contextmanager
def serving_images(address: Path, backend: Path, kept: Path) -> Iterator[None]:
    """Serve at `address` what the CRI at `backend` answers; passwords of pulls are kept in the file `kept`."""
    options = [_AUTHORITY, *MESSAGE_LIMITS]
    with (
        grpc.insecure_channel(f"unix:{backend}", options=options) as channel,
        listening(_Forwarding(channel, kept), address),
    ):
        log.info("serving the image service of %s on %s", backend, address)
        yield


def learn_from(request: bytes) -> tuple[RepositoryName, Credentials] | None:
    """The password in a PullImageRequest, if there is one that is meant for the image's registry."""
    try:
        pull = pb.PullImageRequest.FromString(request)
        repository = parse_repository(_repository_of(pull.image.image))
        found = _credentials(pull.auth)
    except (DecodeError, LazyfsError, ValueError):
        return None  # not ours to refuse: containerd says what is wrong with it
    server = pull.auth.server_address
    meant = not server or _host_of(server) == repository.host
    return (repository, found) if found and meant else None


class _Forwarding(grpc.GenericRpcHandler):
    """Passes on every call of the image service. On the wire a single message is a stream of one."""

    def __init__(self, channel: grpc.Channel, kept: Path) -> None:
        self._channel = channel
        self._kept = kept

    def service(
        self, handler_call_details: grpc.HandlerCallDetails
    ) -> "grpc.RpcMethodHandler[bytes, bytes] | None":
        method = handler_call_details.method
        if not method.startswith(_SERVICES):
            return None

        def forward(requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
            return self._forward(method, requests, context)

        return grpc.stream_stream_rpc_method_handler(forward)

    def _forward(
        self, method: str, requests: Iterator[bytes], context: grpc.ServicerContext
    ) -> Iterator[bytes]:
        metadata = tuple(
            each for each in context.invocation_metadata() if not each[0].startswith(("grpc-", "user-agent"))
        )
        undo: list[Callable[[], None]] = []
        if method.endswith(f"/{_PULL}"):
            requests = self._listen(requests, undo)
        start: grpc.StreamStreamMultiCallable[bytes, bytes] = self._channel.stream_stream(method)
        call = start(requests, timeout=context.time_remaining(), metadata=metadata)

        def cancel() -> None:
            call.cancel()

        # Who asked may go away.
        context.add_callback(cancel)
        try:
            yield from call
        except grpc.RpcError:
            for each in undo:
                each()
            context.abort(call.code(), call.details() or "")

    def _listen(self, requests: Iterator[bytes], undo: list[Callable[[], None]]) -> Iterator[bytes]:
        """Keep the password before containerd asks for a snapshot; `undo` gets what a pull that fails calls."""
        for request in requests:
            learned = learn_from(request)
            if learned is not None:
                with _told(learned[0]):
                    before = keep_credentials(self._kept, *learned)
                    undo.append(partial(self._take_back, *learned, before))
            yield request

    def _take_back(self, repository: RepositoryName, found: Credentials, before: Entry | None) -> None:
        with _told(repository):
            take_back(self._kept, repository, found, before)


@contextmanager
def _told(repository: RepositoryName) -> Iterator[None]:
    """A pull does not fail because its password cannot be kept."""
    try:
        yield
    except LazyfsError as error:
        log.warning("the password for %s is not kept: %s", repository, error)


def _repository_of(image: str) -> str:
    """The name without tag and digest."""
    name = image.partition("@")[0]
    head, slash, last = name.rpartition("/")
    return f"{head}{slash}{last.partition(':')[0]}"


def _credentials(auth: pb.AuthConfig) -> Credentials:
    user, password = auth.username, auth.password
    if auth.auth and not user:
        user, _, password = base64.b64decode(auth.auth, validate=True).decode().partition(":")
    return Credentials(user, password.rstrip("\0"), auth.identity_token, auth.registry_token, "kubelet")


def _host_of(server: str) -> str:
    host = urlsplit(server if "://" in server else f"//{server}").netloc
    return DOCKER_HUB if host in _HUB_NAMES else host

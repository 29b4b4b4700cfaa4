"""The image service in front of containerd's: kubelet's pulls pass through, and their passwords are learned."""

import base64
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest

from snapshotter.image_service import learn_from
from snapshotter.proto import image_service_pb2 as pb
from tests.registry import HTPASSWD, PASSWORD, USER, Registry, needs_registry, run_registry

from .client import Service
from .cri import Cri
from .engine import Engine, layers, push, running_engine

CRI = """
[plugins."io.containerd.grpc.v1.cri".containerd]
  snapshotter = "lazyfs"
  disable_snapshot_annotations = false
"""


@pytest.mark.parametrize(
    ("image", "auth", "learned"),
    [
        ("r.example/team/app:v1", pb.AuthConfig(username="me", password="pw"), ("me", "pw", "", "")),
        ("r.example/app@sha256:" + "0" * 64, pb.AuthConfig(identity_token="t"), ("", "", "t", "")),
        (
            "app",
            pb.AuthConfig(registry_token="t", server_address="https://index.docker.io/v1/"),
            ("", "", "", "t"),
        ),
        (
            "r.example:5000/app",
            pb.AuthConfig(auth=base64.b64encode(b"me:p:w").decode()),
            ("me", "p:w", "", ""),
        ),
        (
            "r.example/app",
            pb.AuthConfig(username="me", server_address="http://r.example"),
            ("me", "", "", ""),
        ),
        ("r.example/app", pb.AuthConfig(username="me", server_address="other.example"), None),
        ("r.example/app", pb.AuthConfig(auth="%%%"), None),
        ("r.example/app", pb.AuthConfig(), None),
        ("Not An Image", pb.AuthConfig(username="me"), None),
    ],
)
def test_what_is_learned_of_a_pull(
    image: str, auth: pb.AuthConfig, learned: tuple[str, str, str, str] | None
) -> None:
    seen = learn_from(pb.PullImageRequest(image=pb.ImageSpec(image=image), auth=auth).SerializeToString())
    assert (seen is None) == (learned is None)
    if seen is not None:
        found = seen[1]
        assert (found.user, found.password, found.identity_token, found.registry_token) == learned


def test_nothing_is_learned_of_what_is_no_pull() -> None:
    assert learn_from(b"\xff\xff") is None


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    """One that asks for a password."""
    directory = tmp_path_factory.mktemp("registry")
    (directory / "htpasswd").write_text(HTPASSWD)
    auth = {"htpasswd": {"realm": "tests", "path": str(directory / "htpasswd")}}
    with run_registry(directory, auth=auth) as registry:
        yield registry


@pytest.fixture(scope="module")
def app(registry: Registry, tmp_path_factory: pytest.TempPathFactory) -> str:
    return push(
        tmp_path_factory.mktemp("app"), registry.host, "app", layers(3), "--dest-creds", f"{USER}:{PASSWORD}"
    )


@pytest.fixture
def engine(
    service: Service, short_directory: Callable[[], Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[Engine]:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("REGISTRY_AUTH_FILE", raising=False)
    directory = short_directory()
    service.start(
        "--image-service", str(directory / "cri.sock"), "--image-service-of", str(directory / "c.sock")
    )
    with running_engine(directory, service, CRI) as engine:
        Cri(engine.socket).close()  # which waits for it
        yield engine


def ask(channel: grpc.Channel, method: str, request: bytes = b"") -> bytes:
    call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(f"/runtime.v1.{method}")
    return call(request, timeout=60)


def pull(socket: Path, image: str, auth: pb.AuthConfig | None = None) -> None:
    with grpc.insecure_channel(
        f"unix:{socket}", options=[("grpc.default_authority", "localhost")]
    ) as channel:
        request = pb.PullImageRequest(image=pb.ImageSpec(image=image), auth=auth)
        ask(channel, "ImageService/PullImage", request.SerializeToString())


@needs_registry
def test_pulled_lazily_with_kubelets_password(engine: Engine, service: Service, app: str) -> None:
    """Nobody else on this machine knows it; and it is in no log, and on no command line."""
    pull(engine.directory / "cri.sock", f"{app}:lazy", pb.AuthConfig(username=USER, password=PASSWORD))
    engine.namespace = "k8s.io"
    assert len(engine.snapshots()) == 3
    assert len(engine.blobs()) == 2
    assert engine.run(f"{app}:lazy", "c") == "ready\n"
    for log in (service.log, service.node.log):
        assert PASSWORD not in log.read_text()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            assert PASSWORD.encode() not in (process / "cmdline").read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            continue


@needs_registry
def test_a_wrong_password_is_containerds_to_refuse(engine: Engine, service: Service, app: str) -> None:
    """And what opened the repository before still does."""
    socket = engine.directory / "cri.sock"
    pull(socket, f"{app}:lazy", pb.AuthConfig(username=USER, password=PASSWORD))
    kept = service.node.credentials.read_bytes()
    with pytest.raises(grpc.RpcError) as caught:
        pull(socket, f"{app}:lazy", pb.AuthConfig(username=USER, password="wrong"))
    assert "401" in str(caught.value.details())
    assert service.node.credentials.read_bytes() == kept


@needs_registry
def test_what_is_not_an_image_call_is_not_served(engine: Engine) -> None:
    socket = engine.directory / "cri.sock"
    with grpc.insecure_channel(
        f"unix:{socket}", options=[("grpc.default_authority", "localhost")]
    ) as channel:
        assert ask(channel, "ImageService/ListImages") == b""
        with pytest.raises(grpc.RpcError) as caught:
            ask(channel, "RuntimeService/Version")
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED

"""What tests of stores share: places in a bucket of a real S3 server, and registries that fail when told to."""

import socket
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from lazyfs.stores.registry import client as client_module
from lazyfs.stores.registry.answers import TemporaryError
from lazyfs.stores.registry.store import RegistryStore
from lazyfs.stores.registry.wire import Deadline
from tests.faults import FaultServer
from tests.s3server import S3Place, S3Server, running_server

from .memory_registry import BLOB, MemoryRegistry, Serve, opened

_VARIABLES_OF_OTHERS = (
    "AWS_PROFILE",
    "AWS_SESSION_TOKEN",
    "AWS_CA_BUNDLE",
    "AWS_DEFAULT_REGION",
    "AWS_ENDPOINT_URL_S3",
)


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with running_server(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture
def s3(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3Place:
    """The environment is that of a user of the server, and nobody else's."""
    for name in _VARIABLES_OF_OTHERS:
        monkeypatch.delenv(name, raising=False)
    for name, value in s3_server.environment().items():
        monkeypatch.setenv(name, value)
    return S3Place(s3_server, uuid.uuid4().hex)


@pytest.fixture
def memory() -> MemoryRegistry:
    """A registry that has BLOB."""
    memory = MemoryRegistry()
    memory.add(BLOB)
    return memory


@pytest.fixture
def server(memory: MemoryRegistry) -> Iterator[FaultServer]:
    with FaultServer(memory) as server:
        yield server


@pytest.fixture
def store(server: FaultServer) -> Iterator[RegistryStore]:
    with opened(server) as store:
        yield store


@pytest.fixture
def served() -> Iterator[Serve]:
    """Makes servers that answer by a script."""
    with ExitStack() as servers:
        yield lambda script: servers.enter_context(FaultServer(script))


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """What may pass is tried again at once."""
    monkeypatch.setattr(client_module, "_FIRST_PAUSE", 0.001)
    monkeypatch.setattr(client_module, "_MAX_PAUSE", 0.05)


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each pause takes 6 of the 20 seconds that a request has: what fails for good does so soon, and answers that
    come late on a busy machine come in time."""
    pause = client_module.RegistryClient.pause

    def longer(
        self: client_module.RegistryClient, failure: TemporaryError, attempt: int, deadline: Deadline
    ) -> None:
        pause(self, failure, attempt, deadline)
        deadline.ends -= 6.0

    monkeypatch.setattr(client_module.RegistryClient, "pause", longer)


@pytest.fixture
def nobody() -> Iterator[str]:
    """An address where connections are refused, and that nobody else can get meanwhile."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{silent.getsockname()[1]}"


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No password of this machine's users."""
    for name in ("REGISTRY_AUTH_FILE", "XDG_CONFIG_HOME", "DOCKER_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))


@pytest.fixture
def certs(tmp_path: Path) -> Path:
    """An empty certs.d."""
    directory = tmp_path / "certs.d"
    directory.mkdir()
    return directory

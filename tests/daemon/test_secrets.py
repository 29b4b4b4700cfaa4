"""What a daemon writes and answers holds none of the secrets that it uses, whatever servers say back to it."""

import base64
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TypeVar

import pytest

from lazyfs.config import NodePaths
from lazyfs.daemon.client import DaemonClient, ensure_daemon
from lazyfs.errors import LazyfsError
from tests.faults import RESET, FaultServer, Reply, Seen
from tests.registry import BASIC, PASSWORD, USER, write_auth
from tests.waiting import wait_until

from .faces import BUCKET, TAG, Script, bucket_face, registry_face
from .processes import MakePaths, daemons, keepers

pytestmark = pytest.mark.root
T = TypeVar("T")

TOKEN, SIGNATURE, HEADER = "t0ken-of-the-tests", "s1gnature-of-the-tests", "h3ader-of-the-tests"
S3_KEY, S3_SESSION = "s3-secret-of-the-tests", "s3-session-of-the-tests"
WRONG = "wrong horse"
WRONG_BASIC = base64.b64encode(f"{USER}:{WRONG}".encode()).decode()
SECRETS = (
    WRONG,
    WRONG_BASIC,
    PASSWORD,
    BASIC.partition(" ")[2],
    TOKEN,
    SIGNATURE,
    HEADER,
    S3_KEY,
    S3_SESSION,
)
OWNERS = ("config.toml",)
"""What the owner of the node has written there."""


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """That of the daemon, which says all that it can say."""
    for name in ("XDG_CONFIG_HOME", "DOCKER_CONFIG", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {
        "LAZYFS_LOG": "debug",
        "HOME": str(tmp_path),
        "REGISTRY_AUTH_FILE": str(tmp_path / "auth.json"),
        "AWS_REGION": "eu-test-1",
        "AWS_ACCESS_KEY_ID": "tests",
        "AWS_SECRET_ACCESS_KEY": S3_KEY,
        "AWS_SESSION_TOKEN": S3_SESSION,
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": "/nonexistent",
        "AWS_SHARED_CREDENTIALS_FILE": "/nonexistent",
    }.items():
        monkeypatch.setenv(name, value)


class Registry:
    """Gives tokens for the password, and leads to a storage with signed addresses."""

    def __init__(self, face: Script) -> None:
        self.face = face
        self.storage = FaultServer(self._stored)
        self.fault: Reply | None = None
        self.known: tuple[str, ...] = (WRONG,)

    def __call__(self, request: Seen) -> Reply:
        if request.path == "/token":
            return self._repeat(request) or Reply(body=json.dumps({"token": TOKEN}).encode())
        if request.headers.get("authorization") != f"Bearer {TOKEN}":
            return Reply(
                401,
                {"WWW-Authenticate": f'Bearer realm="http://{request.headers["host"]}/token",service="x"'},
            )
        if "/blobs/" in request.path:
            name = request.path.rpartition("/")[2]
            return Reply(307, {"Location": f"{self.storage.url}/{name}?X-Amz-Signature={SIGNATURE}"})
        return self._repeat(request) or self.face(request)

    def _stored(self, request: Seen) -> Reply:
        path = f"/v2/app/blobs/{request.path.rpartition('/')[2]}"
        return self._repeat(request) or self.face(Seen(request.method, path, request.headers, b""))

    def _repeat(self, request: Seen) -> Reply | None:
        """The fault, with all that came in what it says."""
        fault = self.fault
        if fault is None or fault.raw is not None:
            return fault
        said = f"{request.target} {request.headers} {' '.join(self.known)}"
        body = {"errors": [{"code": said, "message": said, "detail": said}]}
        return Reply(fault.status, {"X-Said": said.replace("\n", " ")}, json.dumps(body).encode())


FAULTS = [Reply(401), Reply(403), Reply(400), Reply(500), Reply(200), RESET]


def in_the_end(work: Callable[[], T]) -> T:
    """What it gives. A busy machine may need longer than the deadline of these nodes, so it is tried again."""
    given: list[T] = []

    def try_it() -> bool:
        with suppress(LazyfsError, OSError):
            given.append(work())
        return bool(given)

    wait_until(try_it)
    return given[0]


def read_all(paths: NodePaths, reference: str) -> list[bytes]:
    client = ensure_daemon(paths)
    image = client.open_image(reference, fill=False)
    return [Path(device).read_bytes() for device in image["devices"]]


def shown(paths: NodePaths) -> Iterator[tuple[str, bytes]]:
    """All that the node has written, what it answers, and what anybody sees of its processes."""
    client = DaemonClient(paths)
    for call in ("GET /v1/status", "GET /v1/cache"):
        yield call, json.dumps(client.ask(call, {})).encode()
    yield "timeline", json.dumps(client.timeline(0)).encode()
    for pid in (*daemons(paths), *keepers(paths)):
        yield f"the command line of {pid}", Path(f"/proc/{pid}/cmdline").read_bytes()
    for path in paths.root.rglob("*"):
        if path.is_file() and not path.is_relative_to(paths.fuse) and path.name not in OWNERS:
            with suppress(FileNotFoundError):  # of a name that it has only while it is written
                yield str(path), path.read_bytes()


def check(paths: NodePaths, errors: list[LazyfsError]) -> None:
    texts = [*shown(paths), *(("an error", f"{each.message} {each.hint}".encode()) for each in errors)]
    found = [(where, secret) for where, text in texts for secret in SECRETS if secret.encode() in text]
    leaks = [line for line in paths.log.read_bytes().split(b"\n") if any(s.encode() in line for s in SECRETS)]
    assert found == [], leaks
    assert len(paths.log.read_bytes()) > 500, "nothing was said"


def fail(paths: NodePaths, reference: str, errors: list[LazyfsError]) -> None:
    try:
        with suppress(OSError):
            read_all(paths, reference)
    except LazyfsError as error:
        errors.append(error)


def test_of_a_registry_with_tokens_and_signed_addresses(
    node_at: MakePaths, made: Path, tmp_path: Path
) -> None:
    paths = node_at(tmp_path / "node")
    paths.root.mkdir()
    paths.settings.write_text(f'[fetch]\ntimeout = 0.3\nheaders = {{ X-Header = "{HEADER}" }}\n')
    errors: list[LazyfsError] = []
    registry = Registry(registry_face(made))
    with ExitStack() as servers:
        servers.enter_context(registry.storage)
        server = servers.enter_context(FaultServer(registry))
        reference = f"docker://{server.host}/app:{TAG}"
        write_auth(tmp_path / "auth.json", server.host, password=WRONG)
        registry.fault = Reply(401)
        fail(paths, reference, errors)
        write_auth(tmp_path / "auth.json", server.host)
        registry.fault, registry.known = None, SECRETS
        opened = in_the_end(lambda: ensure_daemon(paths).open_image(reference, fill=False))
        for fault in FAULTS:
            registry.fault = fault
            fail(paths, reference, errors)
            for device in opened["devices"]:
                with suppress(OSError):
                    Path(device).read_bytes()
        registry.fault = None
        ensure_daemon(paths).ask("POST /v1/cache/prune", {"size": 0})
        assert all(map(len, in_the_end(lambda: read_all(paths, reference))))
        assert any(seen.headers.get("authorization") == BASIC for seen in server.seen)
        assert any(SIGNATURE in seen.target for seen in registry.storage.seen)
        assert any(seen.headers.get("x-header") == HEADER for seen in server.seen)
        assert errors
        check(paths, errors)


def test_of_a_bucket(node_at: MakePaths, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = node_at(tmp_path / "node")
    paths.root.mkdir()
    paths.settings.write_text("[fetch]\ntimeout = 0.3\n")
    face, errors, reference = bucket_face(made), list[LazyfsError](), f"s3://{BUCKET}/app:{TAG}"
    fault: list[int] = []

    def script(request: Seen) -> Reply:
        if not fault:
            return face(request)
        said = f"{request.headers} {S3_KEY} {S3_SESSION}".replace("<", "")
        return Reply(fault[0], {}, f"<Error><Code>{said}</Code><Message>{said}</Message></Error>".encode())

    with FaultServer(script) as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
        opened = in_the_end(lambda: ensure_daemon(paths).open_image(reference, fill=False))
        for status in (401, 403, 400, 500):
            fault[:] = [status]
            fail(paths, reference, errors)
            for device in opened["devices"]:
                with suppress(OSError):
                    Path(device).read_bytes()
        fault.clear()
        assert all(map(len, in_the_end(lambda: read_all(paths, reference))))
        assert any(S3_SESSION in seen.headers.get("x-amz-security-token", "") for seen in server.seen)
        assert len(ensure_daemon(paths).status()["recent_failures"]) > 1
        check(paths, errors)

"""What a reader of a node meets when its store fails: the right bytes, if late, or an error in time that says why.

Each fault strikes a registry and a bucket while the devices of an image are read; when it is over, the next read
is right without anybody's help. `docs/faults.md` tells the same to people.
"""

import errno
import os
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from lazyfs.errors import IntegrityError, LazyfsError
from lazyfs.stores import s3_bucket
from lazyfs.stores.registry import client
from tests.faults import HANG, RESET, FaultServer, Reply, Seen
from tests.waiting import wait_until

from .faces import BUCKET, TAG, Script, bucket_face, registry_face
from .open_node import OpenNode

SECONDS = 0.7
"""Until a read is an error, in these tests."""
GRACE = 4.0
SECRET = "a-secret-that-no-message-may-hold"
Spoil = Callable[[Seen, Reply], Reply]


@dataclass(frozen=True)
class Face:
    name: str
    script: Script
    reference: Callable[[str], str]


@pytest.fixture(params=["registry", "bucket"])
def face(request: pytest.FixtureRequest, made: Path) -> Face:
    if request.param == "registry":
        return Face("registry", registry_face(made), lambda host: f"docker://{host}/app:{TAG}")
    return Face("bucket", bucket_face(made), lambda _: f"s3://{BUCKET}/app:{TAG}")


@pytest.fixture(scope="module")
def right(made: Path, tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    node = OpenNode(tmp_path_factory.mktemp("right"))
    devices = node.devices(node.open(made))
    node.close()
    return devices


@pytest.fixture
def server(face: Face) -> Iterator[FaultServer]:
    with FaultServer(face.script) as server:
        yield server


@pytest.fixture
def node(server: FaultServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[OpenNode]:
    for module, longest in ((client, "_MAX_PAUSE"), (s3_bucket, "_LONGEST_PAUSE")):
        monkeypatch.setattr(module, "_FIRST_PAUSE", 0.001)
        monkeypatch.setattr(module, longest, 0.05)
    for name, value in {
        "AWS_ENDPOINT_URL": server.url,
        "AWS_REGION": "eu-test-1",
        "AWS_ACCESS_KEY_ID": "tests",
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": "/nonexistent",
        "AWS_SHARED_CREDENTIALS_FILE": "/nonexistent",
    }.items():
        monkeypatch.setenv(name, value)
    root = tmp_path / "node"
    root.mkdir()
    (root / "config.toml").write_text(f"[fetch]\ntimeout = {SECONDS}\nfill = false\n")
    node = OpenNode(root)
    yield node
    node.close()


def flipped(request: Seen, reply: Reply) -> Reply:
    assert isinstance(reply.body, bytes)
    return replace(reply, body=bytes([*reply.body[:-1], reply.body[-1] ^ 1]) if reply.body else b"")


def shortened(after: str) -> Spoil:
    def spoil(request: Seen, reply: Reply) -> Reply:
        assert isinstance(reply.body, bytes)
        return replace(reply, body=reply.body[:100], length=len(reply.body), after=after)

    return spoil


def lengthened(request: Seen, reply: Reply) -> Reply:
    assert isinstance(reply.body, bytes)
    return replace(reply, body=reply.body + b"more")


def another_range(request: Seen, reply: Reply) -> Reply:
    start, end = request.range()
    return replace(reply, headers=reply.headers | {"Content-Range": f"bytes {start + 1}-{end}/99999999"})


def no_range(request: Seen, reply: Reply) -> Reply:
    return replace(
        reply, headers={name: value for name, value in reply.headers.items() if name != "Content-Range"}
    )


def bytes_of_another_range(request: Seen, reply: Reply) -> Reply:
    assert isinstance(reply.body, bytes)
    return replace(reply, body=reply.body[1:] + reply.body[:1])


def dripping(request: Seen, reply: Reply) -> Reply:
    return replace(reply, drip=True)


def instead(reply: Reply) -> Spoil:
    return lambda request, right: reply


LASTING: dict[str, tuple[Spoil, str]] = {
    "reset": (instead(RESET), "did not answer|closed|reset"),
    "reset in mid-body": (shortened("reset"), "did not answer|closed the connection|reset"),
    "a body too short": (shortened("close"), "did not answer|ended|closed|bytes"),
    "a body too long": (lengthened, "sends"),
    "a byte flipped": (flipped, "digest|damaged"),
    "the wrong range": (bytes_of_another_range, "digest|damaged"),
    "a wrong Content-Range": (another_range, "range|no answer of S3"),
    "206 without Content-Range": (no_range, "range|no answer of S3"),
    "a redirect to a dead host": (instead(Reply(307, {"Location": "http://127.0.0.1:9/blob"})), "."),
    "a redirect to a name that nobody knows": (
        instead(Reply(307, {"Location": "http://storage.invalid/b"})),
        ".",
    ),
    "a redirect to no TLS": (instead(Reply(307, {"Location": "https://127.0.0.1:9/blob"})), "."),
    "401": (instead(Reply(401)), "401|nauthorized|credentials|password"),
    "403": (instead(Reply(403)), "403|does not allow"),
    "404": (instead(Reply(404)), "404|not in|is not"),
    "416": (instead(Reply(416)), "shorter|none can be read"),
    "429 for long": (instead(Reply(429, {"Retry-After": "3600"})), "429|slow down"),
    "500": (instead(Reply(500)), "500"),
    "503": (instead(Reply(503)), "503|slow down"),
    "silence": (instead(HANG), "in time|did not answer|seconds"),
    "a byte now and then": (dripping, "in time|did not answer|too long|seconds"),
}


def is_blob(request: Seen) -> bool:
    return request.method == "GET" and "range" in request.headers and "blobs" in request.path


def strike(server: FaultServer, face: Face, spoil: Spoil, times: int = 1 << 30) -> None:
    """Spoil so many of the next answers for bytes of blobs."""
    left = iter(range(times))

    def script(request: Seen) -> Reply:
        right = face.script(request)
        return spoil(request, right) if is_blob(request) and next(left, None) is not None else right

    server.script = script


def opened(node: OpenNode, face: Face, server: FaultServer) -> dict[str, Any]:
    return node.node.open_image(face.reference(server.host), Path("/"))


def read(node: OpenNode, inode: int) -> bytes:
    device = node.table.numbered(inode)
    assert device is not None
    return device.content.request(0, device.content.size).result(SECONDS + GRACE)


@pytest.mark.parametrize(("spoil", "cause"), LASTING.values(), ids=LASTING.keys())
def test_a_fault_that_lasts_is_an_error_in_time_and_ends_with_its_cause(
    node: OpenNode, face: Face, server: FaultServer, right: list[bytes], spoil: Spoil, cause: str
) -> None:
    layers = opened(node, face, server)["layers"]
    strike(server, face, spoil)
    begun = time.monotonic()
    if (face.name, spoil) == ("bucket", lengthened):
        assert read(node, layers[0]) == right[0]  # what is too much is left
        return
    with pytest.raises(LazyfsError, match=cause) as caught:
        read(node, layers[0])
    assert time.monotonic() - begun < SECONDS + GRACE
    assert caught.value.errno in (errno.EIO, errno.ENOENT, errno.EACCES)
    assert "sha256:" in caught.value.message
    assert SECRET not in f"{caught.value} {caught.value.hint}"
    server.script = face.script
    # Damage is remembered for a moment; nothing else is.
    wait_until(lambda: not isinstance(caught.value, IntegrityError) or is_readable(node, layers[0]))
    assert [read(node, inode) for inode in layers] == right


def is_readable(node: OpenNode, inode: int) -> bool:
    try:
        read(node, inode)
    except IntegrityError:
        return False
    return True


PASSING: dict[str, Spoil] = {
    "reset": instead(RESET),
    "reset in mid-body": shortened("reset"),
    "a body too short": shortened("close"),
    "429": instead(Reply(429, {"Retry-After": "0"})),
    "500": instead(Reply(500)),
    "503": instead(Reply(503)),
}


@pytest.mark.parametrize("spoil", PASSING.values(), ids=PASSING.keys())
def test_a_fault_that_passes_costs_time_alone(
    node: OpenNode, face: Face, server: FaultServer, right: list[bytes], spoil: Spoil
) -> None:
    layers = opened(node, face, server)["layers"]
    strike(server, face, spoil, times=2)
    assert [read(node, inode) for inode in layers] == right


def test_connections_are_refused(node: OpenNode, face: Face, server: FaultServer, right: list[bytes]) -> None:
    layers = opened(node, face, server)["layers"]
    server.refuse()
    try:
        with pytest.raises(LazyfsError, match=r"refused|did not answer"):
            read(node, layers[0])
    finally:
        server.listen_again()
    assert [read(node, inode) for inode in layers] == right


def test_a_whole_blob_in_place_of_a_range(
    node: OpenNode, face: Face, server: FaultServer, right: list[bytes]
) -> None:
    """Right bytes from a registry, an error from a bucket, which always answers ranges; never wrong ones."""
    layers = opened(node, face, server)["layers"]
    strike(server, face, lambda request, _: face.script(replace(request, headers={})))
    for inode, device in zip(layers, right, strict=True):
        try:
            assert read(node, inode) == device
        except LazyfsError as error:
            assert face.name == "bucket"
            assert "sha256:" in error.message
    server.script = face.script
    assert [read(node, inode) for inode in layers] == right


# Faults of the machine itself


def test_no_descriptors_are_left(node: OpenNode, face: Face, server: FaultServer, right: list[bytes]) -> None:
    layers = opened(node, face, server)["layers"]
    server.hang_up()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (500, hard))
    taken: list[int] = []
    try:
        with suppress(OSError):
            while True:
                taken.append(os.open("/dev/null", os.O_RDONLY))
        try:
            assert read(node, layers[0]) == right[0]  # over a descriptor that just came free
        except LazyfsError as error:
            assert "sha256:" in error.message
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for each in taken:
            os.close(each)
    assert [read(node, inode) for inode in layers] == right


@pytest.mark.parametrize("years", [-40, 40])
def test_the_clock_jumps(
    node: OpenNode,
    face: Face,
    server: FaultServer,
    right: list[bytes],
    years: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    layers = opened(node, face, server)["layers"]
    assert read(node, layers[1]) == right[1]
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + years * 365 * 86400)
    node.node.flush()
    assert [read(node, inode) for inode in layers] == right
    assert opened(node, face, server)["layers"] == layers


@pytest.mark.parametrize("keep", [0, 5000])
def test_a_cache_file_is_cut_behind_the_nodes_back(
    node: OpenNode, face: Face, server: FaultServer, right: list[bytes], keep: int
) -> None:
    layers = opened(node, face, server)["layers"]
    assert [read(node, inode) for inode in layers] == right
    for data in (node.paths.root / "cache").glob("*/data"):
        os.truncate(data, min(keep, data.stat().st_size))
    assert [read(node, inode) for inode in layers] == right

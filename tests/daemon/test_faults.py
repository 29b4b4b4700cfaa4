"""What a reader of a node meets when its store fails: the right bytes, if late, or an error in time that says why.

Each fault strikes a registry and a bucket while the devices of an image are read; when it is over, the next read
is right without anybody's help. `docs/faults.md` tells the same to people.
"""

import errno
import os
import re
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from lazyfs.errors import LazyfsError
from lazyfs.stores import s3_bucket
from lazyfs.stores.registry import client
from tests.faults import HANG, RESET, FaultServer, Reply, Seen
from tests.waiting import wait_until

from .faces import BUCKET, TAG, Script, bucket_face, registry_face
from .open_node import OpenNode

SECONDS = 0.7
"""Until a read is an error, in tests that wait for one."""
LONG = 30.0
"""In all others: long enough for a busy machine."""
GRACE = 20.0
"""What a busy machine may add to the first, and less than the second."""
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
def seconds(request: pytest.FixtureRequest, face: Face) -> float:
    """Until a read of `node` is an error, if that has to be waited for."""
    fault = request.node.callspec.params.get("fault")
    return SECONDS if fault in LASTING and fault not in FINAL | FINAL_OF[face.name] else LONG


@pytest.fixture
def node(
    server: FaultServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float
) -> Iterator[OpenNode]:
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
    (root / "config.toml").write_text(f"[fetch]\ntimeout = {seconds}\nfill = false\n")
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


BROKEN = r"closed the connection|did not answer"
SILENT = "did not answer"
LATE = "did not answer in time|took too long|no answer within"
"""Which of them depends on what was waited for when the time was over."""
DAMAGED = "the bytes do not match their digest|damaged zstd frame"
DENIED = "does not allow it to the credentials from env"

LASTING: dict[str, tuple[Spoil, str, str]] = {
    # With what is said of a registry, and of a bucket.
    "reset": (instead(RESET), BROKEN, SILENT),
    "reset in mid-body": (shortened("reset"), BROKEN, SILENT),
    "a body too short": (shortened("close"), BROKEN, SILENT),
    "a body too long": (lengthened, r"sends \d+ bytes, not \d+", ""),
    "a byte flipped": (flipped, DAMAGED, DAMAGED),
    "the wrong range": (bytes_of_another_range, DAMAGED, DAMAGED),
    "a wrong Content-Range": (another_range, "sends another range", "no answer of S3"),
    "206 without Content-Range": (no_range, "does not say which range", "no answer of S3"),
    "a redirect to a dead host": (
        instead(Reply(307, {"Location": "http://127.0.0.1:9/blob"})),
        f"http://127.0.0.1:9: the connection was refused|{SILENT}",
        SILENT,
    ),
    "a redirect to a name that nobody knows": (
        instead(Reply(307, {"Location": "http://storage.invalid/b"})),
        rf"http://storage\.invalid: its name is not known|{SILENT}",
        SILENT,
    ),
    "a redirect to no TLS": (
        instead(Reply(307, {"Location": "https://127.0.0.1:9/blob"})),
        f"https://127.0.0.1:9: the connection was refused|{SILENT}",
        SILENT,
    ),
    "401": (instead(Reply(401)), "answered 401 Unauthorized", DENIED),
    "403": (instead(Reply(403)), "answered 403 Forbidden", DENIED),
    "404": (instead(Reply(404)), "answered 404 Not Found", "is not there"),
    "416": (instead(Reply(416)), "the blob is shorter", "none can be read"),
    "429 for long": (
        instead(Reply(429, {"Retry-After": "3600"})),
        "answered 429 Too Many Requests",
        "asked to slow down",
    ),
    "500": (instead(Reply(500)), "answered 500 Internal Server Error", "answered 500"),
    "503": (instead(Reply(503)), "answered 503 Service Unavailable", "asked to slow down"),
    "silence": (instead(HANG), LATE, SILENT),
    "a byte now and then": (dripping, LATE, SILENT),
}


# After these a store is not asked again: their error comes at once, not when the time is over.
FINAL = {
    "a body too long", "a byte flipped", "the wrong range", "a wrong Content-Range", "206 without Content-Range",
    "401", "403", "404", "416",
}  # fmt: skip
FINAL_OF = {"registry": {"429 for long"}, "bucket": {"reset in mid-body", "a body too short"}}


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
    """The image, in the end: a busy machine may need longer than the deadline."""
    given: list[dict[str, Any]] = []

    def is_open() -> bool:
        try:
            given.append(node.node.open_image(face.reference(server.host), Path("/")))
        except LazyfsError as error:
            assert re.search(f"{SILENT}|{LATE}", error.message), error
        return bool(given)

    wait_until(is_open)
    return given[0]


def read(node: OpenNode, inode: int) -> bytes:
    device = node.table.numbered(inode)
    assert device is not None
    return device.content.request(0, device.content.size).result(40.0)


def error_of(node: OpenNode, inode: int, cause: str) -> LazyfsError:
    """Of a read. A machine may be too busy for any answer within the time; that is said then, and no cause."""
    while True:
        begun = time.monotonic()
        with pytest.raises(LazyfsError) as caught:
            read(node, inode)
        assert time.monotonic() - begun < SECONDS + GRACE
        if re.search(cause, caught.value.message):
            return caught.value
        assert re.search(f"{SILENT}|{LATE}", caught.value.message), caught.value


@pytest.mark.usefixtures("time_limit")
@pytest.mark.parametrize("fault", LASTING)
def test_a_fault_that_lasts_is_an_error_in_time_and_ends_with_its_cause(
    node: OpenNode, face: Face, server: FaultServer, right: list[bytes], fault: str
) -> None:
    spoil, *said = LASTING[fault]
    cause = said[face.name == "bucket"]
    layers = opened(node, face, server)["layers"]
    strike(server, face, spoil)
    if not cause:
        assert read(node, layers[0]) == right[0]  # what is too much is left
        return
    error = error_of(node, layers[0], cause)
    assert error.errno in (errno.EIO, errno.ENOENT, errno.EACCES)
    assert "sha256:" in error.message
    assert SECRET not in f"{error} {error.hint}"
    failures = node.node.status()["recent_failures"]
    assert any(re.search(cause, each) for each in failures), failures
    server.script = face.script
    all_is_right(node, layers, right)


def all_is_right(node: OpenNode, layers: list[int], right: list[bytes]) -> None:
    """The fault is over. Damage is remembered for a moment, and a busy machine may need longer than the deadline."""
    wait_until(lambda: all(is_readable(node, inode) for inode in layers))
    assert [read(node, inode) for inode in layers] == right


def is_readable(node: OpenNode, inode: int) -> bool:
    try:
        read(node, inode)
    except LazyfsError:
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


@pytest.mark.usefixtures("time_limit")
@pytest.mark.parametrize("seconds", [SECONDS])
def test_connections_are_refused(node: OpenNode, face: Face, server: FaultServer, right: list[bytes]) -> None:
    layers, of_registry = opened(node, face, server)["layers"], face.name == "registry"
    server.refuse()
    try:
        error_of(node, layers[0], "the connection was refused" if of_registry else SILENT)
    finally:
        server.listen_again()
    all_is_right(node, layers, right)


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
            assert "no answer of S3" in error.message
    server.script = face.script
    all_is_right(node, layers, right)


# Faults of the machine itself


@pytest.mark.parametrize("seconds", [SECONDS])
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
    all_is_right(node, layers, right)


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
    node.wait_kept()
    for data in (node.paths.root / "cache").glob("*/data"):
        os.truncate(data, min(keep, data.stat().st_size))
    assert [read(node, inode) for inode in layers] == right

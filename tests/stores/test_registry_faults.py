"""Reading from registries that fail, lie, stall or attack."""

import tracemalloc
from dataclasses import replace

import pytest

from lazyfs.errors import LazyfsError, NotFoundError, StoreError
from lazyfs.formats.oci_descriptor import sha256_digest
from lazyfs.stores import open_store, parse_reference
from lazyfs.stores.registry import blobs as blobs_module
from lazyfs.stores.registry.store import RegistryStore
from lazyfs.stores.registry.wire import Deadline
from tests.faults import HANG, RESET, FaultServer, Reply, Seen

from .memory_registry import BLOB, DIGEST, ENDLESS, always, at_first, opened, part

pytestmark = pytest.mark.usefixtures("impatient")


# What passes by trying again

PASSING = {
    "reset": RESET,
    "closed without an answer": Reply(raw=b"", after="close"),
    "no HTTP": Reply(raw=b"220 mail.example ESMTP\r\n\r\n", after="close"),
    "half a head": Reply(raw=b"HTTP/1.1 206 -\r\nContent-Le", after="close"),
    "short body": part(1000, 3000, sent=500, after="close"),
    "reset in the middle": part(1000, 3000, sent=500, after="reset"),
    "chunks that end early": part(1000, 3000, sent=500, chunked=True, after="close"),
    "429": Reply(429, {"Retry-After": "0"}),
    "429 until a date that has passed": Reply(429, {"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}),
    "500": Reply(500),
    "502": Reply(502, body=b"<html>Bad Gateway</html>"),
    "503": Reply(503, {"Retry-After": "0"}),
    "504": Reply(504),
}


@pytest.mark.parametrize("fault", PASSING.values(), ids=PASSING.keys())
def test_what_may_pass_is_tried_again(server: FaultServer, store: RegistryStore, fault: Reply) -> None:
    store.has(DIGEST)
    at_first(server, fault, fault)
    assert store.read(DIGEST, 1000, 2000) == BLOB[1000:3000]
    assert len(server.seen) == 4


@pytest.mark.usefixtures("hurried")
def test_trying_again_ends_at_the_deadline(server: FaultServer, store: RegistryStore) -> None:
    always(server, Reply(503, body=b'{"errors": [{"code": "TOOMANYREQUESTS", "message": "slow down"}]}'))
    with pytest.raises(StoreError) as caught:
        store.read(DIGEST, 0, 10)
    assert caught.value.message == (
        f"blob {DIGEST} in docker://{server.host}/app: http://{server.host} answered "
        "503 Service Unavailable (TOOMANYREQUESTS: slow down)"
    )
    assert "try again later" in caught.value.hint
    assert len(server.seen) > 3


def test_a_wait_that_is_longer_than_the_deadline_is_not_waited_for(
    server: FaultServer, store: RegistryStore
) -> None:
    always(server, Reply(429, {"Retry-After": "3600"}))
    with pytest.raises(StoreError, match="429 Too Many Requests") as caught:
        store.read(DIGEST, 0, 10)
    assert "wait 3600 s" in caught.value.hint
    assert len(server.seen) == 1


def test_a_wait_that_the_server_asks_for_is_waited_for(
    server: FaultServer, store: RegistryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[float] = []
    monkeypatch.setattr(store._client._closing, "wait", waited.append)
    at_first(server, Reply(429, {"Retry-After": "7"}), Reply(503))
    store.read(DIGEST, 0, 10)
    assert waited[0] == 7
    assert 0 < waited[1] < 0.1


def test_nobody_there_is_said_soon(nobody: str) -> None:
    with (
        open_store(parse_reference(f"docker://{nobody}/app")) as store,
        pytest.raises(StoreError, match=f"{nobody}: the connection was refused") as caught,
    ):
        store.read(DIGEST, 0, 1)
    assert "check host and port" in caught.value.hint


def test_a_name_that_nobody_knows() -> None:
    with (
        open_store(parse_reference("docker://registry.invalid/app")) as store,
        pytest.raises(StoreError, match=r"registry\.invalid: its name is not known"),
    ):
        store.resolve("v1")


# What does not pass

WRONG = {
    "403": (Reply(403, body=b'{"errors":[{"code":"DENIED"}]}'), StoreError, "403 Forbidden \\(DENIED\\)"),
    "404": (Reply(404), NotFoundError, "404 Not Found"),
    "410": (Reply(410), NotFoundError, "410 Gone"),
    "400": (Reply(400), StoreError, "400 Bad Request"),
    "418": (Reply(418), StoreError, "418"),
    "599": (Reply(599), StoreError, "599$"),
    "416": (Reply(416), StoreError, "the blob is shorter"),
    "no Content-Range": (Reply(206, body=BLOB[:10]), StoreError, "does not say which range"),
    "a strange Content-Range": (
        Reply(206, {"Content-Range": "bytes 0-9/10\N{SUPERSCRIPT TWO}"}, BLOB[:10]),
        StoreError,
        "does not say which range",
    ),
    "another range": (part(1, 11), StoreError, "another range"),
    "a longer range": (part(0, 11), StoreError, "another range"),
    "a shorter range": (part(0, 9), StoreError, "another range"),
    "the end of a shorter blob": (
        Reply(206, {"Content-Range": "bytes 0-8/9"}, BLOB[:9]),
        StoreError,
        "the blob is shorter",
    ),
    "a range behind the end": (
        Reply(206, {"Content-Range": "bytes 0-9/5"}, BLOB[:10]),
        StoreError,
        "another range",
    ),
    "another length": (
        Reply(206, {"Content-Range": f"bytes 0-9/{len(BLOB)}"}, BLOB[:11]),
        StoreError,
        "sends 11 bytes, not 10",
    ),
    "no length": (
        Reply(
            raw=f"HTTP/1.1 206 -\r\nContent-Range: bytes 0-9/{len(BLOB)}\r\n\r\n0123456789".encode(),
            after="close",
        ),
        StoreError,
        "how long its answer is",
    ),
    "chunks that go on": (
        Reply(206, {"Content-Range": f"bytes 0-9/{len(BLOB)}"}, BLOB[:11], chunked=True),
        StoreError,
        "more than 10 bytes",
    ),
    "a whole blob that is shorter": (Reply(200, body=BLOB[:9]), StoreError, "the blob is shorter"),
    "a redirect to nowhere": (Reply(307), StoreError, "redirects to nowhere"),
    "a redirect to another protocol": (
        Reply(307, {"Location": "ftp://127.0.0.1/blob"}),
        StoreError,
        "neither https nor http",
    ),
    "a redirect with a password": (
        Reply(307, {"Location": "http://user:password@127.0.0.1/blob"}),
        StoreError,
        "cannot be used",
    ),
    "a redirect to itself": (Reply(302, {"Location": ""}), StoreError, "redirects to nowhere"),
}


@pytest.mark.parametrize(("fault", "kind", "message"), WRONG.values(), ids=WRONG.keys())
def test_what_does_not_pass_is_an_error_at_once(
    server: FaultServer, store: RegistryStore, fault: Reply, kind: type[LazyfsError], message: str
) -> None:
    always(server, fault)
    with pytest.raises(kind, match=message) as caught:
        store.read(DIGEST, 0, 10)
    assert caught.value.hint
    assert DIGEST in caught.value.message
    assert server.host in caught.value.message
    assert len(server.seen) == 1


def test_a_whole_blob_in_place_of_a_range_is_cut(
    server: FaultServer, store: RegistryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    always(server, Reply(200, body=BLOB))
    assert store.read(DIGEST, 5000, 3000) == BLOB[5000:8000]
    monkeypatch.setattr(blobs_module, "_MAX_SKIPPED", 10_000)
    with pytest.raises(StoreError, match="sends no ranges"):
        store.read(DIGEST, 9000, 1001)


def test_a_range_in_chunks(server: FaultServer, store: RegistryStore) -> None:
    always(server, part(10, 2010, chunked=True))
    assert store.read(DIGEST, 10, 2000) == BLOB[10:2010]
    assert store.read(DIGEST, 10, 2000) == BLOB[10:2010]
    assert server.connections == 2  # one that was no TLS


def test_connections_are_kept(server: FaultServer, store: RegistryStore) -> None:
    for offset in range(0, 10_000, 1000):
        assert store.read(DIGEST, offset, 1000) == BLOB[offset : offset + 1000]
        assert store.has(sha256_digest(b"absent")) is None
    assert server.connections == 2


def test_a_connection_that_the_server_ended_is_replaced_unnoticed(
    server: FaultServer, store: RegistryStore
) -> None:
    at_first(server, part(0, 10, after="close"))
    assert store.read(DIGEST, 0, 10) == BLOB[:10]
    assert store.read(DIGEST, 0, 10) == BLOB[:10]


def test_a_server_that_keeps_no_connections(server: FaultServer, store: RegistryStore) -> None:
    right = server.script

    def script(request: Seen) -> Reply:
        reply = right(request)
        return replace(reply, headers=reply.headers | {"Connection": "close"}, after="close")

    server.script = script
    for offset in range(0, 5000, 1000):
        assert store.read(DIGEST, offset, 1000) == BLOB[offset : offset + 1000]
    assert b"".join(store.stream(DIGEST)) == BLOB
    server.script = lambda _: Reply(raw=b"HTTP/1.0 200 -\r\nContent-Length: 5\r\n\r\nwhole", after="close")
    assert store.read(DIGEST, 0, 5) == b"whole"


def test_bytes_that_nobody_asked_for_are_not_taken_for_the_next_answer(
    server: FaultServer, store: RegistryStore
) -> None:
    lie = b"HTTP/1.1 206 -\r\nContent-Length: 4\r\nContent-Range: bytes 0-3/9\r\n\r\nlies"
    answer = f"HTTP/1.1 206 -\r\nContent-Length: 4\r\nContent-Range: bytes 0-3/{len(BLOB)}\r\n\r\n".encode()
    at_first(server, Reply(raw=answer + BLOB[:4] + lie))
    assert store.read(DIGEST, 0, 4) == BLOB[:4]
    assert store.read(DIGEST, 0, 4) == BLOB[:4]


# Time and memory


@pytest.mark.parametrize(
    "fault",
    [
        HANG,
        Reply(raw=b"HTTP/1.1 206 -\r\n", after="hang"),
        part(0, 1000, sent=500, after="hang"),
        part(0, 1000, drip=True),
        Reply(headers={f"X-{number}": "0" * 60 for number in range(90)}, drip=True, body=b"0" * 1000),
    ],
    ids=["silence", "half a head", "half a body", "a drip", "a slow whole"],
)
def test_a_server_that_stalls_is_left_at_the_deadline(server: FaultServer, fault: Reply) -> None:
    always(server, fault)
    with opened(server, timeout=0.4) as store, pytest.raises(StoreError, match=r"in time|too long") as caught:
        store.read(DIGEST, 0, 1000)
    assert DIGEST in caught.value.message


def test_a_silent_moment_is_survived(
    server: FaultServer, store: RegistryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_first(server, HANG)
    monkeypatch.setattr(store._client, "deadline", lambda *_, **__: Deadline(20, 0.5))
    assert store.read(DIGEST, 0, 1000) == BLOB[:1000]


@pytest.mark.parametrize(
    "fault",
    [
        Reply(206, {"Content-Range": f"bytes 0-{(1 << 50) - 1}/{1 << 50}"}, ENDLESS, length=1 << 50),
        Reply(
            206, {"Content-Range": f"bytes 0-{(1 << 50) - 1}/{1 << 50}"}, b"x", length=1 << 50, after="close"
        ),
        Reply(raw=b"HTTP/1.1 206 -\r\n" + b"X-Y: z\r\n" * 200, after="close"),
        Reply(raw=b"HTTP/1.1 206 -\r\nX: " + b"y" * 200_000 + b"\r\n\r\n", after="close"),
        Reply(
            raw=b"HTTP/1.1 206 -\r\nTransfer-Encoding: chunked\r\n"
            + f"Content-Range: bytes 0-999/{len(BLOB)}\r\n\r\n-1\r\n".encode()
            + b"x" * (8 << 20),
            after="close",
        ),
        Reply(404, body=ENDLESS, length=1 << 50),
        Reply(307, {"Location": "http://x/" + "a" * 20_000}),
    ],
    ids=[
        "endless",
        "a promise",
        "many headers",
        "a long header",
        "a negative chunk",
        "an endless error",
        "a long address",
    ],
)
def test_memory_is_bounded(server: FaultServer, fault: Reply) -> None:
    always(server, fault)
    with opened(server, timeout=0.5) as store:
        tracemalloc.start()
        try:
            with pytest.raises(LazyfsError):
                store.read(DIGEST, 0, 1000)
            assert tracemalloc.get_traced_memory()[1] < 8 << 20
        finally:
            tracemalloc.stop()

"""Reading from registries that fail, lie, stall or attack."""

import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from itertools import repeat

import pytest

from lazyfs.errors import IntegrityError, LazyfsError, LimitError, NotFoundError, StoreError
from lazyfs.formats.oci import MAX_DOCUMENT, OCI_CONFIG, sha256_digest
from lazyfs.stores import StoreOptions, load_image, open_store, parse_reference
from lazyfs.stores.registry import blobs as blobs_module
from lazyfs.stores.registry import client as client_module
from lazyfs.stores.registry.store import RegistryStore
from tests.faults import HANG, RESET, FaultServer, Reply, Seen, ranged

from .memory_registry import MemoryRegistry
from .samples import describe, make_sample

BLOB = bytes(range(256)) * 4096  # 1 MiB
DIGEST = sha256_digest(BLOB)


@pytest.fixture
def memory() -> MemoryRegistry:
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


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "_FIRST_PAUSE", 0.001)
    monkeypatch.setattr(client_module, "_MAX_PAUSE", 0.05)


def opened(server: FaultServer, timeout: float = 20.0) -> RegistryStore:
    store = open_store(parse_reference(f"docker://{server.host}/app"), options=StoreOptions(timeout=timeout))
    assert isinstance(store, RegistryStore)
    return store


def at_first(server: FaultServer, *faults: Reply) -> None:
    """Let these be the first answers; then all is well."""
    right, waiting = server.script, list(faults)
    server.script = lambda request: waiting.pop(0) if waiting else right(request)


def always(server: FaultServer, fault: Reply) -> None:
    server.script = lambda _: fault


def part(
    start: int,
    end: int,
    *,
    sent: int | None = None,
    after: str = "keep",
    chunked: bool = False,
    drip: bool = False,
) -> Reply:
    """An answer that says it is this range of the blob, of which so many bytes are sent."""
    headers = {"Content-Range": f"bytes {start}-{end - 1}/{len(BLOB)}"}
    body = BLOB[start:end] if sent is None else BLOB[start : start + sent]
    return Reply(206, headers, body, length=end - start, after=after, chunked=chunked, drip=drip)


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


def test_trying_again_ends_at_the_deadline(server: FaultServer) -> None:
    always(server, Reply(503, body=b'{"errors": [{"code": "TOOMANYREQUESTS", "message": "slow down"}]}'))
    with opened(server, timeout=0.9) as store, pytest.raises(StoreError) as caught:
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


def test_nobody_there_is_said_soon() -> None:
    with FaultServer(lambda _: RESET) as server:
        host = server.host
    with (
        open_store(parse_reference(f"docker://{host}/app")) as store,
        pytest.raises(StoreError, match=f"{host}: the connection was refused") as caught,
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


def test_a_silent_moment_is_survived(server: FaultServer) -> None:
    at_first(server, HANG)
    with opened(server, timeout=1.5) as store:
        assert store.read(DIGEST, 0, 1000) == BLOB[:1000]


ENDLESS = repeat(b"x" * 65536)


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


# Redirects


@pytest.fixture
def storage() -> Iterator[FaultServer]:
    """Where a registry keeps its blobs: another host, which needs no password."""
    with FaultServer(lambda request: ranged(request, BLOB)) as storage:
        yield storage


def test_a_redirect_is_followed_and_kept(
    server: FaultServer, store: RegistryStore, storage: FaultServer
) -> None:
    always(server, Reply(307, {"Location": f"{storage.url}/signed?X-Amz-Expires=600&X-Amz-Signature=secret"}))
    for offset in range(0, 5000, 1000):
        assert store.read(DIGEST, offset, 1000) == BLOB[offset : offset + 1000]
    assert b"".join(store.stream(DIGEST)) == BLOB
    assert len(server.seen) == 1
    assert len(storage.seen) == 6
    # What was signed for GET alone is not asked by HEAD.
    server.script = lambda request: ranged(request, BLOB)
    assert store.has(DIGEST) == len(BLOB)


def test_a_redirect_that_has_come_to_its_end_is_asked_for_anew(
    server: FaultServer, store: RegistryStore, storage: FaultServer
) -> None:
    always(server, Reply(307, {"Location": f"{storage.url}/signed"}))
    store.read(DIGEST, 0, 10)
    # Of two resets the first ends a kept connection, which is replaced unnoticed.
    for faults in ([Reply(403)], [Reply(404)], [RESET, RESET], [part(7, 17)]):
        right = storage.script
        at_first(storage, *faults)
        assert store.read(DIGEST, 0, 10) == BLOB[:10]
        storage.script = right
    assert len(server.seen) == 5


def test_a_redirect_that_must_not_be_kept_is_not(
    server: FaultServer, store: RegistryStore, storage: FaultServer
) -> None:
    always(server, Reply(307, {"Location": f"{storage.url}/signed", "Cache-Control": "no-store"}))
    store.read(DIGEST, 0, 10)
    store.read(DIGEST, 0, 10)
    assert len(server.seen) == 2


def test_redirects_in_a_circle_end(server: FaultServer, store: RegistryStore, storage: FaultServer) -> None:
    always(server, Reply(307, {"Location": f"{storage.url}/b"}))
    always(storage, Reply(307, {"Location": f"{server.url}/a"}))
    with pytest.raises(StoreError, match="redirects in circles"):
        store.read(DIGEST, 0, 10)
    assert len(server.seen) + len(storage.seen) <= 10


def test_a_redirect_to_a_dead_host(server: FaultServer, memory: MemoryRegistry) -> None:
    with FaultServer(memory) as gone:
        dead = gone.url
    always(server, Reply(307, {"Location": f"{dead}/blob?signature=secret"}))
    with opened(server, timeout=0.9) as store:
        with pytest.raises(StoreError, match=f"{dead}: the connection was refused") as caught:
            store.read(DIGEST, 0, 10)
        assert "secret" not in caught.value.message + caught.value.hint
        server.script = memory
        assert store.read(DIGEST, 0, 10) == BLOB[:10]


# Whole blobs


def test_a_stream_goes_on_where_it_broke(
    server: FaultServer, store: RegistryStore, memory: MemoryRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blobs_module, "STREAM_PIECE", 1000)
    broken = Reply(body=BLOB[:3500], length=len(BLOB), after="reset")
    at_first(server, broken, Reply(503))
    assert b"".join(store.stream(DIGEST)) == BLOB
    assert [request.headers.get("range") for request in server.seen] == [None, "bytes=3000-", "bytes=3000-"]


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (
            Reply(206, {"Content-Range": f"bytes 2000-{len(BLOB) - 1}/{len(BLOB)}"}, BLOB[2000:]),
            "another range",
        ),
        (Reply(206, {"Content-Range": "bytes 3000-4999/5000"}, BLOB[3000:5000]), "the blob is shorter"),
        (Reply(200, body=BLOB[:5000]), "says 5000 bytes, and before"),
    ],
)
def test_a_stream_that_goes_on_as_another_blob_is_an_error(
    server: FaultServer, store: RegistryStore, monkeypatch: pytest.MonkeyPatch, second: Reply, message: str
) -> None:
    monkeypatch.setattr(blobs_module, "STREAM_PIECE", 1000)
    at_first(server, Reply(body=BLOB[:3500], length=len(BLOB), after="close"), second)
    with pytest.raises(StoreError, match=message):
        list(store.stream(DIGEST))


def test_a_stream_goes_on_at_a_server_without_ranges(
    server: FaultServer, store: RegistryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blobs_module, "STREAM_PIECE", 1000)
    at_first(server, Reply(body=BLOB[:3500], length=len(BLOB), after="close"), Reply(body=BLOB))
    assert b"".join(store.stream(DIGEST)) == BLOB


def test_a_stream_that_is_left_early_costs_no_more(server: FaultServer, store: RegistryStore) -> None:
    always(server, Reply(body=ENDLESS, length=1 << 50))
    for count, _ in enumerate(store.stream(DIGEST)):
        if count == 3:
            break
    server.script = lambda request: ranged(request, BLOB)
    assert store.read(DIGEST, 0, 10) == BLOB[:10]


def test_a_stream_that_stalls(server: FaultServer) -> None:
    always(server, Reply(body=BLOB[:500_000], length=len(BLOB), after="hang"))
    with opened(server, timeout=0.3) as store, pytest.raises(StoreError, match=r"in time|too long"):
        list(store.stream(DIGEST))


# Documents


def test_a_document_that_is_another(server: FaultServer, store: RegistryStore) -> None:
    sample = make_sample("a")
    always(server, Reply(body=sample.manifest.replace(b"layer", b"lawer")))
    with pytest.raises(IntegrityError, match=sample.descriptor.digest):
        store.get_document(sample.descriptor)
    with pytest.raises(IntegrityError, match=sample.descriptor.digest):
        store.resolve(sample.descriptor.digest)


@pytest.mark.parametrize(
    "headers",
    [{"Content-Type": "application/json"}, {}, {"Docker-Content-Digest": make_sample("a").descriptor.digest}],
)
def test_a_manifest_says_itself_what_it_is(
    server: FaultServer, store: RegistryStore, headers: dict[str, str]
) -> None:
    sample = make_sample("a")
    always(server, Reply(headers=headers, body=sample.manifest))
    assert store.resolve("v1") == sample.descriptor
    assert store.get_document(sample.descriptor) == sample.manifest
    assert len(server.seen) == 1


def test_a_tag_that_leads_to_other_bytes_than_it_says(server: FaultServer, store: RegistryStore) -> None:
    always(server, Reply(headers={"Docker-Content-Digest": DIGEST}, body=make_sample("a").manifest))
    with pytest.raises(IntegrityError, match=DIGEST):
        store.resolve("v1")


@pytest.mark.parametrize(
    "fault",
    [
        Reply(body=make_sample("a").manifest[:100], length=len(make_sample("a").manifest), after="close"),
        Reply(raw=b"HTTP/1.1 200 -\r\n\r\n" + make_sample("a").manifest[:100], after="close"),
        Reply(body=make_sample("a").manifest[:100], chunked=True, after="close"),
    ],
    ids=["short", "without a length", "chunks that end early"],
)
def test_half_a_document_is_none(server: FaultServer, memory: MemoryRegistry, fault: Reply) -> None:
    memory.add_sample(make_sample("a"), "v1")
    always(server, fault)
    message = r"closed the connection|how long its answer"
    with opened(server, timeout=0.3) as store, pytest.raises(StoreError, match=message):
        store.resolve("v1")
    if fault.raw is None:
        server.script = memory
        at_first(server, fault)
        with opened(server) as store:
            assert store.resolve("v1") == make_sample("a").descriptor


def test_a_document_that_is_too_large(server: FaultServer, store: RegistryStore) -> None:
    always(server, Reply(body=ENDLESS, length=1 << 40))
    with pytest.raises(LimitError, match=f"larger than the limit of {MAX_DOCUMENT}"):
        store.resolve("v1")
    with pytest.raises(IntegrityError, match="more than"):
        store.get_document(make_sample("a").descriptor)
    with pytest.raises(IntegrityError):
        store.get_document(describe(OCI_CONFIG, b"config"))


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"{", b'{"tags": 1}', b'{"tags": [1]}', b'{"tags":' + b"[" * 5000, b"\xff"]
)
def test_a_list_of_tags_that_is_none(server: FaultServer, store: RegistryStore, body: bytes) -> None:
    always(server, Reply(body=body))
    with pytest.raises(LazyfsError, match="list of tags"):
        store.tags()


def test_pages_of_tags_without_end(
    server: FaultServer, store: RegistryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = {"Link": '<http://elsewhere.example/v2/app/tags/list?last=v1>; rel="next"'}
    always(server, Reply(headers=link, body=b'{"tags": ["v1", "not a tag", "\\u001b[31m"]}'))
    monkeypatch.setattr("lazyfs.stores.registry.store._MAX_PAGES", 20)
    with pytest.raises(LimitError):
        store.tags()
    assert len(server.seen) == 20
    assert server.seen[-1].target == "/v2/app/tags/list?last=v1"


def test_what_a_server_says_is_shown_harmlessly(server: FaultServer, store: RegistryStore) -> None:
    message = "\\u001b[2J" + "long " * 1000
    always(server, Reply(400, body=f'{{"errors":[{{"code":"X","message":"{message}"}}]}}'.encode()))
    with pytest.raises(StoreError) as caught:
        store.resolve("v1")
    assert caught.value.message.isprintable()
    assert len(caught.value.message) < 400


def test_an_image_is_read_in_two_requests(
    server: FaultServer, store: RegistryStore, memory: MemoryRegistry
) -> None:
    memory.add_sample(make_sample("a"), "v1")
    load_image(store, parse_reference(f"docker://{server.host}/app:v1"), "linux/amd64")
    assert [request.target.split("/")[3] for request in server.seen] == ["manifests", "blobs"]


def test_closing_ends_a_wait(server: FaultServer, store: RegistryStore) -> None:
    def script(_: Seen) -> Reply:
        store.close()
        return Reply(503, {"Retry-After": "15"})

    server.script = script
    with pytest.raises(StoreError, match="closed"):
        store.read(DIGEST, 0, 10)

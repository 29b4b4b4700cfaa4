"""Reading where it is not straightforward: redirects, streams that break, documents that are none."""

from collections.abc import Iterator

import pytest

from lazyfs.errors import IntegrityError, LazyfsError, LimitError, StoreError
from lazyfs.formats.oci import MAX_DOCUMENT
from lazyfs.formats.oci_types import OCI_CONFIG
from lazyfs.stores import load_image, parse_reference
from lazyfs.stores.registry.store import RegistryStore
from tests.faults import RESET, FaultServer, Reply, Seen, ranged

from .memory_registry import BLOB, DIGEST, ENDLESS, MemoryRegistry, always, at_first, opened, part
from .samples import describe, make_sample

pytestmark = pytest.mark.usefixtures("impatient")


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


@pytest.mark.usefixtures("hurried")
def test_a_redirect_to_a_dead_host(
    server: FaultServer, store: RegistryStore, memory: MemoryRegistry, nobody: str
) -> None:
    always(server, Reply(307, {"Location": f"http://{nobody}/blob?signature=secret"}))
    with pytest.raises(StoreError, match=f"http://{nobody}: the connection was refused") as caught:
        store.read(DIGEST, 0, 10)
    assert "secret" not in caught.value.message + caught.value.hint
    server.script = memory
    assert store.read(DIGEST, 0, 10) == BLOB[:10]


# Whole blobs


def test_a_stream_goes_on_where_it_broke(
    server: FaultServer, store: RegistryStore, memory: MemoryRegistry
) -> None:
    broken = Reply(body=BLOB[:3500], length=len(BLOB), after="reset")
    at_first(server, broken, Reply(503))
    assert b"".join(store.stream(DIGEST, piece=1000)) == BLOB
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
    server: FaultServer, store: RegistryStore, second: Reply, message: str
) -> None:
    at_first(server, Reply(body=BLOB[:3500], length=len(BLOB), after="close"), second)
    with pytest.raises(StoreError, match=message):
        list(store.stream(DIGEST, piece=1000))


def test_a_stream_goes_on_at_a_server_without_ranges(server: FaultServer, store: RegistryStore) -> None:
    at_first(server, Reply(body=BLOB[:3500], length=len(BLOB), after="close"), Reply(body=BLOB))
    assert b"".join(store.stream(DIGEST, piece=1000)) == BLOB


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


@pytest.mark.usefixtures("hurried")
@pytest.mark.parametrize(
    "fault",
    [
        Reply(body=make_sample("a").manifest[:100], length=len(make_sample("a").manifest), after="close"),
        Reply(raw=b"HTTP/1.1 200 -\r\n\r\n" + make_sample("a").manifest[:100], after="close"),
        Reply(body=make_sample("a").manifest[:100], chunked=True, after="close"),
    ],
    ids=["short", "without a length", "chunks that end early"],
)
def test_half_a_document_is_none(
    server: FaultServer, store: RegistryStore, memory: MemoryRegistry, fault: Reply
) -> None:
    memory.add_sample(make_sample("a"), "v1")
    always(server, fault)
    with pytest.raises(StoreError, match=r"closed the connection|how long its answer"):
        store.resolve("v1")
    if fault.raw is None:
        server.script = memory
        at_first(server, fault)
        with opened(server) as another:
            assert another.resolve("v1") == make_sample("a").descriptor


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

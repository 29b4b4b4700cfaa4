"""Writing to registries that fail on the way: what arrives is whole, what does not leaves nothing."""

import os
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lazyfs.errors import StoreError
from lazyfs.formats.oci_descriptor import sha256_digest
from lazyfs.stores import write_blob
from lazyfs.stores.registry import client as client_module
from lazyfs.stores.registry import upload as upload_module
from lazyfs.stores.registry.store import RegistryStore
from lazyfs.stores.registry.wire import Deadline
from tests.faults import HANG, RESET, FaultServer, Reply, Seen
from tests.registry import BASIC, write_auth

from .memory_registry import MemoryRegistry, opened
from .samples import make_sample

CHUNK = 1000
DATA = os.urandom(3500)
DIGEST = sha256_digest(DATA)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upload_module, "CHUNK", CHUNK)
    monkeypatch.setattr(client_module, "_FIRST_PAUSE", 0.001)


@pytest.fixture
def memory() -> MemoryRegistry:
    return MemoryRegistry()


@pytest.fixture
def store(server: FaultServer) -> Iterator[RegistryStore]:
    with opened(server, create=True) as store:
        yield store


def write(store: RegistryStore, data: bytes = DATA) -> None:
    with store.writer() as writer:
        for start in range(0, len(data), 300):
            writer.write(data[start : start + 300])
        assert writer.commit() == (sha256_digest(data), len(data))


def at(server: FaultServer, method: str, number: int, fault: Callable[[Seen], Reply]) -> None:
    """Let the request of that method and number (from 1) go wrong."""
    right = server.script
    count = 0

    def script(request: Seen) -> Reply:
        nonlocal count
        count += request.method == method
        if request.method == method and count == number:
            return fault(request)
        return right(request)

    server.script = script


def methods(server: FaultServer) -> list[str]:
    return [request.method for request in server.seen]


def test_a_large_blob_in_chunks(server: FaultServer, store: RegistryStore, memory: MemoryRegistry) -> None:
    write(store)
    assert memory.blobs == {DIGEST: DATA}
    assert methods(server) == ["POST", "PATCH", "PATCH", "PATCH", "PATCH", "PUT"]
    ranges = [seen.headers["content-range"] for seen in server.seen if seen.method == "PATCH"]
    assert ranges == ["0-999", "1000-1999", "2000-2999", "3000-3499"]


def test_a_small_blob_at_once(server: FaultServer, store: RegistryStore, memory: MemoryRegistry) -> None:
    write(store, DATA[:500])
    write(store, DATA[:500])
    assert memory.blobs == {sha256_digest(DATA[:500]): DATA[:500]}
    assert methods(server) == ["HEAD", "POST", "PUT", "HEAD"]


@pytest.mark.parametrize("number", [1, 2, 4])
@pytest.mark.parametrize("share", [0, 100, 500])
def test_a_chunk_that_breaks_goes_on_where_it_broke(
    server: FaultServer, store: RegistryStore, memory: MemoryRegistry, number: int, share: int
) -> None:
    def fault(request: Seen) -> Reply:
        [data] = memory.uploads.values()
        data += request.body[:share]
        return RESET

    at(server, "PATCH", number, fault)
    write(store)
    assert memory.blobs == {DIGEST: DATA}
    assert methods(server).count("PATCH") == (4 if number == 4 and share == 500 else 5)
    assert memory.uploads == {}


@pytest.mark.parametrize("fault", [RESET, Reply(503), Reply(429, {"Retry-After": "0"})])
def test_a_status_that_fails_is_asked_again(
    server: FaultServer, store: RegistryStore, memory: MemoryRegistry, fault: Reply
) -> None:
    at(server, "PATCH", 2, lambda _: fault)
    at(server, "GET", 1, lambda _: fault)
    write(store)
    assert memory.blobs == {DIGEST: DATA}


def test_an_upload_that_was_lost_begins_anew_as_long_as_it_can(
    server: FaultServer, store: RegistryStore, memory: MemoryRegistry
) -> None:
    def lose(_: Seen) -> Reply:
        memory.uploads.clear()
        return RESET

    at(server, "PATCH", 1, lose)
    write(store)
    assert memory.blobs == {DIGEST: DATA}
    assert memory.begun == 2
    server.script = memory
    at(server, "PATCH", 3, lose)
    with pytest.raises(StoreError, match="broke after 2000 bytes and cannot go on") as caught:
        write(store, DATA[::-1])
    assert "try again" in caught.value.hint
    assert memory.blobs == {DIGEST: DATA}


@pytest.mark.parametrize("size", [500, 3500])
def test_an_answer_that_was_lost_after_the_deed(
    server: FaultServer, store: RegistryStore, memory: MemoryRegistry, size: int
) -> None:
    def fault(request: Seen) -> Reply:
        assert memory(request).status == 201
        return RESET

    at(server, "PUT", 1, fault)
    write(store, DATA[:size])
    assert list(memory.blobs.values()) == [DATA[:size]]
    assert methods(server).count("PUT") == 1


@pytest.mark.parametrize("size", [500, 3500])
@pytest.mark.parametrize("fault", [RESET, Reply(500)])
def test_a_commit_that_fails_is_tried_again(
    server: FaultServer, store: RegistryStore, memory: MemoryRegistry, size: int, fault: Reply
) -> None:
    at(server, "PUT", 1, lambda _: fault)
    write(store, DATA[:size])
    assert list(memory.blobs.values()) == [DATA[:size]]


@pytest.mark.parametrize(
    ("method", "fault", "message"),
    [
        ("POST", Reply(202), "does not say where to send it"),
        ("POST", Reply(403), "403 Forbidden"),
        ("PATCH", Reply(413), "413"),
        ("PATCH", Reply(416), "416"),
        ("PATCH", Reply(202, {"Range": "0-99999"}), "says it has 100000 bytes"),
        ("PATCH", Reply(202, {"Range": "0-0"}), "says it has 0 bytes"),
        ("PUT", Reply(400, body=b'{"errors":[{"code":"DIGEST_INVALID"}]}'), "DIGEST_INVALID"),
        ("PUT", Reply(307, {"Location": "/elsewhere"}), "307 Temporary Redirect"),
    ],
)
def test_a_registry_that_will_not_have_it(
    server: FaultServer, store: RegistryStore, memory: MemoryRegistry, method: str, fault: Reply, message: str
) -> None:
    at(server, method, 1, lambda _: fault)
    with pytest.raises(StoreError, match=message) as caught:
        write(store)
    assert server.host in caught.value.message
    assert (memory.blobs, memory.uploads) == ({}, {})


def test_a_registry_that_wants_larger_chunks(
    server: FaultServer, store: RegistryStore, memory: MemoryRegistry
) -> None:
    def script(request: Seen) -> Reply:
        reply = memory(request)
        reply.headers["OCI-Chunk-Min-Length"] = "1500"
        return reply

    server.script = script
    write(store)
    assert memory.blobs == {DIGEST: DATA}
    ranges = [seen.headers["content-range"] for seen in server.seen if seen.method == "PATCH"]
    assert ranges == ["0-1499", "1500-2999", "3000-3499"]


def test_what_is_uploaded_elsewhere_goes_there_without_a_password(
    server: FaultServer, memory: MemoryRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    auth_file = write_auth(tmp_path / "auth.json", server.host)
    monkeypatch.setenv("REGISTRY_AUTH_FILE", str(auth_file))
    with FaultServer(memory) as elsewhere:

        def script(request: Seen) -> Reply:
            if request.headers.get("authorization") != BASIC:
                return Reply(401, {"WWW-Authenticate": "Basic"})
            reply = memory(request)
            if "Location" in reply.headers:
                reply.headers["Location"] = elsewhere.url + reply.headers["Location"]
            return reply

        server.script = script
        with opened(server, create=True) as store:
            write(store)
        assert methods(elsewhere) == ["PATCH", "PATCH", "PATCH", "PATCH", "PUT"]
        assert all("authorization" not in seen.headers for seen in elsewhere.seen)
    assert memory.blobs == {DIGEST: DATA}


def test_a_registry_that_is_silent_in_the_middle(
    server: FaultServer, store: RegistryStore, memory: MemoryRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    def deadline(more: float = 0.0, *, patient: bool = False) -> Deadline:
        """Short for a chunk alone, so that whatever else is asked for comes in time."""
        return Deadline(0.9, 0.9) if patient else Deadline(20, 20)

    at(server, "PATCH", 2, lambda _: HANG)
    monkeypatch.setattr(store._client, "deadline", deadline)
    with pytest.raises(StoreError, match=r"in time|too long"):
        write(store)
    assert (memory.blobs, memory.uploads) == ({}, {})


def test_who_gives_up_does_not_wait_for_what_is_on_its_way(
    server: FaultServer, store: RegistryStore, memory: MemoryRegistry
) -> None:
    sending = threading.Event()

    def fault(_: Seen) -> Reply:
        sending.set()
        return HANG

    at(server, "PATCH", 2, fault)
    with pytest.raises(KeyboardInterrupt), store.writer() as writer:
        writer.write(DATA[:2500])
        assert sending.wait(10)
        raise KeyboardInterrupt
    assert (memory.blobs, memory.uploads) == ({}, {})


def test_memory_is_bounded_however_large_the_blob(
    server: FaultServer, store: RegistryStore, monkeypatch: pytest.MonkeyPatch, memory: MemoryRegistry
) -> None:
    monkeypatch.setattr(upload_module, "CHUNK", 1 << 20)
    sizes: list[int] = []

    def script(request: Seen) -> Reply:
        if request.method in ("PATCH", "PUT"):
            sizes.append(len(request.body))
            server.seen.clear()
            return Reply(202 if request.method == "PATCH" else 201)
        return memory(request)

    server.script = script
    piece = bytes(100_000)
    tracemalloc.start()
    try:
        with store.writer() as writer:
            for _ in range(400):
                writer.write(piece)
            writer.commit()
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()
    assert sum(sizes) == 40_000_000


def test_many_threads_write_at_once(store: RegistryStore, memory: MemoryRegistry) -> None:
    blobs = [os.urandom(2500) for _ in range(20)]
    threads = [threading.Thread(target=write_blob, args=(store, blob)) for blob in blobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(memory.blobs.values()) == sorted(blobs)


UNKNOWN = Reply(404, {"Content-Type": "application/json"}, b'{"errors": [{"code": "MANIFEST_BLOB_UNKNOWN"}]}')


def test_a_registry_that_loses_sight_of_a_blob_for_a_moment(
    server: FaultServer, store: RegistryStore, memory: MemoryRegistry
) -> None:
    sample = make_sample("a")
    for blob in (*sample.layers, sample.config):
        write(store, blob)
    asked = 0

    def script(request: Seen) -> Reply:
        nonlocal asked
        if request.method == "PUT" and "/manifests/" in request.path:
            asked += 1
            return UNKNOWN if asked < 3 else memory(request)
        return memory(request)

    server.script = script
    assert store.put_document(sample.manifest, sample.descriptor.media_type) == sample.descriptor
    assert asked == 3


def test_a_manifest_whose_blob_is_not_there(server: FaultServer, store: RegistryStore) -> None:
    sample = make_sample("a")
    at(server, "PUT", 1, lambda _: UNKNOWN)
    with pytest.raises(StoreError, match="MANIFEST_BLOB_UNKNOWN"):
        store.put_document(sample.manifest, sample.descriptor.media_type)
    assert methods(server).count("PUT") == 1

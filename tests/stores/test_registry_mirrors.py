"""Mirrors, as the hosts.toml of containerd names them."""

import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lazyfs.errors import NotFoundError, UsageError
from lazyfs.stores import write_blob
from tests.faults import RESET, FaultServer, Reply, Seen
from tests.registry import write_auth
from tests.waiting import wait_until

from .memory_registry import BLOB, DIGEST, MemoryRegistry, Serve, opened_by_certs
from .samples import make_sample

pytestmark = pytest.mark.usefixtures("impatient")


@pytest.fixture
def memory() -> MemoryRegistry:
    memory = MemoryRegistry()
    memory.add(BLOB)
    memory.add_sample(make_sample("a"), "v1")
    return memory


def mirrored(certs: Path, own: FaultServer, *mirrors: FaultServer, extra: str = "") -> None:
    lines = [f'server = "{own.url}"', *(f'[host."{mirror.url}"]\n{extra}' for mirror in mirrors)]
    (certs / own.host).mkdir(exist_ok=True)
    (certs / own.host / "hosts.toml").write_text("\n".join(lines))


def test_a_mirror_is_asked_first_and_told_for_whom(
    certs: Path, served: Serve, memory: MemoryRegistry
) -> None:
    own, mirror = served(memory), served(memory)
    mirrored(certs, own, mirror, extra='header = {"X-Registry" = "tests"}')
    with opened_by_certs(own.host, certs) as store:
        store.resolve("v1")
        assert store.read(DIGEST, 10, 10) == BLOB[10:20]
    assert own.seen == []
    namespace = f"ns={own.host.replace(':', '%3A')}"
    assert [seen.target.partition("?")[2] for seen in mirror.seen] == [namespace, namespace]
    assert mirror.seen[0].headers["x-registry"] == "tests"


@pytest.mark.parametrize(
    "fault", [RESET, Reply(404), Reply(403), Reply(500), Reply(429), Reply(200, body=b"short")]
)
def test_a_mirror_that_fails_is_passed_over(
    certs: Path, served: Serve, memory: MemoryRegistry, fault: Reply
) -> None:
    own, mirror, good = served(memory), served(lambda _: fault), served(memory)
    mirrored(certs, own, mirror, good)
    with opened_by_certs(own.host, certs) as store:
        assert store.read(DIGEST, 10, 10) == BLOB[10:20]
        assert len(good.seen) == 1
    mirrored(certs, own, mirror)
    with opened_by_certs(own.host, certs) as store:
        assert store.read(DIGEST, 10, 10) == BLOB[10:20]
    assert len(own.seen) == 1


def test_a_mirror_that_fails_is_left_alone_for_a_while(
    certs: Path, served: Serve, memory: MemoryRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, mirror = served(memory), served(lambda _: Reply(503))
    mirrored(certs, own, mirror)
    with opened_by_certs(own.host, certs) as store:
        for _ in range(5):
            store.read(DIGEST, 0, 10)
        assert len(mirror.seen) == 1
        monkeypatch.setattr(store._client._servers[0], "aside_until", 0.0)
        mirror.script = memory
        store.read(DIGEST, 0, 10)
        assert (len(mirror.seen), len(own.seen)) == (2, 5)


def test_who_asks_while_a_mirror_lets_others_wait_is_answered_elsewhere(
    certs: Path, served: Serve, memory: MemoryRegistry
) -> None:
    """So a read that is asked for a second time has another server, and the mirror is first again when it is back."""
    answers = threading.Event()

    def silent(request: Seen) -> Reply:
        assert answers.wait(20)
        return memory(request)

    own, mirror = served(memory), served(silent)
    mirrored(certs, own, mirror)
    with ThreadPoolExecutor(1) as threads, opened_by_certs(own.host, certs) as store:
        first = threads.submit(store.read, DIGEST, 0, 10)
        wait_until(store._client._servers[0].waits.too_long, "a wait that is too long")
        assert store.read(DIGEST, 5, 10) == BLOB[5:15]
        assert (len(mirror.seen), len(own.seen)) == (1, 1)
        answers.set()
        assert first.result(20) == BLOB[:10]
        assert store.read(DIGEST, 0, 10) == BLOB[:10]
        assert (len(mirror.seen), len(own.seen)) == (2, 1)


def test_the_registry_itself_decides_what_is_not_there(
    certs: Path, served: Serve, memory: MemoryRegistry
) -> None:
    own, mirror = served(memory), served(lambda _: Reply(503))
    mirrored(certs, own, mirror)
    with opened_by_certs(own.host, certs) as store, pytest.raises(NotFoundError, match=own.host):
        store.resolve("v9")


def test_a_mirror_is_asked_for_what_it_can_alone(certs: Path, served: Serve, memory: MemoryRegistry) -> None:
    own, mirror = served(memory), served(memory)
    mirrored(certs, own, mirror, extra='capabilities = ["pull"]')
    with opened_by_certs(own.host, certs) as store:
        store.resolve("v1")
        store.read(DIGEST, 0, 10)
    assert ["manifests/v1" in seen.target for seen in own.seen] == [True]
    assert ["blobs" in seen.target for seen in mirror.seen] == [True]
    with opened_by_certs(own.host, certs, create=True) as store:
        write_blob(store, b"new")
        assert store.read(DIGEST, 0, 10) == BLOB[:10]
    assert len(mirror.seen) == 1
    mirrored(certs, own, extra="")
    (certs / own.host / "hosts.toml").write_text(f'[host."{own.url}"]\ncapabilities = ["pull"]')
    with opened_by_certs(own.host, certs) as store:
        store.read(DIGEST, 0, 10)
        with pytest.raises(UsageError, match="for resolve"):
            store.tags()
    with pytest.raises(UsageError, match="for push"), opened_by_certs(own.host, certs, create=True) as store:
        write_blob(store, b"new")


def test_a_mirror_hears_its_own_password(
    certs: Path,
    served: Serve,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    memory: MemoryRegistry,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    caplog.set_level(logging.DEBUG)

    def script(request: Seen) -> Reply:
        if "authorization" not in request.headers:
            return Reply(401, {"WWW-Authenticate": "Basic"})
        return memory(request)

    own, mirror = served(script), served(script)
    mirrored(certs, own, mirror)
    monkeypatch.setenv("REGISTRY_AUTH_FILE", str(write_auth(tmp_path / "auth.json", own.host)))
    with opened_by_certs(own.host, certs) as store:
        store.read(DIGEST, 0, 10)
    assert all("authorization" not in seen.headers for seen in mirror.seen)
    assert "authorization" in own.seen[-1].headers
    monkeypatch.setenv("REGISTRY_AUTH_FILE", str(write_auth(tmp_path / "auth.json", mirror.host)))
    with opened_by_certs(own.host, certs) as store:
        store.read(DIGEST, 0, 10)
    assert "authorization" in mirror.seen[-1].headers

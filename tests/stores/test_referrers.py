"""The referrers API of registries that have it; those that have not are in the conformance tests."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from lazyfs.formats.oci import Index, parse_manifest
from lazyfs.formats.oci_descriptor import Descriptor
from lazyfs.formats.oci_types import OCI_INDEX
from lazyfs.stores import open_store, parse_reference
from lazyfs.stores.registry.store import RegistryStore
from tests.faults import FaultServer, Reply, Seen

from .memory_registry import MemoryRegistry, at_first
from .samples import make_sample, put_referrer

_REFERRERS = re.compile(r"/v2/.+/referrers/(sha256:[0-9a-f]{64})")


@dataclass
class ModernRegistry(MemoryRegistry):
    """Keeps the lists of referrers by itself, and does not filter them."""

    listed: dict[str, list[Descriptor]] = field(default_factory=dict)

    def __call__(self, request: Seen) -> Reply:
        if found := _REFERRERS.fullmatch(request.path):
            body = Index(tuple(self.listed.get(found[1], []))).to_bytes()
            return Reply(headers={"Content-Type": OCI_INDEX}, body=body)
        reply = super().__call__(request)
        if request.method == "PUT" and "/manifests/sha256:" in request.path and reply.status == 201:
            manifest = parse_manifest(request.body)
            if manifest.subject is not None:
                entry = Descriptor(
                    manifest.media_type,
                    request.path.rpartition("/")[2],
                    len(request.body),
                    manifest.annotations,
                    artifact_type=manifest.artifact_type,
                )
                entries = self.listed.setdefault(manifest.subject.digest, [])
                if entry not in entries:
                    entries.append(entry)
                return Reply(201, {"OCI-Subject": manifest.subject.digest})
        return reply


@pytest.fixture
def registry() -> Iterator[tuple[FaultServer, ModernRegistry]]:
    memory = ModernRegistry()
    with FaultServer(memory) as server:
        yield server, memory


def opened(server: FaultServer) -> RegistryStore:
    store = open_store(parse_reference(f"docker://{server.host}/app"), create=True)
    assert isinstance(store, RegistryStore)
    return store


def test_a_registry_that_keeps_the_list_gets_no_tag(registry: tuple[FaultServer, ModernRegistry]) -> None:
    server, memory = registry
    sample = make_sample("a")
    memory.add_sample(sample, "v1")
    with opened(server) as store:
        put_referrer(store, sample.descriptor, "a/signature", b"signature")
        pack = put_referrer(store, sample.descriptor, "some/type", b"one")
        server.seen.clear()
        (found,) = store.referrers(sample.descriptor.digest, "some/type")
        assert (found.digest, found.annotations) == (pack.digest, {"said": "one"})
        (request,) = server.seen
        assert request.target.endswith("?artifactType=some%2Ftype")
    assert not [name for name in memory.manifests if name.startswith("sha256-")]


def test_a_registry_without_the_api_is_asked_for_it_once(
    registry: tuple[FaultServer, ModernRegistry],
) -> None:
    server, _ = registry
    digest = make_sample("a").descriptor.digest
    with opened(server) as store:
        at_first(server, Reply(404))
        assert store.referrers(digest, "some/type") == []
        assert store.referrers(digest, "some/type") == []
    asked = [request.path.split("/")[3] for request in server.seen]
    assert asked == ["referrers", "manifests", "manifests"]


@pytest.mark.parametrize("body", [b"<html>", b"{}", b'{"schemaVersion": 2, "manifests": [{}]}'])
def test_what_is_no_list_counts_as_no_api(registry: tuple[FaultServer, ModernRegistry], body: bytes) -> None:
    server, _ = registry
    with opened(server) as store:
        at_first(server, Reply(body=body))
        assert store.referrers(make_sample("a").descriptor.digest, "some/type") == []

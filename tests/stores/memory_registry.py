"""A registry in memory, for tests that let a `FaultServer` answer rightly until it shall not."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import repeat
from pathlib import Path

from lazyfs.formats.oci_descriptor import sha256_digest
from lazyfs.formats.oci_types import OCI_MANIFEST
from lazyfs.stores import StoreOptions, open_store, parse_reference
from lazyfs.stores.registry.store import RegistryStore
from tests.faults import FaultServer, Reply, Seen, ranged

from .samples import Sample

Serve = Callable[[Callable[[Seen], Reply]], FaultServer]

_BLOB = re.compile(r"/v2/(?P<name>.+)/blobs/(?P<digest>sha256:[0-9a-f]{64})")
_MANIFEST = re.compile(r"/v2/(?P<name>.+)/manifests/(?P<reference>[^/]+)")
_BEGIN = re.compile(r"/v2/(?P<name>.+)/blobs/uploads/")
_UPLOAD = re.compile(r"/v2/(?P<name>.+)/blobs/uploads/(?P<number>[0-9]+)")


@dataclass
class MemoryRegistry:
    """Follows the OCI distribution specification 1.1; call it as the script of a `FaultServer`."""

    blobs: dict[str, bytes] = field(default_factory=dict)
    manifests: dict[str, tuple[str, bytes]] = field(default_factory=dict)
    uploads: dict[str, bytearray] = field(default_factory=dict)
    begun: int = 0

    def add(self, data: bytes) -> str:
        digest = sha256_digest(data)
        self.blobs[digest] = data
        return digest

    def add_sample(self, sample: Sample, tag: str) -> None:
        for data in (*sample.layers, sample.config):
            self.add(data)
        for reference in (tag, sample.descriptor.digest):
            self.manifests[reference] = (OCI_MANIFEST, sample.manifest)

    def __call__(self, request: Seen) -> Reply:
        if found := _UPLOAD.fullmatch(request.path):
            return self._upload(request, found["name"], found["number"])
        if found := _BEGIN.fullmatch(request.path):
            self.begun += 1
            self.uploads[str(self.begun)] = bytearray()
            return Reply(202, {"Location": f"/v2/{found['name']}/blobs/uploads/{self.begun}?state=0"})
        if (found := _BLOB.fullmatch(request.path)) and found["digest"] in self.blobs:
            return ranged(request, self.blobs[found["digest"]])
        if found := _MANIFEST.fullmatch(request.path):
            return self._manifest(request, found["reference"])
        return Reply(404)

    def _manifest(self, request: Seen, reference: str) -> Reply:
        if request.method == "PUT":
            self.manifests[reference] = (request.headers["content-type"], request.body)
            return Reply(201)
        if reference not in self.manifests:
            return Reply(404)
        media_type, data = self.manifests[reference]
        return Reply(headers={"Content-Type": media_type}, body=data)

    def _upload(self, request: Seen, name: str, number: str) -> Reply:
        if number not in self.uploads:
            return Reply(404)
        data = self.uploads[number]
        if request.method == "DELETE":
            del self.uploads[number]
            return Reply(204)
        if request.method == "PATCH":
            if not request.headers["content-range"].startswith(f"{len(data)}-"):
                return Reply(416)
            data += request.body
        if request.method == "PUT":
            digest = request.target.partition("digest=")[2].replace("%3A", ":")
            data += request.body
            if sha256_digest(data) != digest:
                return Reply(400)
            self.blobs[digest] = bytes(self.uploads.pop(number))
            return Reply(201)
        headers = {
            "Location": f"/v2/{name}/blobs/uploads/{number}?state={len(data)}",
            "Range": f"0-{max(0, len(data) - 1)}",
        }
        return Reply(202 if request.method == "PATCH" else 204, headers)


BLOB = bytes(range(256)) * 4096  # 1 MiB
DIGEST = sha256_digest(BLOB)
ENDLESS = repeat(b"x" * 65536)


def opened(server: FaultServer, timeout: float = 20.0, *, create: bool = False) -> RegistryStore:
    return opened_at(server.host, StoreOptions(timeout=timeout), create=create)


def opened_at(host: str, options: StoreOptions, *, name: str = "app", create: bool = False) -> RegistryStore:
    store = open_store(parse_reference(f"docker://{host}/{name}"), create=create, options=options)
    assert isinstance(store, RegistryStore)
    return store


def opened_by_certs(host: str, certs: Path, *, create: bool = False, insecure: bool = False) -> RegistryStore:
    return opened_at(host, StoreOptions(certs_dirs=(certs,), insecure=insecure, timeout=20), create=create)


def opened_as(
    host: str, auth_file: Path | None = None, *, name: str = "app", create: bool = False
) -> RegistryStore:
    return opened_at(host, StoreOptions(auth_file=auth_file, timeout=20), name=name, create=create)


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

"""The image of the tests in a registry and in a bucket, each a script for a `FaultServer`."""

from collections.abc import Callable
from pathlib import Path

from lazyfs.formats.oci import Index, parse_index
from lazyfs.formats.oci_descriptor import Descriptor
from lazyfs.formats.oci_types import OCI_MANIFEST
from lazyfs.stores._index import tag_of
from tests.faults import Reply, Seen, ranged
from tests.stores.memory_registry import MemoryRegistry

Script = Callable[[Seen], Reply]

BUCKET = "bucket"
TAG = "lazy"


def registry_face(layout: Path) -> Script:
    """Of `docker://HOST/app:lazy`."""
    registry = MemoryRegistry()
    for blob in (layout / "blobs/sha256").iterdir():
        registry.blobs[f"sha256:{blob.name}"] = blob.read_bytes()
    manifest = _entry(layout).digest
    for name in (TAG, manifest):
        registry.manifests[name] = (OCI_MANIFEST, registry.blobs[manifest])
    return registry


def bucket_face(layout: Path) -> Script:
    """Of `s3://bucket/app:lazy`."""
    objects = {f"blobs/sha256/{blob.name}": blob.read_bytes() for blob in (layout / "blobs/sha256").iterdir()}
    objects[f"app/_tags/{TAG}"] = Index((_entry(layout),)).to_bytes()

    def answer(request: Seen) -> Reply:
        data = objects.get(request.path.removeprefix(f"/{BUCKET}/"))
        if data is None:
            return Reply(404, body=b"<Error><Code>NoSuchKey</Code><Message>m</Message></Error>")
        reply = ranged(request, data)
        reply.headers.update({"ETag": '"x"', "Last-Modified": "Mon, 23 Nov 2026 06:55:36 GMT"})
        return reply

    return answer


def _entry(layout: Path) -> Descriptor:
    return next(
        item for item in parse_index((layout / "index.json").read_bytes()).manifests if tag_of(item) == TAG
    )

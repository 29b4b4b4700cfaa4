"""Small true images for tests of stores."""

import io
import tarfile
from dataclasses import dataclass, replace

from lazyfs.formats.oci import ImageConfig, Index, Manifest
from lazyfs.formats.oci_descriptor import Descriptor, Platform, sha256_digest
from lazyfs.formats.oci_types import OCI_CONFIG, OCI_EMPTY, OCI_INDEX, OCI_LAYER, OCI_MANIFEST
from lazyfs.stores import Store, write_blob


@dataclass(frozen=True)
class Sample:
    layers: tuple[bytes, ...]
    config: bytes
    manifest: bytes

    @property
    def descriptor(self) -> Descriptor:
        return describe(OCI_MANIFEST, self.manifest)


def describe(media_type: str, data: bytes) -> Descriptor:
    return Descriptor(media_type, sha256_digest(data), len(data))


def layer_tar(name: str, content: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        member = tarfile.TarInfo(name)
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def make_sample(text: str, *, architecture: str = "amd64", variant: str = "") -> Sample:
    layers = (layer_tar("base", b"the same in all samples"), layer_tar("name", text.encode()))
    config = ImageConfig(
        tuple(sha256_digest(layer) for layer in layers),
        architecture=architecture,
        os="linux",
        variant=variant,
        cmd=("echo", text),
    ).to_bytes()
    manifest = Manifest(
        describe(OCI_CONFIG, config), tuple(describe(OCI_LAYER, layer) for layer in layers)
    ).to_bytes()
    return Sample(layers, config, manifest)


def put_sample(store: Store, sample: Sample, tag: str | None = None) -> Descriptor:
    for layer in sample.layers:
        write_blob(store, layer)
    store.put_document(sample.config, OCI_CONFIG)
    descriptor = store.put_document(sample.manifest, OCI_MANIFEST)
    if tag is not None:
        store.put_tag(tag, descriptor)
    return descriptor


def put_index(store: Store, tag: str, entries: list[tuple[Descriptor, Platform | None]]) -> Descriptor:
    manifests = tuple(
        Descriptor(item.media_type, item.digest, item.size, platform=platform) for item, platform in entries
    )
    descriptor = store.put_document(Index(manifests).to_bytes(), OCI_INDEX)
    store.put_tag(tag, descriptor)
    return descriptor


def put_referrer(store: Store, subject: Descriptor, artifact_type: str, data: bytes) -> Descriptor:
    """An artifact of one blob that refers to an image."""
    config = Descriptor(OCI_EMPTY, *write_blob(store, b"{}"))
    layer = Descriptor(artifact_type, *write_blob(store, data))
    said = {"said": data.decode()}
    manifest = Manifest(config, (layer,), annotations=said, artifact_type=artifact_type, subject=subject)
    descriptor = store.put_document(manifest.to_bytes(), OCI_MANIFEST)
    entry = replace(descriptor, artifact_type=artifact_type, annotations=said)
    store.put_referrer(subject, entry)
    return entry

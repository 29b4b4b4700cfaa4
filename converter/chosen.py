"""Which images a name stands for, where it names an index: those that are, or can be, converted."""

from collections.abc import Iterator
from dataclasses import dataclass

from lazyfs.errors import UnsupportedError
from lazyfs.formats.oci import parse_index, parse_manifest
from lazyfs.formats.oci_descriptor import Descriptor
from lazyfs.formats.oci_types import INDEX_TYPES, MANIFEST_TYPES
from lazyfs.stores import Image, Reference, Store, load_image, load_manifest
from lazyfs.stores.base import named

_MAX_NESTING = 4


@dataclass(frozen=True, slots=True)
class Chosen:
    """`top` is what the name stands for: the one image, or the index that has them all."""

    top: Descriptor
    images: list[Image]
    carried: int
    """How many manifests of the index are none of ours: attestations, images for other systems."""


def choose(store: Store, reference: Reference, platform: str | None) -> Chosen:
    """The image that the reference names; of an index all its images, or that for `platform` alone."""
    top = store.resolve(reference.selector)
    if platform is not None or top.media_type not in INDEX_TYPES:
        image = load_image(store, reference, platform)
        return Chosen(image.descriptor, [image], 0)
    with named(reference):
        entries = manifests(store, top)
        ours = [entry for entry in entries if is_image(store, entry)]
        if not ours:
            raise UnsupportedError("the index has no image for Linux", hint="name an image by its digest")
        return Chosen(top, [load_manifest(store, entry) for entry in ours], len(entries) - len(ours))


def is_image(store: Store, entry: Descriptor) -> bool:
    """Is it an image of layers, for Linux, and not an artifact that only looks like one (an attestation)?"""
    if entry.media_type not in MANIFEST_TYPES:
        return False
    if entry.platform is not None and entry.platform.os not in ("", "linux"):
        return False
    layers = parse_manifest(store.get_document(entry)).layers
    return all("image.layer" in layer.media_type or "image.rootfs" in layer.media_type for layer in layers)


def manifests(store: Store, top: Descriptor) -> list[Descriptor]:
    """`top`, or the manifests in the index that it is and in those within, each once."""
    return list({entry.digest: entry for entry in _below(store, top, _MAX_NESTING)}.values())


def _below(store: Store, descriptor: Descriptor, nesting: int) -> Iterator[Descriptor]:
    if descriptor.media_type not in INDEX_TYPES:
        yield descriptor
    elif nesting:
        for entry in parse_index(store.get_document(descriptor)).manifests:
            yield from _below(store, entry, nesting - 1)

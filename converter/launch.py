"""From a profile to a launch pack: the hot units out of the image's own blobs, proved, in one new blob.

    profile -> units of the layers' devices -> chunks out of the store -> pack -> store

The pack becomes an artifact whose subject is the image; `docs/format.md` says how nodes find it.
"""

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np

from lazyfs.errors import UsageError
from lazyfs.formats import pack
from lazyfs.formats.chunks import UNIT_SIZE, unit_digests
from lazyfs.formats.image_tree import merge
from lazyfs.formats.oci import Manifest
from lazyfs.formats.oci_descriptor import Descriptor, PackLocation
from lazyfs.formats.oci_types import OCI_EMPTY, OCI_MANIFEST, PACK_ANNOTATION, PACK_TYPE
from lazyfs.formats.pack import Place
from lazyfs.formats.profile import Hot, Profile, resolve
from lazyfs.formats.toc_types import Toc
from lazyfs.node.layers import decode_toc, fetch_toc
from lazyfs.node.sources import open_chunk
from lazyfs.stores import Image, Store, write_blob


@dataclass(frozen=True, slots=True)
class PackReport:
    """`size` of the pack in bytes, and what it carries; `gone` are files of the profile that the image has not."""

    location: PackLocation
    units: int
    unit_bytes: int
    pages: int
    gone: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class OpenedImage:
    """An image with its TOCs, packed and decoded."""

    image: Image
    packed: list[bytes]
    tocs: list[Toc]

    def hot(self, profile: Profile) -> Hot:
        """What the profile means for this image."""
        return resolve(profile, merge([each.tree for each in self.tocs]), [each.chunks for each in self.tocs])


def open_tocs(store: Store, image: Image) -> OpenedImage:
    """Fetch, prove and decode the TOCs; UsageError when the image was never converted."""
    packed = [fetch_toc(store, layer) for layer, _ in image.layers]
    tocs = [decode_toc(data, layer, diff) for data, (layer, diff) in zip(packed, image.layers, strict=True)]
    return OpenedImage(image, packed, tocs)


def put_pack(store: Store, opened: OpenedImage, profile: Profile, *, jobs: int = 1) -> PackReport:
    """Write the launch pack of an image as a blob. UsageError where the profile has nothing of the image."""
    hot = opened.hot(profile)
    if not hot.units:
        raise UsageError(
            "the image has none of the files of the profile", hint="record a new one: lazyfs profile REF"
        )
    units, digests = _collect(store, opened, hot.units, jobs)
    pieces = pack.encode(
        opened.packed,
        opened.image.config_bytes,
        [each.chunks for each in opened.tocs],
        units,
        digests,
        jobs=jobs,
    )
    with store.writer() as writer:
        for piece in pieces:
            writer.write(piece)
        location = PackLocation(*writer.commit())
    return PackReport(location, len(units), sum(map(len, units.values())), hot.pages, tuple(hot.gone))


def attach_pack(store: Store, subject: Descriptor, location: PackLocation) -> Descriptor:
    """Make the pack a referrer of the image's manifest, in place of one that it has had; the artifact."""
    config = Descriptor(OCI_EMPTY, *write_blob(store, b"{}"))
    layer = Descriptor(PACK_TYPE, location.digest, location.size)
    manifest = Manifest(
        config,
        (layer,),
        annotations={PACK_ANNOTATION: location.format()},
        artifact_type=PACK_TYPE,
        subject=Descriptor(subject.media_type, subject.digest, subject.size),
    )
    document = manifest.to_bytes()
    descriptor = store.put_document(document, OCI_MANIFEST)
    entry = replace(descriptor, artifact_type=PACK_TYPE, annotations=manifest.annotations)
    store.put_referrer(subject, entry)
    return entry


def with_pack(layers: Sequence[Descriptor], location: PackLocation) -> tuple[Descriptor, ...]:
    """The layers of a manifest, each annotated with the pack: containerd hands these annotations to its snapshotter."""
    return tuple(
        replace(layer, annotations={**layer.annotations, PACK_ANNOTATION: location.format()})
        for layer in layers
    )


def _collect(
    store: Store, opened: OpenedImage, places: Iterable[Place], jobs: int
) -> tuple[dict[Place, bytes], dict[Place, list[bytes]]]:
    """The bytes of units, in their order, and the unit digests of their chunks."""
    first = [each.chunks.first_units() for each in opened.tocs]
    wanted: dict[Place, list[int]] = {}
    order = list(places)
    for layer, unit in order:
        chunk = int(np.searchsorted(first[layer], unit, side="right")) - 1
        wanted.setdefault((layer, chunk), []).append(unit)

    def fetch(place: Place) -> tuple[list[tuple[Place, bytes]], list[bytes]]:
        layer, chunk = place
        document, blob = opened.tocs[layer], opened.image.layers[layer][0].digest
        chunks = document.chunks
        frame = store.read(blob, int(chunks.blob_offset[chunk]), int(chunks.blob_length[chunk]))
        plain = open_chunk(document.codec, chunks, chunk, frame, blob)
        base = int(first[layer][chunk])
        return [
            ((layer, unit), plain[(unit - base) * UNIT_SIZE : (unit - base + 1) * UNIT_SIZE])
            for unit in wanted[place]
        ], unit_digests(plain)

    units: dict[Place, bytes] = dict.fromkeys(order, b"")
    digests: dict[Place, list[bytes]] = {}
    with ThreadPoolExecutor(max(4, jobs)) as pool:
        for place, (found, listed) in zip(wanted, pool.map(fetch, wanted), strict=True):
            units.update(found)
            digests[place] = listed
    return units, digests

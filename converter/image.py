"""A whole image, or all images of an index: what must be converted, and the manifests that name the result."""

import time
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from converter import records
from converter.chosen import is_image
from converter.copy import copy_blob, copy_tree
from converter.launch import attach_pack, open_tocs, put_pack, with_pack
from converter.layer import Settings, convert_layer
from converter.memory import unmap_large_blocks
from converter.progress import LayerReport, Progress, Silent
from lazyfs.errors import UnsupportedError
from lazyfs.formats.bootstrap import check
from lazyfs.formats.frames import MEDIA_TYPES
from lazyfs.formats.image_tree import merge
from lazyfs.formats.oci import Index, parse_index
from lazyfs.formats.oci_descriptor import Descriptor
from lazyfs.formats.oci_types import FOREIGN_LAYER_TYPES, INDEX_TYPES, OCI_CONFIG, OCI_INDEX, OCI_MANIFEST
from lazyfs.formats.profile import Profile
from lazyfs.formats.toc_types import Toc
from lazyfs.node.layers import load_toc
from lazyfs.stores import Image, Reference, Store, load_image, load_manifest


@dataclass(frozen=True, slots=True)
class ConvertReport:
    """`digest` is of the manifest or index that the destination's tag names now."""

    source: str
    destination: str
    digest: str
    layers: list[LayerReport]
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def convert_image(
    source: Store,
    source_reference: Reference,
    target: Store,
    target_reference: Reference,
    settings: Settings,
    progress: Progress | None = None,
    *,
    platform: str | None = None,
    all_platforms: bool = False,
    profile: Profile | None = None,
) -> ConvertReport:
    """Convert the image and give it the destination's tag, which is set when everything it leads to is there.

    Configs are copied to the byte, so the image keeps its ID and its DiffIDs. Of an index the image for
    `platform` (None: this machine's) is taken, or with `all_platforms` each; what is no image in it is carried along.
    With a `profile` each image gets its launch pack, which its layers' annotations name.
    """
    began = time.monotonic()
    unmap_large_blocks()
    tag = target_reference.tag_to_write()
    conversion = _Conversion(source, target, settings, progress or Silent(), profile)
    top = source.resolve(source_reference.selector)
    if all_platforms and top.media_type in INDEX_TYPES:
        converted = conversion.index(top)
    else:
        converted = conversion.image(load_image(source, source_reference, platform))
    target.put_tag(tag, converted)
    return ConvertReport(
        source=str(source_reference),
        destination=str(replace(target_reference, tag=tag)),
        digest=converted.digest,
        layers=conversion.reports,
        seconds=time.monotonic() - began,
    )


@dataclass(slots=True)
class _Conversion:
    source: Store
    target: Store
    settings: Settings
    progress: Progress
    profile: Profile | None = None
    reports: list[LayerReport] = field(default_factory=list)
    done: dict[str, tuple[Descriptor, Toc]] = field(default_factory=dict)
    known_chunks: set[bytes] = field(default_factory=set)

    def index(self, descriptor: Descriptor) -> Descriptor:
        """Convert every image of an index; images for Windows, attestations and the like are copied untouched."""
        index = parse_index(self.source.get_document(descriptor))
        manifests = [self._entry(entry) for entry in index.manifests]
        converted = Index(
            tuple(manifests), OCI_INDEX, index.annotations, index.artifact_type, index.subject, index.extra
        )
        return self.target.put_document(converted.to_bytes(), OCI_INDEX)

    def image(self, image: Image) -> Descriptor:
        layers: list[Descriptor] = []
        tocs: list[Toc] = []
        for number, (layer, diff_id) in enumerate(image.layers, 1):
            if layer.digest not in self.done:
                self.done[layer.digest] = self._layer(layer, diff_id, number, len(image.layers))
            descriptor, layer_toc = self.done[layer.digest]
            layers.append(descriptor)
            tocs.append(layer_toc)
        # What a node will do with these TOCs must succeed now, not at the first start.
        check(merge([each.tree for each in tocs]), [each.chunks.device_size for each in tocs])
        copy_blob(self.source, image.manifest.config, self.target)
        config = replace(image.manifest.config, media_type=OCI_CONFIG)
        manifest = replace(image.manifest, media_type=OCI_MANIFEST, config=config, layers=tuple(layers))
        if self.profile is None:
            return self.target.put_document(manifest.to_bytes(), OCI_MANIFEST)
        return self._put_with_pack(replace(image, manifest=manifest), self.profile)

    def _put_with_pack(self, image: Image, profile: Profile) -> Descriptor:
        """The artifact besides the annotation keeps the pack from being collected as garbage."""
        location = put_pack(
            self.target, open_tocs(self.target, image), profile, jobs=self.settings.jobs
        ).location
        manifest = replace(image.manifest, layers=with_pack(image.manifest.layers, location))
        descriptor = self.target.put_document(manifest.to_bytes(), OCI_MANIFEST)
        attach_pack(self.target, descriptor, location)
        return descriptor

    def _entry(self, entry: Descriptor) -> Descriptor:
        if entry.media_type in INDEX_TYPES:
            return self._renamed(entry, self.index(entry))
        if is_image(self.source, entry):
            return self._renamed(entry, self.image(load_manifest(self.source, entry)))
        return self._renamed(entry, copy_tree(self.source, entry, self.target))

    @staticmethod
    def _renamed(entry: Descriptor, to: Descriptor) -> Descriptor:
        """The entry of an index, with its platform and annotations, for another document."""
        return replace(entry, media_type=to.media_type, digest=to.digest, size=to.size)

    def _layer(self, layer: Descriptor, diff_id: str, number: int, count: int) -> tuple[Descriptor, Toc]:
        if layer.media_type in FOREIGN_LAYER_TYPES:
            raise UnsupportedError(
                f"layer {layer.digest} is a foreign layer, which its maker does not allow to be stored elsewhere",
                hint="rebuild the image on a base without foreign layers",
            )
        began = time.monotonic()
        self.progress.started(number, count, layer.digest, layer.size)
        descriptor, layer_toc, reused = self._convert_or_find(layer, diff_id, number)
        digests = {layer_toc.chunks.digest(index) for index in range(len(layer_toc.chunks))}
        location = descriptor.toc_location()
        report = LayerReport(
            diff_id=diff_id,
            source_digest=layer.digest,
            source_size=layer.size,
            digest=descriptor.digest,
            size=descriptor.size,
            toc_size=location.length if location else 0,
            chunks=len(layer_toc.chunks),
            new_chunks=0 if reused else len(digests - self.known_chunks),
            stream_size=layer_toc.stream_size,
            seconds=time.monotonic() - began,
            reused=reused,
        )
        self.known_chunks |= digests
        self.reports.append(report)
        self.progress.done(number, count, report)
        return descriptor, layer_toc

    def _convert_or_find(self, layer: Descriptor, diff_id: str, number: int) -> tuple[Descriptor, Toc, bool]:
        if layer.toc_location() is not None and layer.media_type == MEDIA_TYPES[self.settings.codec]:
            layer_toc = load_toc(self.source, layer, diff_id)
            copy_blob(self.source, layer, self.target)
            return layer, layer_toc, True
        found = records.find(self.target, layer.digest, diff_id, self.settings)
        if found is not None:
            return *found, True
        converted = convert_layer(
            self.source,
            layer,
            diff_id,
            self.target,
            self.settings,
            lambda size: self.progress.advanced(number, size),
        )
        records.remember(self.target, layer.digest, converted.descriptor, self.settings)
        return converted.descriptor, converted.toc, False

"""A whole image: which layers must be converted, and the manifest that names the new ones."""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

from converter.layer import Settings, convert_layer
from lazyfs.errors import UnsupportedError
from lazyfs.formats import toc
from lazyfs.formats.bootstrap import build
from lazyfs.formats.image_tree import merge
from lazyfs.formats.oci import FOREIGN_LAYER_TYPES, OCI_CONFIG, OCI_MANIFEST, Descriptor
from lazyfs.node.layers import load_toc
from lazyfs.stores import Image, Reference, Store, load_image


@dataclass(frozen=True, slots=True)
class LayerReport:
    """What became of one layer. Sizes in bytes."""

    diff_id: str
    source_digest: str
    source_size: int
    digest: str
    size: int
    toc_size: int
    chunks: int
    stream_size: int
    seconds: float
    reused: bool


@dataclass(frozen=True, slots=True)
class ConvertReport:
    source: str
    destination: str
    digest: str
    config_digest: str
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
    on_layer: Callable[[int, int, LayerReport], None] = lambda *_: None,
) -> ConvertReport:
    """Convert the image and give it the destination's tag; `on_layer` hears of each layer as it is done.

    The config is copied to the byte, so the image keeps its ID and its DiffIDs. Layers that are lazyfs layers
    already are copied as they are.
    """
    began = time.monotonic()
    tag = target_reference.tag_to_write()
    image = load_image(source, source_reference)
    done: dict[str, tuple[Descriptor, LayerReport]] = {}
    layers: list[Descriptor] = []
    reports: list[LayerReport] = []
    tocs: list[toc.Toc] = []
    for number, (layer, diff_id) in enumerate(image.layers, 1):
        if layer.digest not in done:
            descriptor, report, layer_toc = _one_layer(source, layer, diff_id, target, settings)
            done[layer.digest] = descriptor, report
            tocs.append(layer_toc)
        descriptor, report = done[layer.digest]
        layers.append(descriptor)
        reports.append(report)
        on_layer(number, len(image.layers), report)
    # What a node will do with these TOCs must succeed now, not at the first start.
    build(merge([each.tree for each in tocs]), [each.chunks.device_size for each in tocs])
    manifest = _write_manifest(image, layers, target)
    target.put_tag(tag, manifest)
    return ConvertReport(
        source=str(source_reference),
        destination=str(replace(target_reference, tag=tag)),
        digest=manifest.digest,
        config_digest=image.manifest.config.digest,
        layers=reports,
        seconds=time.monotonic() - began,
    )


def _one_layer(
    source: Store, layer: Descriptor, diff_id: str, target: Store, settings: Settings
) -> tuple[Descriptor, LayerReport, toc.Toc]:
    if layer.media_type in FOREIGN_LAYER_TYPES:
        raise UnsupportedError(
            f"layer {layer.digest} is a foreign layer, which its maker does not allow to be stored elsewhere",
            hint="rebuild the image on a base without foreign layers",
        )
    began = time.monotonic()
    location = layer.toc_location()
    if location is None:
        converted = convert_layer(source, layer, diff_id, target, settings)
        descriptor, layer_toc, toc_size = converted.descriptor, converted.toc, converted.toc_size
    else:
        layer_toc, toc_size, descriptor = load_toc(source, layer, diff_id), location.length, layer
        _copy_blob(source, layer, target)
    report = LayerReport(
        diff_id=diff_id,
        source_digest=layer.digest,
        source_size=layer.size,
        digest=descriptor.digest,
        size=descriptor.size,
        toc_size=toc_size,
        chunks=len(layer_toc.chunks),
        stream_size=layer_toc.stream_size,
        seconds=time.monotonic() - began,
        reused=location is not None,
    )
    return descriptor, report, layer_toc


def _copy_blob(source: Store, blob: Descriptor, target: Store) -> None:
    if target.has(blob.digest) == blob.size:
        return
    with target.writer() as writer:
        for piece in source.stream(blob.digest):
            writer.write(piece)
        writer.commit(blob.digest)


def _write_manifest(image: Image, layers: list[Descriptor], target: Store) -> Descriptor:
    with target.writer() as writer:
        writer.write(image.config_bytes)
        writer.commit(image.manifest.config.digest)
    config = replace(image.manifest.config, media_type=OCI_CONFIG)
    manifest = replace(image.manifest, media_type=OCI_MANIFEST, config=config, layers=tuple(layers))
    return target.put_document(manifest.to_bytes(), OCI_MANIFEST)

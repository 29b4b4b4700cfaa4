"""Images made up for tests, in OCI layouts, and converted."""

import gzip
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from converter import Settings, convert_image
from lazyfs.formats.oci import ImageConfig, Manifest
from lazyfs.formats.oci_descriptor import Descriptor, TocLocation
from lazyfs.formats.oci_types import OCI_CONFIG, OCI_LAYER_GZIP, OCI_MANIFEST, TOC_ANNOTATION
from lazyfs.formats.seekable import SKIPPABLE_MAGIC_TOC, skippable_frame
from lazyfs.formats.toc_types import Toc
from lazyfs.node.layers import load_toc
from lazyfs.stores import LayoutStore, load_image, parse_reference, write_blob

CONFIG = ImageConfig((), architecture="amd64", os="linux", cmd=("sh",))


def put_image(
    directory: Path, streams: Sequence[bytes], tag: str = "made", config: ImageConfig = CONFIG
) -> str:
    """An ordinary image of these layers (tar streams, lowest first); its reference."""
    with LayoutStore(directory, create=True) as store:
        layers = tuple(
            Descriptor(OCI_LAYER_GZIP, *write_blob(store, gzip.compress(stream, 1, mtime=0)))
            for stream in streams
        )
        diff_ids = tuple(f"sha256:{hashlib.sha256(stream).hexdigest()}" for stream in streams)
        document = store.put_document(replace(config, diff_ids=diff_ids).to_bytes(), OCI_CONFIG)
        store.put_tag(tag, store.put_document(Manifest(document, layers).to_bytes(), OCI_MANIFEST))
    return f"oci:{directory}:{tag}"


def convert(source: str, target: str) -> str:
    """The same image for lazyfs; its reference."""
    source_reference, target_reference = parse_reference(source), parse_reference(target)
    with (
        LayoutStore(Path(source_reference.location)) as source_store,
        LayoutStore(Path(target_reference.location), create=True) as target_store,
    ):
        convert_image(source_store, source_reference, target_store, target_reference, Settings(jobs=1))
    return target


def with_layers(layout: Path, source: str, tag: str, change: Callable[[int, Descriptor], Descriptor]) -> str:
    """The image `source` of the layout again under `tag`, its layers' descriptors as `change` makes them."""
    with LayoutStore(layout) as store:
        image = load_image(store, parse_reference(f"oci:{layout}:{source}"))
        layers = tuple(change(number, layer) for number, layer in enumerate(image.manifest.layers))
        manifest = replace(image.manifest, layers=layers)
        store.put_tag(tag, store.put_document(manifest.to_bytes(), OCI_MANIFEST))
    return f"oci:{layout}:{tag}"


def with_toc(layout: Path, source: str, tag: str, packed: bytes) -> str:
    """The image `source` again, its lowest layer with another TOC, which the manifest vouches for."""

    def change(number: int, layer: Descriptor) -> Descriptor:
        if number:
            return layer
        with LayoutStore(layout) as store:
            blob = b"".join(store.stream(layer.digest)) + skippable_frame(SKIPPABLE_MAGIC_TOC, packed)
            digest, size = write_blob(store, blob)
        location = TocLocation(size - len(packed), len(packed), hashlib.sha256(packed).hexdigest())
        return replace(layer, digest=digest, size=size, annotations={TOC_ANNOTATION: location.format()})

    return with_layers(layout, source, tag, change)


def toc_of(layout: Path, tag: str) -> Toc:
    """The TOC of the image's lowest layer."""
    with LayoutStore(layout) as store:
        image = load_image(store, parse_reference(f"oci:{layout}:{tag}"))
        layer, diff_id = image.layers[0]
        return load_toc(store, layer, diff_id)

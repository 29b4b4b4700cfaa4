"""Images made up for tests, in OCI layouts, and converted."""

import gzip
import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from converter import Settings, convert_image
from lazyfs.formats.oci import OCI_CONFIG, OCI_LAYER_GZIP, OCI_MANIFEST, Descriptor, ImageConfig, Manifest
from lazyfs.stores import LayoutStore, parse_reference, write_blob

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

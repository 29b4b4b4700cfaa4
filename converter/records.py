"""Which layers a destination has converted already, so that a second run goes on where the first was killed.

As soon as a layer is converted, a small artifact is put beside it that names it, under the tag

    sha256-<source blob>.lazyfs-<settings>

after the scheme by which signatures are found beside images. It keeps the blob from being collected while the
image is not whole, and lets any other image with the same layer use it. The settings' name is a hash of all
that decides the bytes of the result.
"""

import hashlib
from contextlib import suppress
from dataclasses import replace

from converter.layer import Settings
from lazyfs.errors import LazyfsError
from lazyfs.formats.oci import Manifest, parse_manifest
from lazyfs.formats.oci_descriptor import Descriptor
from lazyfs.formats.oci_types import LAYER_RECORD_TYPE, OCI_EMPTY, OCI_MANIFEST
from lazyfs.formats.toc_types import Toc
from lazyfs.node.layers import load_toc
from lazyfs.stores import Store, write_blob

CONVERTER_VERSION = 2
"""To be raised when the same settings give other bytes than before."""


def find(
    target: Store, source_digest: str, diff_id: str, settings: Settings
) -> tuple[Descriptor, Toc] | None:
    """The layer that an earlier run made of the same blob with the same settings, if it is still whole."""
    # Whatever is wrong with what an earlier run left: the layer is converted anew.
    with suppress(LazyfsError):
        record = target.resolve(tag_for(source_digest, settings))
        (layer,) = parse_manifest(target.get_document(record)).layers
        if target.has(layer.digest) == layer.size:
            return layer, load_toc(target, layer, diff_id)
    return None


def remember(target: Store, source_digest: str, layer: Descriptor, settings: Settings) -> None:
    digest, size = write_blob(target, b"{}")
    manifest = Manifest(Descriptor(OCI_EMPTY, digest, size), (layer,), artifact_type=LAYER_RECORD_TYPE)
    record = target.put_document(manifest.to_bytes(), OCI_MANIFEST)
    target.put_tag(tag_for(source_digest, settings), replace(record, artifact_type=LAYER_RECORD_TYPE))


def tag_for(source_digest: str, settings: Settings) -> str:
    decisive = f"{CONVERTER_VERSION} {settings.codec} {settings.effective_level} {settings.rules}"
    return f"{source_digest.replace(':', '-')}.lazyfs-{hashlib.sha256(decisive.encode()).hexdigest()[:12]}"

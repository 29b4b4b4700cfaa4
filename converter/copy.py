"""Images from store to store as they are, with everything that a manifest or an index names."""

from collections.abc import Callable

from lazyfs.errors import NotFoundError
from lazyfs.formats.oci import (
    FOREIGN_LAYER_TYPES,
    INDEX_TYPES,
    MANIFEST_TYPES,
    Descriptor,
    parse_index,
    parse_manifest,
)
from lazyfs.stores import Store
from lazyfs.stores.base import Adopting

MAX_NESTING = 4


def copy_tree(
    source: Store,
    descriptor: Descriptor,
    target: Store,
    on_blob: Callable[[Descriptor, bool], None] = lambda *_: None,
    nesting: int = MAX_NESTING,
) -> Descriptor:
    """Copy a manifest or an index with all that it leads to; `on_blob` hears of each blob, and if it was copied.

    Digests are proved on the way. Foreign layers that the source does not hold are left out, as by skopeo.
    """
    if descriptor.media_type in INDEX_TYPES and nesting:
        data = source.get_document(descriptor)
        for child in parse_index(data).manifests:
            copy_tree(source, child, target, on_blob, nesting - 1)
        return target.put_document(data, descriptor.media_type)
    if descriptor.media_type in MANIFEST_TYPES:
        data = source.get_document(descriptor)
        manifest = parse_manifest(data)
        for blob in (*manifest.layers, manifest.config):
            on_blob(blob, copy_blob(source, blob, target))
        return target.put_document(data, descriptor.media_type)
    on_blob(descriptor, copy_blob(source, descriptor, target))
    return descriptor


def copy_blob(source: Store, blob: Descriptor, target: Store) -> bool:
    """Copy one blob unless the target has it; was it copied? IntegrityError if it is not what it should be."""
    if target.has(blob.digest) == blob.size:
        return False
    if isinstance(target, Adopting) and target.adopt(source, blob.digest):
        return True
    try:
        with target.writer() as writer:
            for piece in source.stream(blob.digest):
                writer.write(piece)
            writer.commit(blob.digest)
    except NotFoundError:
        if blob.media_type in FOREIGN_LAYER_TYPES:
            return False
        raise
    return True

"""Images from store to store as they are, with all that a manifest or an index names, and what refers to it."""

from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import replace

from lazyfs.errors import NotFoundError, UnsupportedError
from lazyfs.formats.oci import parse_index, parse_manifest
from lazyfs.formats.oci_descriptor import Descriptor, parse_digest
from lazyfs.formats.oci_types import FOREIGN_LAYER_TYPES, INDEX_TYPES, MANIFEST_TYPES
from lazyfs.stores import Store
from lazyfs.stores.base import Adopting

OnPiece = Callable[[Descriptor, int], None]

MAX_NESTING = 4
# Where cosign puts signatures, attestations and SBOMs unless it is told to use referrers.
_COSIGN_TAGS = (".sig", ".att", ".sbom")


def copy_tree(
    source: Store,
    descriptor: Descriptor,
    target: Store,
    on_blob: Callable[[Descriptor, bool], None] = lambda *_: None,
    on_piece: OnPiece = lambda *_: None,
    nesting: int = MAX_NESTING,
) -> Descriptor:
    """Copy a manifest or an index with all that it leads to; `on_blob` hears of each blob, and if it was copied;
    `on_piece` of so many bytes of one that are.

    Digests are proved on the way. Foreign layers that the source does not hold are left out, as by skopeo.
    """
    if descriptor.media_type in INDEX_TYPES and nesting:
        data = source.get_document(descriptor)
        for child in parse_index(data).manifests:
            copy_tree(source, child, target, on_blob, on_piece, nesting - 1)
        return target.put_document(data, descriptor.media_type)
    if descriptor.media_type in MANIFEST_TYPES:
        data = source.get_document(descriptor)
        manifest = parse_manifest(data)
        for blob in (*manifest.layers, manifest.config):
            on_blob(blob, copy_blob(source, blob, target, on_piece))
        return target.put_document(data, descriptor.media_type)
    on_blob(descriptor, copy_blob(source, descriptor, target, on_piece))
    return descriptor


def copy_attached(
    source: Store,
    image: Descriptor,
    target: Store,
    on_blob: Callable[[Descriptor, bool], None] = lambda *_: None,
    on_piece: OnPiece = lambda *_: None,
) -> int:
    """Copy what refers to a copied image, or to an image of the index: launch packs, signatures, SBOMs. How many?

    They are found as referrers and by cosign's tags. A store that can hold images only gets none of them.
    """
    subjects = [image]
    if image.media_type in INDEX_TYPES:
        subjects += parse_index(source.get_document(image)).manifests
    count = 0
    with suppress(UnsupportedError):
        for subject in subjects:
            for artifact in source.referrers(subject.digest, ""):
                copy_tree(source, artifact, target, on_blob, on_piece)
                target.put_referrer(subject, artifact)
                count += 1
            for suffix in _COSIGN_TAGS:
                count += _copy_tagged(
                    source, f"sha256-{parse_digest(subject.digest)}{suffix}", target, on_blob, on_piece
                )
    return count


def _copy_tagged(
    source: Store, tag: str, target: Store, on_blob: Callable[[Descriptor, bool], None], on_piece: OnPiece
) -> bool:
    try:
        artifact = source.resolve(tag)
    except NotFoundError:
        return False
    copied = copy_tree(source, artifact, target, on_blob, on_piece)
    # The type tells it from an image in a list of names.
    target.put_tag(tag, replace(copied, artifact_type=artifact.artifact_type or copied.media_type))
    return True


def copy_blob(source: Store, blob: Descriptor, target: Store, on_piece: OnPiece = lambda *_: None) -> bool:
    """Copy one blob unless the target has it; was it copied? IntegrityError if it is not what it should be."""
    if target.has(blob.digest) == blob.size:
        return False
    if isinstance(target, Adopting) and target.adopt(source, blob.digest):
        return True
    try:
        with target.writer() as writer, closing(source.stream(blob.digest)) as pieces:
            for piece in pieces:
                writer.write(piece)
                on_piece(blob, len(piece))
            writer.commit(blob.digest)
    except NotFoundError:
        if blob.media_type in FOREIGN_LAYER_TYPES:
            return False
        raise
    return True

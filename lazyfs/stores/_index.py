"""Names in an ``index.json``: the tag of a descriptor is its annotation org.opencontainers.image.ref.name."""

from lazyfs.errors import BadInputError, NotFoundError, UnsupportedError, UsageError
from lazyfs.formats.oci import MAX_DOCUMENT, Index, parse_document
from lazyfs.formats.oci_descriptor import Descriptor, parse_digest
from lazyfs.formats.oci_types import REF_NAME_ANNOTATION
from lazyfs.formats.strict_json import load, plain, short
from lazyfs.stores.base import Store, named, read_verified
from lazyfs.stores.reference import DEFAULT_TAG

MAX_INDEX = 32 << 20  # about 100,000 tags
LAYOUT_VERSION = "1.0.0"
_MAX_TAGS_SHOWN = 12


def check_version(data: bytes, path: str) -> None:
    """Read an ``oci-layout``, named ``path`` in errors; UnsupportedError for another version than ours."""
    version = load(data, path, MAX_DOCUMENT).text("imageLayoutVersion", required=True)
    if not version.startswith("1."):
        raise UnsupportedError(
            f"{path} says version {short(version)}; lazyfs knows {LAYOUT_VERSION}",
            hint="copy the image to a new layout with skopeo",
        )


def resolve_in(store: Store, index: Index, tag_or_digest: str | None) -> Descriptor:
    """`Store.resolve` for a store whose names are those of ``index``."""
    if tag_or_digest is None:
        return _only_image(store, index)
    if tag_or_digest.startswith("sha256:"):
        return _by_digest(store, index, tag_or_digest)
    found = {item.digest: item for item in index.manifests if tag_of(item) == tag_or_digest}
    if not found:
        raise NotFoundError(f"{store.url} has no tag {short(tag_or_digest)}", hint=tags_hint(tags_of(index)))
    if len(found) > 1:
        raise BadInputError(
            f"tag {short(tag_or_digest)} names {len(found)} images in {store.url}",
            hint=f"name one by its digest: {', '.join(f'{store.url}@{digest}' for digest in found)}",
        )
    return next(iter(found.values()))


def tag_of(descriptor: Descriptor) -> str | None:
    return descriptor.annotations.get(REF_NAME_ANNOTATION)


def tags_of(index: Index) -> list[str]:
    return sorted({tag for item in index.manifests if (tag := tag_of(item)) is not None})


def tags_hint(tags: list[str]) -> str:
    """What to choose from; ``tags`` are sorted."""
    if not tags:
        return "it has no tags: name an image by its digest, …@sha256:…"
    shown = ", ".join(plain(tag) for tag in tags[:_MAX_TAGS_SHOWN])
    more = f" and {len(tags) - _MAX_TAGS_SHOWN} more" if len(tags) > _MAX_TAGS_SHOWN else ""
    return f"its tags are: {shown}{more}"


def resolve_digest(store: Store, digest: str) -> Descriptor | None:
    """A manifest or index by its digest alone: its own bytes say what it is. None when it is not there."""
    parse_digest(digest)
    size = store.has(digest)
    if size is None:
        return None
    data = read_verified(store, Descriptor("", digest, size), MAX_DOCUMENT)
    with named(f"{store.url}@{digest}"):
        return Descriptor(parse_document(data).media_type, digest, size)


def _only_image(store: Store, index: Index) -> Descriptor:
    images = {item.digest: item for item in index.manifests if not item.artifact_type}
    if not images:
        raise NotFoundError(f"{store.url} has no image", hint="copy one there with skopeo, or convert one")
    if len(images) == 1:
        return next(iter(images.values()))
    if DEFAULT_TAG in tags_of(index):
        return resolve_in(store, index, DEFAULT_TAG)
    raise UsageError(
        f"{store.url} has {len(images)} images and none is tagged latest", hint=tags_hint(tags_of(index))
    )


def _by_digest(store: Store, index: Index, digest: str) -> Descriptor:
    parse_digest(digest)
    for item in index.manifests:
        if item.digest == digest:
            return item
    found = resolve_digest(store, digest)
    if found is None:
        raise NotFoundError(f"{store.url} has no image {digest}", hint=tags_hint(tags_of(index)))
    return found

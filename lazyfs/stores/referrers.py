"""What refers to an image (a launch pack, a signature), found by the image's digest.

After the OCI distribution specification 1.1, "Referrers Tag Schema": the tag ``sha256-<hex>`` of the image's digest
names an index of the artifacts. Registries that have the referrers API keep the list themselves; in every other
store, and in registries without it, whoever adds an artifact adds it to that index.
"""

from dataclasses import replace

from lazyfs.errors import LazyfsError, NotFoundError
from lazyfs.formats.oci import Index, parse_index
from lazyfs.formats.oci_descriptor import Descriptor, parse_digest
from lazyfs.formats.oci_types import INDEX_TYPES, OCI_INDEX, OUR_TYPES
from lazyfs.stores.base import Store, named


def referrers_tag(digest: str) -> str:
    """The tag under which an index of an image's referrers lies."""
    return f"sha256-{parse_digest(digest)}"


def is_of_type(descriptor: Descriptor, artifact_type: str) -> bool:
    return artifact_type in ("", descriptor.artifact_type)


def _replaces(new: Descriptor, old: Descriptor) -> bool:
    """What lazyfs makes of an image it makes anew; an image may have many signatures."""
    ours = new.artifact_type.startswith(OUR_TYPES) and new.artifact_type == old.artifact_type
    return ours or new.digest == old.digest


def tagged_referrers(store: Store, digest: str, artifact_type: str) -> list[Descriptor]:
    """`Store.referrers` by the tag."""
    try:
        found = store.resolve(referrers_tag(digest))
    except NotFoundError:
        return []
    return [item for item in read_list(store, found) if is_of_type(item, artifact_type)]


def read_list(store: Store, found: Descriptor) -> tuple[Descriptor, ...]:
    """The artifacts that the index of that tag names; none where the tag is something else."""
    if found.media_type not in INDEX_TYPES:
        return ()
    with named(f"referrers in {store.url}"):
        return parse_index(store.get_document(found)).manifests


def tag_referrer(store: Store, subject: Descriptor, referrer: Descriptor) -> None:
    """`Store.put_referrer` by the tag."""
    tag = referrers_tag(subject.digest)
    others: tuple[Descriptor, ...] = ()
    try:
        others = read_list(store, store.resolve(tag))
    except NotFoundError:
        pass
    except LazyfsError as error:
        # Other artifacts would be lost with the list that cannot be read.
        raise type(error)(f"referrers of {subject.digest}: {error.message}", hint=error.hint) from error
    kept = tuple(item for item in others if not _replaces(referrer, item))
    document = Index((*kept, referrer), OCI_INDEX).to_bytes()
    # The type tells it from an image in a list of names.
    store.put_tag(tag, replace(store.put_document(document, OCI_INDEX), artifact_type=OCI_INDEX))

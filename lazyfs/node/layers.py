"""The TOC of a layer, out of its blob in a store: one ranged read, proved by the manifest's annotation."""

import hashlib

from lazyfs.errors import BadInputError, IntegrityError, LimitError, UsageError
from lazyfs.formats import toc
from lazyfs.formats.frames import open_side_data
from lazyfs.formats.oci_descriptor import Descriptor
from lazyfs.formats.oci_types import TOC_ANNOTATION
from lazyfs.formats.toc_types import Toc
from lazyfs.stores.base import Store


def load_toc(store: Store, layer: Descriptor, diff_id: str) -> Toc:
    """Fetch, prove and decode the TOC of `layer`, whose stream the config says has `diff_id`."""
    return decode_toc(fetch_toc(store, layer), layer, diff_id)


def fetch_toc(store: Store, layer: Descriptor) -> bytes:
    """The TOC as it lies in the blob; UsageError when the layer was never converted."""
    location = layer.toc_location()
    if location is None:
        raise UsageError(
            f"layer {layer.digest} in {store.url} is not a lazyfs layer (no annotation {TOC_ANNOTATION})",
            hint="convert the image first: lazyfs convert SRC DST",
        )
    if location.length > toc.MAX_TOC_SIZE:
        raise LimitError(
            f"layer {layer.digest}: its TOC has {location.length} bytes, the limit is {toc.MAX_TOC_SIZE}"
        )
    data = store.read(layer.digest, location.offset, location.length)
    if hashlib.sha256(data).hexdigest() != location.sha256:
        raise IntegrityError(
            f"layer {layer.digest} in {store.url}: its TOC does not match the digest in the manifest",
            hint="the blob is damaged in its store: convert or copy the image again",
        )
    return data


def decode_toc(data: bytes, layer: Descriptor, diff_id: str) -> Toc:
    """Decode a proved TOC; see `check_toc`."""
    try:
        decoded = toc.decode(open_side_data(data))
    except (BadInputError, LimitError) as error:
        raise type(error)(f"layer {layer.digest}: {error.message}", hint="convert the image again") from error
    check_toc(decoded, layer, diff_id)
    return decoded


def check_toc(decoded: Toc, layer: Descriptor, diff_id: str) -> None:
    """BadInputError unless the TOC fits what manifest and config say of the layer."""
    if f"sha256:{decoded.diff_id.hex()}" != diff_id:
        raise BadInputError(
            f"layer {layer.digest}: its TOC is of sha256:{decoded.diff_id.hex()}, the config says {diff_id}",
            hint="convert the image again",
        )
    chunks = decoded.chunks
    if len(chunks) and int(chunks.blob_offset[-1] + chunks.blob_length[-1]) > layer.size:
        raise BadInputError(
            f"layer {layer.digest}: its TOC names frames behind the end of the blob",
            hint="convert the image again",
        )

"""The proof of a converted image: every byte of it read again and held against what it claims.

For each layer, twice over the blob: once as an ordinary runtime reads it (one zstd stream, whose sha256
must be the DiffID and whose members must make the tree of the TOC), once as a node reads it (chunk by chunk).
"""

import hashlib
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from converter.appendix import BLOCK, Appendix
from converter.chosen import choose, is_image, manifests
from converter.data import StreamData
from converter.memory import unmap_large_blocks
from converter.progress import LayerProof, Progress, Silent
from converter.unpack import as_file, plain_layer
from lazyfs.errors import IntegrityError, NotFoundError
from lazyfs.formats import seekable, toc
from lazyfs.formats.bootstrap import build
from lazyfs.formats.frames import ZSTD
from lazyfs.formats.image_tree import merge
from lazyfs.formats.layer_tree import TreeBuilder
from lazyfs.formats.oci_descriptor import Descriptor, Platform
from lazyfs.formats.tarwalk import FileSource, walk
from lazyfs.formats.toc_types import Toc
from lazyfs.node.layers import load_toc
from lazyfs.node.sources import open_chunk
from lazyfs.stores import Image, Reference, Store, load_manifest
from lazyfs.stores.base import named

READ_AHEAD = 4 << 20


@dataclass(frozen=True, slots=True)
class ProvedImage:
    """Sizes in bytes. What images of one index have in common counts for each of them."""

    platform: str
    digest: str
    config_digest: str
    layers: int
    chunks: int
    blob_size: int
    stream_size: int
    inodes: int


@dataclass(frozen=True, slots=True)
class CheckReport:
    """What was proved: one image, or all images of an index but for what is `carried` along in it."""

    reference: str
    digest: str
    images: list[ProvedImage]
    carried: int
    seconds: float

    def total(self, column: str) -> int:
        return sum(getattr(image, column) for image in self.images)

    def as_dict(self) -> dict[str, Any]:
        totals = ("layers", "chunks", "blob_size", "stream_size", "inodes")
        return {**asdict(self), **{column: self.total(column) for column in totals}}


def check_image(
    store: Store, reference: Reference, platform: str | None = None, progress: Progress | None = None
) -> CheckReport:
    """Prove the image, or raise an error that names the first thing that is wrong.

    Of an index all images are proved, or with `platform` that for it.
    """
    began = time.monotonic()
    unmap_large_blocks()
    chosen = choose(store, reference, platform)
    proved: dict[tuple[str, str], Toc] = {}
    layers = {(layer.digest, diff_id) for image in chosen.images for layer, diff_id in image.layers}
    steps = _Steps(progress or Silent(), len(layers))
    return CheckReport(
        reference=str(reference),
        digest=chosen.top.digest,
        images=[_prove(store, image, proved, steps) for image in chosen.images],
        carried=chosen.carried,
        seconds=time.monotonic() - began,
    )


@dataclass(slots=True)
class _Steps:
    """Tells of `count` layers, one after the other."""

    progress: Progress
    count: int
    number: int = 0

    @contextmanager
    def layer(self, digest: str, size: int) -> Iterator[Callable[[int], None]]:
        """One layer, of which `size` bytes will be read; yields what is to be told of each piece."""
        began = time.monotonic()
        self.number += 1
        self.progress.started(self.number, self.count, digest, size)
        yield lambda read: self.progress.advanced(self.number, read)
        proof = LayerProof(digest, size, time.monotonic() - began)
        self.progress.done(self.number, self.count, proof)


def _told(pieces: Iterable[bytes], advanced: Callable[[int], None]) -> Iterator[bytes]:
    for piece in pieces:
        yield piece
        advanced(len(piece))


def _prove(store: Store, image: Image, proved: dict[tuple[str, str], Toc], steps: _Steps) -> ProvedImage:
    """`proved` are layers, by digest and DiffID, of other images of the index."""
    tocs: list[Toc] = []
    for layer, diff_id in image.layers:
        if (layer.digest, diff_id) not in proved:
            with steps.layer(layer.digest, 2 * layer.size) as advanced:
                layer_toc = load_toc(store, layer, diff_id)
                _check_seek_table(store, layer, layer_toc)
                appendix = _check_stream(store, layer, layer_toc, advanced)
                _check_chunks(store, layer, layer_toc, appendix, advanced)
            proved[layer.digest, diff_id] = layer_toc
        tocs.append(proved[layer.digest, diff_id])
    tree = merge([each.tree for each in tocs])
    build(tree, [each.chunks.device_size for each in tocs])
    return ProvedImage(
        platform=str(Platform(image.config.architecture, image.config.os, image.config.variant)),
        digest=image.descriptor.digest,
        config_digest=image.manifest.config.digest,
        layers=len(tocs),
        chunks=sum(len(each.chunks) for each in tocs),
        blob_size=sum(layer.size for layer, _ in image.layers),
        stream_size=sum(each.stream_size for each in tocs),
        inodes=len(tree.inodes),
    )


def check_against(
    report: CheckReport, original_store: Store, original: Reference, progress: Progress | None = None
) -> None:
    """Hold proved images against those that they were made from, whose layers are read and hashed.

    An image's original is the one with the same config, wherever it is in the index that `original` may be.
    Raises IntegrityError naming the first thing that differs.
    """
    originals = _originals(original_store, original)
    layers: dict[tuple[str, str], Descriptor] = {}
    for proved in report.images:
        if proved.config_digest not in originals:
            raise IntegrityError(
                f"{report.reference} has config {proved.config_digest} for {proved.platform}, "
                f"{original} has {', '.join(originals) or 'no image'}",
                hint="these are different images: convert this one",
            )
        found = originals[proved.config_digest].layers
        layers |= {(layer.digest, diff_id): layer for layer, diff_id in found}
    steps = _Steps(progress or Silent(), len(layers))
    for (_, diff_id), layer in layers.items():
        with steps.layer(layer.digest, layer.size) as advanced:
            _check_original(original_store, original, layer, diff_id, advanced)


def _originals(store: Store, reference: Reference) -> dict[str, Image]:
    """The images that are there, by the digests of their configs: a copy of one platform has not all of an index."""
    found = {}
    with named(reference):
        for entry in manifests(store, store.resolve(reference.selector)):
            with suppress(NotFoundError):
                if is_image(store, entry):
                    image = load_manifest(store, entry)
                    found[image.manifest.config.digest] = image
    return found


def _check_original(
    store: Store, original: Reference, layer: Descriptor, diff_id: str, advanced: Callable[[int], None]
) -> None:
    digest = hashlib.sha256()
    with closing(store.stream(layer.digest)) as pieces:
        for piece in plain_layer(_told(pieces, advanced), layer):
            digest.update(piece)
    if f"sha256:{digest.hexdigest()}" != diff_id:
        raise IntegrityError(
            f"{original}: layer {layer.digest} holds sha256:{digest.hexdigest()}, its config says {diff_id}",
            hint="the original is damaged: build or copy it again",
        )


def _wrong(layer: Descriptor, what: str) -> IntegrityError:
    return IntegrityError(f"layer {layer.digest}: {what}", hint="convert the image again")


def _check_stream(store: Store, layer: Descriptor, claimed: Toc, advanced: Callable[[int], None]) -> bytes:
    """Read the blob as any runtime does, and rebuild the tree; returns the sha256 of the appendix."""
    digest = hashlib.sha256()

    def hashed(pieces: Iterable[bytes]) -> Iterator[bytes]:
        for piece in pieces:
            digest.update(piece)
            yield piece

    builder = TreeBuilder(f"layer {layer.digest}")
    with closing(store.stream(layer.digest)) as pieces, Appendix(f"layer {layer.digest}") as appendix:
        source = FileSource(as_file(hashed(plain_layer(_told(pieces, advanced), layer))))
        data = StreamData()
        for member in walk(source):
            data.of(member)
            builder.add(member, member.data_offset, appendix.segments(member, source))
        if digest.digest() != claimed.diff_id or source.position != claimed.stream_size:
            raise _wrong(
                layer, f"its stream is sha256:{digest.hexdigest()}, its DiffID sha256:{claimed.diff_id.hex()}"
            )
        padding = -source.position % BLOCK
        tree = builder.finish(source.position + padding)
        if not toc.same_tree(tree, claimed.tree):
            raise _wrong(layer, "the tree in its TOC is not the tree of its tar stream")
        strays = data.strays(tree)
        if not (
            np.array_equal(strays.offset, claimed.strays.offset)
            and np.array_equal(strays.length, claimed.strays.length)
        ):
            raise _wrong(layer, "the strays in its TOC are not those of its tar stream")
        expected = hashlib.sha256(bytes(padding))
        for piece in appendix.pieces():
            expected.update(piece)
    return expected.digest()


def _check_seek_table(store: Store, layer: Descriptor, claimed: Toc) -> None:
    """The standard seek table of a zstd blob must say of the stream's frames what the TOC says."""
    if claimed.codec != ZSTD:
        return
    tail = store.read(
        layer.digest, max(0, layer.size - seekable.FOOTER_SIZE), min(layer.size, seekable.FOOTER_SIZE)
    )
    size = seekable.seek_table_size(tail)
    if size > layer.size:
        raise _wrong(layer, "its seek table is larger than the blob")
    frames = seekable.parse_seek_table(store.read(layer.digest, layer.size - size, size)).astype(np.int64)
    stored, plain = frames[:, 0], frames[:, 1]
    offsets = np.cumsum(stored) - stored
    data = plain > 0
    stream = claimed.chunks.start[:-1] < claimed.stream_size
    same = (
        np.array_equal(offsets[data], claimed.chunks.blob_offset[stream])
        and np.array_equal(stored[data], claimed.chunks.blob_length[stream])
        and np.array_equal(plain[data], np.diff(claimed.chunks.start)[stream])
        and int(stored.sum()) + size == layer.size
    )
    if not same:
        raise _wrong(layer, "its seek table and its TOC do not agree")


def _check_chunks(
    store: Store, layer: Descriptor, claimed: Toc, appendix: bytes, advanced: Callable[[int], None]
) -> None:
    """Read every chunk as a node does: its frame alone, against its digest."""
    chunks = claimed.chunks
    digest = hashlib.sha256()
    index = 0
    while index < len(chunks):
        start = int(chunks.blob_offset[index])
        last = index
        while last + 1 < len(chunks) and int(chunks.blob_offset[last + 1]) - start < READ_AHEAD:
            last += 1
        end = int(chunks.blob_offset[last] + chunks.blob_length[last])
        data = memoryview(store.read(layer.digest, start, end - start))
        for each in range(index, last + 1):
            at = int(chunks.blob_offset[each]) - start
            plain = open_chunk(
                claimed.codec, chunks, each, data[at : at + int(chunks.blob_length[each])], layer.digest
            )
            if int(chunks.start[each]) >= claimed.stream_size:
                digest.update(plain)
        advanced(len(data))
        index = last + 1
    if digest.digest() != appendix:
        raise _wrong(layer, "its appendix is not what its sparse files hold")

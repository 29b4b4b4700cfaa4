"""The proof of a converted image: every byte of it read again and held against what it claims.

For each layer, twice over the blob: once as an ordinary runtime reads it (one zstd stream, whose sha256
must be the DiffID and whose members must make the tree of the TOC), once as a node reads it (chunk by chunk).
"""

import hashlib
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from converter.appendix import BLOCK, Appendix
from converter.data import StreamData
from converter.memory import unmap_large_blocks
from converter.unpack import as_file, plain_layer
from lazyfs.errors import IntegrityError
from lazyfs.formats import seekable, toc
from lazyfs.formats.bootstrap import build
from lazyfs.formats.frames import ZSTD
from lazyfs.formats.image_tree import merge
from lazyfs.formats.layer_tree import TreeBuilder
from lazyfs.formats.oci import Descriptor
from lazyfs.formats.tarwalk import FileSource, walk
from lazyfs.node.layers import load_toc
from lazyfs.node.sources import open_chunk
from lazyfs.stores import Reference, Store, load_image

READ_AHEAD = 4 << 20


@dataclass(frozen=True, slots=True)
class CheckReport:
    """What was proved. Sizes in bytes."""

    reference: str
    digest: str
    config_digest: str
    layers: int
    chunks: int
    blob_size: int
    stream_size: int
    inodes: int
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def check_image(
    store: Store, reference: Reference, on_layer: Callable[[int, int], None] = lambda *_: None
) -> CheckReport:
    """Prove the image, or raise an error that names the first thing that is wrong."""
    began = time.monotonic()
    unmap_large_blocks()
    image = load_image(store, reference)
    tocs: list[toc.Toc] = []
    for number, (layer, diff_id) in enumerate(image.layers, 1):
        layer_toc = load_toc(store, layer, diff_id)
        _check_seek_table(store, layer, layer_toc)
        appendix = _check_stream(store, layer, layer_toc)
        _check_chunks(store, layer, layer_toc, appendix)
        tocs.append(layer_toc)
        on_layer(number, len(image.layers))
    tree = merge([each.tree for each in tocs])
    build(tree, [each.chunks.device_size for each in tocs])
    return CheckReport(
        reference=str(reference),
        digest=image.descriptor.digest,
        config_digest=image.manifest.config.digest,
        layers=len(tocs),
        chunks=sum(len(each.chunks) for each in tocs),
        blob_size=sum(layer.size for layer, _ in image.layers),
        stream_size=sum(each.stream_size for each in tocs),
        inodes=len(tree.inodes),
        seconds=time.monotonic() - began,
    )


def check_against(store: Store, reference: Reference, original_store: Store, original: Reference) -> None:
    """Hold a proved image against the one it was made from, whose layers are read and hashed.

    Raises IntegrityError naming the first thing that differs.
    """
    ours, theirs = load_image(store, reference), load_image(original_store, original)
    if ours.manifest.config.digest != theirs.manifest.config.digest:
        raise IntegrityError(
            f"{reference} has config {ours.manifest.config.digest}, {original} has {theirs.manifest.config.digest}",
            hint="these are different images: convert this one",
        )
    for layer, diff_id in theirs.layers:
        digest = hashlib.sha256()
        with closing(original_store.stream(layer.digest)) as pieces:
            for piece in plain_layer(pieces, layer):
                digest.update(piece)
        if f"sha256:{digest.hexdigest()}" != diff_id:
            raise IntegrityError(
                f"{original}: layer {layer.digest} holds sha256:{digest.hexdigest()}, its config says {diff_id}",
                hint="the original is damaged: build or copy it again",
            )


def _wrong(layer: Descriptor, what: str) -> IntegrityError:
    return IntegrityError(f"layer {layer.digest}: {what}", hint="convert the image again")


def _check_stream(store: Store, layer: Descriptor, claimed: toc.Toc) -> bytes:
    """Read the blob as any runtime does, and rebuild the tree; returns the sha256 of the appendix."""
    digest = hashlib.sha256()

    def hashed(pieces: Iterable[bytes]) -> Iterator[bytes]:
        for piece in pieces:
            digest.update(piece)
            yield piece

    builder = TreeBuilder(f"layer {layer.digest}")
    with closing(store.stream(layer.digest)) as pieces, Appendix(f"layer {layer.digest}") as appendix:
        source = FileSource(as_file(hashed(plain_layer(pieces, layer))))
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
        if toc.tree_bytes(tree) != toc.tree_bytes(claimed.tree):
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


def _check_seek_table(store: Store, layer: Descriptor, claimed: toc.Toc) -> None:
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


def _check_chunks(store: Store, layer: Descriptor, claimed: toc.Toc, appendix: bytes) -> None:
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
        index = last + 1
    if digest.digest() != appendix:
        raise _wrong(layer, "its appendix is not what its sparse files hold")

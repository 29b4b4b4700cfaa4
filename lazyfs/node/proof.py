"""The proof that a layer is what its DiffID says: its whole tar stream, hashed, and its members, held against the TOC.

While a layer is read lazily, its TOC proves each chunk; but that this TOC describes the stream with this DiffID is a
claim of whoever made the image, and can be judged only when all of the stream has been here. Chunks that are data of
files alone come from the cache; the others are read from the store, since a device does not have tar headers.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing

from lazyfs.errors import BadInputError, IntegrityError, LimitError, StoreError, UnsupportedError
from lazyfs.formats import toc
from lazyfs.formats.chunks import chunk_digest
from lazyfs.formats.frames import open_frame
from lazyfs.formats.layer_tree import TreeBuilder
from lazyfs.formats.tar_header import BLOCK
from lazyfs.formats.tarwalk import walk
from lazyfs.formats.toc_types import Toc
from lazyfs.node.cache import LayerCache
from lazyfs.node.sources import BlobSource

_MAX_READ = 1 << 20
"""Blob bytes of one ranged read: as the background reads, which must not stand in anybody's way."""


class FalseLayerError(IntegrityError):
    """The layer's maker says that it has a DiffID which it has not, or files that it has not."""


class _GivenUpError(Exception):
    """Nobody wants the proof any more."""


def prove_layer(
    layer_toc: Toc, cache: LayerCache, sources: Sequence[BlobSource], go_on: Callable[[], bool]
) -> bool:
    """FalseLayerError unless the layer is what its TOC says; StoreError when its blob cannot be read now.

    UnsupportedError where it has sparse files, whose place on the device the converter chose. `go_on` is asked before
    each read, and may wait; when it says no, so does the answer.
    """
    blob = sources[0].digest
    try:
        if _difference(layer_toc, blob, _in_pieces(layer_toc, cache, sources, go_on)) is None:
            return True
        # Tar headers have no digest before all is read: a store that gives wrong ones shall not bring a layer into
        # disrepute. So once more, now held against the digest of the blob.
        reason = _difference(layer_toc, blob, _of_whole_blob(layer_toc, sources[0], go_on))
    except _GivenUpError:
        return False
    if reason is not None:
        raise FalseLayerError(
            f"layer {blob} is not what its image says: {reason}",
            hint="remove the image; do not trust who made it",
        )
    return True


def _difference(layer_toc: Toc, blob: str, pieces: Iterable[bytes]) -> str | None:
    """How the stream differs from what the TOC says of it."""
    stream = _Stream(pieces)
    builder = TreeBuilder(f"layer {blob}")
    reason = None
    try:
        for member in walk(stream):
            if member.sparse is not None:
                raise UnsupportedError(f"layer {blob} has sparse files: its DiffID cannot be proved here")
            builder.add(member, member.data_offset, None)
        tree = builder.finish(stream.position + -stream.position % BLOCK)
        if not toc.same_tree(tree, layer_toc.tree):
            reason = "it has other files than its TOC"
    except (BadInputError, LimitError) as error:
        reason = error.message
        stream.skip(layer_toc.stream_size)
    digest = stream.digest()
    if digest != layer_toc.diff_id:
        reason = f"its stream is sha256:{digest.hex()}, its DiffID sha256:{layer_toc.diff_id.hex()}"
    return reason


class _Stream:
    """A `tarwalk.Source` over pieces, which hashes what passes."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._pieces = iter(pieces)
        self._rest = memoryview(b"")
        self._digest = hashlib.sha256()
        self.position = 0

    def read(self, n: int) -> bytes:
        parts = []
        while n > 0 and self._more():
            parts.append(bytes(self._rest[:n]))
            self._take(len(parts[-1]))
            n -= len(parts[-1])
        return b"".join(parts)

    def skip(self, n: int) -> None:
        while n > 0 and self._more():
            step = min(n, len(self._rest))
            self._take(step)
            n -= step

    def digest(self) -> bytes:
        return self._digest.digest()

    def _more(self) -> bool:
        if not self._rest:
            piece = next(self._pieces, b"")
            self._digest.update(piece)
            self._rest = memoryview(piece)
        return bool(self._rest)

    def _take(self, n: int) -> None:
        self._rest = self._rest[n:]
        self.position += n


def _in_pieces(
    layer_toc: Toc, cache: LayerCache, sources: Sequence[BlobSource], go_on: Callable[[], bool]
) -> Iterator[bytes]:
    """The stream, chunk by chunk: from the cache what can be had there."""
    index, count = 0, _stream_chunks(layer_toc)
    while index < count:
        if not go_on():
            raise _GivenUpError
        plain = _from_cache(cache, index)
        if plain is not None:
            index += 1
            yield plain
            continue
        indexes = _neighbours(layer_toc, cache, index, count)
        yield from _fetched(layer_toc, sources, indexes)
        index = indexes.stop


def _stream_chunks(layer_toc: Toc) -> int:
    """How many chunks are of the stream; behind them is what the converter laid out again."""
    return int((layer_toc.chunks.start[:-1] < layer_toc.stream_size).sum())


def _from_cache(cache: LayerCache, index: int) -> bytes | None:
    """What a chunk holds of the stream, if that is what a device shows of it, and it is here."""
    if not _is_data(cache, index):
        return None
    return cache.read(int(cache.chunks.start[index]), cache.chunks.length(index))


def _is_data(cache: LayerCache, index: int) -> bool:
    everything = b"\1" * cache.chunks.length(index)
    return cache.chunks.shown(index, everything) == everything


def _neighbours(layer_toc: Toc, cache: LayerCache, first: int, count: int) -> range:
    """The chunks from `first` on that one read brings."""
    offsets, lengths = layer_toc.chunks.blob_offset, layer_toc.chunks.blob_length
    after = first + 1
    while (
        after < count
        and offsets[after] == offsets[after - 1] + lengths[after - 1]
        and offsets[after] + lengths[after] - offsets[first] <= _MAX_READ
        and not (_is_data(cache, after) and not cache.missing_units(after))
    ):
        after += 1
    return range(first, after)


def _fetched(layer_toc: Toc, sources: Sequence[BlobSource], indexes: range) -> list[bytes]:
    """From the first source that gives them."""
    errors: list[StoreError] = []
    for source in sources:
        try:
            return _read(layer_toc, source, indexes)
        except StoreError as error:
            errors.append(error)
    raise errors[0]


def _read(layer_toc: Toc, source: BlobSource, indexes: range) -> list[bytes]:
    chunks = layer_toc.chunks
    lengths = [int(chunks.blob_length[index]) for index in indexes]
    pieces = source.store.read_pieces(source.digest, int(chunks.blob_offset[indexes.start]), lengths)
    with closing(pieces) as frames:
        return [
            _open(layer_toc, source.digest, index, frame)
            for index, frame in zip(indexes, frames, strict=True)
        ]


def _of_whole_blob(layer_toc: Toc, source: BlobSource, go_on: Callable[[], bool]) -> Iterator[bytes]:
    """The stream out of the blob as a whole; StoreError at its end unless that is the blob."""
    chunks, digest = layer_toc.chunks, hashlib.sha256()
    index, count, at, kept = 0, _stream_chunks(layer_toc), 0, b""
    with closing(source.store.stream(source.digest)) as pieces:
        for piece in pieces:
            if not go_on():
                raise _GivenUpError
            digest.update(piece)
            kept += piece
            while index < count:
                start = int(chunks.blob_offset[index]) - at
                end = start + int(chunks.blob_length[index])
                if start < 0 or end > len(kept):
                    break
                yield _open(layer_toc, source.digest, index, kept[start:end])
                kept, at, index = kept[end:], at + end, index + 1
            if index == count:
                kept, at = b"", at + len(kept)
    if f"sha256:{digest.hexdigest()}" != source.digest:
        raise StoreError(f"{source}: the store gives other bytes than its digest promises")


def _open(layer_toc: Toc, blob: str, index: int, frame: bytes) -> bytes:
    """IntegrityError unless a device would show the chunk: then it shows what is proved here."""
    where = f"chunk {index} of blob {blob}"
    plain = open_frame(layer_toc.codec, frame, layer_toc.chunks.length(index), where)
    if chunk_digest(layer_toc.chunks.shown(index, plain)) != layer_toc.chunks.digest(index):
        raise IntegrityError(f"{where}: the bytes do not match their digest")
    return plain

"""From a layer's blob to its tar stream: any compression, both digests checked on the way."""

import hashlib
import io
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO, cast

import lz4.frame
import zstandard
from isal import isal_zlib

from lazyfs.errors import BadInputError, IntegrityError, LimitError
from lazyfs.formats.oci_descriptor import Descriptor

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer as Buffer

PIECE = 1 << 20

_GZIP_MAGIC = b"\x1f\x8b"
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_LZ4_MAGIC = b"\x04\x22\x4d\x18"
_SKIPPABLE = b"\x2a\x4d\x18"
_SKIPPABLE_HEADER = 8
_GZIP_WINDOW = 16 + zlib.MAX_WBITS
# The stubs of isal take its exception for an instance.
_DAMAGED = (cast("type[Exception]", isal_zlib.error), zstandard.ZstdError, RuntimeError)


@dataclass(frozen=True, slots=True)
class Limits:
    """What one layer may unpack to: a few bytes must not fill a disk."""

    max_size: int = 64 << 30
    max_ratio: int = 200
    """Plain bytes per byte of blob; looked at from `ratio_from` plain bytes on, since empty files pack very well."""
    ratio_from: int = 1 << 30


def limited(pieces: Iterable[bytes], layer: Descriptor, limits: Limits) -> Iterator[bytes]:
    """The plain pieces of a layer, with LimitError where there are more than `limits` allow."""
    size = 0
    for piece in pieces:
        size += len(piece)
        if size > limits.max_size:
            raise LimitError(
                f"layer {layer.digest}: unpacks to more than {limits.max_size} bytes",
                hint="if it is an honest layer, raise --max-layer-size",
            )
        if size > limits.ratio_from and size > limits.max_ratio * layer.size:
            raise LimitError(
                f"layer {layer.digest}: {layer.size} bytes unpack to more than {limits.max_ratio} times as many",
                hint="if it is an honest layer, raise --max-ratio",
            )
        yield piece


def checked_blob(
    pieces: Iterable[bytes], descriptor: Descriptor, on_read: Callable[[int], None] = lambda _: None
) -> Iterator[bytes]:
    """The pieces, with IntegrityError at the end, or as soon as there are too many, unless they are the blob."""
    digest = hashlib.sha256()
    size = 0
    for piece in pieces:
        size += len(piece)
        if size > descriptor.size:
            break
        digest.update(piece)
        on_read(len(piece))
        yield piece
    if size != descriptor.size or f"sha256:{digest.hexdigest()}" != descriptor.digest:
        raise IntegrityError(
            f"layer {descriptor.digest}: the store gave other bytes than its digest and size promise",
            hint="the source is damaged: copy or build the image again",
        )


def plain_layer(
    pieces: Iterable[bytes], layer: Descriptor, on_read: Callable[[int], None] = lambda _: None
) -> Iterator[bytes]:
    """The tar stream of a layer, its blob held against its digest.

    Where the compressed stream is damaged, the digest tells who did it: IntegrityError if the blob is not the one
    that was promised, BadInputError if it was made so.
    """
    blob = checked_blob(pieces, layer, on_read)
    try:
        # Not the generator itself, which would be closed by whoever gives up on it.
        yield from plain_pieces(iter(blob.__next__, None), layer.digest)
    except BadInputError:
        for _ in blob:
            continue
        raise


def plain_pieces(pieces: Iterable[bytes], layer: str) -> Iterator[bytes]:
    """The tar stream in pieces of at most 1 MiB.

    The compression is known by its magic bytes: media types in the wild are often wrong. Raises BadInputError
    where the compressed stream is damaged or cut short.
    """
    iterator = iter(pieces)
    head = b""
    for piece in iterator:
        head += piece
        if len(head) >= 4:
            break
    rest = _chain(head, iterator)
    try:
        if head.startswith(_GZIP_MAGIC):
            yield from _gunzip(rest, layer)
        elif head.startswith(_ZSTD_MAGIC) or head[1:4] == _SKIPPABLE:
            yield from _unzstd(rest, layer)
        elif head.startswith(_LZ4_MAGIC):
            yield from _unlz4(rest, layer)
        else:
            yield from _split(rest)
    except _DAMAGED as error:
        raise BadInputError(
            f"layer {layer}: its compressed stream is damaged ({error})", hint="copy or build the image again"
        ) from error


def _chain(head: bytes, rest: Iterator[bytes]) -> Iterator[bytes]:
    yield head
    yield from rest


def _split(pieces: Iterable[bytes]) -> Iterator[bytes]:
    for piece in pieces:
        for at in range(0, len(piece), PIECE):
            yield piece[at : at + PIECE]


def _gunzip(pieces: Iterable[bytes], layer: str) -> Iterator[bytes]:
    """All members of a gzip file (RFC 1952, section 2.2); zero bytes after the last are padding, as for gzip(1)."""
    inflate = isal_zlib.decompressobj(wbits=_GZIP_WINDOW)
    for piece in pieces:
        data = piece
        while data:
            if inflate.eof:
                data = data.lstrip(b"\0")
                if not data:
                    break
                inflate = isal_zlib.decompressobj(wbits=_GZIP_WINDOW)
            plain = inflate.decompress(data, PIECE)
            if plain:
                yield plain
            data = inflate.unused_data if inflate.eof else inflate.unconsumed_tail
            if not plain and not inflate.eof and not data:
                break
        while not inflate.eof and (plain := inflate.decompress(b"", PIECE)):
            yield plain
    if not inflate.eof:
        raise _cut_short(layer)


def _unzstd(pieces: Iterable[bytes], layer: str) -> Iterator[bytes]:
    """All frames of a zstd file, skippable ones stepped over (RFC 8878)."""
    reader = zstandard.ZstdDecompressor().stream_reader(
        as_file(pieces), read_across_frames=True, read_size=PIECE
    )
    while plain := reader.read(PIECE):
        yield plain


def _unlz4(pieces: Iterable[bytes], layer: str) -> Iterator[bytes]:
    """All frames of an LZ4 file, skippable ones stepped over."""
    source = iter(pieces)
    data = b""
    skip = 0
    frame: lz4.frame.LZ4FrameDecompressor | None = None
    while data or (data := next(source, b"")):
        if skip:
            skip, data = max(0, skip - len(data)), data[skip:]
        elif frame is None:
            if len(data) < _SKIPPABLE_HEADER:
                more = next(source, b"")
                if not more:
                    raise _cut_short(layer)
                data += more
            elif data[1:4] == _SKIPPABLE:
                skip = _SKIPPABLE_HEADER + int.from_bytes(data[4:_SKIPPABLE_HEADER], "little")
            else:
                frame = lz4.frame.LZ4FrameDecompressor()
        else:
            yield from _lz4_plain(frame, data)
            data = (frame.unused_data or b"") if frame.eof else b""
            frame = None if frame.eof else frame
    if skip or frame is not None:
        raise _cut_short(layer)


def _lz4_plain(frame: lz4.frame.LZ4FrameDecompressor, data: bytes) -> Iterator[bytes]:
    while plain := bytes(frame.decompress(data, max_length=PIECE)):
        yield plain
        if frame.eof or frame.needs_input:
            return
        data = b""


def as_file(pieces: Iterable[bytes]) -> BinaryIO:
    """Pieces as a file that is read from start to end."""
    return io.BufferedReader(_PieceReader(pieces), PIECE)


class _PieceReader(io.RawIOBase):
    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._pieces = iter(pieces)
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "Buffer") -> int:
        while not self._rest:
            piece = next(self._pieces, None)
            if piece is None:
                return 0
            self._rest = memoryview(piece)
        target = memoryview(buffer)
        size = min(len(target), len(self._rest))
        target[:size] = self._rest[:size]
        self._rest = self._rest[size:]
        return size


def _cut_short(layer: str) -> BadInputError:
    return BadInputError(
        f"layer {layer}: its compressed stream ends too early", hint="copy or build the image again"
    )

"""Frames: one chunk in compressed form that can be read alone; and how a blob carries what is no tar stream.

    zstd    zstd frames (RFC 8878), the rest in skippable frames. What every current runtime reads
    none    the same with stored blocks: no work for the reader, and any runtime still reads it
    gzip    one member (RFC 1952) per chunk, the rest in the extra fields of empty members, which every gunzip
            steps over. For engines that know no zstd
    lz4     LZ4 frames (lz4_Frame_format.md), the rest in skippable frames. For fast networks; no other runtime
            reads it

`open_frame` trusts nothing: it looks at the size that a frame states before it spends memory, and whatever is
wrong is an IntegrityError that names the frame.
"""

import struct
import zlib
from collections import deque
from collections.abc import Callable
from typing import cast

import lz4.frame
import zstandard
from isal import isal_zlib

from lazyfs.errors import BadInputError, IntegrityError
from lazyfs.formats.oci_types import OCI_LAYER, OCI_LAYER_GZIP, OCI_LAYER_ZSTD
from lazyfs.formats.seekable import skippable_frame

ZSTD, NONE, GZIP, LZ4 = "zstd", "none", "gzip", "lz4"
CODECS = (ZSTD, GZIP, LZ4, NONE)
OCI_LAYER_LZ4 = f"{OCI_LAYER}+lz4"
MEDIA_TYPES = {ZSTD: OCI_LAYER_ZSTD, NONE: OCI_LAYER_ZSTD, GZIP: OCI_LAYER_GZIP, LZ4: OCI_LAYER_LZ4}
DEFAULT_LEVELS = {ZSTD: 3, NONE: 0, GZIP: 6, LZ4: 0}
MAX_LEVELS = {ZSTD: 22, NONE: 0, GZIP: 9, LZ4: 16}

Compress = Callable[[bytes], bytes]

GZIP_MAX_PAYLOAD = 0xFFFF - 4
"""What the extra field of one gzip member holds, less its subfield header."""
GZIP_MAX_INFLATED = 32 * 1024
"""Plain bytes whose gzip member certainly fits one extra field."""

_GZIP_MAGIC = b"\x1f\x8b\x08"
_GZIP_HEADER = struct.Struct("<3sBIBB")
_GZIP_EXTRA = struct.Struct("<H2sH")
_GZIP_EXTRA_FLAG = 4
_GZIP_UNKNOWN_OS = 255
_GZIP_SUBFIELD = b"LZ"
_GZIP_EMPTY_END = b"\x03\x00" + bytes(8)
_ZSTD_MAGIC = 0xFD2FB528
_ZSTD_SINGLE_SEGMENT_SIZE_4 = 0xA0
_ZSTD_MAX_BLOCK = 128 * 1024
_ZSTD_WINDOW_LOG = 24
"""The largest chunk; zstd makes it as small as the chunk is."""
_LZ4_DAMAGED = (RuntimeError, ValueError)
_decompressors: deque[zstandard.ZstdDecompressor] = deque()
# The stubs of isal take its exception for an instance.
_GZIP_DAMAGED = (cast("type[Exception]", isal_zlib.error), zlib.error)


def compressor(codec: str, level: int) -> Compress:
    """What turns one chunk into one frame; each thread needs its own."""
    if codec == ZSTD:
        # zstd sizes its tables, and the matches it looks for, by what it is given. Those that it takes for 256 KiB
        # make frames of 512 KiB 0.6 % smaller at level 3, for 4 % more time.
        parameters = zstandard.ZstdCompressionParameters.from_level(
            level, source_size=256 * 1024, window_log=_ZSTD_WINDOW_LOG
        )
        return zstandard.ZstdCompressor(compression_params=parameters).compress
    if codec == GZIP:
        return lambda plain: _gzip_member(plain, level)
    if codec == LZ4:
        return lambda plain: bytes(lz4.frame.compress(plain, compression_level=level, store_size=True))
    return _stored_frame


def open_frame(codec: str, frame: bytes | memoryview, length: int, what: str) -> bytes:
    """The `length` plain bytes of one frame; IntegrityError, naming `what`, if it is damaged or holds another size."""
    try:
        if codec == GZIP:
            plain = _inflate(frame, length)
        elif codec == LZ4:
            plain = _open_lz4(frame, length)
        else:
            plain = _open_zstd(frame, length)
    except (zstandard.ZstdError, *_LZ4_DAMAGED, *_GZIP_DAMAGED) as error:
        raise IntegrityError(f"{what}: damaged {codec} frame ({error})") from error
    if plain is None or len(plain) != length:
        raise IntegrityError(f"{what}: the frame does not hold the {length} bytes that were promised")
    return plain


def _open_zstd(frame: bytes | memoryview, length: int) -> bytes | None:
    if zstandard.frame_content_size(frame) != length:
        return None
    # One is used by one thread at a time, and to make one costs a twentieth of what it is made for.
    try:
        decompressor = _decompressors.pop()
    except IndexError:
        decompressor = zstandard.ZstdDecompressor()
    try:
        return decompressor.decompress(frame, max_output_size=length, allow_extra_data=False)
    finally:
        _decompressors.append(decompressor)


def _stored_frame(plain: bytes) -> bytes:
    """A zstd frame of raw blocks (RFC 8878, 3.1.1.2.2), with its content size in four bytes."""
    parts = [struct.pack("<IBI", _ZSTD_MAGIC, _ZSTD_SINGLE_SEGMENT_SIZE_4, len(plain))]
    for at in range(0, len(plain), _ZSTD_MAX_BLOCK):
        block = plain[at : at + _ZSTD_MAX_BLOCK]
        last = at + len(block) == len(plain)
        parts += [struct.pack("<I", len(block) << 3 | last)[:3], block]
    return b"".join(parts)


def _open_lz4(frame: bytes | memoryview, length: int) -> bytes | None:
    raw = bytes(frame)
    if lz4.frame.get_frame_info(raw)["content_size"] != length:
        return None
    decompressor = lz4.frame.LZ4FrameDecompressor()
    plain = bytes(decompressor.decompress(raw, max_length=length + 1))
    return plain if decompressor.eof and not decompressor.unused_data else None


def _gzip_member(plain: bytes, level: int) -> bytes:
    # isal's levels are its own, and its ratio is worse than zlib's: blobs are written once and read often.
    deflate = zlib.compressobj(level, zlib.DEFLATED, -zlib.MAX_WBITS)
    header = _GZIP_HEADER.pack(_GZIP_MAGIC, 0, 0, 0, _GZIP_UNKNOWN_OS)
    body = deflate.compress(plain) + deflate.flush()
    return header + body + struct.pack("<II", zlib.crc32(plain), len(plain) & 0xFFFFFFFF)


def _inflate(frame: bytes | memoryview, length: int) -> bytes | None:
    inflate = isal_zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
    plain = inflate.decompress(frame, length + 1)
    # One more call, so that a stream which ends right at the limit is seen to end, and its checksum checked.
    plain += inflate.decompress(inflate.unconsumed_tail, 1) if not inflate.eof else b""
    return plain if inflate.eof and not inflate.unused_data else None


def side_data(codec: str, magic: int, payload: bytes) -> bytes:
    """`payload` in a form that decoders of the tar stream step over; read back by `open_side_data`.

    Under gzip it takes as many empty members as are needed.
    """
    if codec != GZIP:
        return skippable_frame(magic, payload)
    pieces = [payload[at : at + GZIP_MAX_PAYLOAD] for at in range(0, len(payload), GZIP_MAX_PAYLOAD)]
    return b"".join(gzip_carrier(len(piece)) + piece + _GZIP_EMPTY_END for piece in pieces)


def gzip_carrier(size: int) -> bytes:
    """What stands before `size` bytes of payload in the extra field of an empty member."""
    header = _GZIP_HEADER.pack(_GZIP_MAGIC, _GZIP_EXTRA_FLAG, 0, 0, _GZIP_UNKNOWN_OS)
    return header + _GZIP_EXTRA.pack(size + 4, _GZIP_SUBFIELD, size)


def open_side_data(data: bytes) -> bytes:
    """The payload: as it is, or collected from gzip members. Raises BadInputError where these are none of ours."""
    if not data.startswith(_GZIP_MAGIC):
        return data
    parts = []
    at = 0
    prefix = _GZIP_HEADER.size + _GZIP_EXTRA.size
    while at < len(data):
        if len(data) - at < prefix:
            raise BadInputError("the TOC's gzip members are cut short")
        _, subfield, size = _GZIP_EXTRA.unpack_from(data, at + _GZIP_HEADER.size)
        end = at + prefix + size
        if (
            data[at : at + prefix] != gzip_carrier(size)
            or data[end : end + len(_GZIP_EMPTY_END)] != _GZIP_EMPTY_END
        ):
            raise BadInputError(f"the TOC's gzip members are not as lazyfs writes them ({subfield!r})")
        parts.append(data[at + prefix : end])
        at = end + len(_GZIP_EMPTY_END)
    return b"".join(parts)

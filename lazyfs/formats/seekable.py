"""The Zstandard Seekable Format: independent frames, and a seek table in the last, skippable frame.

After "Zstandard Seekable Format" 0.1.0 (zstd, contrib/seekable_format/zstd_seekable_compression_format.md)
and RFC 8878 for skippable frames. An ordinary zstd decoder reads the blob as one stream and steps over
what is skippable; that is how the TOC rides along.

    skippable frame   u32le magic 0x184D2A50..0x184D2A5F, u32le size, `size` bytes
    seek table        skippable frame 0x184D2A5E of: entries, footer
      entry           u32le compressed size, u32le decompressed size (0 for a skippable frame)
      footer          u32le number of entries, u8 descriptor (0: no checksums), u32le magic 0x8F92EAB1
"""

import struct

import numpy as np
import numpy.typing as npt

from lazyfs.errors import BadInputError

SKIPPABLE_MAGIC_TOC = 0x184D2A57
SKIPPABLE_MAGIC_APPENDIX = 0x184D2A58
SKIPPABLE_MAGIC_SEEK_TABLE = 0x184D2A5E
SEEKABLE_MAGIC = 0x8F92EAB1
SKIPPABLE_HEADER_SIZE = 8
FOOTER_SIZE = 9
ENTRY_SIZE = 8
MAX_FRAMES = 0x8000000
_CHECKSUM_FLAG = 0x80
_RESERVED_BITS = 0x7C


def skippable_header(magic: int, size: int) -> bytes:
    return struct.pack("<II", magic, size)


def skippable_frame(magic: int, payload: bytes) -> bytes:
    return skippable_header(magic, len(payload)) + payload


def seek_table(frames: list[tuple[int, int]]) -> bytes:
    """The last frame of a blob, from (compressed size, decompressed size) of every frame before it."""
    if len(frames) > MAX_FRAMES:
        raise BadInputError(f"seek table: {len(frames)} frames, the format allows {MAX_FRAMES}")
    entries = np.array(frames, dtype="<u4").reshape(len(frames), 2).tobytes()
    footer = struct.pack("<IBI", len(frames), 0, SEEKABLE_MAGIC)
    return skippable_frame(SKIPPABLE_MAGIC_SEEK_TABLE, entries + footer)


def seek_table_size(tail: bytes) -> int:
    """Size in bytes of the whole seek table frame, from the last 9 bytes of a blob."""
    if len(tail) < FOOTER_SIZE:
        raise BadInputError("seek table: the blob is shorter than a footer")
    count, descriptor, magic = struct.unpack("<IBI", tail[-FOOTER_SIZE:])
    if magic != SEEKABLE_MAGIC:
        raise BadInputError("seek table: the blob does not end in one (not a seekable zstd file)")
    if descriptor & _RESERVED_BITS or count > MAX_FRAMES:
        raise BadInputError("seek table: footer with reserved bits or too many frames")
    entry = ENTRY_SIZE + (4 if descriptor & _CHECKSUM_FLAG else 0)
    return SKIPPABLE_HEADER_SIZE + int(count) * entry + FOOTER_SIZE


def parse_seek_table(frame: bytes) -> npt.NDArray[np.uint32]:
    """Rows of (compressed size, decompressed size) from a whole seek table frame."""
    if len(frame) != seek_table_size(frame):
        raise BadInputError("seek table: cut short")
    magic, size = struct.unpack_from("<II", frame)
    if magic != SKIPPABLE_MAGIC_SEEK_TABLE or size != len(frame) - SKIPPABLE_HEADER_SIZE:
        raise BadInputError("seek table: its frame header does not fit its footer")
    width = 3 if frame[-5] & _CHECKSUM_FLAG else 2
    body = np.frombuffer(frame[SKIPPABLE_HEADER_SIZE:-FOOTER_SIZE], "<u4").reshape(-1, width)
    return body[:, :2].astype(np.uint32)

"""The file `chunks` of a layer's cache: offsets and digests of its chunks, so that the cache explains itself.

    "lazyfsC1", u64 count, count + 1 offsets (u64), count digests (32), sha256 of all that; little-endian

With it a layer that no image has open can be shared from, verified and pruned, without its TOC.
"""

import hashlib
import os
import struct
from pathlib import Path

import numpy as np

from lazyfs.formats.chunks import DIGEST_SIZE, ChunkTable
from lazyfs.node.files import write_new

_MAGIC = b"lazyfsC1"
_HEAD = struct.Struct("<8sQ")
NAME = "chunks"


def save_table(directory: Path, chunks: ChunkTable) -> None:
    """Write it whole or not at all; nothing is synced, since it proves itself. Raises NodeError."""
    head = _HEAD.pack(_MAGIC, len(chunks))
    content = b"".join((head, chunks.start.astype("<u8").tobytes(), chunks.digests))
    write_new(directory / NAME, content + hashlib.sha256(content).digest())


def load_table(directory: Path) -> ChunkTable | None:
    """The table, without places in a blob; None when it is not there or torn."""
    try:
        raw = (directory / NAME).read_bytes()
    except OSError:
        return None
    content, check = raw[:-DIGEST_SIZE], raw[-DIGEST_SIZE:]
    if len(content) < _HEAD.size or hashlib.sha256(content).digest() != check:
        return None
    _, count = _HEAD.unpack_from(content)
    nowhere = np.zeros(count, np.int64)
    start = np.frombuffer(content, "<u8", count + 1, _HEAD.size).astype(np.int64)
    return ChunkTable(start, nowhere, nowhere, content[_HEAD.size + 8 * (count + 1) :])


def has_table(directory: Path) -> bool:
    return os.path.exists(directory / NAME)  # noqa: PTH110 (asked for each layer, and half the price)

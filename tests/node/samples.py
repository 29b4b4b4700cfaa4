"""A layer made up for tests: random bytes in chunks, a blob of their frames, and a store that misbehaves on demand."""

import threading
from collections.abc import Callable, Generator, Sequence
from itertools import pairwise
from random import Random
from typing import cast

import numpy as np
import zstandard

from lazyfs.errors import LazyfsError, NotFoundError
from lazyfs.formats.chunks import ChunkTable, chunk_digest, shown
from lazyfs.formats.frames import ZSTD
from lazyfs.node.cache import LayerCache
from lazyfs.node.sources import BlobSource
from lazyfs.stores import Store

KIB = 1024
BOOT, NEXT_BOOT = b"0" * 36, b"1" * 36
BLOB = "sha256:" + "b" * 64
TOC_NAME = "c" * 64
PATIENCE = 20.0
HEADER, MEMBER = 256, 48 * 1024


class Layer:
    """`device` is the truth; `gaps` are bytes of the blob that stand before each frame and belong to no chunk."""

    def __init__(self, lengths: list[int], gaps: list[int] | None = None, seed: int = 0) -> None:
        rng = Random(seed)
        pieces = [rng.randbytes(length) for length in lengths]
        frames = [zstandard.compress(piece, 1) for piece in pieces]
        stream = b"".join(pieces)
        # A header stands before each piece of data.
        data = [(at + HEADER, min(at + MEMBER, len(stream))) for at in range(0, len(stream) - HEADER, MEMBER)]
        offsets = []
        blob = b""
        for frame, gap in zip(frames, gaps or [0] * len(frames), strict=True):
            blob += bytes(gap)
            offsets.append(len(blob))
            blob += frame
        self.device = shown(stream, data)
        self.blob = blob
        start = np.concatenate(([0], np.cumsum(lengths))).astype(np.int64)
        self.chunks = ChunkTable(
            start=start,
            blob_offset=np.array(offsets, np.int64),
            blob_length=np.array([len(frame) for frame in frames], np.int64),
            digests=b"".join(chunk_digest(self.device[one:end]) for one, end in pairwise(start)),
            data_start=np.array([one for one, _ in data], np.int64),
            data_end=np.array([end for _, end in data], np.int64),
        )

    def plain(self, index: int) -> bytes:
        return self.device[int(self.chunks.start[index]) : int(self.chunks.start[index + 1])]

    def frame_span(self, index: int) -> tuple[int, int]:
        start = int(self.chunks.blob_offset[index])
        return start, start + int(self.chunks.blob_length[index])


class FakeStore:
    """One blob. Counts what is read; `fault` is called with each range and may raise or wait."""

    url = "the fake store"

    def __init__(self, blob: bytes) -> None:
        self.blob = bytearray(blob)
        self.reads: list[tuple[int, int]] = []
        self.fault: Callable[[int, int], None] = lambda offset, length: None
        self.between: Callable[[int], None] = lambda offset: None
        """Called before each piece, with its offset."""
        self._lock = threading.Lock()

    def read(self, digest: str, offset: int, length: int) -> bytes:
        if digest != BLOB:
            raise NotFoundError(f"blob {digest}")
        with self._lock:
            self.reads.append((offset, offset + length))
        self.fault(offset, length)
        data = bytes(self.blob[offset : offset + length])
        assert len(data) == length, "a range outside of the blob"
        return data

    def read_pieces(self, digest: str, offset: int, lengths: Sequence[int]) -> Generator[bytes]:
        """As a store that sends a piece as soon as it has it; `fault` is called before the first."""
        data = self.read(digest, offset, sum(lengths))
        for length in lengths:
            self.between(offset)
            yield data[:length]
            data, offset = data[length:], offset + length

    def source(self) -> BlobSource:
        return BlobSource(cast(Store, self), BLOB, ZSTD)

    def damage(self, layer: Layer, index: int) -> None:
        self.blob[layer.frame_span(index)[1] - 1] ^= 1

    def twice(self) -> int:
        """How many bytes were read more often than once."""
        counts = np.zeros(len(self.blob), np.int64)
        for start, end in self.reads:
            counts[start:end] += 1
        return int((counts > 1).sum())


def failing(error: LazyfsError | BaseException) -> Callable[[int, int], None]:
    def fault(offset: int, length: int) -> None:
        raise error

    return fault


def no_thread(thread: threading.Thread) -> None:
    """For `threading.Thread.start`, where there are too many."""
    raise RuntimeError("can't start new thread")


def has(cache: LayerCache, index: int) -> bool:
    """Is the whole chunk there?"""
    return cache.read(int(cache.chunks.start[index]), cache.chunks.length(index)) is not None

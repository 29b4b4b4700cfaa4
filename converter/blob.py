"""The new blob, written front to back: frames of the stream, appendix, TOC, and for zstd the seek table."""

import hashlib
import threading
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from converter.appendix import BLOCK, Appendix
from lazyfs.formats import frames, seekable
from lazyfs.formats.chunks import ChunkTable, chunk_digest, shown
from lazyfs.formats.frames import GZIP, GZIP_MAX_INFLATED, LZ4, Compress
from lazyfs.formats.oci_descriptor import TocLocation
from lazyfs.stores.base import BlobWriter


@dataclass(frozen=True, slots=True)
class _Chunk:
    length: int
    digest: bytes
    frame: bytes


class BlobBuilder:
    """Digests and compresses chunks on several cores, and writes them in order."""

    def __init__(self, writer: BlobWriter, codec: str, level: int, jobs: int) -> None:
        self._writer = writer
        self._codec = codec
        self._level = level
        self._local = threading.local()
        self._pool = ThreadPoolExecutor(jobs, thread_name_prefix="compress")
        self._ahead = 2 * jobs + 2
        self._pending: deque[Future[_Chunk]] = deque()
        self._position = 0
        self._frames: list[tuple[int, int]] = []
        self._chunks: list[tuple[int, int, int]] = []
        self._digests: list[bytes] = []

    def __enter__(self) -> "BlobBuilder":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def add(self, plain: bytes, data: list[tuple[int, int]]) -> None:
        """Take one chunk of the stream, with the ranges of file data in it; waits while too many are on their way."""
        self._pending.append(self._pool.submit(self._compress, plain, data))
        while len(self._pending) > self._ahead:
            self._write_next()

    def finish_stream(self) -> None:
        while self._pending:
            self._write_next()

    def add_appendix(self, stream_size: int, appendix: Appendix, chunk_size: int) -> int:
        """Write what the device has behind the stream; returns the device offset where its data begins.

        Before it are zeros up to a block, since nothing can be mapped between blocks.
        """
        if self._codec == GZIP:
            chunk_size = min(chunk_size, GZIP_MAX_INFLATED)
        padding = -stream_size % BLOCK
        if padding:
            self._add_side_chunk(bytes(padding))
        rest = b""
        for piece in appendix.pieces():
            rest += piece
            while len(rest) >= chunk_size:
                self._add_side_chunk(rest[:chunk_size])
                rest = rest[chunk_size:]
        if rest:
            self._add_side_chunk(rest)
        return stream_size + padding

    def add_toc(self, packed: bytes) -> TocLocation:
        """Write the TOC, and the seek table, with which a zstd blob ends."""
        carried = frames.side_data(self._codec, seekable.SKIPPABLE_MAGIC_TOC, packed)
        stored = carried if self._codec == GZIP else packed
        self._write(carried)
        self._frames.append((len(carried), 0))
        location = TocLocation(self._position - len(stored), len(stored), hashlib.sha256(stored).hexdigest())
        if self._codec not in (GZIP, LZ4):
            self._write(seekable.seek_table(self._frames))
        return location

    def table(self) -> ChunkTable:
        columns = np.array(self._chunks, np.int64).reshape(-1, 3)
        return ChunkTable(
            start=np.concatenate(([0], np.cumsum(columns[:, 0]))).astype(np.int64),
            blob_offset=columns[:, 1],
            blob_length=columns[:, 2],
            digests=b"".join(self._digests),
        )

    def _add_side_chunk(self, plain: bytes) -> None:
        """A chunk that is no part of the stream, in a carrier that decoders of the stream step over."""
        chunk = self._compress(plain)
        carried = frames.side_data(self._codec, seekable.SKIPPABLE_MAGIC_APPENDIX, chunk.frame)
        self._record(chunk, self._position + carried.index(chunk.frame))
        self._write(carried)
        self._frames.append((len(carried), 0))

    def _compress(self, plain: bytes, data: list[tuple[int, int]] | None = None) -> _Chunk:
        compress: Compress | None = getattr(self._local, "compress", None)
        if compress is None:
            compress = self._local.compress = frames.compressor(self._codec, self._level)
        device = plain if data is None else shown(plain, data)
        return _Chunk(len(plain), chunk_digest(device), compress(plain))

    def _write_next(self) -> None:
        chunk = self._pending.popleft().result()
        self._record(chunk, self._position)
        self._frames.append((len(chunk.frame), chunk.length))
        self._write(chunk.frame)

    def _record(self, chunk: _Chunk, offset: int) -> None:
        self._chunks.append((chunk.length, offset, len(chunk.frame)))
        self._digests.append(chunk.digest)

    def _write(self, data: bytes) -> None:
        self._writer.write(data)
        self._position += len(data)

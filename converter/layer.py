"""One layer, from its compressed blob to the new blob with its TOC.

    reader thread   blob pieces -> checked -> plain pieces -> sha256 of the stream       (DiffID)
    this thread     tar walk: members -> tree; stream -> chunks
    workers         chunk -> digest and frame
    this thread     frames, in order, -> writer; then appendix, TOC, seek table

Decompression, hashing and compression release the interpreter's lock, so threads use all cores.
"""

import hashlib
import queue
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import zstandard

from converter.appendix import BLOCK, Appendix
from converter.cuts import CutRules
from converter.stream import ChunkedStream
from converter.unpack import checked_blob, plain_pieces
from lazyfs.errors import IntegrityError
from lazyfs.formats import seekable, toc
from lazyfs.formats.chunks import ChunkTable, chunk_digest
from lazyfs.formats.layer_tree import TreeBuilder
from lazyfs.formats.oci import OCI_LAYER_ZSTD, TOC_ANNOTATION, Descriptor, TocLocation
from lazyfs.formats.tarwalk import walk
from lazyfs.stores.base import BlobWriter, Store

QUEUE_PIECES = 8
"""Plain pieces (1 MiB) between the reader and the walk."""


@dataclass(frozen=True, slots=True)
class Settings:
    """How layers are converted; equal input and settings give equal bytes."""

    level: int = 3
    rules: CutRules = field(default_factory=CutRules)
    jobs: int = 2


@dataclass(frozen=True, slots=True)
class ConvertedLayer:
    descriptor: Descriptor
    toc: toc.Toc
    toc_size: int


@dataclass(frozen=True, slots=True)
class _Chunk:
    length: int
    digest: bytes
    frame: bytes


def convert_layer(
    source: Store, layer: Descriptor, diff_id: str, target: Store, settings: Settings
) -> ConvertedLayer:
    """Convert one layer into `target`.

    Raises IntegrityError where blob or stream are not what their digests promise, BadInputError where
    the archive is damaged; nothing is left in the target then.
    """
    with (
        target.writer() as writer,
        Appendix(layer.digest) as appendix,
        _Compressor(writer, settings) as frames,
    ):
        with _PlainReader(checked_blob(source.stream(layer.digest), layer), layer.digest) as plain:
            stream = ChunkedStream(plain, settings.rules, frames.add)
            tree = TreeBuilder(layer.digest)
            for member in walk(stream):
                stream.plan(member)
                tree.add(member, member.data_offset, appendix.segments(member, stream))
            stream.finish()
        if f"sha256:{plain.digest}" != diff_id:
            raise IntegrityError(
                f"layer {layer.digest}: its tar stream is sha256:{plain.digest}, the config says {diff_id}",
                hint="the source image is inconsistent: build it again",
            )
        size = stream.position
        frames.finish_stream()
        appendix_start = frames.write_appendix(size, appendix, settings.rules.chunk_size)
        document = toc.Toc(
            diff_id=bytes.fromhex(plain.digest),
            stream_size=size,
            codec=toc.CODEC_ZSTD,
            chunks=frames.table(),
            tree=tree.finish(appendix_start),
        )
        packed = toc.encode(document)
        location = frames.write_toc(packed)
        digest, blob_size = writer.commit()
    annotations = {**layer.annotations, TOC_ANNOTATION: location.format()}
    return ConvertedLayer(Descriptor(OCI_LAYER_ZSTD, digest, blob_size, annotations), document, len(packed))


class _PlainReader:
    """Runs decompression and the stream's hash in a thread; iterating gives the plain pieces."""

    def __init__(self, blob: Iterable[bytes], layer: str) -> None:
        self._blob = blob
        self._layer = layer
        self._queue: queue.Queue[bytes | BaseException] = queue.Queue(QUEUE_PIECES)
        self._stopped = threading.Event()
        self._hash = hashlib.sha256()
        self._thread = threading.Thread(target=self._run, name="unpack", daemon=True)

    def __enter__(self) -> "_PlainReader":
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stopped.set()
        while self._thread.is_alive():  # it may stand before a full queue
            try:
                self._queue.get(timeout=0.05)
            except queue.Empty:
                continue
        self._thread.join()

    @property
    def digest(self) -> str:
        """sha256 (hex) of the whole stream, once it has been read."""
        return self._hash.hexdigest()

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        item = self._queue.get()
        if isinstance(item, BaseException):
            self._queue.put(item)  # the end is the end however often one asks
            raise item
        return item

    def _run(self) -> None:
        try:
            for piece in plain_pieces(self._blob, self._layer):
                self._hash.update(piece)
                self._queue.put(piece)
                if self._stopped.is_set():
                    return
            self._queue.put(StopIteration())
        except BaseException as error:  # noqa: BLE001 - raised again in the thread that reads
            self._queue.put(error)


class _Compressor:
    """Turns chunks into frames on several cores and writes them in order."""

    def __init__(self, writer: BlobWriter, settings: Settings) -> None:
        self._writer = writer
        self._level = settings.level
        self._local = threading.local()
        self._pool = ThreadPoolExecutor(settings.jobs, thread_name_prefix="compress")
        self._ahead = 2 * settings.jobs + 2
        self._pending: deque[Future[_Chunk]] = deque()
        self._position = 0
        self._frames: list[tuple[int, int]] = []
        self._chunks: list[tuple[int, int, int]] = []
        self._digests: list[bytes] = []

    def __enter__(self) -> "_Compressor":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def add(self, plain: bytes) -> None:
        """Take one chunk of the stream; waits while too many are on their way."""
        self._pending.append(self._pool.submit(self._compress, plain))
        while len(self._pending) > self._ahead:
            self._write_next()

    def finish_stream(self) -> None:
        while self._pending:
            self._write_next()

    def write_appendix(self, stream_size: int, appendix: Appendix, chunk_size: int) -> int:
        """Write what the device has behind the stream, in one skippable frame; returns its device offset.

        The appendix starts with zeros up to a block, since nothing can be mapped between blocks.
        """
        padding = -stream_size % BLOCK
        chunks = [self._compress(bytes(padding))] if padding else []
        rest = b""
        for piece in appendix.pieces():
            rest += piece
            while len(rest) >= chunk_size:
                chunks.append(self._compress(rest[:chunk_size]))
                rest = rest[chunk_size:]
        if rest:
            chunks.append(self._compress(rest))
        if chunks:
            size = sum(len(chunk.frame) for chunk in chunks)
            self._write_raw(seekable.skippable_header(seekable.SKIPPABLE_MAGIC_APPENDIX, size))
            for chunk in chunks:
                self._record(chunk)
                self._write_raw(chunk.frame)
            self._frames.append((seekable.SKIPPABLE_HEADER_SIZE + size, 0))
        return stream_size + padding

    def write_toc(self, packed: bytes) -> TocLocation:
        """Write the TOC's skippable frame and the seek table, with which the blob ends."""
        self._write_raw(seekable.skippable_frame(seekable.SKIPPABLE_MAGIC_TOC, packed))
        location = TocLocation(self._position - len(packed), len(packed), hashlib.sha256(packed).hexdigest())
        self._frames.append((seekable.SKIPPABLE_HEADER_SIZE + len(packed), 0))
        self._write_raw(seekable.seek_table(self._frames))
        return location

    def table(self) -> ChunkTable:
        columns = np.array(self._chunks, np.int64).reshape(-1, 3)
        return ChunkTable(
            start=np.concatenate(([0], np.cumsum(columns[:, 0]))).astype(np.int64),
            blob_offset=columns[:, 1],
            blob_length=columns[:, 2],
            digests=b"".join(self._digests),
        )

    def _compress(self, plain: bytes) -> _Chunk:
        compressor = getattr(self._local, "compressor", None)
        if compressor is None:
            compressor = self._local.compressor = zstandard.ZstdCompressor(level=self._level)
        return _Chunk(len(plain), chunk_digest(plain), seekable.compress_frame(compressor, plain))

    def _write_next(self) -> None:
        chunk = self._pending.popleft().result()
        self._record(chunk)
        self._frames.append((len(chunk.frame), chunk.length))
        self._write_raw(chunk.frame)

    def _record(self, chunk: _Chunk) -> None:
        self._chunks.append((chunk.length, self._position, len(chunk.frame)))
        self._digests.append(chunk.digest)

    def _write_raw(self, data: bytes) -> None:
        self._writer.write(data)
        self._position += len(data)

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
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, field

from converter.appendix import Appendix
from converter.blob import BlobBuilder
from converter.cuts import CutRules
from converter.data import StreamData
from converter.stream import ChunkedStream
from converter.unpack import Limits, limited, plain_layer
from lazyfs.errors import BadInputError, IntegrityError, LazyfsError, LimitError, UsageError
from lazyfs.formats import toc
from lazyfs.formats.chunks import ChunkTable
from lazyfs.formats.frames import DEFAULT_LEVELS, MAX_LEVELS, MEDIA_TYPES, NONE, ZSTD
from lazyfs.formats.layer_tree import TreeBuilder
from lazyfs.formats.oci_descriptor import Descriptor
from lazyfs.formats.oci_types import PACK_ANNOTATION, TOC_ANNOTATION
from lazyfs.formats.tarwalk import Member, walk
from lazyfs.formats.toc_types import Toc, Tree
from lazyfs.stores.base import Store, named

QUEUE_PIECES = 8
"""Plain pieces (1 MiB) between the reader and the walk."""


@dataclass(frozen=True, slots=True)
class Settings:
    """How layers are converted; equal input and settings give equal bytes."""

    codec: str = ZSTD
    level: int | None = None
    """None: the codec's default."""
    rules: CutRules = field(default_factory=CutRules)
    limits: Limits = field(default_factory=Limits)
    jobs: int = 2

    def __post_init__(self) -> None:
        highest = MAX_LEVELS[self.codec]
        if not 0 <= self.effective_level <= highest:
            raise UsageError(
                f"codec {self.codec} has no level {self.level}",
                hint=f"it has 0 to {highest}, or leave it out",
            )

    @property
    def effective_level(self) -> int:
        return DEFAULT_LEVELS[self.codec] if self.level is None else self.level


@dataclass(frozen=True, slots=True)
class ConvertedLayer:
    descriptor: Descriptor
    toc: Toc
    toc_size: int


def convert_layer(
    source: Store,
    layer: Descriptor,
    diff_id: str,
    target: Store,
    settings: Settings,
    on_read: Callable[[int], None] = lambda _: None,
) -> ConvertedLayer:
    """Convert one layer into `target`; `on_read` hears of the bytes of its blob that were read.

    Raises IntegrityError where blob or stream are not what their digests promise, BadInputError where
    the archive is damaged; nothing is left in the target then.
    """
    name = f"layer {layer.digest}"
    with (
        target.writer() as writer,
        Appendix(name) as appendix,
        BlobBuilder(writer, settings.codec, settings.effective_level, settings.jobs) as blob,
        closing(source.stream(layer.digest)) as blob_pieces,
    ):
        tree, data = TreeBuilder(name), StreamData()
        pieces = plain_layer(blob_pieces, layer, on_read)
        with _PlainReader(limited(pieces, layer, settings.limits)) as plain:
            stream = ChunkedStream(plain, settings.rules, blob.add)
            _walk(stream, plain, tree, data, appendix, name)
        if f"sha256:{plain.digest}" != diff_id:
            raise IntegrityError(
                f"{name}: its tar stream is sha256:{plain.digest}, the config says {diff_id}",
                hint="the source image is inconsistent: build it again",
            )
        size = stream.position
        blob.finish_stream()
        appendix_start = blob.add_appendix(size, appendix, settings.rules.chunk_size)
        packed = _packed_toc(
            tree.finish(appendix_start),
            data,
            blob.table(),
            diff_id=bytes.fromhex(plain.digest),
            stream_size=size,
            # What is stored uncompressed stands in zstd frames all the same.
            codec=ZSTD if settings.codec == NONE else settings.codec,
        )
        with named(name):
            document = toc.decode(packed)  # what a node would refuse must not be written
        location = blob.add_toc(packed)
        digest, blob_size = writer.commit()
    annotations = {**layer.annotations, TOC_ANNOTATION: location.format()}
    annotations.pop(PACK_ANNOTATION, None)  # of another TOC
    descriptor = Descriptor(MEDIA_TYPES[settings.codec], digest, blob_size, annotations)
    return ConvertedLayer(descriptor, document, len(packed))


def _packed_toc(
    tree: Tree, data: StreamData, chunks: ChunkTable, *, diff_id: bytes, stream_size: int, codec: str
) -> bytes:
    """The encoded TOC alone: of a million files, what it is made from takes 70 MB."""
    return toc.encode(Toc(diff_id, stream_size, codec, chunks, tree, data.strays(tree)))


def _walk(
    stream: ChunkedStream,
    plain: "_PlainReader",
    tree: TreeBuilder,
    data: StreamData,
    appendix: Appendix,
    layer: str,
) -> None:
    """Walk through all of the stream; errors name the layer and, where that says something, the member."""
    member: Member | None = None
    try:
        for member in walk(stream):
            stream.plan(member, data.of(member))
            tree.add(member, member.data_offset, appendix.segments(member, stream))
        stream.finish()
    except LazyfsError as error:
        failure = plain.failure or error
        where = ""
        if (
            plain.failure is not None
            and isinstance(failure, BadInputError | LimitError)
            and member is not None
        ):
            where = f" (behind the header of {member.name[:200].decode('utf-8', 'backslashreplace')!r})"
        what = "" if failure.message.startswith(layer) else f"{layer}: "
        raise type(failure)(f"{what}{failure.message}{where}", hint=failure.hint) from error


class _PlainReader:
    """Runs decompression and the stream's hash in a thread; iterating gives the plain pieces."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._pieces = pieces
        self._queue: queue.Queue[bytes | BaseException] = queue.Queue(QUEUE_PIECES)
        self._lock = threading.Lock()
        self._running = False
        self._stopped, self._ended = threading.Event(), threading.Event()
        self._hash = hashlib.sha256()
        self.failure: LazyfsError | None = None
        """Why the stream ended early, if it did."""
        self._thread = threading.Thread(target=self._run, name="unpack", daemon=True)

    def __enter__(self) -> "_PlainReader":
        try:
            self._thread.start()
        except BaseException:  # an interrupt, while it waited for the thread to begin
            self._stop()
            raise
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stop()

    def _stop(self) -> None:
        """Whoever closes the stream of pieces next must be the only one that has to do with it."""
        with self._lock:
            self._stopped.set()
            running = self._running
        while running and not self._ended.is_set():  # it may stand before a full queue
            with suppress(queue.Empty):
                self._queue.get(timeout=0.05)

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
            if isinstance(item, LazyfsError):
                self.failure = item
            raise item
        return item

    def _run(self) -> None:
        with self._lock:
            if self._stopped.is_set():
                return
            self._running = True
        try:
            for piece in self._pieces:
                self._hash.update(piece)
                self._queue.put(piece)
                if self._stopped.is_set():
                    return
            self._queue.put(StopIteration())
        except BaseException as error:  # noqa: BLE001 - raised again in the thread that reads
            self._queue.put(error)
        finally:
            self._ended.set()

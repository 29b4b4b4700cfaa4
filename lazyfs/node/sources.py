"""Where the blob of a layer can be had, and its chunks out of what comes from there."""

import threading
from dataclasses import dataclass

from lazyfs.errors import IntegrityError
from lazyfs.formats.chunks import ChunkTable, chunk_digest
from lazyfs.formats.frames import open_frame
from lazyfs.stores.base import Store


@dataclass(frozen=True, slots=True)
class BlobSource:
    """Where the blob of a layer is, a store and the blob's digest in it; and the codec of its frames."""

    store: Store
    digest: str
    codec: str

    def __str__(self) -> str:
        return f"blob {self.digest} in {self.store.url}"


class Sources:
    """The sources of one layer, the preferred one first. Thread safe."""

    def __init__(self, first: BlobSource) -> None:
        self._lock = threading.Lock()
        self._order: tuple[BlobSource, ...] = (first,)

    def prefer(self, source: BlobSource) -> None:
        """Ask `source` first from now on; the others remain, for what it does not give."""
        with self._lock:
            self._order = (source, *(other for other in self._order if other != source))

    def in_order(self, avoided: BlobSource | None = None) -> tuple[BlobSource, ...]:
        """Those to be asked one after another, `avoided` last."""
        return tuple(sorted(self._order, key=lambda source: source == avoided))


def open_chunk(codec: str, chunks: ChunkTable, index: int, frame: bytes | memoryview, blob: str) -> bytes:
    """What the device shows of chunk `index`, from its frame; IntegrityError unless it has the promised digest."""
    where = f"chunk {index} of blob {blob}"
    plain = chunks.shown(index, open_frame(codec, frame, chunks.length(index), where))
    if chunk_digest(plain) != chunks.digest(index):
        raise IntegrityError(
            f"{where}: the bytes do not match their digest",
            hint="the blob is damaged in its store; `lazyfs check` names all that is wrong, converting again mends it",
        )
    return plain

"""Writing an archive: front to back into one file beside it, which takes its name when all of it is there.

A tar member's header has its size, and a blob's name its digest; a stream has told neither before it ends. So
room is left for the header, the blob is written behind it as it comes, and then the header goes where the room
was; a blob that turns out to be there already is cut off again. One writer has the end of the file at a time;
what comes beside it goes to a file of its own, and small blobs (documents, above all) wait in memory. Both
are added when the archive is saved, and so are blobs out of the archive that it replaces.
"""

import hashlib
import os
import tarfile
import threading
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from lazyfs.errors import IntegrityError, NotFoundError, StoreError
from lazyfs.formats.oci import Index, parse_index, parse_manifest
from lazyfs.formats.oci_descriptor import Descriptor
from lazyfs.formats.oci_types import INDEX_TYPES, MANIFEST_TYPES
from lazyfs.stores._files import TempFile, explained, locked, remove_stale_temps
from lazyfs.stores.base import STREAM_PIECE, Store

_LOCK_TIMEOUT = 600.0  # another archive of many GB may be on its way there
_BLOCK = tarfile.BLOCKSIZE
_SMALL = 1 << 20
_MAX_SMALL = 32 << 20  # of all small blobs together
_MAX_USTAR_SIZE = 8**11 - 1


@dataclass(slots=True)
class _Place:
    """Where a blob is being written, or lies: in a file, from `start` on."""

    file: TempFile
    start: int
    size: int = 0

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.file.write_at(self.start + self.size, data)
        self.size += len(data)


class Draft:
    """The archive that is being written; thread safe."""

    def __init__(self, path: Path) -> None:
        self._parent = path.parent
        self._lock = threading.Lock()
        self._small: dict[str, bytes] = {}
        self._placed: dict[str, _Place] = {}
        """In the archive's file, in the order in which they lie there."""
        self._beside: dict[str, _Place] = {}
        self._tail: _Place | None = None
        """Has the end of the file."""
        with explained(str(self._parent)):
            remove_stale_temps(self._parent)
            self._file = TempFile(self._parent)
        self._end = 0
        self._removed = False

    def writer(self, known: Store) -> "ArchiveBlobWriter":
        """A blob that is already in `known` is not kept."""
        return ArchiveBlobWriter(self, known)

    def size(self, digest: str) -> int | None:
        with self._lock:
            if digest in self._small:
                return len(self._small[digest])
            place = self._placed.get(digest) or self._beside.get(digest)
        return None if place is None else place.size

    def read(self, digest: str, offset: int, length: int) -> bytes:
        """A range of a blob that is there."""
        with self._lock:
            if digest in self._small:
                return self._small[digest][offset : offset + length]
            place = self._placed.get(digest) or self._beside[digest]
        return place.file.read_at(place.start + offset, length)

    def stream(self, digest: str, offset: int, piece: int) -> Generator[bytes]:
        size = self.size(digest) or 0
        for at in range(offset, size, piece):
            yield self.read(digest, at, min(piece, size - at))

    def remove(self) -> None:
        """Take away what was not saved; what is still being written ends in an error."""
        self._removed = True
        for place in self._beside.values():
            place.file.discard()
        self._file.discard()

    def save(
        self, path: Path, documents: Iterable[tuple[str, bytes]], blobs: Sequence[str], store: Store
    ) -> None:
        """Make of the file an archive of these blobs of the store, and of these documents, and call it `path`.

        The same contents, written in the same order, give the same bytes: members are owned by root, as of 1970.
        """
        if self._tail is not None:
            raise StoreError(f"{path} was to be finished while a blob was still written", hint="try again")
        with explained(str(path)):
            self._close_gaps(set(blobs))
            for digest in blobs:
                if digest not in self._placed:
                    self._append_blob(store, digest)
            for name, data in documents:
                self._append(_header(name, len(data)) + data + _padding(len(data)))
            self._append(bytes(2 * _BLOCK))
            self._file.truncate(self._end)
            self._file.publish(path)

    def open_place(self) -> _Place:
        """Room for a blob: at the end of the file, or in one of its own while somebody else has that."""
        with self._lock:
            if self._tail is not None:
                with explained(str(self._parent)):
                    return _Place(TempFile(self._parent), 0)
            if not self._end:
                self._append(_header("blobs", 0, directory=True) + _header("blobs/sha256", 0, directory=True))
            self._tail = _Place(self._file, self._end + _BLOCK)
            return self._tail

    def close_place(self, place: _Place, digest: str | None) -> None:
        """Keep what was written there under its digest, or None: give the room back."""
        with self._lock:
            if self._removed:
                return
            if place is not self._tail:
                if digest is None or digest in self._placed or digest in self._beside:
                    place.file.discard()
                else:
                    self._beside[digest] = place
                return
            self._tail = None
            if digest is None or digest in self._placed or digest in self._beside:
                self._file.truncate(self._end)
                return
            self._file.write_at(self._end, _blob_header(digest, place.size))
            self._end = place.start + place.size
            self._append(_padding(place.size))
            self._placed[digest] = place

    def keep_small(self, digest: str, data: bytes) -> bool:
        """Keep a blob in memory; False when there is no room for it."""
        with self._lock:
            if digest not in self._small and sum(map(len, self._small.values())) + len(data) > _MAX_SMALL:
                return False
            self._small[digest] = data
            return True

    def _append(self, data: bytes) -> None:
        self._file.write_at(self._end, data)
        self._end += len(data)

    def _append_blob(self, store: Store, digest: str) -> None:
        place = self.open_place()
        for piece in store.stream(digest):
            place.write(piece)
        size = store.has(digest)
        if place.size != size:
            raise StoreError(f"{digest} in {store.url} has {place.size} bytes, not {size}", hint="try again")
        if (beside := self._beside.pop(digest, None)) is not None:
            beside.file.discard()
        self.close_place(place, digest)

    def _close_gaps(self, wanted: set[str]) -> None:
        """Move the blobs that are wanted together, over those that are not."""
        if self._placed.keys() <= wanted:
            return
        kept = [(digest, place) for digest, place in self._placed.items() if digest in wanted]
        self._placed = {}
        self._end = 2 * _BLOCK
        for digest, place in kept:
            moved = _Place(self._file, self._end + _BLOCK)
            while moved.size < place.size:
                length = min(STREAM_PIECE, place.size - moved.size)
                moved.write(self._file.read_at(place.start + moved.size, length))
            self._tail = moved
            self.close_place(moved, digest)


class ArchiveBlobWriter:
    """One blob on its way into a draft; see `BlobWriter`."""

    def __init__(self, draft: Draft, known: Store) -> None:
        self._draft = draft
        self._known = known
        self._hasher = hashlib.sha256()
        self._small = bytearray()
        self._place: _Place | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._close(None)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self._hasher.update(data)
        if self._place is None and len(self._small) + len(data) <= _SMALL:
            self._small += data
            return
        with explained(self._known.url):
            self._placed().write(data)

    def commit(self, expected_digest: str | None = None) -> tuple[str, int]:
        digest = f"sha256:{self._hasher.hexdigest()}"
        if expected_digest not in (None, digest):
            raise IntegrityError(
                f"what was written to {self._known.url} is {digest}, not {expected_digest}",
                hint="the source is damaged or changed while it was read: try again",
            )
        size = len(self._small) if self._place is None else self._place.size
        with explained(f"blob {digest} in {self._known.url}"):
            if self._known.has(digest) is not None:
                self._close(None)
            elif self._place is not None or not self._draft.keep_small(digest, bytes(self._small)):
                self._placed()
                self._close(digest)
        return digest, size

    def _placed(self) -> _Place:
        """Where the blob is written, now that it is not small."""
        if self._place is None:
            self._place = self._draft.open_place()
            self._place.write(self._small)
            self._small.clear()
        return self._place

    def _close(self, digest: str | None) -> None:
        if self._place is not None:
            place, self._place = self._place, None
            self._draft.close_place(place, digest)


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Hold the lock on writing ``path``, which may not be there yet: a file beside it, gone afterwards."""
    lock = path.with_name(f".{path.name}.lazyfs-lock")
    while True:
        with explained(str(lock)), locked(lock, _LOCK_TIMEOUT, create=True) as descriptor:
            # Between open and lock its last holder may have removed it: then it is nobody's lock.
            if os.fstat(descriptor).st_nlink == 0:
                continue
            try:
                yield
            finally:
                lock.unlink()
            return


def reachable(store: Store, index: Index) -> list[str]:
    """The digests of all blobs that ``index`` leads to and that are in the store, sorted."""
    seen: dict[str, Descriptor] = {}
    level = list(index.manifests)
    while level:
        new = {item.digest: item for item in level if item.digest not in seen}
        seen |= new
        level = [child for item in new.values() for child in _children(store, item)]
    return sorted(digest for digest in seen if store.has(digest) is not None)


def _blob_header(digest: str, size: int) -> bytes:
    return _header(f"blobs/{digest.replace(':', '/')}", size)


def _header(name: str, size: int, *, directory: bool = False) -> bytes:
    """One block, for which room was left: a size that ustar cannot say is in base-256, which all readers know."""
    member = tarfile.TarInfo(name)
    member.size = size
    member.type = tarfile.DIRTYPE if directory else tarfile.REGTYPE
    member.mode = 0o755 if directory else 0o644
    return member.tobuf(tarfile.USTAR_FORMAT if size <= _MAX_USTAR_SIZE else tarfile.GNU_FORMAT)


def _padding(size: int) -> bytes:
    return bytes(-size % _BLOCK)


def _children(store: Store, descriptor: Descriptor) -> list[Descriptor]:
    try:
        if descriptor.media_type in INDEX_TYPES:
            return list(parse_index(store.get_document(descriptor)).manifests)
        if descriptor.media_type in MANIFEST_TYPES:
            manifest = parse_manifest(store.get_document(descriptor))
            return [manifest.config, *manifest.layers]
    except NotFoundError:  # an index may name images that were left where it came from
        pass
    return []

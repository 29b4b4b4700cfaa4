"""Images in one file: ``oci-archive:FILE[:tag]``, an OCI image layout in a tar; the base of docker-archives.

Blobs are read in place (see `archive_file`), so an image in an archive starts as lazily as one in a directory.
A store that is written to puts its blobs into a file beside it (see `archive_write`), which becomes FILE when
the store is closed. Until then, and when the ``with`` block that uses the store
ends by an exception, FILE is what it was. The images that FILE has already are kept, but for the one whose
tag is written anew; so are those that another process puts there meanwhile. What no image needs goes.
"""

import os
import threading
from collections.abc import Generator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar, Self

from lazyfs.errors import NotFoundError, StoreError, UsageError
from lazyfs.formats.oci import MAX_DOCUMENT, Index
from lazyfs.formats.oci_descriptor import Descriptor, parse_digest
from lazyfs.formats.oci_types import LAYER_RECORD_TYPE, REF_NAME_ANNOTATION
from lazyfs.formats.strict_json import dump
from lazyfs.stores._files import explained
from lazyfs.stores._index import LAYOUT_VERSION, resolve_in, tag_of, tags_of
from lazyfs.stores.archive_contents import DOCKER_MANIFESTS, Contents, read_oci
from lazyfs.stores.archive_file import ArchiveFile, identity_of
from lazyfs.stores.archive_write import Draft, exclusive, reachable
from lazyfs.stores.base import (
    STREAM_PIECE,
    BlobWriter,
    check_complete,
    named,
    pieces_of_reads,
    read_verified,
    write_blob,
)
from lazyfs.stores.reference import check_tag
from lazyfs.stores.referrers import tag_referrer, tagged_referrers

_MAX_OPENED = 8


class OciArchiveStore:
    """An oci-archive as a `Store`; with ``create`` it is written to, and made when it is not there."""

    transport: ClassVar[str] = "oci-archive"

    def __init__(self, path: Path, *, create: bool = False) -> None:
        self._path = Path(os.path.realpath(path))
        self._name = path
        self._create = create
        self._lock = threading.Lock()
        # The newest first. A node may still read from an archive that was replaced since.
        self._opened: list[Contents] = []
        self._tagged: dict[str, Descriptor] = {}
        self._closed = False
        self._draft: Draft | None = None
        if create:
            with explained(str(self._path.parent)):
                self._path.parent.mkdir(parents=True, exist_ok=True)
        if not create or self._path.exists():
            self._current()
        if create:
            self._draft = Draft(self._path)

    @property
    def url(self) -> str:
        return f"{self.transport}:{self._name}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        if exc_info[0] is not None:
            self._tagged.clear()
        self.close()

    def close(self) -> None:
        """Write the archive, if images were put there, and let go of it."""
        try:
            if self._tagged:
                self._save()
        finally:
            if self._draft is not None:
                self._draft.remove()
            with self._lock:
                self._closed = True
                self._tagged.clear()
                self._opened.clear()

    def read(self, digest: str, offset: int, length: int) -> bytes:
        blobs = self._holder(digest)
        size = blobs.size(digest) or 0
        if offset < 0 or length < 0 or offset + length > size:
            raise StoreError(
                f"blob {digest} in {self.url} has {size} bytes, so none can be read "
                f"from {offset} to {offset + length}",
                hint="the image is damaged: save or copy it there again",
            )
        with explained(f"blob {digest} in {self.url}"):
            return blobs.read(digest, offset, length)

    def read_pieces(self, digest: str, offset: int, lengths: Sequence[int]) -> Generator[bytes]:
        return pieces_of_reads(self, digest, offset, lengths)

    def stream(self, digest: str, offset: int = 0, piece: int = STREAM_PIECE) -> Generator[bytes]:
        blobs = self._holder(digest)
        with explained(f"blob {digest} in {self.url}"):
            yield from blobs.stream(digest, offset, piece)

    def has(self, digest: str) -> int | None:
        blobs = self._find(digest)
        return None if blobs is None else blobs.size(digest)

    def resolve(self, tag_or_digest: str | None) -> Descriptor:
        return resolve_in(self, self._index(), tag_or_digest)

    def tags(self) -> list[str]:
        return tags_of(self._index())

    def get_document(self, descriptor: Descriptor, limit: int = MAX_DOCUMENT) -> bytes:
        return read_verified(self, descriptor, limit)

    def put_document(self, data: bytes, media_type: str) -> Descriptor:
        digest, size = write_blob(self, data)
        return Descriptor(media_type, digest, size)

    def writer(self) -> BlobWriter:
        if self._draft is None:
            raise StoreError(f"{self.url} was opened for reading alone")
        return self._draft.writer(self)

    def put_tag(self, tag: str, descriptor: Descriptor) -> None:
        if descriptor.artifact_type == LAYER_RECORD_TYPE:
            # For the next run into the same store; whoever unpacks the archive wants the image alone.
            return
        self._check_tag(tag)
        check_complete(self, descriptor)
        self._check_image(descriptor)
        entry = replace(descriptor, annotations={**descriptor.annotations, REF_NAME_ANNOTATION: tag})
        with self._lock:
            self._tagged[tag] = entry

    def referrers(self, digest: str, artifact_type: str) -> list[Descriptor]:
        return tagged_referrers(self, digest, artifact_type)

    def put_referrer(self, subject: Descriptor, referrer: Descriptor) -> None:
        tag_referrer(self, subject, referrer)

    # What the formats differ in

    def _read_contents(self, file: ArchiveFile) -> Contents:
        if self._create and file.find(DOCKER_MANIFESTS) is not None:
            raise UsageError(
                f"{self._name} is a docker-archive as well, which it would be no more",
                hint=f"name it docker-archive:{self._name}, or write another file",
            )
        return read_oci(file)

    def _same_name(self, tag: str) -> str:
        """Equal for tags that mean the same image."""
        return tag

    def _check_tag(self, tag: str) -> None:
        check_tag(tag)

    def _check_image(self, descriptor: Descriptor) -> None:
        """Raise unless this format can hold it; it is complete."""

    def _documents(self, index: Index) -> list[tuple[str, bytes]]:
        """The members of an archive of these images that are not blobs."""
        return [
            ("oci-layout", dump({"imageLayoutVersion": LAYOUT_VERSION})),
            ("index.json", index.to_bytes()),
        ]

    # Inside

    def _current(self) -> Contents | None:
        """What is in the archive now; None when it is still to be made."""
        with self._lock:
            self._check_open()
            try:
                with explained(self.url):
                    identity = identity_of(self._path.stat())
            except NotFoundError:
                if self._draft is None:
                    raise
                return None
            if not self._opened or self._opened[0].file.identity != identity:
                file = ArchiveFile(self._path)
                with named(self._name):
                    self._opened.insert(0, self._read_contents(file))
                del self._opened[_MAX_OPENED:]
            return self._opened[0]

    def _index(self) -> Index:
        contents = self._current()
        index = Index(()) if contents is None else contents.index
        with self._lock:
            tagged = {self._same_name(tag): entry for tag, entry in self._tagged.items()}
        kept = [
            item
            for item in index.manifests
            if (tag := tag_of(item)) is None or self._same_name(tag) not in tagged
        ]
        return replace(index, manifests=(*kept, *tagged.values()))

    def _find(self, digest: str) -> Contents | Draft | None:
        """What has the blob: one of the opened archives, or that which is being written; None when none has it."""
        parse_digest(digest)
        with self._lock:
            self._check_open()
            places: list[Contents | Draft] = [*self._opened]
        if self._draft is not None:
            places.append(self._draft)
        return next((blobs for blobs in places if blobs.size(digest) is not None), None)

    def _holder(self, digest: str) -> Contents | Draft:
        blobs = self._find(digest)
        if blobs is None:
            raise NotFoundError(
                f"blob {digest} is not in {self.url}",
                hint="the archive is not whole: save or copy the image there again",
            )
        return blobs

    def _check_open(self) -> None:
        if self._closed:
            raise StoreError(f"{self.url} cannot be read: the store is closed")

    def _save(self) -> None:
        assert self._draft is not None
        with exclusive(self._path):
            index = self._index()
            self._draft.save(self._path, self._documents(index), reachable(self, index), self)

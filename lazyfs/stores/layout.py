"""A store in a directory: the OCI image layout (image-layout.md of the OCI image specification 1.1).

    DIR/oci-layout            {"imageLayoutVersion": "1.0.0"}; its lock guards index.json
    DIR/index.json            a descriptor per tag; annotation org.opencontainers.image.ref.name is the tag
    DIR/blobs/sha256/<hex>    the blobs, shared by all images of the layout
    DIR/blobs/.lazyfs-tmp-…   blobs being written

The directory may be hostile: a digest is checked before it becomes a file name, and nothing but a regular
file is ever opened.
"""

import hashlib
import os
from collections.abc import Generator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Self

from lazyfs.errors import (
    IntegrityError,
    NotFoundError,
    StoreError,
)
from lazyfs.formats.oci import MAX_DOCUMENT, Index, parse_index
from lazyfs.formats.oci_descriptor import Descriptor, parse_digest
from lazyfs.formats.oci_types import REF_NAME_ANNOTATION
from lazyfs.formats.strict_json import dump
from lazyfs.stores._files import (
    TempFile,
    explained,
    locked,
    open_regular,
    read_whole,
    remove_stale_temps,
)
from lazyfs.stores._handles import HandleCache
from lazyfs.stores._index import LAYOUT_VERSION, MAX_INDEX, check_version, resolve_in, tag_of, tags_of
from lazyfs.stores.base import STREAM_PIECE, check_complete, named, pieces_of_reads, read_verified, write_blob
from lazyfs.stores.reference import check_tag
from lazyfs.stores.referrers import tag_referrer, tagged_referrers

_MAX_OPEN = 64
_LOCK_TIMEOUT = 60.0


class LayoutStore:
    """An OCI image layout as a `Store`; with ``create`` the directory is made when it is not there."""

    def __init__(self, directory: Path, *, create: bool = False) -> None:
        self._directory = directory
        self._blobs = directory / "blobs" / "sha256"
        self._temps = directory / "blobs"
        self._handles = HandleCache(self._open_blob, _MAX_OPEN)
        self._temps_cleaned = False
        if create:
            self._create()
        self._check_version()

    @property
    def url(self) -> str:
        return f"oci:{self._directory}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        self._handles.close()

    def read(self, digest: str, offset: int, length: int) -> bytes:
        with explained(f"blob {digest} in {self._directory}"), self._handles.lease(digest) as descriptor:
            size = os.fstat(descriptor).st_size
            # Checked first: pread would set aside memory for any length that a stranger asks for.
            if offset < 0 or length < 0 or offset + length > size:
                raise StoreError(
                    f"blob {digest} in {self._directory} has {size} bytes, so none can be read "
                    f"from {offset} to {offset + length}",
                    hint="the blob is truncated: copy the image there again",
                )
            data = os.pread(descriptor, length, offset)
            while len(data) < length:  # Linux reads at most 2 GiB at once
                piece = os.pread(descriptor, length - len(data), offset + len(data))
                if not piece:
                    raise StoreError(f"blob {digest} in {self._directory} shrank while it was read")
                data += piece
            return data

    def read_pieces(self, digest: str, offset: int, lengths: Sequence[int]) -> Generator[bytes]:
        return pieces_of_reads(self, digest, offset, lengths)

    def stream(self, digest: str, offset: int = 0, piece: int = STREAM_PIECE) -> Generator[bytes]:
        with explained(f"blob {digest} in {self._directory}"):
            descriptor = self._open_blob(digest)
            try:
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_SEQUENTIAL)
                os.lseek(descriptor, offset, os.SEEK_SET)
                while data := os.read(descriptor, piece):
                    yield data
            finally:
                os.close(descriptor)

    def has(self, digest: str) -> int | None:
        try:
            with explained(f"blob {digest} in {self._directory}"):
                descriptor = self._open_blob(digest)
                try:
                    return os.fstat(descriptor).st_size
                finally:
                    os.close(descriptor)
        except NotFoundError:
            return None

    def resolve(self, tag_or_digest: str | None) -> Descriptor:
        return resolve_in(self, self._read_index(), tag_or_digest)

    def tags(self) -> list[str]:
        return tags_of(self._read_index())

    def get_document(self, descriptor: Descriptor, limit: int = MAX_DOCUMENT) -> bytes:
        return read_verified(self, descriptor, limit)

    def put_document(self, data: bytes, media_type: str) -> Descriptor:
        digest, size = write_blob(self, data)
        return Descriptor(media_type, digest, size)

    def writer(self) -> "LayoutBlobWriter":
        with explained(str(self._temps)):
            if not self._temps_cleaned:
                remove_stale_temps(self._temps)
                self._temps_cleaned = True
            return LayoutBlobWriter(TempFile(self._temps), self._blobs)

    def put_tag(self, tag: str, descriptor: Descriptor) -> None:
        check_tag(tag)
        check_complete(self, descriptor)
        entry = replace(descriptor, annotations={**descriptor.annotations, REF_NAME_ANNOTATION: tag})
        lock = self._directory / "oci-layout"
        with explained(str(lock)), locked(lock, _LOCK_TIMEOUT):
            index = self._read_index()
            others = tuple(item for item in index.manifests if tag_of(item) != tag)
            self._write_index(replace(index, manifests=(*others, entry)))

    def referrers(self, digest: str, artifact_type: str) -> list[Descriptor]:
        return tagged_referrers(self, digest, artifact_type)

    def put_referrer(self, subject: Descriptor, referrer: Descriptor) -> None:
        tag_referrer(self, subject, referrer)

    def _create(self) -> None:
        with explained(str(self._directory)):
            try:
                self._directory.mkdir(parents=True, exist_ok=True)
            except (FileNotFoundError, FileExistsError, NotADirectoryError) as error:
                kind = NotFoundError if isinstance(error, FileNotFoundError) else StoreError
                raise kind(
                    f"{self._directory} cannot be made: {error.strerror}",
                    hint="an OCI layout is a directory: name one, or oci-archive:FILE",
                ) from error
            with locked(self._directory / "oci-layout", _LOCK_TIMEOUT, create=True) as lock:
                # Written in place and not by renaming: it is the lock.
                if os.fstat(lock).st_size == 0:
                    os.write(lock, dump({"imageLayoutVersion": LAYOUT_VERSION}))
                    os.fsync(lock)
                self._blobs.mkdir(parents=True, exist_ok=True)
                if not (self._directory / "index.json").exists():
                    self._write_index(Index(()))

    def _check_version(self) -> None:
        path = self._directory / "oci-layout"
        with explained(str(self._directory)):
            is_directory = self._directory.is_dir()
        if not is_directory:
            raise NotFoundError(
                f"{self._directory} is not a directory", hint="check the path of the OCI layout"
            )
        try:
            with explained(str(path)):
                data = read_whole(path, MAX_DOCUMENT)
        except NotFoundError as error:
            raise NotFoundError(
                f"{self._directory} is not an OCI image layout: it has no file oci-layout",
                hint=f"`skopeo copy SRC oci:{self._directory}:latest` makes one",
            ) from error
        check_version(data, str(path))

    def _write_index(self, index: Index) -> None:
        path = self._directory / "index.json"
        with explained(str(path)):
            remove_stale_temps(self._directory)
            file = TempFile(self._directory)
            try:
                file.write(index.to_bytes())
                file.publish(path)
            finally:
                file.discard()

    def _read_index(self) -> Index:
        path = self._directory / "index.json"
        with explained(str(path)):
            data = read_whole(path, MAX_INDEX)
        with named(self._directory):
            return parse_index(data, limit=MAX_INDEX)

    def _open_blob(self, digest: str) -> int:
        return open_regular(self._blobs / parse_digest(digest))


class LayoutBlobWriter:
    """One blob on its way into ``blobs``; see `BlobWriter`."""

    def __init__(self, file: TempFile, blobs: Path) -> None:
        self._file = file
        self._blobs = blobs
        self._hasher = hashlib.sha256()
        self._size = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._file.discard()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        with explained(str(self._file.path)):
            self._file.write(data)
        self._hasher.update(data)
        self._size += len(data)

    def commit(self, expected_digest: str | None = None) -> tuple[str, int]:
        digest = f"sha256:{self._hasher.hexdigest()}"
        if expected_digest not in (None, digest):
            raise IntegrityError(
                f"what was written to {self._blobs} is {digest}, not {expected_digest}",
                hint="the source is damaged or changed while it was read: try again",
            )
        with explained(f"blob {digest} in {self._blobs}"):
            self._file.publish(self._blobs / parse_digest(digest))
        return digest, self._size

"""A store in a registry: the OCI distribution specification 1.1.

    /v2/NAME/blobs/DIGEST            blobs, read in ranges
    /v2/NAME/manifests/TAG|DIGEST    manifests and indexes
    /v2/NAME/tags/list               tags, in pages
    /v2/NAME/blobs/uploads/          see `upload`

The registry may be hostile: nothing it says makes us take more than was asked for, wait longer than the
timeout, or believe a document that its digest does not prove.
"""

import itertools
import re
import threading
from collections import OrderedDict
from collections.abc import Generator, Iterator, Sequence
from typing import Self
from urllib.parse import urlencode

from lazyfs.errors import (
    BadInputError,
    IntegrityError,
    LazyfsError,
    LimitError,
    NotFoundError,
    StoreError,
    UsageError,
)
from lazyfs.formats.oci import MAX_DOCUMENT, parse_document, parse_index, parse_manifest
from lazyfs.formats.oci_descriptor import Descriptor, parse_digest, sha256_digest
from lazyfs.formats.oci_types import INDEX_TYPES, MANIFEST_TYPES, OCI_INDEX
from lazyfs.formats.strict_json import MAX_INTEGER, load
from lazyfs.stores.base import (
    STREAM_PIECE,
    BlobWriter,
    Store,
    check_complete,
    named,
    read_verified,
    verify,
    write_blob,
)
from lazyfs.stores.options import StoreOptions
from lazyfs.stores.reference import DEFAULT_TAG
from lazyfs.stores.referrers import is_of_type, read_list, referrers_tag, tag_referrer
from lazyfs.stores.registry.answers import TemporaryError
from lazyfs.stores.registry.blobs import blob_size, read_pieces, read_range, stream_blob
from lazyfs.stores.registry.client import RegistryClient
from lazyfs.stores.registry.connection import Response, join_url, split_url
from lazyfs.stores.registry.names import RepositoryName, check_registry_tag, is_registry_tag
from lazyfs.stores.registry.server import Request
from lazyfs.stores.registry.upload import RegistryBlobWriter, mount_blob

_DOCUMENT_TYPES = MANIFEST_TYPES | INDEX_TYPES
_ACCEPT = {"Accept": ", ".join(sorted(_DOCUMENT_TYPES))}
_GENERIC_TYPES = frozenset({"", "application/json", "application/octet-stream", "text/plain"})
_PAGE = 1000
_PAGE_FOR_HINT = 100
_MAX_PAGE = 8 << 20
_MAX_TAGS = 100_000
_MAX_PAGES = 1000
_MAX_TAGS_SHOWN = 12
_MAX_COMPARED = 16
_MAX_KEPT = 16 << 20
# Signatures, referrers and records of the converter lie under tags that are digests of what they belong to.
_ATTACHED = re.compile(r"sha256-[0-9a-f]{64}(?:\..*)?")
_NEXT = re.compile(r'<([^>]*)>\s*;[^,]*rel="?next"?')


class RegistryStore:
    """A repository as a `Store`; with ``create`` only the server that takes uploads is asked."""

    def __init__(self, name: RepositoryName, options: StoreOptions, *, create: bool = False) -> None:
        self._name = name
        self._writable = create
        self._client = RegistryClient(name, options, push=create)
        self._documents = _Documents()
        self._has_referrers_api = True

    @property
    def url(self) -> str:
        return self._client.url

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        self._client.close()

    def read(self, digest: str, offset: int, length: int) -> bytes:
        parse_digest(digest)
        if offset < 0 or length < 0 or offset + length > MAX_INTEGER:
            raise StoreError(f"blob {digest} in {self.url} has no range of {length} bytes at {offset}")
        return read_range(self._client, digest, offset, length)

    def read_pieces(self, digest: str, offset: int, lengths: Sequence[int]) -> Generator[bytes]:
        parse_digest(digest)
        if offset < 0 or min(lengths, default=0) < 0 or offset + sum(lengths) > MAX_INTEGER:
            raise StoreError(f"blob {digest} in {self.url} has no range of {sum(lengths)} bytes at {offset}")
        return read_pieces(self._client, digest, offset, lengths)

    def stream(self, digest: str, offset: int = 0, piece: int = STREAM_PIECE) -> Generator[bytes]:
        parse_digest(digest)
        return stream_blob(self._client, digest, offset, piece)

    def has(self, digest: str) -> int | None:
        parse_digest(digest)
        return blob_size(self._client, digest)

    def resolve(self, tag_or_digest: str | None) -> Descriptor:
        if tag_or_digest is None:
            return self._only_image()
        if tag_or_digest.startswith("sha256:"):
            parse_digest(tag_or_digest)
            return self._manifest(tag_or_digest, "pull")
        try:
            check_registry_tag(tag_or_digest)
            return self._manifest(tag_or_digest, "resolve")
        except NotFoundError as error:
            raise NotFoundError(error.message, hint=self._tag_hint()) from error

    def tags(self) -> list[str]:
        found: set[str] = set()
        query: str | None = urlencode({"n": _PAGE})
        for _ in range(_MAX_PAGES):
            if query is None or len(found) > _MAX_TAGS:
                break
            try:
                page, query = self._tags_page(query)
            except NotFoundError:
                # A repository comes into being with its first image.
                return sorted(found)
            found.update(page)
        if query is not None:
            raise LimitError(
                f"{self.url} has more tags than the limit of {_MAX_TAGS}", hint="name the image by its digest"
            )
        return sorted(found)

    def get_document(self, descriptor: Descriptor, limit: int = MAX_DOCUMENT) -> bytes:
        if descriptor.media_type not in _DOCUMENT_TYPES:
            return read_verified(self, descriptor, limit)
        data = self._documents.get(descriptor.digest)
        if data is not None:
            return verify([data], descriptor, self.url, limit)
        data = verify(self._fetch_manifest(descriptor), descriptor, self.url, limit)
        self._documents.keep(descriptor.digest, data)
        return data

    def put_document(self, data: bytes, media_type: str) -> Descriptor:
        digest = sha256_digest(data)
        if media_type in _DOCUMENT_TYPES:
            self._put_manifest(digest, data, media_type)
        else:
            write_blob(self, data)
        return Descriptor(media_type, digest, len(data))

    def writer(self) -> BlobWriter:
        self._check_writable()
        return RegistryBlobWriter(self._client)

    def adopt(self, source: Store, digest: str) -> bool:
        """Take a blob from another repository of the same registry without moving its bytes, if that can be."""
        self._check_writable()
        if not isinstance(source, RegistryStore) or source._name.host != self._name.host:
            return False
        return mount_blob(self._client, digest, source._name.path)

    def put_tag(self, tag: str, descriptor: Descriptor) -> None:
        check_registry_tag(tag)
        check_complete(self, descriptor)
        self._put_manifest(tag, self.get_document(descriptor), descriptor.media_type)

    def referrers(self, digest: str, artifact_type: str) -> list[Descriptor]:
        parse_digest(digest)
        if self._has_referrers_api:
            query = f"?{urlencode({'artifactType': artifact_type})}" if artifact_type else ""
            request = Request(
                "GET",
                f"referrers/{digest}{query}",
                f"referrers of {digest}",
                headers={"Accept": OCI_INDEX},
            )
            try:
                data = self._client.run(request, lambda answer: answer.read_all(MAX_DOCUMENT))
                with named(f"referrers of {digest} in {self.url}"):
                    listed = parse_index(data).manifests
                return [item for item in listed if is_of_type(item, artifact_type)]
            except (NotFoundError, BadInputError):
                # What answers something else is a registry that is older than the API.
                self._has_referrers_api = False
        try:
            found = self._manifest(referrers_tag(digest), "pull")
        except NotFoundError:
            return []
        return [item for item in read_list(self, found) if is_of_type(item, artifact_type)]

    def put_referrer(self, subject: Descriptor, referrer: Descriptor) -> None:
        # Written again, since only the answer to a PUT says whether the registry keeps the list itself.
        kept = self._put_manifest(referrer.digest, self.get_document(referrer), referrer.media_type)
        if not kept:
            tag_referrer(self, subject, referrer)

    def _check_writable(self) -> None:
        if not self._writable:
            raise StoreError(f"{self.url} was opened for reading alone")

    def _put_manifest(self, name: str, data: bytes, media_type: str) -> bool:
        """Does the registry keep a list of what refers to the subject?"""
        self._check_writable()
        headers = {"Content-Type": media_type}
        accepted = frozenset({200, 201, 202})
        what = f"manifest {name}" if name.startswith("sha256:") else f"tag {name}"
        request = Request("PUT", f"manifests/{name}", what, "push", headers, data, accepted)
        deadline = self._client.deadline()
        for attempt in itertools.count(1):
            try:
                keeps_list = self._client.run(request, lambda answer: "OCI-Subject" in answer.headers)
                break
            except (NotFoundError, StoreError) as error:
                if isinstance(error, StoreError) and "BLOB_UNKNOWN" not in error.message:
                    raise
                failure = StoreError(error.message, hint="write every blob before the manifest that names it")
                if not self._has_all_of(data, media_type):
                    raise failure from error
                # While another client commits a blob, distribution's registry may lose sight of it for a moment.
                self._client.pause(TemporaryError(failure), attempt, deadline)
        self._documents.keep(sha256_digest(data), data)
        return keeps_list

    def _has_all_of(self, data: bytes, media_type: str) -> bool:
        if media_type not in MANIFEST_TYPES:
            return False
        manifest = parse_manifest(data)
        return all(self.has(item.digest) == item.size for item in (manifest.config, *manifest.layers))

    def _manifest(self, name: str, capability: str) -> Descriptor:
        """Fetch a manifest or an index; it is kept, since whoever resolves a name reads what it names."""
        request = self._manifest_request(name, capability)
        data, media_type, promised = self._client.run(request, _read_manifest)
        if len(data) > MAX_DOCUMENT:
            raise LimitError(f"{request.what} in {self.url} is larger than the limit of {MAX_DOCUMENT} bytes")
        digest = sha256_digest(data)
        if name.startswith("sha256:"):
            promised = name
        if promised not in ("", digest):
            raise IntegrityError(
                f"{request.what} in {self.url} has other bytes than its digest {promised} promises",
                hint="copy the image there again",
            )
        if media_type not in _DOCUMENT_TYPES and media_type in _GENERIC_TYPES:
            with named(f"{request.what} in {self.url}"):
                media_type = parse_document(data).media_type
        self._documents.keep(digest, data)
        return Descriptor(media_type, digest, len(data))

    def _fetch_manifest(self, descriptor: Descriptor) -> Iterator[bytes]:
        request = self._manifest_request(descriptor.digest, "pull")
        yield self._client.run(request, lambda answer: answer.read_all(descriptor.size))

    def _manifest_request(self, name: str, capability: str) -> Request:
        what = f"manifest {name}" if name.startswith("sha256:") else f"tag {name}"
        return Request("GET", f"manifests/{name}", what, capability, _ACCEPT)

    def _only_image(self) -> Descriptor:
        try:
            return self._manifest(DEFAULT_TAG, "resolve")
        except NotFoundError:
            tags = [tag for tag in self.tags() if not _ATTACHED.fullmatch(tag)]
        if not tags:
            raise NotFoundError(
                f"{self.url} has no image",
                hint="check the name; `skopeo copy` or `lazyfs convert` puts one there",
            )
        if len(tags) <= _MAX_COMPARED:
            images = {image.digest: image for image in (self._manifest(tag, "resolve") for tag in tags)}
            if len(images) == 1:
                return next(iter(images.values()))
        raise UsageError(f"{self.url} has {len(tags)} tags and none is latest", hint=_shown(tags))

    def _tag_hint(self) -> str:
        try:
            tags, _ = self._tags_page(urlencode({"n": _PAGE_FOR_HINT}))
        except LazyfsError:
            return "check the name of the repository"
        return _shown([tag for tag in tags if not _ATTACHED.fullmatch(tag)])

    def _tags_page(self, query: str) -> tuple[list[str], str | None]:
        return self._client.run(Request("GET", f"tags/list?{query}", "tags", "resolve"), _read_tags)


class _Documents:
    """The last few manifests that were read or written, by digest. Thread safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: OrderedDict[str, bytes] = OrderedDict()
        self._size = 0

    def get(self, digest: str) -> bytes | None:
        with self._lock:
            return self._kept.get(digest)

    def keep(self, digest: str, data: bytes) -> None:
        with self._lock:
            self._size += len(data) - len(self._kept.pop(digest, b""))
            self._kept[digest] = data
            while self._size > _MAX_KEPT:
                self._size -= len(self._kept.popitem(last=False)[1])


def _read_manifest(answer: Response) -> tuple[bytes, str, str]:
    """Its bytes, its type and its digest, as far as the registry says these."""
    data = answer.read_all(MAX_DOCUMENT)
    media_type = answer.headers.get("Content-Type", "").partition(";")[0].strip()
    return data, media_type, answer.headers.get("Docker-Content-Digest", "").strip()


def _read_tags(answer: Response) -> tuple[list[str], str | None]:
    """One page of tags, and the query of the next."""
    tags = load(answer.read_all(_MAX_PAGE), "list of tags", _MAX_PAGE).texts("tags")
    match = _NEXT.search(answer.headers.get("Link", ""))
    _, target = split_url(join_url(answer.url, match[1])) if match else (None, "")
    return [tag for tag in tags if is_registry_tag(tag)], target.partition("?")[2] or None


def _shown(tags: list[str]) -> str:
    if not tags:
        return "it has no tags: check its name, or name an image by its digest"
    more = f" and {len(tags) - _MAX_TAGS_SHOWN} more" if len(tags) > _MAX_TAGS_SHOWN else ""
    return f"its tags are: {', '.join(tags[:_MAX_TAGS_SHOWN])}{more}"

"""A store in a bucket: ``s3://BUCKET/[PREFIX/]REPOSITORY[:tag]``, the OCI image layout as keys.

    PREFIX/oci-layout                       {"imageLayoutVersion": "1.0.0"}
    PREFIX/blobs/sha256/<hex>               the blobs, shared by all repositories below PREFIX
    PREFIX/blobs/_uploads/<random>          large blobs on their way there, see `s3_upload`
    PREFIX/REPOSITORY/_tags/<tag>           an OCI index that holds one descriptor: an index.json of its own

The last part of a path is the repository. A layout has one index.json; here each tag has one, written by a
single PUT: writers of different tags never meet, whatever the server knows of conditional writes, and to
resolve a tag is one GET. In the key a tag is percent-encoded. A copy of ``_tags/<tag>`` as ``index.json``
beside ``oci-layout`` and ``blobs`` is a layout for every other tool.
"""

import hashlib
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Self
from urllib.parse import quote, unquote

from lazyfs.errors import BadInputError, NotFoundError, StoreError, UsageError
from lazyfs.formats.oci import MAX_DOCUMENT, Index, parse_index
from lazyfs.formats.oci_descriptor import Descriptor, parse_digest
from lazyfs.formats.oci_types import OCI_INDEX, REF_NAME_ANNOTATION
from lazyfs.formats.strict_json import MAX_INTEGER, dump, short
from lazyfs.stores._index import LAYOUT_VERSION, resolve_digest, tag_of, tags_hint
from lazyfs.stores.base import STREAM_PIECE, BlobWriter, check_complete, named, read_verified, write_blob
from lazyfs.stores.options import StoreOptions
from lazyfs.stores.reference import DEFAULT_TAG, check_tag
from lazyfs.stores.referrers import tag_referrer, tagged_referrers
from lazyfs.stores.s3_bucket import Bucket, open_bucket
from lazyfs.stores.s3_upload import S3BlobWriter, remove_abandoned, to_base64

_MAX_KEY = 1024
_JOBS = 16
_STREAM_RANGE = 4 << 20
_STREAM_AHEAD = 4
_LARGE = 64 << 20


class S3Store:
    """A repository in a bucket as a `Store`; ``location`` is that of its reference."""

    def __init__(self, location: str, options: StoreOptions, *, create: bool = False) -> None:
        bucket, _, path = location.partition("/")
        prefix, slash, _ = path.rpartition("/")
        self._location = location
        self._prefix = f"{prefix}{slash}"
        self._tags = f"{path}/_tags/"
        self._open_bucket: Bucket | None = open_bucket(bucket, options)
        self._mark = f"{self._prefix}oci-layout"
        self._uploads_cleaned = False
        # What is wrong is better told now than after an hour of converting.
        self._is_marked = create and self._bucket.check(self._mark)

    @property
    def url(self) -> str:
        return f"s3://{self._location}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        self._open_bucket = None

    def read(self, digest: str, offset: int, length: int) -> bytes:
        key, what = self._blob(digest)
        if not 0 < length <= _LARGE or offset < 0 or offset + length > MAX_INTEGER:
            # Rare, and not to be asked of a server as it is: an answer may be as large as its object.
            size = self._size(digest)
            if length < 0 or offset < 0 or offset + length > size:
                raise self._outside(what, size, offset, length)
            if length == 0:
                return b""
        data, size = self._bucket.get(key, offset, length, what)
        if len(data) != length:
            raise self._outside(what, size, offset, length)
        return data

    def read_pieces(self, digest: str, offset: int, lengths: Sequence[int]) -> Generator[bytes]:
        key, what = self._blob(digest)
        total = sum(lengths)
        if offset < 0 or min(lengths, default=0) < 0 or offset + total > MAX_INTEGER:
            raise self._outside(what, self._size(digest), offset, total)
        arriving = self._bucket.arriving(key, offset, total, what)
        kept = bytearray()
        for length in lengths:
            while len(kept) < length:
                some = next(arriving, None)
                if some is None:
                    raise self._outside(what, self._size(digest), offset, total)
                kept += some
            yield bytes(memoryview(kept)[:length])
            del kept[:length]

    def stream(self, digest: str, offset: int = 0, piece: int = STREAM_PIECE) -> Generator[bytes]:
        key, what = self._blob(digest)
        first, size = self._bucket.get(key, offset, _STREAM_RANGE, what)
        yield from _pieces(first, piece)
        starts = iter(range(offset + _STREAM_RANGE, size, _STREAM_RANGE))
        ahead: deque[Future[bytes]] = deque()
        with ThreadPoolExecutor(_STREAM_AHEAD) as pool:
            try:
                while True:
                    while len(ahead) < _STREAM_AHEAD and (start := next(starts, None)) is not None:
                        length = min(_STREAM_RANGE, size - start)
                        ahead.append(pool.submit(self.read, digest, start, length))
                    if not ahead:
                        return
                    yield from _pieces(ahead.popleft().result(), piece)
            finally:
                for future in ahead:
                    future.cancel()

    def has(self, digest: str) -> int | None:
        key, what = self._blob(digest)
        return self._bucket.size(key, what)

    def resolve(self, tag_or_digest: str | None) -> Descriptor:
        if tag_or_digest is None:
            return self._only_image()
        if tag_or_digest.startswith("sha256:"):
            found = resolve_digest(self, tag_or_digest)
        else:
            found = self._tagged(tag_or_digest)
        if found is None:
            raise NotFoundError(
                f"{self.url} has no image {short(tag_or_digest)}", hint=tags_hint(self.tags())
            )
        return found

    def tags(self) -> list[str]:
        return sorted(unquote(name) for name in self._bucket.names(self._tags))

    def get_document(self, descriptor: Descriptor, limit: int = MAX_DOCUMENT) -> bytes:
        return read_verified(self, descriptor, limit)

    def put_document(self, data: bytes, media_type: str) -> Descriptor:
        digest, size = write_blob(self, data)
        return Descriptor(media_type, digest, size)

    def writer(self) -> BlobWriter:
        if not self._uploads_cleaned:
            self._uploads_cleaned = True
            remove_abandoned(self._bucket, self._prefix)
        return S3BlobWriter(self._bucket, self._prefix, lambda digest: self._blob(digest)[0])

    def put_tag(self, tag: str, descriptor: Descriptor) -> None:
        check_tag(tag)
        key = self._tag_key(tag)
        check_complete(self, descriptor, jobs=_JOBS)
        if not self._is_marked:
            self._put(self._mark, dump({"imageLayoutVersion": LAYOUT_VERSION}), "application/json")
            self._is_marked = True
        entry = replace(descriptor, annotations={**descriptor.annotations, REF_NAME_ANNOTATION: tag})
        self._put(key, Index((entry,)).to_bytes(), OCI_INDEX)

    def referrers(self, digest: str, artifact_type: str) -> list[Descriptor]:
        return tagged_referrers(self, digest, artifact_type)

    def put_referrer(self, subject: Descriptor, referrer: Descriptor) -> None:
        tag_referrer(self, subject, referrer)

    def _put(self, key: str, data: bytes, media_type: str) -> None:
        checksum = to_base64(hashlib.sha256(data).digest())
        self._bucket.put(key, data, checksum, f"s3://{self._bucket.name}/{key}", media_type)

    @property
    def _bucket(self) -> Bucket:
        bucket = self._open_bucket
        if bucket is None:
            raise StoreError(f"{self.url} cannot be used: the store is closed")
        return bucket

    def _blob(self, digest: str) -> tuple[str, str]:
        """The key of a blob, and its name in errors."""
        digits = parse_digest(digest)
        return f"{self._prefix}blobs/sha256/{digits}", f"blob {digest} in {self.url}"

    def _size(self, digest: str) -> int:
        size = self.has(digest)
        if size is None:
            raise NotFoundError(f"blob {digest} is not in {self.url}", hint="copy the image there again")
        return size

    @staticmethod
    def _outside(what: str, size: int, offset: int, length: int) -> StoreError:
        return StoreError(
            f"{what} has {size} bytes, so none can be read from {offset} to {offset + length}",
            hint="the blob is truncated: copy the image there again",
        )

    def _tag_key(self, tag: str) -> str:
        key = f"{self._tags}{quote(tag, safe='')}"
        if len(key) > _MAX_KEY:
            raise UsageError(
                f"tag {short(tag)} is too long for a key in a bucket", hint="choose a shorter one"
            )
        return key

    def _tagged(self, tag: str) -> Descriptor | None:
        key = self._tag_key(tag)
        where = f"s3://{self._bucket.name}/{key}"
        try:
            data, _ = self._bucket.get(key, 0, MAX_DOCUMENT + 1, where)
        except NotFoundError:
            return None
        with named(where):
            for item in parse_index(data).manifests:
                if tag_of(item) == tag:
                    return item
            raise BadInputError(f"does not name an image {short(tag)}", hint="set the tag again")

    def _only_image(self) -> Descriptor:
        latest = self._tagged(DEFAULT_TAG)
        if latest is not None:
            return latest
        tags = self.tags()
        with ThreadPoolExecutor(_JOBS) as pool:
            items = [item for item in pool.map(self._tagged, tags) if item is not None]
        found = {item.digest: item for item in items if not item.artifact_type}
        if len(found) > 1:
            raise UsageError(
                f"{self.url} has {len(found)} images and none is tagged latest", hint=tags_hint(tags)
            )
        if not found:
            raise NotFoundError(f"{self.url} has no image", hint="copy one there, or convert one")
        return next(iter(found.values()))


def _pieces(data: bytes, size: int) -> Iterator[bytes]:
    for at in range(0, len(data), size):
        yield data[at : at + size]

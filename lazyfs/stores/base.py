"""What a store of images is, and what every store shares.

A store is dumb on purpose: bytes by digest, documents, tags. Which layer is fetched when, and whether its
chunks are right, is decided above it; how bytes travel is decided within it.
"""

import hashlib
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from functools import partial
from itertools import chain
from typing import Protocol, Self, runtime_checkable

from lazyfs.errors import IntegrityError, LazyfsError, LimitError, NotFoundError, StoreError
from lazyfs.formats.oci import MAX_DOCUMENT, parse_index, parse_manifest
from lazyfs.formats.oci_descriptor import Descriptor, sha256_digest
from lazyfs.formats.oci_types import FOREIGN_LAYER_TYPES, INDEX_TYPES, MANIFEST_TYPES

STREAM_PIECE = 1 << 20
_MAX_NESTING = 4  # an index may name indexes; more levels than these are an attack


class BlobWriter(Protocol):
    """One blob being written. Leaving the context without `commit` leaves nothing behind."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *exc_info: object) -> None: ...

    def write(self, data: bytes | bytearray | memoryview) -> None: ...

    def commit(self, expected_digest: str | None = None) -> tuple[str, int]:
        """Make the blob visible, safe from a crash, under its digest; returns digest and size.

        Nothing becomes visible and IntegrityError is raised when the digest is not the expected one.
        Committing what is already there is no error.
        """
        ...


class Store(Protocol):
    """Where images live: a directory, an archive, a registry or a bucket alike.

    The life of a store, told by what its users do:

    *Open.* `open_store` looks whether it is there (or makes it) and keeps what may be kept: connections,
    descriptors. All methods may be called from many threads at once; a `BlobWriter` belongs to one thread
    at a time.

    *Read.* `resolve` turns a tag into the descriptor of a manifest or an index. `get_document` reads those,
    and configs: whole and verified. Layers are read in ranges by `read`, or whole by `stream`, and are not
    verified here: a range has no digest of its own that a store would know.

    *Write.* Blobs first, each through a `writer`; then the documents that name them, by `put_document`; the
    tag last, by `put_tag`. A reader therefore sees an image whole or not at all, and a writer that is killed
    leaves at most blobs that nothing names. Writers of the same blob or the same tag do each other no harm;
    of two that put one tag the last wins.

    *Close.* A store is a context manager; `close` gives back what it holds. A read under way in another
    thread ends as it would have; later ones are a StoreError.

    Errors: NotFoundError when what was named is not there, IntegrityError when bytes are not what their
    digest promised, StoreError when the store does not answer as it must. Only the last may pass by trying
    again.
    """

    @property
    def url(self) -> str:
        """The store's name for messages; never holds a secret."""
        ...

    def read(self, digest: str, offset: int, length: int) -> bytes:
        """One ranged get: exactly ``length`` bytes of a blob, else StoreError or NotFoundError."""
        ...

    def read_pieces(self, digest: str, offset: int, lengths: Sequence[int]) -> Generator[bytes]:
        """One ranged get of neighbouring pieces, each given as soon as it has come: exactly ``lengths`` bytes.

        Opened when the first is asked for. Each piece has the time of one `read`. Errors as of `read`, at the
        piece that cannot be had. Whoever stops early closes the iterator.
        """
        ...

    def stream(self, digest: str, offset: int = 0, piece: int = STREAM_PIECE) -> Generator[bytes]:
        """The blob from ``offset`` to its end, unverified; opened when the first piece is asked for.

        Pieces have about ``piece`` bytes: smaller ones can be used sooner, larger ones cost less.
        """
        ...

    def has(self, digest: str) -> int | None:
        """The size of a blob, or None when it is not there."""
        ...

    def resolve(self, tag_or_digest: str | None) -> Descriptor:
        """The manifest or index of that name.

        None means the only image of the store, else the one tagged ``latest``; UsageError lists the tags
        when that is not clear.
        """
        ...

    def tags(self) -> list[str]: ...

    def get_document(self, descriptor: Descriptor, limit: int = MAX_DOCUMENT) -> bytes:
        """A manifest, an index or a config: whole, its size and digest verified."""
        ...

    def put_document(self, data: bytes, media_type: str) -> Descriptor:
        """Store a manifest, an index or a config (a registry keeps the first two apart from blobs)."""
        ...

    def writer(self) -> BlobWriter: ...

    def put_tag(self, tag: str, descriptor: Descriptor) -> None:
        """Let ``tag`` name the manifest or index that ``descriptor`` points to, in one atomic step.

        StoreError when one of the blobs that it names, directly or through manifests, is not in the store
        with the size it says; so a store never shows a tag whose blobs are missing.
        """
        ...

    def referrers(self, digest: str, artifact_type: str) -> list[Descriptor]:
        """The artifacts of this type that have the manifest of this digest as their subject, the latest last.

        An empty type means all of them.
        Their annotations are those of the artifacts. Anybody who may write to the store may have put them there.
        """
        ...

    def put_referrer(self, subject: Descriptor, referrer: Descriptor) -> None:
        """Let ``referrer``, an artifact that was put and has ``subject``, be found by `referrers`.

        Where the store keeps the list by a tag, what lazyfs made takes the place of what it made before.
        """
        ...

    def close(self) -> None: ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *exc_info: object) -> None: ...


@runtime_checkable
class Adopting(Protocol):
    """A store that can take a blob from a sister without moving its bytes (a registry mounts it)."""

    def adopt(self, source: Store, digest: str) -> bool:
        """Have the blob of `source` here as well; False where that cannot be, and it must be copied."""
        ...


def pieces_of_reads(store: Store, digest: str, offset: int, lengths: Sequence[int]) -> Generator[bytes]:
    """`Store.read_pieces` where each read costs next to nothing."""
    for length in lengths:
        yield store.read(digest, offset, length)
        offset += length


def read_verified(store: Store, descriptor: Descriptor, limit: int) -> bytes:
    """Read a small blob whole and check it as `verify` does.

    This is `Store.get_document` for stores that keep documents as blobs.
    """
    with closing(store.stream(descriptor.digest)) as pieces:
        return verify(pieces, descriptor, store.url, limit)


def verify(pieces: Iterable[bytes], descriptor: Descriptor, url: str, limit: int) -> bytes:
    """Join the pieces of a document out of the store ``url``, never holding more than ``limit`` bytes.

    LimitError when the descriptor says more, before a piece is asked for; IntegrityError when size or sha256
    are not those that it says.
    """
    if descriptor.size > limit:
        raise LimitError(
            f"{descriptor.digest} in {url} has {descriptor.size} bytes, the limit is {limit}",
            hint="the document that names it may be damaged; make or copy the image again",
        )
    kept: list[bytes] = []
    size = 0
    hasher = hashlib.sha256()
    for piece in pieces:
        size += len(piece)
        if size > descriptor.size:
            break
        hasher.update(piece)
        kept.append(piece)
    if size != descriptor.size:
        more = "more than " if size > descriptor.size else ""
        raise IntegrityError(
            f"{descriptor.digest} in {url} has {more}{min(size, descriptor.size)} bytes, "
            f"not {descriptor.size} as its descriptor says",
            hint="copy the image there again",
        )
    if f"sha256:{hasher.hexdigest()}" != descriptor.digest:
        raise IntegrityError(
            f"{descriptor.digest} in {url} has other bytes than its digest promises",
            hint="copy the image there again",
        )
    return b"".join(kept)


@contextmanager
def named(what: object) -> Iterator[None]:
    """Say in every error of ours what it is about; a document does not know where it was found."""
    try:
        yield
    except LazyfsError as error:
        raise type(error)(f"{what}: {error.message}", hint=error.hint) from error


def write_blob(store: Store, data: bytes) -> tuple[str, int]:
    """Store one small blob; returns digest and size."""
    with store.writer() as writer:
        writer.write(data)
        return writer.commit(sha256_digest(data))


def check_complete(store: Store, descriptor: Descriptor, *, jobs: int = 1) -> None:
    """StoreError unless every blob that ``descriptor`` leads to is in the store, with its size.

    A foreign layer may be absent; a manifest of an unknown kind counts as a blob that names nothing.
    IntegrityError when a manifest on the way is damaged. ``jobs`` blobs are asked for at once: more than one
    where answers come from far away.
    """
    seen: set[str] = set()
    level = [descriptor]
    with ThreadPoolExecutor(jobs) as pool:
        for _ in range(_MAX_NESTING):
            new = {item.digest: item for item in level if item.digest not in seen}
            seen |= new.keys()
            level = list(chain.from_iterable(pool.map(partial(_children, store), new.values())))
            if not level:
                return
    raise StoreError(
        f"{descriptor.digest} nests documents deeper than {_MAX_NESTING} levels", hint="make the image again"
    )


def _children(store: Store, descriptor: Descriptor) -> list[Descriptor]:
    try:
        if descriptor.media_type in INDEX_TYPES:
            return list(parse_index(store.get_document(descriptor)).manifests)
        if descriptor.media_type in MANIFEST_TYPES:
            manifest = parse_manifest(store.get_document(descriptor))
            return [manifest.config, *manifest.layers]
    except NotFoundError:
        size = None
    else:
        size = store.has(descriptor.digest)
    if size is None and descriptor.media_type not in FOREIGN_LAYER_TYPES:
        raise StoreError(
            f"{descriptor.digest} is not in {store.url}, so no tag may lead to it",
            hint="write every blob before the tag",
        )
    if size is not None and size != descriptor.size:
        raise StoreError(
            f"{descriptor.digest} in {store.url} has {size} bytes, not {descriptor.size}",
            hint="copy the image there again",
        )
    return []

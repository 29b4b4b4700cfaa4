"""A mirror that fails or lacks a blob is left alone for a while, and never hides what it gives."""

import time
from collections.abc import Generator, Sequence
from typing import cast

import pytest

from lazyfs.errors import LazyfsError, NotFoundError, StoreError
from lazyfs.stores import Store
from lazyfs.stores.mirror import ASIDE_SECONDS, MirrorStore


class Asked:
    """A store that gives what it is told to, and counts."""

    url = "s3://near/app"

    def __init__(self) -> None:
        self.error: LazyfsError | None = None
        self.count = 0

    def read_pieces(self, digest: str, offset: int, lengths: Sequence[int]) -> Generator[bytes]:
        self.count += 1
        yield b"first"
        if self.error is not None:
            raise self.error
        yield b"second"


@pytest.fixture
def asked() -> Asked:
    return Asked()


@pytest.fixture
def mirror(asked: Asked) -> MirrorStore:
    return MirrorStore(cast(Store, asked))


def read(mirror: MirrorStore, digest: str = "a") -> list[bytes]:
    return list(mirror.read_pieces(digest, 0, [5, 6]))


def test_it_gives_what_the_store_gives(mirror: MirrorStore) -> None:
    assert read(mirror) == read(mirror) == [b"first", b"second"]
    assert mirror.url == "s3://near/app"


def test_one_that_fails_is_left_alone_for_a_while(
    mirror: MirrorStore, asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked.error = StoreError("no answer")
    pieces = mirror.read_pieces("a", 0, [5, 6])
    assert next(pieces) == b"first"
    with pytest.raises(StoreError, match="no answer"):
        next(pieces)
    for digest in ("a", "b"):
        with pytest.raises(StoreError, match="failed a moment ago"):
            read(mirror, digest)
    assert asked.count == 1
    asked.error = None
    later = time.monotonic() + ASIDE_SECONDS
    monkeypatch.setattr(time, "monotonic", lambda: later)
    assert read(mirror) == [b"first", b"second"]


def test_a_blob_that_it_lacks_keeps_it_from_no_other(mirror: MirrorStore, asked: Asked) -> None:
    asked.error = NotFoundError("not here")
    for _ in range(2):
        with pytest.raises(NotFoundError):
            read(mirror)
    assert asked.count == 1
    asked.error = None
    assert read(mirror, "b") == [b"first", b"second"]

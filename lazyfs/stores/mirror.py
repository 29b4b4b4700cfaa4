"""A store that is asked before another that has the same blobs, and must never keep readers from that one.

One that fails is left alone for a while, so that it costs one wait and not one for each read; a blob that it
lacks is not asked for again soon.
"""

import logging
import threading
import time
from collections.abc import Generator, Sequence
from typing import Any

from lazyfs.errors import NotFoundError, StoreError
from lazyfs.stores.base import Store

log = logging.getLogger(__name__)

PATIENCE = 4.0
"""Seconds that one read of a mirror may take, for who opens it."""
ASIDE_SECONDS = 30.0
_MAX_LACKING = 4096


class MirrorStore:
    """The `Store` that it is made of; ranges of blobs are read as said above. Thread safe."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._aside_until = 0.0
        self._lacking: dict[str, float] = {}

    def read_pieces(self, digest: str, offset: int, lengths: Sequence[int]) -> Generator[bytes]:
        """See `Store.read_pieces`."""
        self._check(digest)
        try:
            yield from self._store.read_pieces(digest, offset, lengths)
        except NotFoundError:
            with self._lock:
                if len(self._lacking) >= _MAX_LACKING:
                    self._lacking.clear()
                self._lacking[digest] = time.monotonic() + ASIDE_SECONDS
            raise
        except StoreError as error:
            with self._lock:
                self._aside_until = time.monotonic() + ASIDE_SECONDS
            log.warning("the mirror %s is left alone for %.0f s: %s", self._store.url, ASIDE_SECONDS, error)
            raise

    def close(self) -> None:
        self._store.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def _check(self, digest: str) -> None:
        now = time.monotonic()
        with self._lock:
            if now < self._aside_until:
                raise StoreError(f"the mirror {self._store.url} failed a moment ago")
            if now < self._lacking.get(digest, 0.0):
                raise NotFoundError(f"the mirror {self._store.url} has no blob {digest}")

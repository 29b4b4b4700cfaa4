"""A small cache of open blobs, shared by reading threads."""

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from lazyfs.errors import StoreError


class _Handle:
    __slots__ = ("cached", "descriptor", "users")

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.users = 0
        self.cached = True


class HandleCache:
    """Keeps up to ``capacity`` descriptors open, the least recently used go first.

    A descriptor in use is never closed: `_lock` guards the table and the counts of users, and whoever ends
    the last use of a handle that left the table closes it. No system call but close(2) and fstat(2) is
    made under the lock.
    """

    def __init__(self, open_blob: Callable[[str], int], capacity: int) -> None:
        self._open_blob = open_blob
        self._capacity = capacity
        self._lock = threading.Lock()
        self._handles: OrderedDict[str, _Handle] = OrderedDict()
        self._closed = False

    @contextmanager
    def lease(self, digest: str) -> Iterator[int]:
        """An open descriptor of that blob, good until the context ends."""
        handle = self._cached(digest) or self._opened(digest)
        try:
            yield handle.descriptor
        finally:
            with self._lock:
                handle.users -= 1
                self._close_if_idle(handle)

    def close(self) -> None:
        with self._lock:
            self._closed = True
            while self._handles:
                self._evict(next(iter(self._handles)))

    def _cached(self, digest: str) -> _Handle | None:
        with self._lock:
            handle = self._handles.get(digest)
            if handle is None:
                return None
            # The name now leads to another file: somebody replaced the blob, perhaps to mend it.
            if os.fstat(handle.descriptor).st_nlink == 0:
                self._evict(digest)
                return None
            self._handles.move_to_end(digest)
            handle.users += 1
            return handle

    def _opened(self, digest: str) -> _Handle:
        opened = _Handle(self._open_blob(digest))
        with self._lock:
            if self._closed:
                os.close(opened.descriptor)
                raise StoreError(f"blob {digest} cannot be read: the store is closed")
            if digest in self._handles:  # another thread was faster
                self._evict(digest)
            self._handles[digest] = opened
            opened.users += 1
            if len(self._handles) > self._capacity:
                self._evict(next(iter(self._handles)))
        return opened

    def _evict(self, digest: str) -> None:
        handle = self._handles.pop(digest)
        handle.cached = False
        self._close_if_idle(handle)

    @staticmethod
    def _close_if_idle(handle: _Handle) -> None:
        if not handle.cached and handle.users == 0:
            os.close(handle.descriptor)

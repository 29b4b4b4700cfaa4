"""A store that is opened when something is first asked of it: what is cached needs none, and none may be there."""

import threading
from typing import Any

from lazyfs.stores import Reference, Store, StoreOptions, open_store

_DEFAULTS = StoreOptions()


class OnDemandStore:
    """The `Store` that `reference` names: everything else of it is asked of the opened one. Thread safe."""

    def __init__(self, reference: Reference, options: StoreOptions = _DEFAULTS) -> None:
        self.url = str(reference)
        self._reference = reference
        self._options = options
        self._opened: Store | None = None
        self._lock = threading.Lock()

    def open(self) -> Store:
        """Raises LazyfsError where there is none; asking again tries anew."""
        with self._lock:
            if self._opened is None:
                self._opened = open_store(self._reference, options=self._options)
            return self._opened

    def __getattr__(self, name: str) -> Any:
        return getattr(self.open(), name)

    def close(self) -> None:
        if self._opened is not None:
            self._opened.close()

"""Locks by name: who does something for one name does not wait for those who do it for another."""

import threading


class NamedLocks:
    """One lock for each name. Thread safe."""

    def __init__(self) -> None:
        self._making = threading.Lock()
        self._locks: dict[str, threading.Lock] = {}

    def of(self, name: str) -> threading.Lock:
        with self._making:
            return self._locks.setdefault(name, threading.Lock())

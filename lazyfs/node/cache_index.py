"""Which layers of this node have a chunk: an index of digests over all of them.

A chunk costs 16 bytes of memory: half of a hash of its digest and length, and where it is. That is no proof: who
finds a chunk by it compares digests, and the bytes must match them. What is added is sorted in when somebody asks
next, so that opening a hundred layers costs one sort.
"""

import threading

import numpy as np
import numpy.typing as npt

from lazyfs.formats.chunks import DIGEST_SIZE, ChunkTable

MAX_FOUND = 16
"""Places that are looked at. Most chunks are in few layers, but one of zeros may be in all."""

_SPREAD = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1

_Keys = npt.NDArray[np.uint64]
_Places = npt.NDArray[np.uint32]


class DigestIndex:
    """Chunks of layers by digest and length. Thread safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._names: list[str] = []
        self._numbers: dict[str, int] = {}
        self._keys: _Keys = np.zeros(0, np.uint64)
        self._layers: _Places = np.zeros(0, np.uint32)
        self._chunks: _Places = np.zeros(0, np.uint32)
        self._new: list[tuple[int, _Keys]] = []

    def __contains__(self, layer: str) -> bool:
        return layer in self._numbers

    def __len__(self) -> int:
        """How many chunks."""
        with self._lock:
            self._sort_in()
            return len(self._keys)

    def add(self, layer: str, chunks: ChunkTable) -> None:
        if not len(chunks):
            return
        keys = _keys(chunks.digests, np.diff(chunks.start).astype(np.uint64))
        with self._lock:
            if layer not in self._numbers:
                self._numbers[layer] = len(self._names)
                self._names.append(layer)
                self._new.append((self._numbers[layer], keys))

    def remove(self, layer: str) -> None:
        with self._lock:
            self._sort_in()
            number = self._numbers.pop(layer, None)
            if number is not None:
                self._keep(self._layers != number)

    def find(self, digest: bytes, length: int) -> list[tuple[str, int]]:
        """(layer, chunk) of what may be this chunk, MAX_FOUND of them at most."""
        # As `_keys`, for one: asked for each chunk that is missing, and a twentieth of the time.
        key = np.uint64(int.from_bytes(digest[:8], "little") ^ (length * _SPREAD & _MASK))
        with self._lock:
            self._sort_in()
            first = int(self._keys.searchsorted(key, "left"))
            last = int(self._keys[first : first + MAX_FOUND].searchsorted(key, "right")) + first
            places = zip(self._layers[first:last].tolist(), self._chunks[first:last].tolist(), strict=True)
            return [(self._names[layer], chunk) for layer, chunk in places]

    def _sort_in(self) -> None:
        if not self._new:
            return
        numbers = [np.full(len(keys), number, np.uint32) for number, keys in self._new]
        chunks = [np.arange(len(keys), dtype=np.uint32) for _, keys in self._new]
        self._keys = np.concatenate((self._keys, *(keys for _, keys in self._new)))
        self._layers = np.concatenate((self._layers, *numbers))
        self._chunks = np.concatenate((self._chunks, *chunks))
        self._new.clear()
        self._keep(np.argsort(self._keys, kind="stable"))

    def _keep(self, which: npt.NDArray[np.bool_] | npt.NDArray[np.intp]) -> None:
        self._keys, self._layers, self._chunks = self._keys[which], self._layers[which], self._chunks[which]


def _keys(digests: bytes, lengths: _Keys) -> _Keys:
    first = np.frombuffer(digests, "<u8").reshape(-1, DIGEST_SIZE // 8)[:, 0]
    return np.asarray(first ^ (lengths * np.uint64(_SPREAD)), np.uint64)

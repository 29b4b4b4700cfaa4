"""Pages that a launch pack brings of an image whose files are FUSE's: given to the kernel when a file is opened.

The kernel takes pages only of files that it has looked up, and a daemon must look at nothing that it serves. So what
has come waits until somebody opens the file, and that open waits for the pages: then no read is needed. What comes
later goes to the kernel at once. Kept are numbers alone; the bytes are read from the layers' caches.
"""

import threading
from collections.abc import Callable, Sequence
from functools import partial
from itertools import product

from lazyfs.mount.image_files import ImageFiles
from lazyfs.node.cache import LayerCache
from lazyfs.node.launch import MAX_STORE, PutPages
from lazyfs.node.pack_places import PAGE

Span = tuple[int, int]


class HotFiles:
    """Of one image. Thread safe."""

    def __init__(
        self, files: Callable[[], ImageFiles], caches: Sequence[LayerCache], put_pages: PutPages
    ) -> None:
        """`caches` are those of the image's layers, lowest first."""
        self._files = files
        self._caches = caches
        self._put_pages = put_pages
        self._lock = threading.Lock()
        self._waiting: dict[int, list[Span]] = {}
        self._opened: set[int] = set()

    def take(self, layer: int, start: int, end: int) -> None:
        """[start, end) of a layer's device is in its cache. Not for the thread that answers the kernel."""
        at_once = []
        found = self._files().inside(layer, start, end)
        with self._lock:
            for number, low, high in found:
                if number in self._opened:
                    at_once.append((number, low, high))
                else:
                    self._waiting.setdefault(number, []).append((low, high))
        for number, low, high in at_once:
            if not self._give(number, [(low, high)]):
                with self._lock:  # the kernel has forgotten the file
                    self._opened.discard(number)
                    self._waiting.setdefault(number, []).append((low, high))

    def opened(self, number: int) -> Callable[[], object] | None:
        """A file is being opened: what there is to do first, by a thread that may wait."""
        with self._lock:
            self._opened.add(number)
            spans = self._waiting.pop(number, None)
        return partial(self._give, number, spans) if spans else None

    def _give(self, number: int, spans: Sequence[Span]) -> bool:
        """False where the kernel does not know the file."""
        files = self._files()
        for low, high in _joined(spans):
            found = self._whole_pages(files, number, low, high)
            for at in range(found[0], found[1], MAX_STORE):
                data = self._read(files, number, at, min(at + MAX_STORE, found[1]))
                if data and not self._put_pages(number, at, data):
                    return False
        return True

    def _whole_pages(self, files: ImageFiles, number: int, low: int, high: int) -> Span:
        """A page at the edge is left out where its other bytes are not here."""
        size = files.attributes(number).size
        first, last = low // PAGE * PAGE, min(-(-high // PAGE) * PAGE, size)
        inner = -(-low // PAGE) * PAGE, high // PAGE * PAGE
        for start, end in product((first, inner[0]), (last, inner[1])):
            edges = ((start, low), (high, end))
            if start < end and all(self._read(files, number, *edge) is not None for edge in edges):
                return start, end
        return low, low

    def _read(self, files: ImageFiles, number: int, low: int, high: int) -> bytes | None:
        """None where not all of it is here."""
        parts = []
        for layer, start, length in files.origins(number, low, max(0, high - low)):
            part = self._caches[layer].read(start, length)
            if part is None:
                return None
            parts.append(part)
        return b"".join(parts)


def _joined(spans: Sequence[Span]) -> list[Span]:
    joined: list[Span] = []
    for low, high in sorted(spans):
        if joined and low <= joined[-1][1]:
            joined[-1] = joined[-1][0], max(joined[-1][1], high)
        else:
            joined.append((low, high))
    return joined

"""A launch pack on its way into the node: streamed, proved, kept, and put where the kernel reads it.

    store -> pieces -> frames -> proved units -> cache on disk -> pages of the device files

Two threads for each start. The first reads the stream, proves units and puts them into the layers' caches; the
second takes what is there and gives whole pages to the kernel (`put_pages`), which may make it wait: for a page
that a reader waits for. So it is never the thread on which that reader's bytes depend.

What the node has is neither fetched nor unpacked again: of a pack whose index it has kept, only the frames that
hold something missing are asked for.

A read that overtakes the stream waits for its frame where that is sooner than a request of its own (`arrival`).
Whatever is wrong with a pack ends the launch and nothing else: who waited asks the store, as without a pack.
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

from lazyfs.errors import BadInputError, LazyfsError, NodeError, StoreError
from lazyfs.formats import pack
from lazyfs.formats.oci_descriptor import PackLocation
from lazyfs.formats.pack_read import Pack, Unit, check_document
from lazyfs.node.cache import LayerCache
from lazyfs.node.files import write_new
from lazyfs.node.pack_places import by_chunk, missing, page_ranges, unit_length
from lazyfs.node.pack_stream import PackStream
from lazyfs.node.timeline import Timeline
from lazyfs.stores.base import Store

log = logging.getLogger(__name__)

MAX_STORE = 1 << 20
"""Bytes given to the kernel at once."""
MAX_SKIP = 256 * 1024
"""Bytes of a pack that are rather received than left out by a request of their own."""
OPEN_PATIENCE = 60.0
"""Seconds until the kernel has opened a device: that long a start may take to mount it."""

_STOP_LOOK = 0.5

PutPages = Callable[[int, int, bytes], bool]
"""(device number, offset, bytes) -> did the kernel take them? False: it does not know the device (yet)."""


@dataclass(frozen=True, slots=True)
class Head:
    """What a pack begins with. `documents` by sha256 (hex), each with that digest."""

    index: pack.PackIndex
    documents: Mapping[str, bytes]


@dataclass(frozen=True, slots=True)
class LaunchLayer:
    """A layer of the image that is launched; `opened` waits until the kernel has opened file `inode`.

    `put_pages` gives it pages of the device.
    """

    inode: int
    cache: LayerCache
    opened: Callable[[float], bool]
    """Waits so many seconds."""
    put_pages: PutPages


@dataclass(slots=True)
class Progress:
    """How far a launch has come: `state` is looking, streaming, done, or refused for `reason`.

    Of `units` that the pack carries `present_units` were here before. Reads that could not be answered at once `waited`
    for the stream, or had `overtaken` it and asked the store; `missed` ones wanted what is not in the pack.
    """

    state: str = "looking"
    reason: str = ""
    units: int = 0
    unit_bytes: int = 0
    present_units: int = 0
    received: int = 0
    page_bytes: int = 0
    waited: int = 0
    overtaken: int = 0
    missed: int = 0
    missed_bytes: int = 0
    ended: float = 0.0


class Launch:
    """One pack on its way. `head` gives its index and documents; then `bind` it to the layers."""

    def __init__(self, store: Store, location: PackLocation, kept: Path, timeline: Timeline) -> None:
        """Starts at once. `kept` is where the index is, or shall be, on this machine."""
        self.location = location
        self.progress = Progress()
        self.head: Future[Head] = Future()
        self.arrived, self.finished = threading.Event(), threading.Event()
        self._store = store
        self._kept = kept
        self._timeline = timeline
        self._bound: Future[Sequence[LaunchLayer]] = Future()
        self._stream = PackStream(store, location)
        self._lock = threading.Lock()
        self._planned: Future[None] = Future()
        self._frame_of: dict[tuple[int, int, int], int] = {}
        self._arrivals: dict[int, Future[None]] = {}
        self._pack: Pack | None = None
        self._layers: Sequence[LaunchLayer] = ()
        self._stopped = False
        self._ready: SimpleQueue[int | None] = SimpleQueue()
        self._feeder = threading.Thread(target=self._feed, name="launch-pages", daemon=True)
        self._thread = threading.Thread(target=self._run, name="launch", daemon=True)
        self._thread.start()

    def bind(self, layers: Sequence[LaunchLayer]) -> None:
        """Go on with frames: the layers of the image, lowest first, whose TOCs have been proved."""
        with self._lock:
            if not self._bound.done():  # it may have been stopped just now
                self._bound.set_result(layers)

    def stop(self, reason: str = "stopped") -> None:
        """End it; who waits for a frame is told at once."""
        self._stopped = True
        with self._lock:
            if not self._bound.done():
                self._bound.set_exception(StoreError(reason))
        self._stream.close()

    def join(self, seconds: float) -> None:
        self._thread.join(seconds)

    def arrival(self, layer: int, cache: LayerCache, offset: int, length: int) -> "Future[None] | None":
        """When what is missing of [offset, offset + length) of a layer will be in its cache.

        None where it is not on its way, or would be there sooner by a request of its own. To be asked again then.
        """
        with self._lock:
            if self._is_planning():
                return self._planned
            if not self._frame_of:
                return None
            absent = missing(layer, cache, offset, length)
            frames = [self._frame_of.get(place, -1) for place in absent]
            if not frames or min(frames) < 0 or self._pack is None:
                self.progress.missed += 1
                self.progress.missed_bytes += length
                return None
            last = max(frames)
            stored = sum(int(cache.chunks.blob_length[chunk]) for chunk in {chunk for _, chunk, _ in absent})
            if not self._stream.is_soon(int(self._pack.frames_at[last + 1]), stored):
                self.progress.overtaken += 1
                return None
            self.progress.waited += 1
            return self._arrivals.setdefault(last, Future())

    def _is_planning(self) -> bool:
        """Is the pack here, and only its index not yet held against the image?"""
        return self.head.done() and not self._planned.done() and not self.finished.is_set()

    def _run(self) -> None:
        try:
            self._launch()
            self.progress.state = "done"
        except LazyfsError as error:
            self._refuse(error)
        except Exception as error:  # who waits must hear of it, whatever it is
            log.exception("launch pack %s", self.location.digest)
            self._refuse(StoreError(f"{type(error).__name__}: {error}"))
        finally:
            self._stream.close()
            self.progress.received = self._stream.received
            if self._stream.received:
                self._timeline.small_read(self._stream.received)
            self._settle_all()
            self.arrived.set()
            self._ready.put(None)
            if self._feeder.ident is not None:
                self._feeder.join()
            self.progress.ended = time.monotonic()
            self.finished.set()

    def _launch(self) -> None:
        head, to_keep = self._read_head()
        self.head.set_result(head)
        self._layers = self._bound.result()
        self._keep_index(to_keep)
        self.progress.state = "streaming"
        tables = [layer.cache.chunks for layer in self._layers]
        self._pack = found = Pack(head.index, tables)
        frames = [self._needed(frame) for frame in range(len(found))]
        self._planned.set_result(None)
        self._feeder.start()
        if any(frames):
            self._read_frames(found, frames)
        else:
            for frame in range(len(found)):
                self._ready.put(frame)

    def _read_head(self) -> tuple[Head, bytes]:
        """Index and documents, and what is to be kept of them; no documents if the pack was here before."""
        with suppress(OSError, LazyfsError):
            return Head(self._kept_index(), {}), b""
        header = self._stream.take(pack.HEADER.size)
        stored = self._stream.take(pack.index_length(header))
        index = pack.decode_index(stored)
        if int(index.frames_at[-1]) != self.location.size:
            raise BadInputError(
                f"launch pack: {self.location.size} bytes, and it says {int(index.frames_at[-1])}"
            )
        documents = {
            digest: check_document(self._stream.take(length), digest) for digest, length in index.documents
        }
        return Head(index, documents), header + stored

    def _kept_index(self) -> pack.PackIndex:
        data = self._kept.read_bytes()
        stored = data[pack.HEADER.size :]
        if pack.index_length(data) != len(stored):
            raise BadInputError(f"{self._kept} is torn")
        return pack.decode_index(stored)

    def _keep_index(self, data: bytes) -> None:
        if data:
            try:
                write_new(self._kept, data)
            except NodeError as error:
                log.warning("%s", error)

    def _needed(self, frame: int) -> bool:
        """Does a frame hold a unit that is not here? Readers who want such a unit may wait from now on."""
        assert self._pack is not None
        needed = False
        for layer, chunk, units in by_chunk(self._pack.places(frame)):
            table = self._layers[layer].cache.chunks
            absent = set(self._layers[layer].cache.missing_units(chunk)) & set(units)
            self.progress.units += len(units)
            self.progress.unit_bytes += sum(unit_length(table, chunk, unit) for unit in units)
            self.progress.present_units += len(units) - len(absent)
            with self._lock:
                self._frame_of.update(((layer, chunk, unit), frame) for unit in absent)
            needed |= bool(absent)
        return needed

    def _read_frames(self, found: Pack, needed: list[bool]) -> None:
        self._stream.seek(found.index.proofs_at, MAX_SKIP)
        found.take_proofs(self._stream.take(int(found.frames_at[0]) - found.index.proofs_at))
        for frame, is_needed in enumerate(needed):
            if self._stopped:
                raise StoreError("the node is closing")
            if is_needed:
                start, end = int(found.frames_at[frame]), int(found.frames_at[frame + 1])
                self._stream.seek(start, MAX_SKIP)
                self._keep(found.open_frame(frame, self._stream.take(end - start)))
                self._settle(frame)
            self._ready.put(frame)

    def _keep(self, units: list[Unit]) -> None:
        together: dict[tuple[int, int], list[Unit]] = {}
        for unit in units:
            together.setdefault((unit.layer, unit.chunk), []).append(unit)
        for (layer, chunk), found in together.items():
            plain = {unit.number: bytes(unit.plain) for unit in found}
            digests = {unit.number: unit.digest for unit in found}
            try:
                self._layers[layer].cache.put_units(chunk, plain, digests)
            except OSError as error:
                # A full or failing disk costs speed, never a read.
                self._timeline.cache_failed(f"launch pack: {error.strerror}")

    def _settle(self, frame: int) -> None:
        """Tell who waits for a frame that it is there."""
        assert self._pack is not None
        with self._lock:
            for place in self._pack.places(frame):
                self._frame_of.pop(place, None)
            waiting = self._arrivals.pop(frame, None)
        if waiting is not None:
            waiting.set_result(None)

    def _settle_all(self) -> None:
        with self._lock:
            self._frame_of = {}
            waiting, self._arrivals = list(self._arrivals.values()), {}
            if not self._planned.done():
                waiting.append(self._planned)
        for future in waiting:
            future.set_result(None)

    def _refuse(self, error: LazyfsError) -> None:
        self.progress.state, self.progress.reason = "refused", error.message
        if not self._stopped:
            self._timeline.failed(f"launch pack {self.location.digest}", error.message)
            log.warning("launch pack %s: %s; going on without it", self.location.digest, error.message)
        if not self.head.done():
            self.head.set_exception(error)

    def _feed(self) -> None:
        """Give the kernel whole pages of what has come, in the order in which it came."""
        caches = [layer.cache for layer in self._layers]
        try:
            while (frame := self._ready.get()) is not None and not self._stopped:
                assert self._pack is not None
                for layer, start, end in page_ranges(self._pack.places(frame), caches):
                    if not self._give(self._layers[layer], start, end):
                        return
        except Exception:  # pages are speed, nobody waits for them
            log.exception("giving pages to the kernel")

    def _give(self, layer: LaunchLayer, start: int, end: int) -> bool:
        """False when the kernel has no use for pages of this image: nobody has mounted it."""
        put_pages = layer.put_pages
        for low in range(start, end, MAX_STORE):
            high = min(low + MAX_STORE, end)
            data = layer.cache.read(low, high - low)
            if data is None:  # the disk did not take it
                continue
            if not put_pages(layer.inode, low, data) and not (
                self._wait_until_opened(layer) and put_pages(layer.inode, low, data)
            ):
                return False
            self.progress.page_bytes += len(data)
        return True

    def _wait_until_opened(self, layer: LaunchLayer) -> bool:
        deadline = time.monotonic() + OPEN_PATIENCE
        while not self._stopped and time.monotonic() < deadline:
            if layer.opened(_STOP_LOOK):
                return True
        return False

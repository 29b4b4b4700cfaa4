"""The layers whose devices a node shows: opened, numbered, found again by the next daemon, let go."""

import hashlib
import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from lazyfs.daemon.locks import NamedLocks
from lazyfs.daemon.open_stores import OpenStores
from lazyfs.daemon.state import State
from lazyfs.errors import LazyfsError, NodeError
from lazyfs.formats.oci_descriptor import Descriptor, TocLocation
from lazyfs.formats.toc_types import Toc
from lazyfs.mount.device_table import DeviceTable
from lazyfs.node.cache import LayerCache
from lazyfs.node.cache_store import NodeCache
from lazyfs.node.crew import Lane
from lazyfs.node.device import LayerDevice
from lazyfs.node.engine import Engine
from lazyfs.node.fetch import Fetcher
from lazyfs.node.files import remove_torn, write_new
from lazyfs.node.launches import LaunchDevice
from lazyfs.node.layers import check_toc, decode_toc, fetch_toc
from lazyfs.node.neighbours import Neighbours
from lazyfs.node.sources import BlobSource
from lazyfs.node.touched import Touched
from lazyfs.stores import Reference, Store, parse_reference

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer whose device is shown: `inode` is its file's number and, as text, its name."""

    inode: int
    toc: Toc
    cache: LayerCache
    fetcher: Fetcher
    device: LaunchDevice
    touched: Touched
    blob: str
    toc_digest: str


class Layers:
    """Thread safe."""

    def __init__(
        self,
        tocs: Path,
        table: DeviceTable,
        cache: NodeCache,
        engine: Engine,
        stores: OpenStores,
        state: State,
        is_idle: Callable[[], bool],
    ) -> None:
        """`tocs` keeps the TOCs that were read; `table` is what the kernel is shown; `is_idle` see `Neighbours`."""
        self._tocs = tocs
        self._table = table
        self._cache = cache
        self._engine = engine
        self._stores = stores
        self._state = state
        self._is_idle = is_idle
        self._being_opened = NamedLocks()
        self._changing = threading.Lock()
        self._shown: dict[str, Layer] = {}
        self._by_inode: dict[int, Layer] = {}
        self._numbers: dict[str, tuple[str, int]] = {}
        self._coming: dict[tuple[str, str], Future[bytes]] = {}
        tocs.mkdir(parents=True, exist_ok=True)
        remove_torn(tocs)

    def all(self) -> list[Layer]:
        with self._changing:
            return sorted(self._shown.values(), key=lambda layer: layer.inode)

    def numbered(self, inode: int) -> Layer | None:
        return self._by_inode.get(inode)

    def named(self, toc_digest: str) -> Layer | None:
        return self._shown.get(toc_digest)

    def open(
        self,
        store: Store,
        reference: Reference,
        documents: Mapping[str, bytes],
        layers: Sequence[tuple[Descriptor, str]],
    ) -> list[Layer]:
        """Show layers, each with its DiffID, of an image that `store` calls `reference`.

        `documents` are TOCs that are here already, by sha256. All others come at once: where they come from far
        away, that is one round trip.
        """
        return list(self.open_each(store, reference, documents, layers))

    def open_each(
        self,
        store: Store,
        reference: Reference,
        documents: Mapping[str, bytes],
        layers: Sequence[tuple[Descriptor, str]],
    ) -> Iterator[Layer]:
        """As `open`, one layer after the other: the first one as soon as it can be."""
        coming = [self._toc_of(store, layer, documents) for layer, _ in layers]
        return (
            self._open(store, reference, toc_bytes, layer, diff_id)
            for (layer, diff_id), toc_bytes in zip(layers, coming, strict=True)
        )

    def restore(self) -> frozenset[int]:
        """Show the devices that the kernel knows from an earlier daemon; nothing of it needs a network.

        Returns their numbers.
        """
        for known in self._state.layers():
            if not (self._tocs / known.toc).exists():
                continue  # what is mounted is not removed from the cache, so nobody has it open
            for source in known.sources:
                try:
                    store, reference = self._stores.find(parse_reference(source))
                    layer = known.descriptor()
                    self._open(store, reference, self._toc_of(store, layer, {}), layer, known.diff_id)
                except LazyfsError as error:
                    log.error("device %d of an earlier daemon: %s", known.inode, error)
                else:
                    break
        return frozenset(self._by_inode)

    def let_go(self, layer: Layer) -> None:
        with self._being_opened.of(layer.toc_digest):
            with self._changing:
                if self._shown.get(layer.toc_digest) is not layer:
                    return
                del self._shown[layer.toc_digest]
                self._by_inode.pop(layer.inode, None)
                self._numbers.pop(layer.toc_digest, None)
            self._table.remove(str(layer.inode))
            self._state.let_go(layer.inode)
            self._cache.let_go(layer.toc_digest)

    def _open(
        self,
        store: Store,
        reference: Reference,
        toc_bytes: Callable[[], bytes],
        layer: Descriptor,
        diff_id: str,
    ) -> Layer:
        location = _location(store, layer)
        with self._being_opened.of(location.sha256):
            known = self._shown.get(location.sha256)
            if known is not None:
                check_toc(known.toc, layer, diff_id)
                self._prefer(known.fetcher, store, layer.digest, known.toc.codec)
                self._number(reference, layer, diff_id, location)
                return known
            decoded = decode_toc(toc_bytes(), layer, diff_id)
            inode = self._number(reference, layer, diff_id, location)
            opened = self._new(inode, store, reference.is_remote, layer, location.sha256, decoded)
            with self._changing:
                self._shown[location.sha256] = self._by_inode[inode] = opened
            self._table.add(inode, str(inode), opened.device)
            return opened

    def _number(self, reference: Reference, layer: Descriptor, diff_id: str, location: TocLocation) -> int:
        """The number of the layer's device; on record before the kernel hears of it."""
        source, inode = self._numbers.get(location.sha256, ("", 0))
        if source != str(reference):
            inode = self._state.put_layer(location.sha256, layer.to_json(), diff_id, str(reference))
            self._numbers[location.sha256] = str(reference), inode
        return inode

    def _new(
        self, inode: int, store: Store, is_remote: bool, layer: Descriptor, toc_digest: str, decoded: Toc
    ) -> Layer:
        cache = self._cache.open(toc_digest, decoded.chunks)
        source = BlobSource(store, layer.digest, decoded.codec)
        touched = Touched(decoded.chunks.device_size)
        # Of files on this machine the kernel reads ahead itself.
        neighbours = Neighbours(decoded.chunks, touched.was, self._is_idle) if is_remote else None
        fetcher = Fetcher(layer.digest, source, cache, self._engine, neighbours)
        self._prefer(fetcher, store, layer.digest, decoded.codec)
        device = LaunchDevice(LayerDevice(cache, fetcher), cache)
        return Layer(inode, decoded, cache, fetcher, device, touched, layer.digest, toc_digest)

    def _prefer(self, fetcher: Fetcher, store: Store, blob: str, codec: str) -> None:
        """Ask the store's mirrors first from now on, then the store itself."""
        for source in (store, *reversed(self._stores.mirrors_of(store))):
            fetcher.prefer(BlobSource(source, blob, codec))

    def _toc_of(self, store: Store, layer: Descriptor, documents: Mapping[str, bytes]) -> Callable[[], bytes]:
        """What waits for the TOC, which comes from now on; who else asks the store meanwhile waits for the same."""
        location = _location(store, layer)
        read = partial(self._toc_bytes, store, layer, location, documents.get(location.sha256))
        name = store.url, location.sha256
        with self._changing:
            if location.sha256 in self._shown:
                return read
            if name in self._coming:
                return self._coming[name].result
            self._coming[name] = coming = Future[bytes]()
        try:
            self._engine.crew.submit(Lane.DEMAND, partial(self._come, name, coming, read))
        except RuntimeError:  # no thread can be started, or the node is closing
            self._come(name, coming, read)
        return coming.result

    def _come(self, name: tuple[str, str], coming: "Future[bytes]", read: Callable[[], bytes]) -> None:
        try:
            coming.set_result(read())
        except Exception as error:  # noqa: BLE001 - whoever waits gets it
            coming.set_exception(error)
        finally:
            with self._changing:
                del self._coming[name]

    def _toc_bytes(
        self, store: Store, layer: Descriptor, location: TocLocation, brought: bytes | None
    ) -> bytes:
        """The TOC: from this machine if it is here and undamaged, else as a pack brought it, else from the store."""
        path = self._tocs / location.sha256
        with suppress(OSError):
            data = path.read_bytes()
            if hashlib.sha256(data).hexdigest() == location.sha256:
                return data
        if brought is None:
            data = fetch_toc(store, layer)
            self._engine.timeline.small_read(len(data))
        else:
            data = brought
        try:
            write_new(path, data)
        except NodeError as error:
            log.warning("%s", error)
        return data


def _location(store: Store, layer: Descriptor) -> TocLocation:
    location = layer.toc_location()
    if location is None:
        fetch_toc(store, layer)  # says what is missing
        raise AssertionError
    return location

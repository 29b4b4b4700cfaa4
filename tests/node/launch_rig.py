"""A launch of two layers: a store that gives as much of the pack as it may, and a kernel that takes pages."""

import threading
from collections.abc import Generator
from concurrent.futures import wait
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import cast

from lazyfs.errors import LazyfsError, NotFoundError
from lazyfs.formats import pack
from lazyfs.formats.chunks import UNIT_SIZE, unit_digests
from lazyfs.formats.oci_descriptor import PackLocation
from lazyfs.node.cache import LayerCache
from lazyfs.node.device import LayerDevice
from lazyfs.node.engine import Engine
from lazyfs.node.fetch import Fetcher
from lazyfs.node.launch import Launch, LaunchLayer
from lazyfs.node.launches import LaunchDevice
from lazyfs.node.pack_places import PAGE
from lazyfs.node.timeline import Timeline
from lazyfs.stores import Store

from .samples import BOOT, PATIENCE, FakeStore, Layer

KIB = 1024
LENGTHS = [100 * KIB + 512, 512 * KIB, 30 * KIB, 7 * KIB + 512, 300 * KIB]
PACK = "sha256:" + "a" * 64


@dataclass
class PackStore:
    """Streams one pack, as fast as `allowed` is raised; counts requests."""

    data: bytes
    requests: list[int] = field(default_factory=list)
    error: LazyfsError | None = None
    allowed: int = 1 << 60
    changed: threading.Condition = field(default_factory=threading.Condition)

    def stream(self, digest: str, offset: int = 0, piece: int = 0) -> Generator[bytes]:
        if digest != PACK:
            raise NotFoundError(digest)
        self.requests.append(offset)
        for at in range(offset, len(self.data), 4 * KIB):
            with self.changed:
                assert self.changed.wait_for(partial(self._may_send, at), PATIENCE)
            yield self.data[at : at + 4 * KIB]
        if self.error is not None:
            raise self.error

    def _may_send(self, at: int) -> bool:
        return at < self.allowed

    def allow(self, size: int) -> None:
        with self.changed:
            self.allowed = size
            self.changed.notify_all()


@dataclass
class Kernel:
    """Takes pages of devices that it has opened."""

    devices: list[bytes]
    is_open: threading.Event = field(default_factory=threading.Event)
    pages: dict[tuple[int, int], bytes] = field(default_factory=dict)

    def put(self, inode: int, offset: int, data: bytes) -> bool:
        if not self.is_open.is_set():
            return False
        size = len(self.devices[inode])
        assert offset % PAGE == 0
        assert len(data) % PAGE == 0 or offset + len(data) == size
        for at in range(0, len(data), PAGE):
            self.pages[inode, offset + at] = data[at : at + PAGE]
        return True


class Rig:
    def __init__(self, directory: Path, hot: list[pack.Place]) -> None:
        self.layers = [Layer(LENGTHS), Layer([64 * KIB, 5 * KIB], seed=1)]
        self.hot = hot
        self.store = PackStore(self.make())
        self.kernel = Kernel([layer.device for layer in self.layers])
        self.kernel.is_open.set()
        self.timeline = Timeline()
        self.engine = Engine(self.timeline)
        self.blobs = [FakeStore(layer.blob) for layer in self.layers]
        self.caches = [
            LayerCache(directory / (str(number) * 64), layer.chunks, BOOT)
            for number, layer in enumerate(self.layers)
        ]
        self.devices = [
            LaunchDevice(
                LayerDevice(cache, Fetcher("a layer", blob.source(), cache, self.engine)),
                cache,
            )
            for cache, blob in zip(self.caches, self.blobs, strict=True)
        ]
        self.kept = directory / "index"

    def make(self) -> bytes:
        units: dict[pack.Place, bytes] = {}
        digests: dict[pack.Place, list[bytes]] = {}
        for number, unit in self.hot:
            layer = self.layers[number]
            first = layer.chunks.first_units().tolist()
            chunk = max(index for index, at in enumerate(first) if at <= unit)
            plain = layer.plain(chunk)
            digests[number, chunk] = unit_digests(plain)
            start = (unit - first[chunk]) * UNIT_SIZE
            units[number, unit] = plain[start : start + UNIT_SIZE]
        tables = [layer.chunks for layer in self.layers]
        return b"".join(pack.encode([b"TOC 0", b"TOC 1"], b"{}", tables, units, digests, level=1))

    def begin(self) -> Launch:
        location = PackLocation(PACK, len(self.store.data))
        return Launch(cast(Store, self.store), location, self.kept, self.timeline)

    def bind(self, launch: Launch) -> None:
        wait([launch.head], PATIENCE)
        for number, device in enumerate(self.devices):
            device.expect(launch, number)
        launch.bind(
            [
                LaunchLayer(number, cache, self.kernel.is_open.wait, self.kernel.put)
                for number, cache in enumerate(self.caches)
            ]
        )

    def run(self) -> Launch:
        launch = self.begin()
        self.bind(launch)
        assert launch.finished.wait(PATIENCE)
        return launch

    def read(self, layer: int, offset: int, length: int) -> bytes:
        here = self.devices[layer].peek(offset, length)
        return self.devices[layer].request(offset, length).result(PATIENCE) if here is None else here

    def all_is_right(self) -> None:
        for (number, offset), page in self.kernel.pages.items():
            assert page == self.layers[number].device[offset : offset + PAGE]
        for number, layer in enumerate(self.layers):
            assert self.read(number, 0, len(layer.device)) == layer.device

    def close(self) -> None:
        self.store.allow(1 << 60)
        self.engine.close()
        for cache in self.caches:
            cache.close()

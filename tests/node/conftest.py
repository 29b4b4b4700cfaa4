"""A layer with its cache, fetcher and device, on a store that misbehaves on demand."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from lazyfs.errors import IntegrityError
from lazyfs.node import engine as engine_module
from lazyfs.node.cache import LayerCache
from lazyfs.node.device import LayerDevice
from lazyfs.node.engine import TIMEOUT, Engine
from lazyfs.node.fetch import Fetcher
from lazyfs.node.timeline import Timeline
from tests.waiting import wait_until

from .caches import Nodes
from .samples import BOOT, KIB, PATIENCE, TOC_NAME, FakeStore, Layer


@dataclass
class Rig:
    layer: Layer
    store: FakeStore
    cache: LayerCache
    engine: Engine
    fetcher: Fetcher
    device: LayerDevice
    timeline: Timeline
    cache_directory: Path

    def read(self, offset: int, length: int) -> bytes:
        """What a reader gets."""
        here = self.device.peek(offset, length)
        return self.device.request(offset, length).result(PATIENCE) if here is None else here

    def landed(self) -> bool:
        """Wait until what readers were given has reached the cache; they have it a moment sooner."""
        wait_until(lambda: not self.fetcher._flights)
        return True

    def is_right(self, offset: int = 0, length: int = 1 << 40) -> bool:
        return self.read(offset, length) == self.layer.device[offset : offset + length]

    def is_readable(self) -> bool:
        """False while something of it is damaged."""
        try:
            return len(self.read(0, 1 << 40)) == len(self.layer.device)
        except IntegrityError:
            return False


@pytest.fixture
def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Rig]]:
    """Makes one from the arguments of `Layer`; `boot` names the kernel that the cache is opened under.

    Nothing is asked for a second time unless it `hedges`: on a busy machine any answer may be late, and requests are
    counted.
    """
    opened: list[Rig] = []

    def make(
        lengths: list[int] | None = None,
        gaps: list[int] | None = None,
        *,
        boot: bytes = BOOT,
        timeout: float = TIMEOUT,
        hedges: bool = False,
    ) -> Rig:
        if not hedges:
            monkeypatch.setattr(engine_module, "_HEDGE_AFTER", 2 * PATIENCE)
        layer = Layer(lengths or [40 * KIB] * 8, gaps)
        store, timeline = FakeStore(layer.blob), Timeline()
        directory = tmp_path / TOC_NAME
        cache = LayerCache(directory, layer.chunks, boot)
        engine = Engine(timeline, timeout=timeout)
        fetcher = Fetcher("a layer", store.source(), cache, engine)
        device = LayerDevice(cache, fetcher)
        opened.append(Rig(layer, store, cache, engine, fetcher, device, timeline, directory))
        return opened[-1]

    yield make
    for each in opened:
        each.engine.close()
        each.cache.close()


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Nodes]:
    nodes = Nodes(tmp_path)
    yield nodes
    for each in nodes.opened:
        each.close()

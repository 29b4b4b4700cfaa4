"""The cache of a node within its limit: what goes first, and what stays."""

import time

import pytest

from lazyfs.node.cache_settings import Limit
from lazyfs.node.cache_store import SAVE_SECONDS

from .caches import Nodes, fill, name, present
from .samples import KIB, PATIENCE, Layer


def test_the_limit_is_kept_by_dropping_the_oldest(node: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
    limit, size = 2 << 20, 700 * KIB
    cache = node(Limit(limit))
    (directory,) = cache.directories
    layers = [Layer([64 * KIB] * 10, seed=number) for number in range(6)]
    caches = []
    for number, layer in enumerate(layers):
        cache.now = 1000 + number
        monkeypatch.setattr(time, "time", lambda now=cache.now: float(now))
        cache.room.make(directory, max(0, directory.measure() + size - limit))
        caches.append(cache.open(name(number), layer.chunks))
        fill(caches[-1], layer)
        assert directory.measure() <= limit
    assert not any(present(caches[0]))
    assert all(present(caches[4]))
    assert all(present(caches[5]))


def test_what_is_read_stays(node: Nodes) -> None:
    cache = node()
    (directory,) = cache.directories
    layers = [Layer([64 * KIB] * 10, seed=number) for number in range(3)]
    cache.now = 1000
    caches = [cache.open(name(number), layer.chunks) for number, layer in enumerate(layers)]
    for each, layer in zip(caches, layers, strict=True):
        fill(each, layer)
    cache.now = 1001
    assert caches[0].read(64 * KIB, 128 * KIB) is not None
    cache.room.make(directory, 24 * 64 * KIB)
    assert present(caches[0])[1:3] == [True, True]
    assert sum(map(sum, map(present, caches))) <= 6


def test_a_full_cache_takes_nothing_in_and_says_so(node: Nodes) -> None:
    cache = node(Limit(256 * KIB))
    layer = Layer([64 * KIB] * 10)
    each = cache.open(name(1), layer.chunks)
    each.hold(PATIENCE)
    kept = [each.put(index, layer.plain(index)) for index in range(10)]
    assert kept[0]
    assert not kept[-1]
    assert present(each) == kept
    assert cache.status()["chunks_not_kept"] == kept.count(False)
    cache.room.make(cache.directories[0])
    assert present(each) == kept


def test_what_does_not_say_what_it_is_goes_first(node: Nodes) -> None:
    layer, other = Layer([64 * KIB] * 10), Layer([64 * KIB] * 10, seed=1)
    before = node()
    torn = before.open(name(1), layer.chunks)
    fill(torn, layer)
    before.close()
    table = torn.directory / "chunks"
    table.write_bytes(table.read_bytes()[:-1])
    after = node()
    each = after.open(name(2), other.chunks)
    fill(each, other)
    after.room.make(after.directories[0], 64 * KIB)
    assert after.names() == [name(2)]
    assert all(present(each))


def test_when_chunks_were_read_outlives_a_kill(node: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = Layer([64 * KIB] * 3)
    killed = node()
    each = killed.open(name(1), layer.chunks)
    monkeypatch.setattr(time, "time", lambda: 5000.0)
    killed.tick()
    fill(each, layer)
    monkeypatch.setattr(time, "time", lambda: 6000.0)
    killed.tick()
    assert each.read(64 * KIB, 10) is not None
    monkeypatch.setattr(time, "time", lambda: 6001.0 + SAVE_SECONDS)
    killed.tick()
    after = node().open(name(1), layer.chunks)
    assert after.used.tolist() == [5000, 6000, 5000]


def test_layers_that_nobody_has_open_go_as_a_whole(node: Nodes) -> None:
    layer, other = Layer([64 * KIB] * 10), Layer([64 * KIB] * 10, seed=1)
    before = node()
    before.now = 1000
    fill(before.open(name(1), layer.chunks), layer)
    before.close()
    after = node()
    each = after.open(name(2), other.chunks)
    fill(each, other)
    after.room.make(after.directories[0], 640 * KIB)
    assert after.names() == [name(2)]
    assert all(present(each))
    assert after.layer(name(1)) is None


def test_pinned_and_held_layers_stay(node: Nodes) -> None:
    cache = node()
    layers = [Layer([64 * KIB] * 4, seed=number) for number in range(3)]
    caches = [cache.open(name(number), layer.chunks) for number, layer in enumerate(layers)]
    for each, layer in zip(caches, layers, strict=True):
        fill(each, layer)
    cache.pinned = frozenset({name(0)})
    caches[1].hold(PATIENCE)
    cache.room.make(cache.directories[0], 1 << 30)
    assert [all(present(each)) for each in caches] == [True, True, False]

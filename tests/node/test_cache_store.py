"""The cache of a node: shared by its layers, within its limit, on several disks."""

import errno
import os
import shutil
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from random import Random

import pytest

from lazyfs.formats.chunks import UNIT_SIZE
from lazyfs.node import cache_directory
from lazyfs.node.cache import LayerCache
from lazyfs.node.cache_directory import CacheDirectory
from lazyfs.node.cache_settings import Limit
from lazyfs.node.cache_store import SAVE_SECONDS, NodeCache

from .conftest import BOOT, KIB
from .samples import Layer, has

NEXT_BOOT = b"1" * 36
PLENTY = Limit(1 << 40)


def name(number: int) -> str:
    return f"{number:064x}"


def fill(cache: LayerCache, layer: Layer) -> None:
    for index in range(len(layer.chunks)):
        cache.put(index, layer.plain(index))


def present(cache: LayerCache) -> list[bool]:
    return [has(cache, index) for index in range(len(cache.chunks))]


class Nodes:
    """Opens the cache of one node after another, on directories that stay."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.reports: list[str] = []
        self.opened: list[NodeCache] = []

    def __call__(self, *limits: Limit, weights: tuple[float, ...] = (), boot: bytes = BOOT) -> NodeCache:
        directories = []
        for number, limit in enumerate(limits or (PLENTY,)):
            path = self.directory / f"disk{number}"
            path.mkdir(exist_ok=True)
            directories.append(CacheDirectory(path, limit, weights[number] if weights else 1.0))
        self.opened.append(NodeCache(directories, boot, self.reports.append))
        return self.opened[-1]


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Nodes]:
    nodes = Nodes(tmp_path)
    yield nodes
    for each in nodes.opened:
        each.close()


def test_what_another_layer_has_is_copied(node: Nodes) -> None:
    cache = node()
    one, two = Layer([40 * KIB] * 6), Layer([40 * KIB] * 6 + [70 * KIB])
    fill(cache.open(name(1), one.chunks), one)
    second = cache.open(name(2), two.chunks)
    assert second.recheck(0) == two.plain(0)
    assert second.recheck(5) == two.plain(5)
    assert second.recheck(6) is None
    assert present(second) == [True, False, False, False, False, True, False]
    assert cache.status()["copied_bytes"] == 80 * KIB


def test_units_are_shared_too(node: Nodes) -> None:
    cache = node()
    layer, other = Layer([200 * KIB]), Layer([200 * KIB, 512])
    first, second = cache.open(name(1), layer.chunks), cache.open(name(2), other.chunks)
    units = [layer.plain(0)[at : at + UNIT_SIZE] for at in range(0, 200 * KIB, UNIT_SIZE)]
    first.put_units(0, {2: units[2], 6: units[6]})
    assert second.recheck(0) is None
    assert second.missing_units(0) == [0, 1, 3, 4, 5]
    second.put_units(0, {number: units[number] for number in (0, 1, 3, 4)})
    first.put_unit(0, 5, units[5])
    assert second.recheck(0) == layer.plain(0)
    assert second.missing_units(0) == []


def test_a_layer_that_nobody_opened_since_the_reboot_gives_what_it_has(node: Nodes) -> None:
    layer, other = Layer([40 * KIB] * 3), Layer([40 * KIB] * 3 + [512])
    before = node()
    fill(before.open(name(1), layer.chunks), layer)
    before.close()
    after = node(boot=NEXT_BOOT)
    assert after.open(name(2), other.chunks).recheck(1) == layer.plain(1)


def test_a_damaged_source_gives_nothing_and_is_dropped(node: Nodes) -> None:
    cache = node()
    layer, other = Layer([40 * KIB] * 3), Layer([40 * KIB] * 3 + [512])
    first = cache.open(name(1), layer.chunks)
    fill(first, layer)
    with (first.directory / "data").open("r+b") as data:
        data.seek(50 * KIB)
        data.write(b"damage")
    second = cache.open(name(2), other.chunks)
    assert second.recheck(1) is None
    assert second.recheck(0) == layer.plain(0)
    assert present(first) == [True, False, True]
    assert [report for report in node.reports if "damaged" in report] == node.reports
    assert len(node.reports) == 1


def test_the_same_chunk_at_another_length_is_another_chunk(node: Nodes) -> None:
    cache = node()
    layer = Layer([40 * KIB, 512])
    fill(cache.open(name(1), layer.chunks), layer)
    assert cache._index.find(layer.chunks.digest(0), 40 * KIB) == [(name(1), 0)]
    assert cache._index.find(layer.chunks.digest(0), 40 * KIB + 512) == []


def test_the_limit_is_kept_by_dropping_the_oldest(node: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
    limit, size = 2 << 20, 700 * KIB
    cache = node(Limit(limit))
    (directory,) = cache.directories
    layers = [Layer([64 * KIB] * 10, seed=number) for number in range(6)]
    caches = []
    for number, layer in enumerate(layers):
        cache.now = 1000 + number
        monkeypatch.setattr(time, "time", lambda now=cache.now: float(now))
        cache.make_room(directory, max(0, directory.measure() + size - limit))
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
    cache.make_room(directory, 24 * 64 * KIB)
    assert present(caches[0])[1:3] == [True, True]
    assert sum(map(sum, map(present, caches))) <= 6


def test_a_full_cache_takes_nothing_in_and_says_so(node: Nodes) -> None:
    cache = node(Limit(256 * KIB))
    layer = Layer([64 * KIB] * 10)
    each = cache.open(name(1), layer.chunks)
    each.hold()
    kept = [each.put(index, layer.plain(index)) for index in range(10)]
    assert kept[0]
    assert not kept[-1]
    assert present(each) == kept
    assert cache.status()["chunks_not_kept"] == kept.count(False)
    cache.make_room(cache.directories[0])
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
    after.make_room(after.directories[0], 64 * KIB)
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
    after.make_room(after.directories[0], 640 * KIB)
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
    caches[1].hold()
    cache.make_room(cache.directories[0], 1 << 30)
    assert [all(present(each)) for each in caches] == [True, True, False]


def test_a_hold_outlives_its_daemon_but_not_its_kernel(node: Nodes) -> None:
    layer = Layer([64 * KIB] * 4)
    before = node()
    each = before.open(name(1), layer.chunks)
    fill(each, layer)
    each.hold()
    before.close()
    same_kernel = node()
    same_kernel.make_room(same_kernel.directories[0], 1 << 30)
    assert not same_kernel.remove(name(1))
    assert all(present(same_kernel.open(name(1), layer.chunks)))
    same_kernel.close()
    rebooted = node(boot=NEXT_BOOT)
    assert rebooted.remove(name(1))
    assert rebooted.names() == []


def test_layers_are_shared_out_by_weight(node: Nodes) -> None:
    cache = node(PLENTY, PLENTY, PLENTY, weights=(1, 2, 1))
    layer = Layer([512])
    for number in range(200):
        cache.open(name(number), layer.chunks)
    counts = [len(directory.names()) for directory in cache.directories]
    assert sum(counts) == 200
    assert 75 <= counts[1] <= 125
    cache.close()
    again = node(PLENTY, PLENTY, PLENTY, weights=(9, 1, 1))
    for number in range(200):
        again.open(name(number), layer.chunks)
    assert [len(directory.names()) for directory in again.directories] == counts


def test_a_disk_that_is_lost_costs_its_contents_and_nothing_else(node: Nodes) -> None:
    cache = node(PLENTY, PLENTY)
    layers = [Layer([64 * KIB] * 4, seed=number) for number in range(8)]
    caches = [cache.open(name(number), layer.chunks) for number, layer in enumerate(layers)]
    for each, layer in zip(caches, layers, strict=True):
        fill(each, layer)
    bad = cache.directories[0].path
    there = [each.directory.parent == bad for each in caches]
    assert 0 < sum(there) < 8
    shutil.rmtree(bad)
    cache.files.close()
    for each, layer, was_there in zip(caches, layers, there, strict=True):
        assert present(each) == [not was_there] * 4
        if was_there:
            with pytest.raises(OSError, match="No such file"):
                each.put(0, layer.plain(0))
        fill(each, layer)
        assert all(present(each))
    assert {each.directory.parent for each in caches} == {cache.directories[1].path}
    assert cache.status()["directories"][0]["problem"]
    assert any("using another directory" in report for report in node.reports)


def test_a_disk_that_comes_back_is_used_again(node: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = node(Limit(share=0.5), PLENTY)
    first, second = cache.directories
    layers = [Layer([64 * KIB] * 2, seed=number) for number in range(8)]
    caches = [cache.open(name(number), layer.chunks) for number, layer in enumerate(layers)]
    moved = [each for each in caches if each.directory.parent == first.path]
    away = first.path.rename(first.path.with_name("away"))
    cache.files.close()
    for each, layer in zip(caches, layers, strict=True):
        with suppress(OSError):
            each.put(0, layer.plain(0))
        each.put(1, layer.plain(1))
    assert not first.path.exists()
    assert all(each.directory.parent == second.path for each in moved)
    cache.tick()
    assert first.broken
    monkeypatch.setattr(cache_directory, "RETRY_SECONDS", 0.0)
    first.fail("as before, but long ago")
    away.rename(first.path)
    cache.tick()
    assert first.problem == ""
    assert first.limit > 0
    after = [cache.open(name(number), layers[0].chunks) for number in range(100, 120)]
    assert {each.directory.parent for each in after} == {first.path, second.path}
    cache.close()
    again = node(PLENTY, PLENTY)
    assert len(again.names()) == len(set(again.names()))


def test_a_disk_that_fails_is_left_alone(node: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = node(PLENTY, PLENTY)
    bad = str(cache.directories[0].path)
    pwrite = os.pwrite

    def failing(descriptor: int, data: memoryview, offset: int) -> int:
        if str(Path(f"/proc/self/fd/{descriptor}").readlink()).startswith(bad):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return pwrite(descriptor, data, offset)

    layers = [Layer([64 * KIB] * 2, seed=number) for number in range(8)]
    caches = [cache.open(name(number), layer.chunks) for number, layer in enumerate(layers)]
    assert cache.directories[0].names()
    monkeypatch.setattr(os, "pwrite", failing)
    for each, layer in zip(caches, layers, strict=True):
        if str(each.directory).startswith(bad):
            with pytest.raises(OSError, match="Input/output error"):
                each.put(0, layer.plain(0))
        fill(each, layer)
        assert present(each) == [True] * 2
    assert cache.status()["directories"][0]["problem"] == "Input/output error"
    assert len(cache.directories[1].names()) == 8


def test_an_only_disk_that_fails_keeps_what_it_has(node: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = node()
    layer = Layer([64 * KIB] * 3)
    each = cache.open(name(1), layer.chunks)
    each.put(0, layer.plain(0))

    def failing(*arguments: object) -> int:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    with monkeypatch.context() as patched, pytest.raises(OSError, match="Read-only"):
        patched.setattr(os, "pwrite", failing)
        each.put(1, layer.plain(1))
    assert present(each) == [True, False, False]
    fill(each, layer)
    assert present(each) == [True] * 3


def test_a_disk_that_is_not_there_when_the_node_starts(node: Nodes, tmp_path: Path) -> None:
    reports: list[str] = []
    (tmp_path / "here").mkdir()
    directories = [CacheDirectory(tmp_path / each, Limit(share=0.5)) for each in ("gone", "here")]
    cache = NodeCache(directories, BOOT, reports.append)
    node.opened.append(cache)
    for number in range(5):
        layer = Layer([64 * KIB] * 2, seed=number)
        each = cache.open(name(number), layer.chunks)
        fill(each, layer)
        assert all(present(each))
    assert len(directories[1].names()) == 5
    assert reports == [f"{tmp_path / 'gone'}: No such file or directory"]


def test_the_whole_cache_is_removed_under_a_running_node(node: Nodes) -> None:
    cache = node()
    layer = Layer([64 * KIB] * 4)
    each = cache.open(name(1), layer.chunks)
    fill(each, layer)
    each.flush()
    shutil.rmtree(each.directory)
    cache.files.close()
    assert present(each) == [False] * 4
    with pytest.raises(OSError, match="No such file"):
        each.put(0, layer.plain(0))
    fill(each, layer)
    assert present(each) == [True] * 4


def test_a_full_disk_makes_room_by_itself(node: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = node()
    layer = Layer([64 * KIB] * 32)
    each = cache.open(name(1), layer.chunks)
    fill(each, layer)
    cache.directories[0].measure()
    made = threading.Event()
    make_room = cache.make_room

    def making(directory: CacheDirectory, need: int = 0) -> None:
        make_room(directory, need)
        made.set()

    pwrite = os.pwrite

    def full(descriptor: int, data: memoryview, offset: int) -> int:
        monkeypatch.setattr(os, "pwrite", pwrite)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(cache, "make_room", making)
    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(OSError, match="No space"):
        each.put(3, layer.plain(3))
    assert made.wait(20)
    assert 0 < present(each).count(False) <= 8


def test_descriptors_stay_few(node: Nodes) -> None:
    def count() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    cache = node()
    before = count()
    layers = [Layer([64 * KIB] * 2, seed=number) for number in range(110)]
    caches = [cache.open(name(number), layer.chunks) for number, layer in enumerate(layers)]
    for each, layer in zip(caches, layers, strict=True):
        fill(each, layer)
        each.flush()
    assert all(all(present(each)) for each in caches)
    assert count() - before <= 100
    cache.close()
    assert count() <= before


def test_readers_never_see_a_hole(node: Nodes) -> None:
    """Threads read, write and drop the same chunks: every read gives the right bytes or nothing."""
    cache = node()
    layer = Layer([Random(7).randrange(1, 60) * 2048 for _ in range(24)])
    each = cache.open(name(1), layer.chunks)
    fill(each, layer)
    stop = threading.Event()
    wrong: list[int] = []
    hits = 0

    def reader(seed: int) -> int:
        rng = Random(seed)
        seen = 0
        while not stop.is_set():
            offset = rng.randrange(len(layer.device))
            length = rng.randrange(1, min(256 * KIB, len(layer.device) - offset) + 1)
            data = each.read(offset, length)
            if data is not None:
                seen += 1
                if data != layer.device[offset : offset + length]:
                    wrong.append(offset)
        return seen

    def writer(seed: int) -> None:
        rng = Random(seed)
        while not stop.is_set():
            index = rng.randrange(len(layer.chunks))
            if missing := each.missing_units(index):
                plain = layer.plain(index)
                if rng.random() < 0.5:
                    each.put(index, plain)
                else:
                    unit = rng.choice(missing)
                    each.put_unit(index, unit, plain[unit * UNIT_SIZE : (unit + 1) * UNIT_SIZE])

    with ThreadPoolExecutor(7) as threads:
        readers = [threads.submit(reader, seed) for seed in range(4)]
        writers = [threads.submit(writer, seed) for seed in range(2)]
        rng = Random(99)
        for number in range(60):
            each.drop(rng.sample(range(len(layer.chunks)), rng.randrange(1, 12)))
            if number % 10 == 0:
                each.flush()
        stop.set()
        hits = sum(future.result() for future in readers)
        for future in writers:
            future.result()
    assert not wrong
    assert hits > 100

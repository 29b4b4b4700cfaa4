"""The cache of a node on several disks, and on disks that fail."""

import errno
import os
import shutil
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from lazyfs.node import cache_directory, cache_layer
from lazyfs.node.cache_directory import CacheDirectory
from lazyfs.node.cache_room import best
from lazyfs.node.cache_settings import Limit
from lazyfs.node.cache_store import NodeCache

from .caches import PLENTY, Nodes, fill, name, present
from .samples import BOOT, KIB, PATIENCE, Layer


def test_layers_are_shared_out_by_weight(node: Nodes) -> None:
    cache = node(PLENTY, PLENTY, PLENTY, weights=(1, 2, 1))
    layer = Layer([512])
    for number in range(200):
        cache.open(name(number), layer.chunks)
    counts = [len(directory.names()) for directory in cache.directories]
    assert sum(counts) == 200
    chosen = Counter(best(name(number), cache.directories).path for number in range(200))
    assert counts == [chosen[directory.path] for directory in cache.directories]
    cache.close()
    again = node(PLENTY, PLENTY, PLENTY, weights=(9, 1, 1))
    for number in range(200):
        again.open(name(number), layer.chunks)
    assert [len(directory.names()) for directory in again.directories] == counts


def test_each_disk_gets_its_share() -> None:
    """Of 2,000 layers; which of them depends on the disks' paths."""
    disks = [
        CacheDirectory(Path(f"/disk{number}"), PLENTY, weight) for number, weight in enumerate((1, 2, 1))
    ]
    counts = Counter(best(name(number), disks).path.name for number in range(2000))
    assert 450 <= counts["disk0"] <= 550
    assert 950 <= counts["disk1"] <= 1050


def on_each(cache: NodeCache, count: int) -> list[str]:
    """Names of so many layers for each of the disks, whose paths decide which those are."""
    names = list(map(name, range(1000)))
    return [
        each
        for directory in cache.directories
        for each in [at for at in names if best(at, cache.directories) is directory][:count]
    ]


def test_a_disk_that_is_lost_costs_its_contents_and_nothing_else(node: Nodes) -> None:
    cache = node(PLENTY, PLENTY)
    layers = [Layer([64 * KIB] * 4, seed=number) for number in range(8)]
    caches = [cache.open(at, layer.chunks) for at, layer in zip(on_each(cache, 4), layers, strict=True)]
    for each, layer in zip(caches, layers, strict=True):
        fill(each, layer)
    bad = cache.directories[0].path
    there = [each.directory.parent == bad for each in caches]
    assert sum(there) == 4
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
    caches = [cache.open(at, layer.chunks) for at, layer in zip(on_each(cache, 4), layers, strict=True)]
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
    caches = [cache.open(at, layer.chunks) for at, layer in zip(on_each(cache, 4), layers, strict=True)]
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
    make_room = cache.room.make

    def making(directory: CacheDirectory, need: int = 0) -> None:
        make_room(directory, need)
        made.set()

    pwrite = os.pwrite

    def full(descriptor: int, data: memoryview, offset: int) -> int:
        monkeypatch.setattr(os, "pwrite", pwrite)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(cache.room, "make", making)
    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(OSError, match="No space"):
        each.put(3, layer.plain(3))
    assert made.wait(20)
    assert 0 < present(each).count(False) <= 8


def test_a_disk_that_fails_under_many_writers_costs_no_other_disk(
    node: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of them fails, the layer moves once, and what was about to be written is counted where that was."""
    cache = node(PLENTY, PLENTY, PLENTY)
    layer = Layer([64 * KIB] * 4)
    each = cache.open(name(1), layer.chunks)
    bad = next(directory for directory in cache.directories if directory.path == each.directory.parent)
    barrier = threading.Barrier(4)

    def write_all(*_: object) -> None:
        barrier.wait(PATIENCE)
        raise OSError(errno.EIO, "Input/output error")

    def put(index: int) -> None:
        with pytest.raises(OSError, match="Input/output"):
            each.put(index, layer.plain(index))

    with monkeypatch.context() as failing:
        failing.setattr(cache_layer, "write_all", write_all)
        with ThreadPoolExecutor(4) as writers:
            list(writers.map(put, range(4)))
    assert [directory.broken for directory in cache.directories].count(True) == 1
    assert bad.broken
    assert [directory.arriving for directory in cache.directories] == [0, 0, 0]
    fill(each, layer)
    assert all(present(each))

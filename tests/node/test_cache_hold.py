"""Layers that the kernel reads from their data files: nothing of them is dropped, for just as long as it does."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lazyfs.node import cache_hold, cache_store
from lazyfs.node.cache import LayerCache
from lazyfs.node.cache_store import NodeCache

from .caches import Nodes, fill, name, present
from .samples import BOOT, KIB, NEXT_BOOT, PATIENCE, Layer

LAYER = Layer([64 * KIB] * 4)


@pytest.fixture(autouse=True)
def mounted_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_store, "HOLD_SECONDS", 0.0)


def whole(node: NodeCache) -> LayerCache:
    cache = node.open(name(1), LAYER.chunks)
    fill(cache, LAYER)
    cache.flush()
    return cache


@contextmanager
def mounted(cache: LayerCache) -> Iterator[None]:
    """As the kernel has it."""
    descriptor = os.open(cache.directory / "data", os.O_RDONLY)
    try:
        yield
    finally:
        os.close(descriptor)


def held(cache: LayerCache) -> bool:
    return cache.held


def drop_all(node: NodeCache) -> int:
    return node.drop({name(1): range(4)})


def welcome(cache: LayerCache, boot: bytes = BOOT) -> bool:
    """What who has mounted it is told."""
    directory = os.open(cache.directory, os.O_RDONLY)
    try:
        return cache_hold.is_held(directory, boot)
    finally:
        os.close(directory)


def test_only_what_is_whole_and_safe_on_the_disk_is_held(node: Nodes) -> None:
    each = node()
    cache = each.open(name(1), LAYER.chunks)
    assert not each.hold(cache)
    fill(cache, LAYER)
    assert not each.hold(cache), "nothing was synced"
    cache.flush()
    each.paranoid = True
    assert not each.hold(cache), "whoever is paranoid has each read proved"
    assert not held(cache)
    each.paranoid = False
    assert each.hold(cache)
    assert held(cache)
    assert welcome(cache)
    assert not welcome(cache, NEXT_BOOT)


def test_held_while_the_kernel_has_it_open_and_no_longer(node: Nodes) -> None:
    each = node()
    cache = whole(each)
    assert each.hold(cache)
    with mounted(cache):
        each.release_holds()
        assert held(cache)
        assert welcome(cache)
        each.room.make(each.directories[0], 1 << 30)
        assert drop_all(each) == 0
        assert not each.remove(name(1))
        assert present(cache) == [True] * 4
    each.release_holds()
    assert not held(cache)
    assert not welcome(cache)
    assert drop_all(each) == 4


def test_held_for_a_while_for_who_is_about_to_mount_it(node: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_store, "HOLD_SECONDS", PATIENCE)
    """Unless the room is needed: who is about to mount it finds that out."""
    each = node()
    cache = whole(each)
    assert each.hold(cache)
    each.tick()
    assert drop_all(each) == 0
    assert welcome(cache)
    each.room.make(each.directories[0], 1 << 30)
    assert not welcome(cache)
    assert present(cache) == [False] * 4


def test_a_hold_outlives_its_daemon(node: Nodes) -> None:
    before = node()
    cache = whole(before)
    assert before.hold(cache)
    before.close()
    with mounted(cache):
        after = node()
        after.release_holds()
        again = after.layer(name(1))
        assert again is not None
        assert held(again)
        assert drop_all(after) == 0
        after.close()
    rebooted = node(boot=NEXT_BOOT)
    rebooted.release_holds()
    assert drop_all(rebooted) == 4


def test_a_mark_that_was_left_half_taken_away_counts(node: Nodes) -> None:
    before = node()
    cache = whole(before)
    assert before.hold(cache)
    before.close()
    (cache.directory / "held").write_bytes(BOOT + b"?")
    with mounted(cache):
        after = node()
        assert not welcome(cache)
        assert drop_all(after) == 0
        after.release_holds()
        assert drop_all(after) == 0
        after.hold(after.open(name(1), LAYER.chunks))
        assert welcome(cache)


@pytest.mark.parametrize("when", ["before the mark", "after the mark"])
def test_mounted_just_when_it_is_let_go(node: Nodes, monkeypatch: pytest.MonkeyPatch, when: str) -> None:
    """Whoever mounts it is told that it does not stay, or it stays."""
    each = node()
    cache = whole(each)
    assert each.hold(cache)
    opened: list[int] = []
    is_open, looks = cache_hold.is_open, iter((when == "before the mark", when == "after the mark"))

    def look(path: str) -> bool:
        answer = is_open(path)
        if next(looks):
            opened.append(os.open(path, os.O_RDONLY))
            told.append(welcome(cache))
        return answer

    told: list[bool] = []
    with monkeypatch.context() as patched:
        patched.setattr(cache_hold, "is_open", look)
        each.release_holds()
    assert told == [cache.held]
    assert drop_all(each) == (0 if cache.held else 4)
    os.close(opened[0])


def test_held_again_just_when_it_is_let_go(node: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
    each = node()
    cache = whole(each)
    assert each.hold(cache)
    release = cache.release

    def and_hold_again(at_once: bool = False) -> bool:
        gone = release(at_once)
        assert each.hold(cache)
        return gone

    with monkeypatch.context() as just_then:
        just_then.setattr(cache, "release", and_hold_again)
        each.release_holds()
    assert held(cache)
    each.release_holds()
    assert not held(cache)
    assert drop_all(each) == 4


def test_a_layer_that_this_process_reads_is_let_go_later(node: Nodes) -> None:
    each = node()
    cache = whole(each)
    assert each.hold(cache)
    with each.files.open(str(cache.directory / "data")):
        each.release_holds()
        assert held(cache)
    each.release_holds()
    assert not held(cache)


def test_no_room_for_the_mark(node: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
    each = node()
    cache = whole(each)

    def full(path: Path, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_bytes", full)
        assert not each.hold(cache)
        assert not held(cache)
    assert each.hold(cache)

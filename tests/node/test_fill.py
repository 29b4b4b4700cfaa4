"""The background: all of what is in use comes in the end, and nobody ever waits for it."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lazyfs.errors import IntegrityError, LazyfsError, StoreError
from lazyfs.node.cache import LayerCache
from lazyfs.node.fetch import Fetcher
from lazyfs.node.fill import Filler, Judge
from tests.waiting import wait_until

from .conftest import Rig
from .samples import BOOT, KIB, PATIENCE, FakeStore, failing, has, no_thread

Make = Callable[..., Rig]
MakeFiller = Callable[..., Filler]


@pytest.fixture
def filler() -> Iterator[MakeFiller]:
    made: list[Filler] = []

    def make(each: Rig, *rules: Callable[..., bool], idle: float = 0.0, pause: float = 0.01) -> Filler:
        made.append(Filler(each.engine.crew, *rules, idle=idle, pause=pause))
        return made[-1]

    yield make
    for each in made:
        each.close()


def done(filler: Filler) -> Callable[[], bool]:
    return lambda: filler.layers_left() == 0


def test_a_layer_is_filled_and_each_byte_comes_once(rig: Make, filler: MakeFiller) -> None:
    each = rig([40 * KIB] * 100)
    assert each.is_right(7 * 40 * KIB, 100)
    filling = filler(each)
    filling.add(each.fetcher, each.cache)
    filling.add(each.fetcher, each.cache)
    wait_until(done(filling))
    each.fetcher.wait_kept(PATIENCE)
    assert all(has(each.cache, index) for index in range(100))
    assert each.store.twice() == 0
    reads = len(each.store.reads)
    filling.add(each.fetcher, each.cache)
    assert filling.layers_left() == 0
    assert len(each.store.reads) == reads


def test_what_made_way_is_filled_later(rig: Make, filler: MakeFiller) -> None:
    each = rig([40 * KIB] * 20)
    gate = threading.Event()
    second = each.layer.frame_span(1)[0]
    each.store.between = lambda offset: (gate.wait(PATIENCE), None)[1] if offset == second else None
    filling = filler(each)
    filling.add(each.fetcher, each.cache)
    wait_until(lambda: has(each.cache, 0))
    wanted = each.device.request(15 * 40 * KIB, 100)
    gate.set()
    assert wanted.result(PATIENCE) == each.layer.plain(15)[:100]
    wait_until(done(filling))
    each.fetcher.wait_kept(PATIENCE)
    assert all(has(each.cache, index) for index in range(20))


def test_nothing_is_filled_while_a_pack_comes(rig: Make, filler: MakeFiller) -> None:
    each = rig()
    coming, asked = threading.Event(), threading.Event()
    coming.set()

    def is_busy() -> bool:
        asked.set()
        return coming.is_set()

    filling = filler(each, lambda _: True, is_busy, idle=0.01)
    filling.add(each.fetcher, each.cache)
    assert asked.wait(PATIENCE)
    assert each.store.reads == []
    coming.clear()
    wait_until(done(filling))
    assert each.store.reads


def test_nothing_is_dropped_for_it(rig: Make, filler: MakeFiller) -> None:
    each = rig()
    filling = filler(each, lambda _: False)
    filling.add(each.fetcher, each.cache)
    wait_until(done(filling))
    assert each.store.reads == []


def test_a_store_that_fails_is_asked_again_after_others(rig: Make, filler: MakeFiller) -> None:
    each = rig()
    answers: list[LazyfsError | None] = [StoreError("no answer"), StoreError("no answer")]

    def fault(offset: int, length: int) -> None:
        error = answers.pop() if answers else None
        if error is not None:
            raise error

    each.store.fault = fault
    filling = filler(each)
    filling.add(each.fetcher, each.cache)
    wait_until(done(filling))
    each.fetcher.wait_kept(PATIENCE)
    assert all(has(each.cache, index) for index in range(8))


def test_a_damaged_layer_is_given_up(rig: Make, filler: MakeFiller) -> None:
    each = rig()
    each.store.fault = failing(IntegrityError("damaged"))
    filling = filler(each)
    filling.add(each.fetcher, each.cache)
    wait_until(done(filling))
    each.store.fault = lambda offset, length: None
    wait_until(each.is_readable, "the damage to be forgotten")
    assert each.is_right()


def test_closing_does_not_wait_for_a_silent_store(rig: Make, filler: MakeFiller) -> None:
    each = rig()
    silent = threading.Event()
    each.store.fault = lambda offset, length: (silent.wait(PATIENCE), None)[1]
    filling = filler(each)
    filling.add(each.fetcher, each.cache)
    wait_until(lambda: bool(each.store.reads))
    closing = threading.Thread(target=filling.close)
    closing.start()
    closing.join(PATIENCE / 2)
    assert not closing.is_alive()
    silent.set()


def test_what_is_filled_is_not_counted_as_fetched_for_a_reader(rig: Make, filler: MakeFiller) -> None:
    each = rig([40 * KIB] * 10)
    assert each.is_right(0, 100)
    filling = filler(each)
    filling.add(each.fetcher, each.cache)
    wait_until(done(filling))

    def counted() -> tuple[int, int]:
        counters = each.timeline.counters()
        return counters["filled_bytes"], counters["fetched_bytes"]

    # A request is counted when it has ended, a moment after its last byte was handed out.
    wait_until(lambda: sum(counted()) >= 10 * 40 * KIB)
    assert counted() == (9 * 40 * KIB, 40 * KIB)


def test_filling_begins_when_a_thread_can_be_had(
    rig: Make, filler: MakeFiller, monkeypatch: pytest.MonkeyPatch
) -> None:
    each, other = rig([40 * KIB] * 4), rig([40 * KIB] * 4)
    filling = filler(each)
    with monkeypatch.context() as few:
        few.setattr(threading.Thread, "start", no_thread)
        filling.add(each.fetcher, each.cache)
    filling.add(other.fetcher, other.cache)
    wait_until(done(filling))
    each.fetcher.wait_kept(PATIENCE)
    assert all(has(each.cache, index) for index in range(4))


def test_who_wants_a_layer_judged_just_when_it_is_done_is_heard(
    rig: Make, filler: MakeFiller, monkeypatch: pytest.MonkeyPatch
) -> None:
    each = rig([40 * KIB] * 4)
    filling, judged = filler(each), threading.Event()

    class JustThen(dict[Fetcher, Judge | None]):
        def get(self, key: Fetcher, default: Any = None) -> Any:
            found = super().get(key, default)
            if found is None and key in self:
                filling.add(each.fetcher, each.cache, lambda go_on: judged.set())
            return found

    monkeypatch.setattr(filling, "_known", JustThen())
    filling.add(each.fetcher, each.cache)
    assert judged.wait(PATIENCE)
    wait_until(done(filling))


def test_closing_does_not_wait_for_a_proof(rig: Make, filler: MakeFiller) -> None:
    each = rig()
    judging, store = threading.Event(), threading.Event()

    def judge(_: Callable[[], bool]) -> None:
        judging.set()
        assert store.wait(PATIENCE)

    filling = filler(each)
    filling.add(each.fetcher, each.cache, judge)
    assert judging.wait(PATIENCE)
    closing = threading.Thread(target=filling.close)
    closing.start()
    closing.join(PATIENCE / 2)
    assert not closing.is_alive()
    store.set()
    assert filling._thread is not None
    filling._thread.join(PATIENCE)


def test_a_store_that_is_left_alone_keeps_no_other_waiting(
    rig: Make, filler: MakeFiller, tmp_path: Path
) -> None:
    """Nor is its rest waited for at the end."""
    each = rig()
    silent = FakeStore(each.layer.blob)
    silent.fault = failing(StoreError("no answer"))
    cache = LayerCache(tmp_path / ("d" * 64), each.layer.chunks, BOOT)
    fetcher = Fetcher("another layer", silent.source(), cache, each.engine)
    filling = filler(each, pause=10_000.0)
    filling.add(fetcher, cache)
    wait_until(lambda: bool(filling._resting), "a store that is left alone")
    filling.add(each.fetcher, each.cache)
    wait_until(lambda: filling.layers_left() == 1)
    each.fetcher.wait_kept(PATIENCE)
    assert all(has(each.cache, index) for index in range(8))
    filling.close()
    assert filling._thread is not None
    assert not filling._thread.is_alive()
    cache.close()

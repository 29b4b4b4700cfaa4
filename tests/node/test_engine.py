"""What the fetch engine owes to time: chunks at once, urgent ones first, and an end to each read."""

import itertools
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazyfs.errors import IntegrityError, StoreError
from lazyfs.node import fetch
from lazyfs.node.budget import Budget
from lazyfs.node.crew import Crew, Lane
from lazyfs.node.touched import PAGE, Touched
from lazyfs.node.watch import Watch
from lazyfs.node.windows import MAX_WINDOW, MIN_RUN, Windows
from tests.waiting import wait_until

from .conftest import Rig
from .samples import KIB, PATIENCE, FakeStore, has, no_thread

Make = Callable[..., Rig]
MIB = 1 << 20


def test_a_chunk_is_handed_out_while_the_rest_still_streams(rig: Make) -> None:
    each = rig([40 * KIB] * 4)
    gate = threading.Event()
    third = each.layer.frame_span(2)[0]
    each.store.between = lambda offset: (gate.wait(PATIENCE), None)[1] if offset == third else None
    whole = each.device.request(0, 160 * KIB)
    first = each.device.request(0, 40 * KIB)
    assert first.result(PATIENCE) == each.layer.plain(0)
    assert not whole.done()
    gate.set()
    assert whole.result(PATIENCE) == each.layer.device
    assert len(each.store.reads) == 1


def test_demand_overtakes_what_is_only_foreseen(rig: Make) -> None:
    each = rig([40 * KIB] * 60, [10] * 60)  # gaps: a request for each chunk
    gate = threading.Event()
    each.store.fault = lambda offset, length: (gate.wait(PATIENCE), None)[1]
    ahead = each.fetcher.ahead(range(50), Lane.PREFETCH)
    assert len(ahead) == 50
    wait_until(lambda: len(each.store.reads) == 8)
    wanted = each.device.request(45 * 40 * KIB, 40 * KIB)
    wait_until(lambda: each.layer.frame_span(45) in each.store.reads)
    assert len(each.store.reads) == 9
    gate.set()
    assert wanted.result(PATIENCE) == each.layer.plain(45)
    assert all(future.result(PATIENCE) for future in ahead)
    assert each.store.twice() == 0


def test_what_a_reader_comes_to_overtakes_the_background(rig: Make) -> None:
    each = rig([40 * KIB] * 60, [10] * 60)
    gate = threading.Event()
    each.store.fault = lambda offset, length: (gate.wait(PATIENCE), None)[1]
    filling = each.fetcher.ahead(range(50), Lane.FILL)
    wait_until(lambda: len(each.store.reads) == 2)
    foreseen = each.fetcher.ahead(range(40, 45), Lane.PREFETCH)
    wait_until(lambda: {each.layer.frame_span(index) for index in range(40, 45)} <= set(each.store.reads))
    assert len(each.store.reads) == 7
    assert each.fetcher.ahead(range(40, 45), Lane.FILL) == [], "what is urgent stays so"
    gate.set()
    assert [future.result(PATIENCE) for future in foreseen] == [each.layer.plain(i) for i in range(40, 45)]
    assert [filling[index] for index in range(40, 45)] == foreseen
    assert each.store.twice() == 0


def test_what_overtakes_and_fails_is_an_error_at_once(rig: Make) -> None:
    each = rig([40 * KIB] * 60, [10] * 60)
    each.store.damage(each.layer, 45)
    gate = threading.Event()
    wanted = each.layer.frame_span(45)[0]
    each.store.fault = lambda offset, length: None if offset == wanted else (gate.wait(PATIENCE), None)[1]
    each.fetcher.ahead(range(50), Lane.PREFETCH)
    wait_until(lambda: len(each.store.reads) == 8)
    answer = each.device.request(45 * 40 * KIB, 40 * KIB)
    try:
        assert isinstance(answer.exception(PATIENCE), IntegrityError)
    finally:
        gate.set()


def test_filling_makes_way(rig: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "_HURRY_SECONDS", PATIENCE)
    each = rig([40 * KIB] * 20)
    gate = threading.Event()
    second = each.layer.frame_span(1)[0]
    each.store.between = lambda offset: (gate.wait(PATIENCE), None)[1] if offset == second else None
    filling = each.fetcher.ahead(range(10), Lane.FILL)
    wait_until(lambda: has(each.cache, 0))
    assert each.is_right(15 * 40 * KIB, 100)
    gate.set()
    wait_until(filling[9].done)
    assert filling[9].cancelled()
    each.store.between = lambda offset: None
    assert each.is_right()
    assert each.landed()


def test_a_reader_who_waits_for_what_is_being_filled_gets_it(rig: Make) -> None:
    each = rig([40 * KIB] * 10)
    gate = threading.Event()
    each.store.fault = lambda offset, length: (gate.wait(PATIENCE), None)[1]
    each.fetcher.ahead(range(10), Lane.FILL)
    wait_until(lambda: len(each.store.reads) == 1)
    answer = each.device.request(9 * 40 * KIB, 40 * KIB)
    gate.set()
    assert answer.result(PATIENCE) == each.layer.plain(9)
    assert len(each.store.reads) == 1


def test_a_store_that_says_nothing_is_an_error_in_time_and_the_next_read_tries_anew(rig: Make) -> None:
    each = rig([40 * KIB] * 3, timeout=0.3, hedges=True)
    silent = threading.Event()
    each.store.fault = lambda offset, length: (silent.wait(PATIENCE), None)[1]
    began = time.monotonic()
    with pytest.raises(StoreError, match=r"blob sha256:b.* in the fake store: no answer within 0.3 s"):
        each.device.request(0, 100).result(PATIENCE)
    assert time.monotonic() - began < 10
    assert "no answer within" in each.timeline.counters()["recent_failures"][0]
    each.store.fault = lambda offset, length: None
    assert each.is_right()
    silent.set()


def test_a_read_ends_in_time_however_slow_the_store_was_before(rig: Make) -> None:
    each = rig([40 * KIB] * 3, timeout=0.3)
    each.engine.answered(1000.0)
    silent = threading.Event()
    each.store.fault = lambda offset, length: (silent.wait(PATIENCE), None)[1]
    with pytest.raises(StoreError, match="no answer within"):
        each.device.request(0, 100).result(PATIENCE)
    silent.set()


def test_a_read_behind_threads_that_hang_ends_as_well(rig: Make) -> None:
    each = rig([40 * KIB] * 60, [10] * 60, timeout=0.3, hedges=True)
    silent = threading.Event()
    each.store.fault = lambda offset, length: (silent.wait(PATIENCE), None)[1]
    answers = [each.device.request(number * 40 * KIB, 100) for number in range(60)]
    for answer in answers:
        with pytest.raises(StoreError, match="no answer"):
            answer.result(PATIENCE)
    silent.set()


def test_a_slow_answer_is_asked_for_a_second_time(rig: Make) -> None:
    each = rig([40 * KIB] * 4, hedges=True)
    slow = threading.Event()

    def first_alone(offset: int, length: int) -> None:
        if len(each.store.reads) == 1:
            slow.wait(PATIENCE)

    each.store.fault = first_alone
    assert each.is_right(0, 160 * KIB)
    assert len(each.store.reads) == 2
    assert each.timeline.counters()["second_requests"] == 1
    slow.set()


def test_another_store_is_asked_the_second_time(rig: Make) -> None:
    each = rig([40 * KIB] * 4, hedges=True)
    slow, other = threading.Event(), FakeStore(each.layer.blob)
    each.fetcher.prefer(other.source())
    other.fault = lambda offset, length: (slow.wait(PATIENCE), None)[1]
    assert each.is_right(0, 160 * KIB)
    assert (len(other.reads), len(each.store.reads)) == (1, 1)
    assert each.timeline.counters()["second_requests"] == 1
    slow.set()


def test_second_requests_are_a_small_share(rig: Make) -> None:
    each = rig([40 * KIB] * 40, [10] * 40, timeout=1.5, hedges=True)
    silent = threading.Event()
    each.store.fault = lambda offset, length: (silent.wait(PATIENCE), None)[1]
    answers = [each.device.request(number * 40 * KIB, 100) for number in range(30)]
    for answer in answers:
        with pytest.raises(StoreError):
            answer.result(PATIENCE)
    assert len(each.store.reads) <= 32
    silent.set()


def test_a_failing_second_request_does_not_spoil_the_first(rig: Make) -> None:
    each = rig([40 * KIB] * 4, hedges=True)
    slow, calls = threading.Event(), itertools.count()

    def fault(offset: int, length: int) -> None:
        if next(calls) == 0:
            slow.wait(PATIENCE)
        else:
            slow.set()
            raise StoreError("the second is refused")

    each.store.fault = fault
    assert each.is_right(0, 160 * KIB)


def test_a_sequential_reader_is_fetched_for_ahead(rig: Make) -> None:
    each = rig([256 * KIB] * 64)
    step = 128 * KIB
    for offset in range(0, 2 * MIB, step):
        assert each.is_right(offset, step)
    wait_until(lambda: has(each.cache, 2 * MIB // (256 * KIB) + 3))
    assert each.landed()
    assert each.cache.present_bytes() <= 2 * 2 * MIB + MIB


def test_nothing_is_fetched_ahead_of_a_reader_who_jumps(rig: Make) -> None:
    jumping = rig([256 * KIB] * 64)
    wanted = [number * 13 % 64 for number in range(24)]
    for index in wanted:
        assert jumping.is_right(index * 256 * KIB, 4 * KIB)
    assert jumping.landed()
    assert jumping.cache.present_bytes() <= len(set(wanted)) * 256 * KIB


@given(
    st.lists(st.tuples(st.integers(0, 400), st.integers(1, 16), st.integers(1, 30)), min_size=1, max_size=20)
)
def test_never_more_ahead_than_was_read(jumps: list[tuple[int, int, int]]) -> None:
    size = 512 * MIB
    windows = Windows(size)
    read = ahead = 0
    for position, pages, times in jumps:
        offset = position * MIB
        for _ in range(times):
            end = min(size, offset + pages * 32 * KIB)
            low, high = windows.observe(offset, end)
            assert low <= high <= size and high - low <= MAX_WINDOW
            read += end - offset
            ahead += high - low
            offset = end
    assert ahead <= 2 * read


def test_a_window_grows_to_its_limit() -> None:
    windows = Windows(1 << 30)
    high = 0
    for offset in range(0, 100 * MIB, 128 * KIB):
        low, until_ = windows.observe(offset, offset + 128 * KIB)
        if until_ > low:
            assert low >= high
            high = until_
        if offset >= 2 * MIN_RUN:
            assert high > offset + 128 * KIB
    assert high >= 100 * MIB + MAX_WINDOW // 2


def test_urgent_work_never_waits_for_threads_of_other_lanes() -> None:
    crew = Crew((2, 2, 1))
    gate = threading.Event()
    for _ in range(10):
        crew.submit(Lane.FILL, lambda: (gate.wait(PATIENCE), None)[1])
        crew.submit(Lane.PREFETCH, lambda: (gate.wait(PATIENCE), None)[1])
    done = threading.Event()
    crew.submit(Lane.DEMAND, done.set)
    assert done.wait(PATIENCE)
    gate.set()
    crew.close()
    with pytest.raises(RuntimeError):
        crew.submit(Lane.DEMAND, done.set)


def test_a_budget_holds_back_and_never_for_ever() -> None:
    budget = Budget(100)
    inside: Future[None] = Future()
    with budget.take(1000):

        def other() -> None:
            with budget.take(10):
                inside.set_result(None)

        thread = threading.Thread(target=other)
        thread.start()
        assert not inside.done()
    inside.result(PATIENCE)
    thread.join()


def test_a_budget_that_grows_lets_in_who_waits() -> None:
    budget = Budget(100)
    inside: Future[None] = Future()

    def other() -> None:
        with budget.take(60):
            inside.set_result(None)

    with budget.take(60):
        thread = threading.Thread(target=other)
        thread.start()
        assert not inside.done()
        budget.set_limit(120)
        inside.result(PATIENCE)
    thread.join()


def test_a_watch_looks_when_it_is_time_and_goes_on_after_a_defect() -> None:
    watch = Watch()
    looks: list[int] = []
    done = threading.Event()

    def twice() -> float | None:
        looks.append(1)
        if len(looks) == 2:
            done.set()
            return None
        return time.monotonic()

    def broken() -> float | None:
        raise ValueError("a defect")

    watch.at(time.monotonic() + 3600, broken)
    watch.at(time.monotonic(), broken)
    watch.at(time.monotonic(), twice)
    assert done.wait(PATIENCE)
    watch.close()


def test_a_watch_begins_when_a_thread_can_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    watch, first, second = Watch(), threading.Event(), threading.Event()
    with monkeypatch.context() as few:
        few.setattr(threading.Thread, "start", no_thread)
        watch.at(time.monotonic(), first.set)
    watch.at(time.monotonic(), second.set)
    assert first.wait(PATIENCE)
    assert second.wait(PATIENCE)
    watch.close()


def test_touched_pages_are_counted_once() -> None:
    touched = Touched(10 * PAGE + 1)
    touched.mark(0, 1)
    touched.mark(100, PAGE)
    assert touched.bytes() == PAGE
    touched.mark(PAGE - 1, PAGE + 1)
    assert touched.bytes() == 2 * PAGE
    touched.mark(0, 10 * PAGE + 1)
    assert touched.bytes() == 11 * PAGE

"""As many at once as there is work, not as there happened to be idle threads."""

import threading

from lazyfs.node.crew import Crew, Lane
from tests.waiting import wait_until

from .samples import PATIENCE


def test_work_that_comes_at_once_is_done_at_once() -> None:
    crew = Crew((8, 2, 1))
    try:
        crew.submit(Lane.DEMAND, lambda: None)
        done = threading.Event()
        crew.submit(Lane.DEMAND, done.set)
        assert done.wait(PATIENCE)
        # One thread is idle now, and must not get all of it.
        barrier = threading.Barrier(9)
        for _ in range(8):
            crew.submit(Lane.DEMAND, barrier.wait)
        barrier.wait(PATIENCE)
    finally:
        crew.close()


def test_what_waits_for_its_lane_keeps_no_demand_waiting() -> None:
    crew = Crew((2, 1, 1))
    go = threading.Event()
    try:
        # As many threads as there may be; all but the one of the lane that has a queue are idle then.
        barrier = threading.Barrier(5)
        for lane in (Lane.DEMAND, Lane.DEMAND, Lane.PREFETCH, Lane.FILL):
            crew.submit(lane, barrier.wait)
        for _ in range(8):
            crew.submit(Lane.PREFETCH, lambda: go.wait(PATIENCE))
        barrier.wait(PATIENCE)
        wait_until(lambda: crew._idle == 3)
        done = threading.Event()
        crew.submit(Lane.DEMAND, done.set)
        assert done.wait(PATIENCE / 2), "three threads are idle"
    finally:
        go.set()
        crew.close()


def test_what_waits_for_its_lane_starts_no_threads() -> None:
    crew = Crew((8, 8, 1))
    go, done = threading.Event(), threading.Event()
    before = threading.active_count()
    try:
        for _ in range(8):
            crew.submit(Lane.FILL, lambda: go.wait(PATIENCE))
        crew.submit(Lane.FILL, done.set)
        assert threading.active_count() - before <= 2
        go.set()
        assert done.wait(PATIENCE)
    finally:
        go.set()
        crew.close()


def test_closing_does_not_wait_for_a_store_that_says_nothing() -> None:
    crew, store, busy = Crew((2, 1, 1)), threading.Event(), threading.Event()

    def ask() -> None:
        busy.set()
        store.wait()

    crew.submit(Lane.DEMAND, ask)
    assert busy.wait(PATIENCE)
    closing = threading.Thread(target=crew.close)
    closing.start()
    closing.join(PATIENCE)
    assert not closing.is_alive()
    store.set()
    wait_until(lambda: not any(thread.is_alive() for thread in crew._threads), "the end of the thread")

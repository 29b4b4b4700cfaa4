"""As many at once as there is work, not as there happened to be idle threads."""

import threading

from lazyfs.node.crew import Crew, Lane

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

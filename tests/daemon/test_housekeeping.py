"""The housekeeper: at work while something is done, asleep while nothing is."""

import queue
from collections.abc import Iterator
from contextlib import closing, contextmanager

from lazyfs.daemon.housekeeping import Housekeeper

PATIENCE = 20.0


class Work:
    """Each call waits for what it is to answer."""

    def __init__(self) -> None:
        self.began = 0
        self.calls: queue.Queue[bool] = queue.Queue()
        self.answers: queue.Queue[bool | Exception] = queue.Queue()

    def begin(self) -> None:
        self.began += 1

    def __call__(self, quiet: bool) -> bool:
        self.calls.put(quiet)
        answer = self.answers.get(timeout=PATIENCE)
        if isinstance(answer, Exception):
            raise answer
        return answer


@contextmanager
def keeping(work: Work) -> Iterator[Housekeeper]:
    with closing(Housekeeper(work.begin, work, seconds=0.01, longest_sleep=PATIENCE)) as house:
        yield house


def test_what_is_done_is_followed_by_work_and_then_by_sleep() -> None:
    work = Work()
    with keeping(work) as house:
        assert work.calls.get(timeout=PATIENCE)  # what an earlier daemon left
        house.stir()
        work.answers.put(False)
        assert work.calls.get(timeout=PATIENCE)
        assert work.began == 2
        work.answers.put(False)
        house.stir()
        work.calls.get(timeout=PATIENCE)
        work.answers.put(False)
    assert work.answers.empty()


def test_what_is_left_to_do_is_done_although_nothing_happens() -> None:
    work = Work()
    with keeping(work):
        for left in (True, True, False):
            assert work.calls.get(timeout=PATIENCE)
            work.answers.put(left)
    assert work.began == 1


def test_a_defect_ends_nothing() -> None:
    work = Work()
    with keeping(work):
        assert work.calls.get(timeout=PATIENCE)
        work.answers.put(ValueError("a defect"))
        assert work.calls.get(timeout=PATIENCE)
        work.answers.put(False)

"""What comes along with a chunk that is missed: as much as a link carries meanwhile; nothing for who jumps about."""

import threading
from collections.abc import Callable, Iterable
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazyfs.node.crew import Lane
from lazyfs.node.neighbours import MAX_BYTES, NEAR, Neighbours
from lazyfs.node.pace import FEW, Pace
from lazyfs.node.touched import PAGE, Touched

from .conftest import Rig
from .samples import KIB, PATIENCE, Layer, has

Make = Callable[..., Rig]
CHUNK = 40 * KIB


def pace(round_trip: float, rate: float, sizes: tuple[int, ...] = (50_000, 200_000, 90_000, 10_000)) -> Pace:
    """What is known of a link after reads of two chunks each."""
    known = Pace()
    for size in sizes:
        known.answered(round_trip + size / rate, size, 4 * size / rate, 4 * size)
    return known


class Known(Pace):
    """What no answer changes: those of a store in memory come at once."""

    def __init__(self, round_trip: float, rate: float) -> None:
        super().__init__()
        self._known = round_trip, rate

    def round_trip(self) -> float:
        return self._known[0]

    def rate(self) -> float:
        return self._known[1]


def far(rig: Rig, *, chunks: float, is_idle: bool = True) -> None:
    """From now on this layer's store is so far away that so many chunks come in two round trips."""
    touched = Touched(rig.layer.chunks.device_size)
    rig.engine._paces[""] = Known(0.1, chunks * CHUNK / 0.2)
    rig.fetcher._neighbours = Neighbours(rig.layer.chunks, touched.was, lambda: is_idle)


@given(
    round_trip=st.floats(0.002, 1.0),
    rate=st.floats(1e5, 1e9),
    sizes=st.lists(st.integers(20_000, 500_000), min_size=FEW, max_size=40),
    late=st.lists(st.floats(0, 5.0), max_size=40),
)
def test_a_link_is_known_by_its_answers(
    round_trip: float, rate: float, sizes: list[int], late: list[float]
) -> None:
    known = pace(round_trip, rate, tuple(sizes))
    assert known.rate() == pytest.approx(rate)
    assert known.round_trip() == pytest.approx(round_trip, rel=1e-3)
    # A machine that was busy does not make the store seem farther away.
    for seconds in late[: 16 - min(len(sizes), 16)]:
        known.answered(round_trip + seconds + 0.1, 1, 0, 0)
    assert known.round_trip() <= round_trip * 1.001


def test_nothing_is_known_at_first() -> None:
    known = Pace()
    assert (known.round_trip(), known.rate()) == (0, 0)
    for _ in range(FEW):
        assert known.round_trip() == 0
        known.answered(0.1, 100_000, 0, 0)
    # Of reads of one chunk no rate can be told, only that it is more than that.
    assert 1e6 < known.rate() <= 2e6
    assert 0 < known.round_trip() < 0.1


def test_a_miss_brings_what_lies_behind_it(rig: Make) -> None:
    each = rig([CHUNK] * 12)
    far(each, chunks=3.5)
    assert each.is_right(4 * CHUNK, 10)
    assert each.landed()
    assert each.store.reads == [(each.layer.frame_span(4)[0], each.layer.frame_span(7)[1])]
    assert [has(each.cache, index) for index in range(3, 9)] == [False, True, True, True, True, False]
    assert each.is_right(6 * CHUNK, 10)
    assert len(each.store.reads) == 1


def test_what_is_missed_does_not_wait_for_its_neighbours(rig: Make) -> None:
    each = rig([CHUNK] * 8)
    far(each, chunks=3.5)
    gate = threading.Event()
    second = each.layer.frame_span(1)[0]
    each.store.between = lambda offset: (gate.wait(PATIENCE), None)[1] if offset == second else None
    assert each.is_right(0, 10)
    # Who comes to a neighbour that is on its way waits for it, and asks for nothing; it brings no more.
    coming = each.device.request(2 * CHUNK, 10)
    assert not coming.done()
    gate.set()
    assert coming.result(PATIENCE) == each.layer.device[2 * CHUNK : 2 * CHUNK + 10]
    assert len(each.store.reads) == 1


def test_it_ends_at_what_is_here_or_on_its_way(rig: Make) -> None:
    each = rig([CHUNK] * 12)
    assert each.is_right(2 * CHUNK, 10)
    gate = threading.Event()
    each.store.fault = lambda offset, length: (
        (gate.wait(PATIENCE), None)[1] if offset == each.layer.frame_span(8)[0] else None
    )
    ahead = each.fetcher.ahead([8], Lane.PREFETCH)
    far(each, chunks=20)
    assert each.is_right(0, 10)
    assert each.is_right(5 * CHUNK, 10)
    assert (each.layer.frame_span(0)[0], each.layer.frame_span(1)[1]) in each.store.reads
    assert (each.layer.frame_span(5)[0], each.layer.frame_span(7)[1]) in each.store.reads
    gate.set()
    assert ahead[0].result(PATIENCE) == each.layer.plain(8)
    assert each.store.twice() == 0


def test_no_neighbours_where_they_cost_more_than_to_ask(rig: Make) -> None:
    layer = Layer([CHUNK] * 8)
    for known in (Pace(), Known(NEAR / 2, 1e9), Known(NEAR * 2, CHUNK)):
        assert not Neighbours(layer.chunks, lambda low, high: True, lambda: True).behind(0, known)
    each = rig([CHUNK] * 8)
    far(each, chunks=4, is_idle=False)
    assert each.is_right(0, 10)
    assert each.store.reads == [each.layer.frame_span(0)]


def test_no_neighbours_without_room_for_them(rig: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    each = rig([CHUNK] * 8)
    monkeypatch.setattr(each.cache, "put", lambda index, plain: False)
    assert each.is_right(0, 10)
    assert each.landed()
    far(each, chunks=4)
    assert each.is_right(CHUNK, 10)
    assert each.store.reads == [each.layer.frame_span(0), each.layer.frame_span(1)]


def test_a_damaged_neighbour_is_nobodys_error(rig: Make) -> None:
    each = rig([CHUNK] * 8)
    far(each, chunks=3.5)
    each.store.damage(each.layer, 2)
    assert each.is_right(0, 10)
    assert each.landed()
    assert [has(each.cache, index) for index in range(5)] == [True, True, False, True, False]
    assert not each.is_readable()


def test_never_more_than_a_part_of_a_long_link() -> None:
    layer = Layer([CHUNK] * 60)
    behind = Neighbours(layer.chunks, lambda low, high: True, lambda: True).behind(3, Known(1.0, 1e9))
    stored = layer.frame_span(behind[-1])[1] - layer.frame_span(behind[0])[0]
    assert MAX_BYTES - 2 * CHUNK < stored <= MAX_BYTES
    assert behind[0] == 4


def test_who_jumps_about_gets_no_more_of_them() -> None:
    layer = Layer([PAGE] * 600)
    touched, here = Touched(layer.chunks.device_size), set[int]()
    known = Known(0.1, 2.5 * PAGE / 0.2)
    neighbours = Neighbours(layer.chunks, touched.was, lambda: True)

    def misses(indexes: Iterable[int]) -> list[int]:
        """How many came along with each chunk that a reader of these missed."""
        found = []
        for index in indexes:
            if index not in here:
                came = [each for each in neighbours.behind(index, known) if each not in here]
                for each in came:
                    neighbours.came(each)
                here.update([index, *came])
                found.append(len(came))
            touched.mark(index * PAGE, index * PAGE + PAGE)
        return found

    jumps = list(range(0, 300, 3))
    Random(1).shuffle(jumps)
    jumping = misses(jumps)
    assert jumping[:10] == [2] * 10
    assert 0 < sum(jumping[40:]) < 10  # it is still tried now and then
    # A reader who comes to what lies behind is noticed, after a while.
    assert misses(range(300, 590))[-10:] == [2] * 10


def test_touched_pages() -> None:
    touched = Touched(10 * PAGE)
    touched.mark(3 * PAGE + 5, 3 * PAGE + 6)
    assert touched.was(3 * PAGE, 4 * PAGE)
    assert touched.was(0, 3 * PAGE + 1)
    assert not touched.was(0, 3 * PAGE)
    assert not touched.was(4 * PAGE, 10 * PAGE)


def test_each_host_has_a_pace_of_its_own(rig: Make) -> None:
    engine = rig().engine
    assert engine.pace("docker://far.example.com/app") is engine.pace("docker://far.example.com/other")
    assert engine.pace("docker://far.example.com/app") is not engine.pace("docker://near.example.com/app")

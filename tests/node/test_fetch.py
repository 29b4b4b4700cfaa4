"""The fetch engine and the device: one flight per chunk, right bytes or an error, whatever store and disk do."""

import errno
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import pairwise
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazyfs.errors import IntegrityError, LazyfsError, NodeError, NotFoundError, StoreError
from lazyfs.node import damage, plan
from lazyfs.node.crew import Lane
from lazyfs.node.plan import Flight, join_neighbours
from lazyfs.node.sources import open_chunk
from tests.waiting import wait_until

from .conftest import Rig
from .samples import KIB, PATIENCE, FakeStore, Layer, failing, has

Make = Callable[..., Rig]


def disk_full(descriptor: int, data: memoryview, offset: int) -> int:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def disk_broken(descriptor: int, length: int, offset: int) -> bytes:
    raise OSError(errno.EIO, os.strerror(errno.EIO))


def test_every_range_is_right(rig: Make) -> None:
    lengths = [512, 32 * KIB, 100 * KIB, 1024, 32 * KIB + 512, 70 * KIB]
    each = rig(lengths, [0, 0, 300, 0, 0, 17])
    size = sum(lengths)
    rng = Random(1)
    for _ in range(200):
        offset = rng.randrange(size)
        assert each.is_right(offset, rng.randrange(1, 90 * KIB))
    assert each.is_right()
    assert each.store.twice() == 0
    assert each.landed()
    assert each.cache.present_bytes() == size


def test_what_is_asked_beyond_the_end(rig: Make) -> None:
    each = rig([512, 1024])
    assert each.device.size == 1536
    assert each.read(1000, 4096) == each.layer.device[1000:]
    for offset in (1536, 5000):
        assert each.landed()
        assert each.device.peek(offset, 512) == b""
        assert each.device.request(offset, 512).result(0) == b""
    assert each.device.request(100, 0).result(0) == b""


def test_peek_never_fetches(rig: Make) -> None:
    each = rig([512, 1024])
    assert each.landed()
    assert each.device.peek(0, 1536) is None
    assert each.store.reads == []
    assert each.is_right(0, 512)
    assert each.landed()
    assert each.device.peek(0, 512) == each.layer.device[:512]
    assert each.landed()
    assert each.device.peek(0, 513) is None


def test_single_flight_and_one_request_for_neighbours(rig: Make) -> None:
    each = rig()
    gate = threading.Event()
    each.store.fault = lambda offset, length: (
        None if gate.wait(PATIENCE) else pytest.fail("the gate stayed shut")
    )
    size = len(each.layer.device)
    answers = [each.device.request(0, size) for _ in range(30)]
    answers += [each.device.request(number * KIB, 5 * KIB) for number in range(50)]
    assert not any(answer.done() for answer in answers)
    gate.set()
    assert all(answer.result(PATIENCE) == each.layer.device for answer in answers[:30])
    assert each.store.reads == [(0, len(each.layer.blob))]


def test_many_readers_at_once_read_no_byte_twice(rig: Make) -> None:
    each = rig([Random(3).randrange(1, 200) * 512 for _ in range(60)])

    def reader(seed: int) -> bool:
        rng = Random(seed)
        offsets = [rng.randrange(len(each.layer.device)) for _ in range(60)]
        return all(each.is_right(offset, rng.randrange(1, 128 * KIB)) for offset in offsets)

    with ThreadPoolExecutor(12) as readers:
        assert all(readers.map(reader, range(12)))
    assert each.store.twice() == 0


def test_what_lands_between_the_look_and_the_flight_is_not_fetched_again(
    rig: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    each = rig([64 * KIB])
    read = each.cache.read
    looks = 0

    def landing(offset: int, length: int) -> bytes | None:
        nonlocal looks
        looks += 1
        if looks == 1:
            each.cache.put(0, each.layer.plain(0))
            return None
        return read(offset, length)

    monkeypatch.setattr(each.cache, "read", landing)
    assert each.device.request(100, 1000).result(PATIENCE) == each.layer.device[100:1100]
    assert each.store.reads == []
    assert each.landed()
    assert has(each.cache, 0)


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        (StoreError("the store is away"), StoreError),
        (NotFoundError("no such blob"), NotFoundError),
        (ValueError("a defect"), NodeError),
    ],
)
def test_failure_is_an_error_and_the_next_read_tries_anew(
    rig: Make, fault: Exception, expected: type[LazyfsError]
) -> None:
    each = rig()
    each.store.fault = failing(fault)
    answers = [each.device.request(0, 100 * KIB) for _ in range(5)]
    for answer in answers:
        with pytest.raises(expected, match=str(fault)):
            answer.result(PATIENCE)
    counters = each.timeline.counters()
    assert counters["failed_fetches"] >= 1
    assert len(counters["recent_failures"]) == 1
    assert str(fault) in counters["recent_failures"][0]
    each.store.fault = lambda offset, length: None
    assert each.is_right()


def test_a_damaged_chunk_fails_alone(rig: Make) -> None:
    each = rig([40 * KIB] * 5)
    each.store.damage(each.layer, 2)
    with pytest.raises(IntegrityError, match="chunk 2 of blob"):
        each.read(0, 200 * KIB)
    assert len(each.store.reads) == 1
    assert each.is_right(0, 80 * KIB)
    assert each.is_right(120 * KIB)
    assert len(each.store.reads) == 1
    each.store.damage(each.layer, 2)  # the same bit again: it is mended
    wait_until(each.is_readable, "the damage to be forgotten")
    assert each.is_right()


def test_what_was_damaged_a_moment_ago_is_not_asked_for_again(
    rig: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(damage, "REMEMBER_SECONDS", 3600.0)
    each = rig([40 * KIB] * 5)
    each.store.damage(each.layer, 2)
    for _ in range(3):
        with pytest.raises(IntegrityError, match="chunk 2 of blob"):
            each.read(80 * KIB, 512)
        with pytest.raises(IntegrityError, match="chunk 2 of blob"):
            each.read(0, 200 * KIB)
    assert each.fetcher.ahead(range(2, 3), Lane.PREFETCH) == []
    assert each.store.reads.count(each.layer.frame_span(2)) == 1
    assert each.store.twice() == 0
    assert len(each.timeline.counters()["recent_failures"]) == 1
    # Whoever opens the image again may have come with a store that is whole.
    each.fetcher.prefer(FakeStore(each.layer.blob).source())
    assert each.is_right()


def test_only_damage_everywhere_is_remembered(rig: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that could not be asked may have it right."""
    monkeypatch.setattr(damage, "REMEMBER_SECONDS", 3600.0)
    each = rig()
    other = FakeStore(each.layer.blob)
    other.damage(each.layer, 1)
    each.fetcher.prefer(other.source())
    each.store.fault = failing(StoreError("away"))
    for _ in range(2):
        with pytest.raises(IntegrityError, match="chunk 1 of blob"):
            each.read(40 * KIB, 512)
    each.store.fault = lambda offset, length: None
    assert each.is_right()


@given(st.integers(0, 1 << 30), st.integers(1, 255))
def test_no_flipped_byte_goes_unseen(position: int, mask: int) -> None:
    layer = Layer([2048, 512, 40 * KIB])
    blob = bytearray(layer.blob)
    position %= len(blob)
    blob[position] ^= mask
    for index in range(3):
        start, end = layer.frame_span(index)
        frame = bytes(blob[start:end])
        if start <= position < end:
            # zstd has bits that mean nothing; the plain bytes decide.
            try:
                assert open_chunk("zstd", layer.chunks, index, frame, "b") == layer.plain(index)
            except IntegrityError:
                continue
        else:
            assert open_chunk("zstd", layer.chunks, index, frame, "b") == layer.plain(index)


def test_another_store_gives_what_the_first_does_not(rig: Make) -> None:
    each = rig([40 * KIB] * 5)
    other = FakeStore(each.layer.blob)
    each.fetcher.prefer(other.source())
    other.damage(each.layer, 1)
    assert each.is_right(0, 200 * KIB)
    assert len(other.reads) == 1
    assert each.store.reads == [each.layer.frame_span(1)]


def test_what_no_store_gives_is_what_the_preferred_one_said(rig: Make) -> None:
    each = rig()
    other = FakeStore(each.layer.blob)
    each.fetcher.prefer(other.source())
    other.fault = failing(StoreError("the new one is away"))
    each.store.fault = failing(NotFoundError("the old one is gone"))
    with pytest.raises(StoreError, match="the new one is away"):
        each.read(0, 512)
    assert each.timeline.counters()["failed_fetches"] == 1
    each.fetcher.prefer(each.store.source())
    with pytest.raises(NotFoundError, match="the old one is gone"):
        each.read(0, 512)
    each.fetcher.prefer(other.source())
    other.fault = lambda offset, length: None
    assert each.is_right()


def test_no_thread_for_a_flight_is_an_error_and_not_a_hang(
    rig: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    each = rig([40 * KIB] * 3, [0, 10, 10])

    def refuse(*args: object) -> Future[None]:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(each.engine.crew, "submit", refuse)
        with pytest.raises(NodeError, match="can't start new thread"):
            each.read(0, 120 * KIB)
    assert each.is_right()


def test_a_full_disk_costs_no_read(rig: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    each = rig()
    with monkeypatch.context() as patched:
        patched.setattr(os, "pwrite", disk_full)
        assert each.is_right()
        assert each.is_right(1000, 50 * KIB)
        assert each.landed()
        assert each.cache.present_bytes() == 0
    counters = each.timeline.counters()
    assert counters["cache_write_failures"] >= 8
    assert counters["recent_failures"] == ["cache: a layer: No space left on device"]
    assert each.is_right()
    assert each.landed()
    assert each.cache.present_bytes() == len(each.layer.device)


def test_a_disk_that_takes_half_a_chunk(rig: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    each = rig([200 * KIB])
    pwrite = os.pwrite
    written = 0

    def half(descriptor: int, data: memoryview, offset: int) -> int:
        nonlocal written
        if written:
            disk_full(descriptor, data, offset)
        written = pwrite(descriptor, data[: 100 * KIB], offset)
        return written

    with monkeypatch.context() as patched:
        patched.setattr(os, "pwrite", half)
        assert each.is_right()
        assert each.landed()
    assert each.landed()
    assert not has(each.cache, 0)
    assert each.landed()
    assert each.device.peek(0, 512) is None


def test_a_disk_that_does_not_give_back_costs_no_read(
    rig: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    each = rig()
    assert each.is_right()
    with monkeypatch.context() as patched:
        patched.setattr(os, "pread", disk_broken)
        assert each.landed()
        assert each.device.peek(0, 512) is None
        assert each.is_right(100, 3 * KIB)
        assert each.is_right(50 * KIB, 100 * KIB)
    assert "reading the cache failed" in caplog.text
    assert each.is_right()


def test_after_a_reboot_only_what_was_lost_is_fetched(rig: Make) -> None:
    before = rig([40 * KIB] * 5)
    assert before.is_right()
    assert before.landed()
    before.cache._unsynced = None  # the machine stops before the next flush
    before.cache.close()
    lost = 3 * 40 * KIB + 39 * KIB
    with (before.cache_directory / "data").open("r+b") as data:
        data.seek(lost)
        data.write(bytes(1 * KIB))
    after = rig([40 * KIB] * 5, boot=b"1" * 36)
    assert after.landed()
    assert after.device.peek(0, 512) is None
    assert after.is_right()
    assert after.store.reads == [after.layer.frame_span(3)]


chunk_layouts = st.lists(
    st.tuples(st.integers(1, 3), st.sampled_from([0, 0, 0, 1, 5000]), st.booleans()), min_size=1, max_size=40
)


@given(chunk_layouts, st.integers(1, 12))
def test_joined_runs(layout: list[tuple[int, int, bool]], limit: int) -> None:
    layer = Layer([512 * blocks for blocks, _, _ in layout], [gap for _, gap, _ in layout])
    chunks = layer.chunks
    wanted = [index for index, (_, _, want) in enumerate(layout) if want]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(plan, "MAX_REQUEST", limit * 500)
        runs = [
            [flight.index for flight in run] for run in join_neighbours(chunks, [Flight(i) for i in wanted])
        ]
    assert [index for run in runs for index in run] == wanted

    def size(run: list[int]) -> int:
        return layer.frame_span(run[-1])[1] - layer.frame_span(run[0])[0]

    for run in runs:
        assert len(run) == 1 or size(run) <= limit * 500
        for one, next_one in pairwise(run):
            assert next_one == one + 1
            assert layer.frame_span(one)[1] == layer.frame_span(next_one)[0]
    for run, next_run in pairwise(runs):
        touching = (
            run[-1] + 1 == next_run[0] and layer.frame_span(run[-1])[1] == layer.frame_span(next_run[0])[0]
        )
        assert not touching or size([run[0], next_run[0]]) > limit * 500

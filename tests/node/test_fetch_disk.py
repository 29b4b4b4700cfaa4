"""What is here, but has to be read from a disk: no reader waits for another's."""

import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from lazyfs.errors import NodeError
from lazyfs.node.cache_files import is_in_memory
from tests.waiting import wait_until

from .conftest import Rig
from .samples import KIB, PATIENCE

Make = Callable[..., Rig]


def test_what_lies_on_a_disk_is_read_by_another_thread(rig: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    each = rig()
    assert each.is_right()
    assert each.landed()
    asked = len(each.store.reads)
    readers: set[str] = set()
    pread = os.pread

    def noted(descriptor: int, length: int, offset: int) -> bytes:
        readers.add(threading.current_thread().name)
        return pread(descriptor, length, offset)

    monkeypatch.setattr(os, "pread", noted)
    monkeypatch.setattr(each.cache, "is_at_hand", lambda offset, length: False)
    assert each.device.peek(1000, 100 * KIB) is None
    assert each.is_right(1000, 100 * KIB)
    assert {name.partition("_")[0] for name in readers} == {"disk"}
    assert len(each.store.reads) == asked


def test_what_a_disk_does_not_give_back_to_another_thread_is_fetched(
    rig: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    each = rig()
    assert each.is_right()
    assert each.landed()
    monkeypatch.setattr(each.cache, "is_at_hand", lambda offset, length: False)
    with monkeypatch.context() as failing_disk:
        failing_disk.setattr(os, "pread", lambda descriptor, length, offset: b"")
        assert each.is_right(1000, 100 * KIB)
    assert each.landed()
    assert each.is_right()


def test_what_is_in_the_page_cache(tmp_path: Path) -> None:
    with (tmp_path / "data").open("w+b") as file:
        file.truncate(1 << 20)
        assert not is_in_memory(file.fileno(), 5000, 100_000)
        os.pwrite(file.fileno(), bytes(110_000), 0)
        assert is_in_memory(file.fileno(), 5000, 100_000)
        assert not is_in_memory(file.fileno(), 5000, 200_000)


def test_what_lies_on_a_disk_keeps_nobody_waiting_who_wants_more_than_that(
    rig: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some of it is on the disk, some is not here: neither is waited for by who asks."""
    each = rig()
    assert each.is_right(0, 40 * KIB)
    assert each.landed()
    disk = threading.Event()
    readers: set[str] = set()
    read = each.cache.read

    def slow(offset: int, length: int) -> bytes | None:
        if (offset, length) == (1000, 40 * KIB - 1000):
            readers.add(threading.current_thread().name)
            assert disk.wait(PATIENCE)
        return read(offset, length)

    monkeypatch.setattr(each.cache, "read", slow)
    monkeypatch.setattr(each.cache, "is_at_hand", lambda offset, length: False)
    answer = each.device.request(1000, 100 * KIB)
    wait_until(lambda: len(each.store.reads) == 2, "the missing part, although the disk says nothing")
    disk.set()
    assert answer.result(PATIENCE) == each.layer.device[1000 : 1000 + 100 * KIB]
    assert {name.partition("_")[0] for name in readers} == {"disk"}
    assert each.store.twice() == 0


def test_a_defect_beside_the_disk_is_an_error_of_who_waits(
    rig: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    each = rig()
    assert each.is_right(0, 40 * KIB)
    assert each.landed()
    monkeypatch.setattr(each.cache, "is_at_hand", lambda offset, length: False)
    monkeypatch.setattr(each.cache, "read", failing_of_the_first(each))
    with pytest.raises(NodeError, match="MemoryError"):
        each.device.request(1000, 100 * KIB).result(PATIENCE)


def failing_of_the_first(each: Rig) -> Callable[[int, int], bytes | None]:
    read = each.cache.read

    def fail(offset: int, length: int) -> bytes | None:
        if offset == 1000:
            raise MemoryError
        return read(offset, length)

    return fail

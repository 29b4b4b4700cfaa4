"""What is here, but has to be read from a disk: no reader waits for another's."""

import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from lazyfs.node.cache_files import is_in_memory

from .conftest import Rig
from .samples import KIB

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

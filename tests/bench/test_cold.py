"""The proof that the page cache is cold, and who is waited for."""

import mmap
from collections.abc import Iterator
from pathlib import Path

import pytest

from lazyfs.bench import cold
from lazyfs.bench.cold import DisturbedError, in_peace, undisturbed
from lazyfs.errors import NodeError

pytestmark = pytest.mark.root
SIZE = 4 << 20


@pytest.fixture
def used(tmp_path: Path) -> Iterator[tuple[Path, mmap.mmap]]:
    """A program that somebody runs: its pages stay, whoever empties the page cache."""
    program = tmp_path / "program"
    program.write_bytes(bytes(SIZE))
    with program.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapping:
        assert sum(mapping[:: mmap.PAGESIZE]) == 0
        yield program, mapping


def test_who_is_just_ending_is_waited_for(
    used: tuple[Path, mmap.mmap], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program, mapping = used
    monkeypatch.setattr("lazyfs.bench.cold.time.sleep", lambda _: mapping.close())
    assert cold.go_cold([tmp_path / "nothing"], [program]).in_memory == 0
    assert mapping.closed


def test_who_stays_is_told_of(
    used: tuple[Path, mmap.mmap], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    monkeypatch.setattr("lazyfs.bench.cold.time.sleep", waits.append)
    found = cold.go_cold([tmp_path / "nothing"], [used[0]])
    assert found.in_memory == SIZE
    assert 0 < sum(waits) <= 10
    with pytest.raises(NodeError, match="the page cache was not cold: it had 4,194,304 bytes"):
        found.check(local=False)


def test_what_somebody_else_drops_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counters = tmp_path / "vmstat"
    monkeypatch.setattr(cold, "_COUNTERS", counters)
    counters.write_text("nr_dirty 5\ndrop_pagecache 7\ndrop_slab 9\n")
    with undisturbed():
        counters.write_text("nr_dirty 6\ndrop_pagecache 7\ndrop_slab 10\n")
    with pytest.raises(DisturbedError, match="emptied the page cache"), undisturbed():
        counters.write_text("nr_dirty 6\ndrop_pagecache 8\ndrop_slab 10\n")


def test_who_was_disturbed_measures_once_more() -> None:
    said: list[str] = []

    def measure() -> int:
        if len(said) < 2:
            raise DisturbedError("in the way")
        return 7

    assert in_peace(measure, said.append) == 7
    assert said == ["in the way: once more"] * 2


def test_who_is_always_disturbed_gives_up() -> None:
    def measure() -> int:
        raise DisturbedError("in the way")

    with pytest.raises(DisturbedError):
        in_peace(measure)


def test_the_kernel_counts_it() -> None:
    with pytest.raises(DisturbedError), undisturbed():
        cold.drop_page_cache()

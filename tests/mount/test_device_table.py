"""The table of devices against a model of it, and what it refuses."""

from concurrent.futures import Future
from dataclasses import dataclass

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from lazyfs.errors import BusyError, NotFoundError, UsageError
from lazyfs.mount.device_table import DeviceTable


@dataclass(frozen=True)
class Content:
    """Zeros, all of them at hand."""

    size: int

    def peek(self, offset: int, length: int) -> bytes:
        return bytes(min(length, self.size - offset))

    def request(self, offset: int, length: int) -> "Future[bytes]":
        future: Future[bytes] = Future()
        future.set_result(self.peek(offset, length))
        return future


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "nul\0", "n" * 256])
def test_names_are_file_names(name: str) -> None:
    with pytest.raises(UsageError):
        DeviceTable().add(2, name, Content(1))


def test_reserved_numbers_are_refused() -> None:
    for inode in (0, 1):
        with pytest.raises(UsageError):
            DeviceTable().add(inode, "a", Content(1))


def test_a_number_is_never_given_to_other_content() -> None:
    """The kernel may still hold pages of it."""
    table = DeviceTable()
    table.add(2, "a", Content(10))
    table.remove("a")
    for name, size in (("b", 10), ("a", 11)):
        with pytest.raises(UsageError):
            table.add(2, name, Content(size))
    table.add(2, "a", Content(10))


def test_what_is_shown_cannot_be_added_or_removed_twice() -> None:
    table = DeviceTable()
    table.add(2, "a", Content(10))
    with pytest.raises(BusyError):
        table.add(3, "a", Content(10))
    table.remove("a")
    with pytest.raises(NotFoundError):
        table.remove("a")


def test_watchers_see_removals_after_the_fact() -> None:
    table = DeviceTable()
    seen: list[tuple[int, bool]] = []
    table.watch_removals(lambda device: seen.append((device.inode, table.named(b"a") is None)))
    table.add(2, "a", Content(10))
    table.remove("a")
    assert seen == [(2, True)]


def test_a_release_of_an_earlier_life_does_no_harm() -> None:
    table = DeviceTable()
    table.add(2, "a", Content(10))
    table.released(2)
    table.released(3)
    assert table.opened(2) is table.numbered(2) is table.named(b"a") is not None


class TableModel(RuleBasedStateMachine):
    """Devices are shown or not, and open so many times: all that readers can see follows from these."""

    inodes = st.integers(2, 5)

    def __init__(self) -> None:
        super().__init__()
        self.table = DeviceTable()
        self.shown: set[int] = set()
        self.opens = dict.fromkeys(range(2, 6), 0)

    @rule(inode=inodes)
    def add(self, inode: int) -> None:
        if inode not in self.shown:
            self.table.add(inode, str(inode), Content(inode))
            self.shown.add(inode)

    @rule(inode=inodes)
    def remove(self, inode: int) -> None:
        if inode in self.shown:
            self.table.remove(str(inode))
            self.shown.remove(inode)

    @rule(inode=inodes)
    def open(self, inode: int) -> None:
        assert (self.table.opened(inode) is not None) == (inode in self.shown)
        self.opens[inode] += inode in self.shown

    @rule(inode=inodes)
    def release(self, inode: int) -> None:
        if self.opens[inode]:
            self.table.released(inode)
            self.opens[inode] -= 1

    @invariant()
    def readers_see_what_they_should(self) -> None:
        assert [device.inode for device in self.table.listing()] == sorted(self.shown)
        for inode, opens in self.opens.items():
            device = self.table.numbered(inode)
            assert (device is not None) == (inode in self.shown or opens > 0)
            assert (self.table.named(b"%d" % inode) is not None) == (inode in self.shown)


TestTableModel = TableModel.TestCase

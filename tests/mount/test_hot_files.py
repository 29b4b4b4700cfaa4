"""Pages of a tree's files, from what has come of the layers: whole ones, right ones, when a file is opened or after."""

from random import Random
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazyfs.formats.image_tree import merge
from lazyfs.mount.hot_files import HotFiles
from lazyfs.mount.image_files import ImageFiles, view_base
from lazyfs.node.cache import LayerCache
from lazyfs.node.pack_places import PAGE
from tests.layers import layer_tree
from tests.trees import Entry, layer_tar

BLOCK = 512
CONTENTS = {
    b"a": Random(1).randbytes(3 * PAGE + 100),
    b"b": Random(2).randbytes(700),
    b"c": Random(3).randbytes(20 * PAGE),
    b"empty": b"",
}
ENTRIES = [Entry(name, content=content) for name, content in CONTENTS.items()]
STREAM = layer_tar(ENTRIES)
TREE = merge([layer_tree(ENTRIES)])


class Rig:
    """One layer, of which single blocks are here, and a kernel that knows the files that were opened."""

    def __init__(self) -> None:
        self.here: set[int] = set()
        self.files = ImageFiles(view_base("0123456789ab"), TREE, [cast(LayerCache, self)])  # type: ignore[list-item]
        self.numbers = {name: self.files.find(self.files.root, name) for name in CONTENTS}
        self.known: set[int] = set()
        self.given: dict[int, set[int]] = {}
        self.hot = HotFiles(lambda: self.files, [cast(LayerCache, self)], self.put)

    def number(self, name: bytes) -> int:
        found = self.numbers[name]
        assert found is not None
        return found.number

    def read(self, offset: int, length: int) -> bytes | None:
        blocks = range(offset // BLOCK, -(-(offset + length) // BLOCK))
        return STREAM[offset : offset + length] if self.here.issuperset(blocks) else None

    def put(self, number: int, offset: int, data: bytes) -> bool:
        if number not in self.known:
            return False
        content = next(content for name, content in CONTENTS.items() if self.number(name) == number)
        end = offset + len(data)
        assert data == content[offset:end]
        assert offset % PAGE == 0
        assert end % PAGE == 0 or end == len(content)
        self.given.setdefault(number, set()).update(range(offset // PAGE, -(-end // PAGE)))
        return True

    def arrive(self, first: int, last: int) -> None:
        self.here.update(range(first, last))
        self.hot.take(0, first * BLOCK, last * BLOCK)

    def open(self, name: bytes) -> None:
        self.known.add(self.number(name))
        work = self.hot.opened(self.number(name))
        if work is not None:
            work()


RANGES = st.tuples(st.integers(0, len(STREAM) // BLOCK - 1), st.integers(1, 40))


@given(st.lists(st.one_of(RANGES, st.sampled_from(sorted(CONTENTS))), max_size=30))
def test_what_is_given_is_right_and_nothing_is_lost(steps: list[tuple[int, int] | bytes]) -> None:
    rig = Rig()
    for step in steps:
        if isinstance(step, bytes):
            rig.open(step)
        else:
            rig.arrive(step[0], min(step[0] + step[1], len(STREAM) // BLOCK))
    rig.arrive(0, len(STREAM) // BLOCK)
    for name, content in CONTENTS.items():
        rig.open(name)
        assert rig.given.get(rig.number(name), set()) == set(range(-(-len(content) // PAGE)))


def test_a_file_that_the_kernel_has_forgotten_gets_its_pages_when_it_is_opened_again() -> None:
    rig = Rig()
    rig.open(b"c")
    rig.known.clear()
    rig.arrive(0, len(STREAM) // BLOCK)
    assert rig.given == {}
    rig.open(b"c")
    assert len(rig.given[rig.number(b"c")]) == 20


@pytest.mark.parametrize("name", CONTENTS)
def test_an_open_that_has_nothing_to_wait_for(name: bytes) -> None:
    assert Rig().hot.opened(Rig().number(name)) is None

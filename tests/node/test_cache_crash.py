"""A crash at any moment, with any order of what was not synced: what is marked as present afterwards is right.

Every write, punch and sync that a cache makes is recorded. A crash is a prefix of that record, in which each block of
a file may have any of the contents that it had since the file was last synced: the disk took them in an order of its
own. From that a machine is started again.
"""

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lazyfs.formats.chunks import UNIT_SIZE
from lazyfs.node import cache_files, cache_layer
from lazyfs.node.cache import LayerCache
from lazyfs.node.cache_proof import split

from .samples import BOOT, KIB, TOC_NAME, Layer

NEXT_BOOT = b"1" * 36
BLOCK = 512
LENGTHS = [3 * KIB, 70 * KIB, 512, 5 * KIB, 40 * KIB, 1024]
LAYER = Layer(LENGTHS)

Op = tuple[str, str, int, bytes]
"""File, what, offset, bytes."""


@dataclass
class Disk:
    """What a file may hold after a crash: for each block its contents since the last sync, the oldest first."""

    versions: list[list[bytes]] = field(default_factory=list)

    @classmethod
    def of(cls, content: bytes) -> "Disk":
        return cls([[content[at : at + BLOCK]] for at in range(0, len(content), BLOCK)])

    def write(self, offset: int, data: bytes) -> None:
        while data:
            number, within = divmod(offset, BLOCK)
            piece = data[: BLOCK - within]
            last = self.versions[number][-1]
            self.versions[number].append(last[:within] + piece + last[within + len(piece) :])
            offset, data = offset + len(piece), data[len(piece) :]

    def sync(self) -> None:
        for versions in self.versions:
            del versions[:-1]

    def after_crash(self, rng: Random) -> bytes:
        return b"".join(rng.choice(versions) for versions in self.versions)


@contextmanager
def recorded(directory: Path) -> Iterator[list[Op]]:
    """Notes what is done to the files of the directory."""
    ops: list[Op] = []
    pwrite, fdatasync, punch_hole = os.pwrite, os.fdatasync, cache_files.punch_hole

    def name(descriptor: int) -> str:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        assert path.parent == directory
        return path.name

    def write(descriptor: int, data: memoryview, offset: int) -> int:
        ops.append((name(descriptor), "write", offset, bytes(data)))
        return pwrite(descriptor, data, offset)

    def sync(descriptor: int) -> None:
        fdatasync(descriptor)
        ops.append((name(descriptor), "sync", 0, b""))

    def punch(descriptor: int, start: int, end: int) -> None:
        size = os.fstat(descriptor).st_size
        ops.append((name(descriptor), "write", start, bytes(min(end, size) - start)))
        punch_hole(descriptor, start, end)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(os, "pwrite", write)
        patched.setattr(os, "fdatasync", sync)
        patched.setattr(cache_layer, "punch_hole", punch)
        yield ops


Action = Callable[[LayerCache], object]
chunks = st.integers(0, len(LENGTHS) - 1)


def put_unit(cache: LayerCache, index: int, number: int) -> None:
    units = split(LAYER.plain(index))
    cache.put_units(index, {number % len(units): units[number % len(units)]})


actions: st.SearchStrategy[Action] = st.one_of(
    chunks.map(lambda index: lambda cache: cache.put(index, LAYER.plain(index))),
    st.tuples(chunks, st.integers(0, 2)).map(lambda at: lambda cache: put_unit(cache, *at)),
    st.sets(chunks).map(lambda indexes: lambda cache: cache.drop(indexes)),
    st.just(lambda cache: cache.flush()),
)


def assert_all_right(cache: LayerCache) -> None:
    """Everything that can be had of the cache is the truth."""
    for index, length in enumerate(LENGTHS):
        start = int(cache.chunks.start[index])
        for offset in range(start, start + length, UNIT_SIZE):
            size = min(UNIT_SIZE, start + length - offset)
            assert cache.read(offset, size) in (None, LAYER.device[offset : offset + size])


@given(st.lists(actions, min_size=1, max_size=14), st.integers(0, 1 << 32))
@settings(max_examples=150, deadline=None)
def test_no_crash_leaves_a_mark_without_its_data(history: list[Action], seed: int) -> None:
    rng = Random(seed)
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch) / TOC_NAME
        cache = LayerCache(directory, LAYER.chunks, BOOT)
        before = {file: (directory / file).read_bytes() for file in ("data", "map")}
        with recorded(directory) as ops:
            for action in history:
                action(cache)
        cache._let_go()
        for _ in range(4):
            crash(directory, before, ops[: rng.randrange(len(ops) + 1)], rng)
            after = LayerCache(directory, LAYER.chunks, NEXT_BOOT)
            assert_all_right(after)
            for index in range(len(LENGTHS)):
                assert after.recheck(index) in (None, LAYER.plain(index))
            assert_all_right(after)
            for index in range(len(LENGTHS)):
                after.put(index, LAYER.plain(index))
            assert after.read(0, len(LAYER.device)) == LAYER.device
            after._let_go()


def crash(directory: Path, before: dict[str, bytes], ops: list[Op], rng: Random) -> None:
    disks = {file: Disk.of(content) for file, content in before.items()}
    for file, what, offset, data in ops:
        if what == "sync":
            disks[file].sync()
        else:
            disks[file].write(offset, data)
    for file, disk in disks.items():
        (directory / file).write_bytes(disk.after_crash(rng))


def test_what_was_durable_and_not_dropped_is_there_after_a_crash(tmp_path: Path) -> None:
    rng = Random(5)
    directory = tmp_path / TOC_NAME
    cache = LayerCache(directory, LAYER.chunks, BOOT)
    before = {file: (directory / file).read_bytes() for file in ("data", "map")}
    with recorded(directory) as ops:
        for index in (1, 3, 4):
            cache.put(index, LAYER.plain(index))
        cache.flush()
        cache.put(0, LAYER.plain(0))
        cache.drop([3])
        cache.put(5, LAYER.plain(5))
    cache._let_go()
    for _ in range(50):
        crash(directory, before, ops, rng)
        after = LayerCache(directory, LAYER.chunks, NEXT_BOOT)
        for index in (1, 4):
            assert after.read(int(LAYER.chunks.start[index]), LENGTHS[index]) == LAYER.plain(index)
        assert after.read(int(LAYER.chunks.start[3]), 1) is None
        after._let_go()

"""The cache against a plain model, through drops, kills, reboots and disks that lose what was not synced.

The model knows of each unit whether a read must give it, may give it, or cannot. Whatever a read gives must be the
truth. A second layer of the node has the same chunks, and one more.
"""

import os
import shutil
import tempfile
from enum import Enum, auto
from pathlib import Path
from random import Random

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from lazyfs.formats.chunks import UNIT_SIZE
from lazyfs.node.cache_directory import CacheDirectory
from lazyfs.node.cache_map import DOUBTFUL, DURABLE, HEADER_SIZE
from lazyfs.node.cache_proof import first_units, split
from lazyfs.node.cache_settings import Limit
from lazyfs.node.cache_store import NodeCache

from .samples import KIB, TOC_NAME, Layer, has

LENGTHS = [512, 32 * KIB, 33 * KIB, 96 * KIB, 1024, 70 * KIB]
OTHER_NAME = "d" * 64
LAYER, OTHER = Layer(LENGTHS), Layer([*LENGTHS, 512])
FIRST_UNIT = first_units(LAYER.chunks)
UNITS = int(FIRST_UNIT[-1])

chunks = st.integers(0, len(LENGTHS) - 1)


class Is(Enum):
    MISSING = auto()
    WRITTEN = auto()
    DURABLE = auto()
    UNSURE = auto()
    """Its mark or its data may have been lost."""


HERE = (Is.WRITTEN, Is.DURABLE)


class CacheMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp())
        self.directory = self.root / TOC_NAME
        self.boot = 0
        self.model = [Is.MISSING] * UNITS
        self.open()

    def open(self) -> None:
        self.node = NodeCache(
            [CacheDirectory(self.root, Limit(1 << 30))], b"%036d" % self.boot, lambda reason: None
        )
        self.cache = self.node.open(TOC_NAME, LAYER.chunks)
        self.other = self.node.open(OTHER_NAME, OTHER.chunks)
        self.synced_map = self.map_path.read_bytes()

    @property
    def map_path(self) -> Path:
        return self.directory / "map"

    def stop(self) -> None:
        """The process ends and cannot flush any more."""
        self.cache._let_go()
        self.cache._ready = False
        self.node.close()

    def teardown(self) -> None:
        self.node.close()
        shutil.rmtree(self.root)

    def units(self, index: int) -> range:
        return range(int(FIRST_UNIT[index]), int(FIRST_UNIT[index + 1]))

    def states(self, index: int) -> list[Is]:
        return [self.model[unit] for unit in self.units(index)]

    def all_are(self, index: int, state: Is) -> None:
        for unit in self.units(index):
            self.model[unit] = state

    @rule(index=chunks)
    def put(self, index: int) -> None:
        # As the fetch engine does: never what is there.
        if not has(self.cache, index):
            assert self.cache.put(index, LAYER.plain(index))
            self.all_are(index, Is.WRITTEN)

    @rule(index=chunks, number=st.integers(0, 2))
    def put_unit(self, index: int, number: int) -> None:
        plain = split(LAYER.plain(index))
        if number in self.cache.missing_units(index):
            assert self.cache.put_units(index, {number: plain[number]})
            self.model[self.units(index)[number]] = Is.WRITTEN

    @rule(indexes=st.sets(chunks))
    def drop(self, indexes: set[int]) -> None:
        self.cache.drop(indexes)
        for index in indexes:
            self.all_are(index, Is.MISSING)
        # The marks are synced before the holes are punched, and so is all else that stands there.
        self.synced_map = self.map_path.read_bytes()

    @rule(need=st.integers(1, 200 * KIB))
    def make_room(self, need: int) -> None:
        """Whichever chunks go, they go as a whole."""
        self.node.room.make(self.node.directories[0], need)
        for index in range(len(LENGTHS)):
            if len(self.cache.missing_units(index)) == len(self.units(index)) and not any(
                self.cache._states(index)
            ):
                self.all_are(index, Is.MISSING)
        self.synced_map = self.map_path.read_bytes()

    @rule(offset=st.integers(0, sum(LENGTHS) - 1), length=st.integers(1, 120 * KIB))
    def read(self, offset: int, length: int) -> None:
        length = min(length, sum(LENGTHS) - offset)
        states: set[Is] = set()
        for index in LAYER.chunks.covering(offset, length):
            start = int(LAYER.chunks.start[index])
            for number, state in enumerate(self.states(index)):
                low = start + number * UNIT_SIZE
                high = min(low + UNIT_SIZE, start + LENGTHS[index])
                if low < offset + length and offset < high:
                    states.add(state)
        data = self.cache.read(offset, length)
        if data is None:
            assert not states <= set(HERE)
        else:
            assert data == LAYER.device[offset : offset + length]
            assert Is.MISSING not in states

    @rule(index=chunks)
    def recheck(self, index: int) -> None:
        before = self.states(index)
        elsewhere = has(self.other, index)
        plain = self.cache.recheck(index)
        assert plain in (None, LAYER.plain(index))
        if elsewhere and not set(before) <= set(HERE):
            assert plain is not None
        missing = self.cache.missing_units(index)
        for number, unit in enumerate(self.units(index)):
            if before[number] in HERE:
                assert number not in missing
            self.model[unit] = Is.MISSING if number in missing else Is.WRITTEN
            if before[number] is Is.DURABLE and plain is None:
                self.model[unit] = Is.DURABLE

    @rule(index=chunks)
    def put_other(self, index: int) -> None:
        if not has(self.other, index):
            self.other.put(index, OTHER.plain(index))

    @rule(index=chunks)
    def recheck_other(self, index: int) -> None:
        plain = self.other.recheck(index)
        assert plain in (None, OTHER.plain(index))
        if set(self.states(index)) <= set(HERE):
            assert has(self.other, index)

    @rule(index=chunks)
    def drop_other(self, index: int) -> None:
        self.other.drop([index])
        assert not has(self.other, index)

    @rule()
    def flush(self) -> None:
        self.cache.flush()
        self.synced_map = self.map_path.read_bytes()
        self.model = [Is.DURABLE if each is Is.WRITTEN else each for each in self.model]

    @rule()
    def flush_fails(self) -> None:
        def broken(descriptor: int) -> None:
            raise OSError

        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(os, "fdatasync", broken)
            try:
                self.cache.flush()
            except OSError:
                self.model = [Is.UNSURE if each is Is.WRITTEN else each for each in self.model]

    @rule(index=chunks)
    def read_fails(self, index: int) -> None:
        def broken(descriptor: int, length: int, offset: int) -> bytes:
            raise OSError(5, "broken")

        start = int(LAYER.chunks.start[index])
        was_here = self.cache.read(start, 1) is not None
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(os, "pread", broken)
            assert self.cache.read(start, 1) is None
        if was_here:
            assert self.cache.missing_units(index) == list(range(len(self.units(index))))
            self.all_are(index, Is.MISSING)

    @rule()
    def killed(self) -> None:
        self.stop()
        self.open()

    @rule(seed=st.integers(0, 1 << 32))
    def reboot(self, seed: int) -> None:
        """Of what was not synced, each piece of data and each byte of the map may be lost."""
        rng = Random(seed)
        current_map = self.map_path.read_bytes()
        self.other.flush()
        self.stop()
        torn = bytearray(rng.choice((self.synced_map, current_map))[:HEADER_SIZE])
        pairs = zip(self.synced_map[HEADER_SIZE:], current_map[HEADER_SIZE:], strict=True)
        torn += bytes(rng.choice(pair) for pair in pairs)
        self.map_path.write_bytes(torn)
        with (self.directory / "data").open("r+b") as data:
            for index in range(len(LENGTHS)):
                for number, state in enumerate(self.states(index)):
                    if state in (Is.WRITTEN, Is.UNSURE) and not self._was_durable(index, number):
                        self._tear(data.fileno(), index, number, rng)
        for unit, state in enumerate(self.model):
            if state in (Is.WRITTEN, Is.UNSURE) or (
                state is Is.MISSING and self.synced_map[HEADER_SIZE + unit]
            ):
                self.model[unit] = Is.UNSURE
        self.boot += 1
        self.open()

    def _was_durable(self, index: int, number: int) -> bool:
        """It may still be marked so, and what was written over it since then are the same bytes."""
        return self.synced_map[HEADER_SIZE + self.units(index)[number]] == DURABLE

    def _tear(self, data: int, index: int, number: int, rng: Random) -> None:
        start = int(LAYER.chunks.start[index]) + number * UNIT_SIZE
        length = min(UNIT_SIZE, LENGTHS[index] - number * UNIT_SIZE)
        for offset in range(0, length, 4096):
            if rng.random() < 0.3:
                piece = min(4096, length - offset)
                os.pwrite(data, rng.choice((bytes(piece), rng.randbytes(piece))), start + offset)

    @rule(size=st.sampled_from([0, 512, sum(LENGTHS) - 1, sum(LENGTHS) + 1]))
    def data_file_changes_size(self, size: int) -> None:
        self.stop()
        os.truncate(self.directory / "data", size)
        self.model = [Is.MISSING] * UNITS
        self.open()

    @rule(position=st.integers(0, HEADER_SIZE - 1) | st.none())
    def map_is_damaged(self, position: int | None) -> None:
        """Its header, or it is gone: then nothing may be trusted that the header no longer vouches for."""
        self.stop()
        if position is None:
            self.map_path.unlink()
            self.model = [Is.MISSING] * UNITS
        else:
            raw = bytearray(self.map_path.read_bytes())
            raw[position] ^= 0x55
            self.map_path.write_bytes(raw)
            if 8 <= position < 44:
                self.model = [Is.UNSURE if each is Is.WRITTEN else each for each in self.model]
            elif position < 84:
                self.model = [Is.MISSING] * UNITS
        self.open()

    @precondition(lambda self: all(each in HERE for each in self.model))
    @rule()
    def all_is_there(self) -> None:
        assert self.cache.read(0, sum(LENGTHS)) == LAYER.device
        assert self.cache.present_bytes() == sum(LENGTHS)

    @invariant()
    def doubt_is_never_shown(self) -> None:
        for index in range(len(LENGTHS)):
            if DOUBTFUL in self.cache._states(index):
                assert not has(self.cache, index)

    @invariant()
    def what_takes_no_room_is_not_there(self) -> None:
        for index, size in enumerate(self.cache.sizes().tolist()):
            assert (size == 0) == (not any(self.cache._states(index)))


TestCacheMachine = CacheMachine.TestCase
TestCacheMachine.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)

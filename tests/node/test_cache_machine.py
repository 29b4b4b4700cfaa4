"""The cache against a plain model, through kills, reboots and disks that lose what was not synced.

The model knows of each chunk whether a read must give it, may give it, or cannot. Whatever a read gives must
be the truth.
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

from lazyfs.node.cache import DOUBTFUL, LayerCache

from .conftest import KIB
from .samples import TOC_NAME, Layer, has

LENGTHS = [512, 32 * KIB, 33 * KIB, 96 * KIB, 1024, 70 * KIB]
HEADER = 128

chunks = st.integers(0, len(LENGTHS) - 1)


class Is(Enum):
    MISSING = auto()
    WRITTEN = auto()
    DURABLE = auto()
    UNSURE = auto()
    """Its marks or its data may have been lost."""


class CacheMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp()) / TOC_NAME
        self.layer = Layer(LENGTHS)
        self.boot = 0
        self.model = [Is.MISSING] * len(LENGTHS)
        self.open()

    def open(self) -> None:
        self.cache = LayerCache(self.directory, self.layer.chunks, b"%036d" % self.boot)
        self.synced_map = self.map_path.read_bytes()

    @property
    def map_path(self) -> Path:
        return self.directory / "map"

    def stop(self) -> None:
        """The process ends and cannot flush any more."""
        self.cache._unsynced = None
        self.cache.close()

    def teardown(self) -> None:
        self.cache.close()
        shutil.rmtree(self.directory.parent)

    @rule(index=chunks)
    def put(self, index: int) -> None:
        # As the fetch engine does: never what is there.
        if not has(self.cache, index):
            self.cache.put(index, self.layer.plain(index))
            self.model[index] = Is.WRITTEN

    @rule(offset=st.integers(0, sum(LENGTHS) - 1), length=st.integers(1, 120 * KIB))
    def read(self, offset: int, length: int) -> None:
        length = min(length, sum(LENGTHS) - offset)
        states = {self.model[index] for index in self.layer.chunks.covering(offset, length)}
        data = self.cache.read(offset, length)
        if data is None:
            assert not states <= {Is.WRITTEN, Is.DURABLE}
        else:
            assert data == self.layer.device[offset : offset + length]
            assert Is.MISSING not in states

    @rule(index=chunks)
    def recheck(self, index: int) -> None:
        plain = self.cache.recheck(index)
        if plain is not None:
            assert self.model[index] is Is.UNSURE
            assert plain == self.layer.plain(index)
        if self.model[index] is Is.UNSURE:
            self.model[index] = Is.WRITTEN if has(self.cache, index) else Is.MISSING

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

        start, was_here = int(self.layer.chunks.start[index]), has(self.cache, index)
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(os, "pread", broken)
            assert self.cache.read(start, 1) is None
        if was_here:
            assert not has(self.cache, index)
            self.model[index] = Is.MISSING

    @rule()
    def killed(self) -> None:
        self.stop()
        self.open()

    @rule(seed=st.integers(0, 1 << 32))
    def reboot(self, seed: int) -> None:
        """Of what was not synced, each piece of data and each mark may be lost."""
        rng = Random(seed)
        current_map = self.map_path.read_bytes()
        self.stop()
        torn = bytearray(rng.choice((self.synced_map, current_map))[:HEADER])
        torn += bytes(rng.choice(pair) for pair in zip(self.synced_map, current_map, strict=True))[HEADER:]
        self.map_path.write_bytes(torn)
        with (self.directory / "data").open("r+b") as data:
            for index, state in enumerate(self.model):
                if state in (Is.WRITTEN, Is.UNSURE):
                    self._tear(data.fileno(), index, rng)
        self.model = [each if each in (Is.MISSING, Is.DURABLE) else Is.UNSURE for each in self.model]
        self.boot += 1
        self.open()

    def _tear(self, data: int, index: int, rng: Random) -> None:
        start, length = int(self.layer.chunks.start[index]), LENGTHS[index]
        for offset in range(0, length, 4096):
            if rng.random() < 0.3:
                piece = min(4096, length - offset)
                os.pwrite(data, rng.choice((bytes(piece), rng.randbytes(piece))), start + offset)

    @rule(size=st.sampled_from([0, 512, sum(LENGTHS) - 1, sum(LENGTHS) + 1]))
    def data_file_changes_size(self, size: int) -> None:
        self.stop()
        os.truncate(self.directory / "data", size)
        self.model = [Is.MISSING] * len(LENGTHS)
        self.open()

    @rule(position=st.integers(0, HEADER - 1) | st.none())
    def map_is_damaged(self, position: int | None) -> None:
        """Its header, or it is gone: then nothing may be trusted that the header no longer vouches for."""
        self.stop()
        if position is None:
            self.map_path.unlink()
            self.model = [Is.MISSING] * len(LENGTHS)
        else:
            raw = bytearray(self.map_path.read_bytes())
            raw[position] ^= 0x55
            self.map_path.write_bytes(raw)
            if 8 <= position < 44:
                self.model = [Is.UNSURE if each is Is.WRITTEN else each for each in self.model]
            elif position < 80:
                self.model = [Is.MISSING] * len(LENGTHS)
        self.open()

    @precondition(lambda self: all(each in (Is.WRITTEN, Is.DURABLE) for each in self.model))
    @rule()
    def all_is_there(self) -> None:
        assert self.cache.read(0, sum(LENGTHS)) == self.layer.device
        assert self.cache.present_bytes() == sum(LENGTHS)

    @invariant()
    def doubt_is_never_shown(self) -> None:
        for index in range(len(LENGTHS)):
            if DOUBTFUL in self.cache._states(index):
                assert not has(self.cache, index)


TestCacheMachine = CacheMachine.TestCase
TestCacheMachine.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)

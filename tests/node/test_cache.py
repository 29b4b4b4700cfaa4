"""The cache of a layer: what it must survive, one case at a time. `test_cache_machine` mixes them."""

import errno
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from lazyfs.config import boot_id
from lazyfs.formats.chunks import UNIT_SIZE
from lazyfs.node import cache_layer
from lazyfs.node.cache import LayerCache
from lazyfs.node.cache_files import write_all
from lazyfs.node.cache_map import DURABLE, HEADER_SIZE, UnitMap
from lazyfs.node.cache_surroundings import Surroundings

from .samples import BOOT, KIB, NEXT_BOOT, PATIENCE, TOC_NAME, Layer, has


@pytest.fixture
def layer() -> Layer:
    return Layer([100 * KIB, 512, 40 * KIB])


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / TOC_NAME


def filled(directory: Path, layer: Layer) -> LayerCache:
    cache = LayerCache(directory, layer.chunks, BOOT)
    for index in range(len(layer.chunks)):
        cache.put(index, layer.plain(index))
    return cache


def present(cache: LayerCache) -> list[bool]:
    return [has(cache, index) for index in range(len(cache.chunks))]


def test_units_of_a_chunk_that_is_there(directory: Path, layer: Layer) -> None:
    cache = LayerCache(directory, layer.chunks, BOOT)
    assert cache.read(0, 1) is None
    cache.put(1, layer.plain(1))
    assert present(cache) == [False, True, False]
    assert cache.read(100 * KIB, 512) == layer.plain(1)
    assert cache.read(100 * KIB - 1, 2) is None
    assert cache.read(100 * KIB + 511, 2) is None
    assert cache.present_bytes() == UNIT_SIZE
    cache.close()


def test_what_was_flushed_survives_a_reboot(directory: Path, layer: Layer) -> None:
    filled(directory, layer).close()
    cache = LayerCache(directory, layer.chunks, NEXT_BOOT)
    assert cache.read(0, len(layer.device)) == layer.device
    cache.close()


def test_a_data_file_of_another_size_is_made_anew(directory: Path, layer: Layer) -> None:
    for size in (0, 512, 200 * KIB):
        filled(directory, layer).close()
        os.truncate(directory / "data", size)
        cache = LayerCache(directory, layer.chunks, BOOT)
        assert present(cache) == [False] * 3
        assert (directory / "data").stat().st_size == len(layer.device)
        cache.close()


@pytest.mark.parametrize("size", [0, 512, 110 * KIB])
@pytest.mark.parametrize("moment", ["before", "amid"])
def test_a_data_file_that_is_cut_while_it_is_written_to_shows_no_zeros(
    directory: Path, layer: Layer, size: int, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is written behind the cut makes a hole of what was between."""
    cache = filled(directory, layer)
    cache.flush()

    def cut_and_write(descriptor: int, data: bytes, offset: int) -> None:
        os.truncate(directory / "data", size)
        write_all(descriptor, data, offset)

    if moment == "before":
        os.truncate(directory / "data", size)
    with monkeypatch.context() as patched:
        if moment == "amid":
            patched.setattr(cache_layer, "write_all", cut_and_write)
        cache.put(1, layer.plain(1))
    assert present(cache) == [False] * 3
    assert (directory / "data").stat().st_size == len(layer.device)
    # Nor does a mark survive that a crash would leave.
    crashed = LayerCache(directory, layer.chunks, NEXT_BOOT)
    assert present(crashed) == [False] * 3
    crashed.close()
    for index in range(3):
        cache.put(index, layer.plain(index))
    assert cache.read(0, len(layer.device)) == layer.device
    cache.close()


def test_old_marks_never_speak_of_a_new_data_file(
    directory: Path, layer: Layer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after the data file was made anew and before the map was."""

    def killed(*args: object) -> None:
        raise KeyboardInterrupt

    filled(directory, layer).close()
    os.truncate(directory / "data", 512)
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(UnitMap, "load", killed)
        LayerCache(directory, layer.chunks, BOOT)
    assert (directory / "data").stat().st_size == len(layer.device)
    cache = LayerCache(directory, layer.chunks, BOOT)
    assert present(cache) == [False] * 3
    cache.close()


@pytest.mark.parametrize("damage", ["gone", "empty", "short", "long", "magic", "layer", "units"])
def test_a_map_that_is_not_of_this_layer(directory: Path, layer: Layer, damage: str) -> None:
    filled(directory, layer).close()
    path = directory / "map"
    raw = bytearray(path.read_bytes())
    match damage:
        case "gone":
            path.unlink()
        case "empty":
            path.write_bytes(b"")
        case "short":
            path.write_bytes(raw[:-1])
        case "long":
            path.write_bytes(raw + b"\2")
        case _:
            raw[{"magic": 0, "layer": 50, "units": 77}[damage]] ^= 1
            path.write_bytes(raw)
    cache = LayerCache(directory, layer.chunks, BOOT)
    assert present(cache) == [False] * 3
    cache.put(2, layer.plain(2))
    assert cache.read(len(layer.device) - 1, 1) == layer.device[-1:]
    cache.close()


def test_unknown_marks_are_not_trusted(directory: Path, layer: Layer) -> None:
    filled(directory, layer).close()
    path = directory / "map"
    raw = path.read_bytes()
    units = raw[HEADER_SIZE:].index(bytes(1))
    assert raw[HEADER_SIZE : HEADER_SIZE + units] == bytes((DURABLE,)) * units
    path.write_bytes(raw[:HEADER_SIZE] + bytes(range(4, 4 + units)) + raw[HEADER_SIZE + units :])
    cache = LayerCache(directory, layer.chunks, BOOT)
    assert cache.read(len(layer.device) - 1, 1) is None
    assert cache.recheck(2) is None
    cache.close()


def test_a_sync_that_fails_leaves_doubt(
    directory: Path, layer: Layer, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = filled(directory, layer)

    def broken(descriptor: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patched, pytest.raises(OSError, match="Input/output"):
        patched.setattr(os, "fdatasync", broken)
        cache.flush()
    assert present(cache) == [False] * 3
    assert cache.recheck(0) == layer.plain(0)
    assert present(cache) == [True, False, False]
    cache.flush()
    cache.close()
    cache = LayerCache(directory, layer.chunks, NEXT_BOOT)
    assert present(cache) == [True, False, False]
    cache.close()


def test_what_is_written_while_it_syncs_is_not_durable(
    directory: Path, layer: Layer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A chunk that the disk did not give back, and that was fetched and written again during the sync."""
    cache = filled(directory, layer)
    pread, fdatasync = os.pread, os.fdatasync
    written = threading.Event()

    def broken(descriptor: int, length: int, offset: int) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    def again() -> None:
        cache.read(0, 1)
        monkeypatch.setattr(os, "pread", pread)
        cache.put(0, layer.plain(0))
        written.set()

    writer = threading.Thread(target=again)

    def slow(descriptor: int) -> None:
        monkeypatch.setattr(os, "fdatasync", fdatasync)
        fdatasync(descriptor)
        writer.start()
        assert written.wait(PATIENCE)

    monkeypatch.setattr(os, "pread", broken)
    monkeypatch.setattr(os, "fdatasync", slow)
    cache.flush()
    writer.join()
    cache._unsynced = None  # the machine stops here
    cache.close()
    cache = LayerCache(directory, layer.chunks, NEXT_BOOT)
    assert present(cache) == [False, True, True]
    assert cache.recheck(0) == layer.plain(0)
    cache.close()


def test_an_empty_layer(directory: Path) -> None:
    layer = Layer([])
    for boot in (BOOT, NEXT_BOOT):
        cache = LayerCache(directory, layer.chunks, boot)
        assert cache.present_bytes() == 0
        cache.close()


@pytest.mark.parametrize("call", ["posix_fallocate", "ftruncate"])
def test_no_room_for_a_new_cache(
    directory: Path, layer: Layer, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """Nothing is kept then, and all that is asked for works; with the next chunk it is tried again."""

    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    descriptors = len(list(Path("/proc/self/fd").iterdir()))
    with monkeypatch.context() as patched:
        patched.setattr(os, call, full)
        cache = LayerCache(directory, layer.chunks, BOOT)
        assert present(cache) == [False] * 3
        with pytest.raises(OSError, match="No space left"):
            cache.put(1, layer.plain(1))
        assert cache.recheck(1) is None
        assert not cache.complete()
        cache.flush()
    cache.put(1, layer.plain(1))
    assert present(cache) == [False, True, False]
    cache.close()
    assert len(list(Path("/proc/self/fd").iterdir())) <= descriptors


def units_of(layer: Layer, index: int) -> list[bytes]:
    plain = layer.plain(index)
    return [plain[at : at + UNIT_SIZE] for at in range(0, len(plain), UNIT_SIZE)]


def test_units_come_one_by_one(directory: Path, layer: Layer) -> None:
    cache = LayerCache(directory, layer.chunks, BOOT)
    units = units_of(layer, 0)
    assert len(units) == 4
    assert cache.put_units(0, {1: units[1], 3: units[3]})
    assert cache.missing_units(0) == [0, 2]
    assert cache.read(UNIT_SIZE, UNIT_SIZE) == units[1]
    assert cache.read(3 * UNIT_SIZE, len(units[3])) == units[3]
    assert cache.read(UNIT_SIZE - 1, 2) is None
    assert cache.put_units(0, {0: units[0]})
    assert cache.put_units(0, {2: units[2]})
    assert cache.missing_units(0) == []
    assert has(cache, 0)
    cache.close()


def test_a_chunk_over_some_of_its_units(directory: Path, layer: Layer) -> None:
    cache = LayerCache(directory, layer.chunks, BOOT)
    cache.put_units(0, {2: units_of(layer, 0)[2]})
    assert cache.put(0, layer.plain(0))
    assert present(cache) == [True, False, False]
    cache.close()


def test_units_without_their_sisters_prove_themselves(directory: Path, layer: Layer) -> None:
    cache = LayerCache(directory, layer.chunks, BOOT)
    units = units_of(layer, 0)
    cache.put_units(0, {1: units[1], 2: units[2]})
    cache._unsynced = None  # the machine stops before the next flush
    cache.close()
    with (directory / "data").open("r+b") as data:
        data.seek(2 * UNIT_SIZE + 7)
        data.write(b"lost")
    cache = LayerCache(directory, layer.chunks, NEXT_BOOT)
    assert cache.missing_units(0) == [0, 1, 2, 3]
    assert cache.recheck(0) is None
    assert cache.missing_units(0) == [0, 2, 3]
    assert cache.read(UNIT_SIZE, UNIT_SIZE) == units[1]
    cache.close()


def test_complete_means_on_the_disk(directory: Path, layer: Layer) -> None:
    cache = filled(directory, layer)
    assert not cache.complete()
    cache.flush()
    assert cache.complete()
    cache.drop([1])
    assert not cache.complete()
    cache.close()


def test_what_is_dropped_takes_no_room(directory: Path, layer: Layer) -> None:
    cache = filled(directory, layer)
    cache.flush()
    data = directory / "data"
    assert data.stat().st_blocks * 512 >= len(layer.device)
    assert cache.drop([0, 2]) == 2
    assert present(cache) == [False, True, False]
    assert cache.read(100 * KIB, 512) == layer.plain(1)
    assert data.stat().st_blocks * 512 <= 4096
    assert cache.drop([1]) == 1
    assert data.stat().st_blocks == 0
    assert data.stat().st_size == len(layer.device)
    cache.put(2, layer.plain(2))
    assert present(cache) == [False, False, True]
    cache.close()


@pytest.mark.parametrize("comes_back", [False, True])
@pytest.mark.parametrize("paranoid", [False, True])
def test_a_read_that_a_drop_overtakes(
    directory: Path, layer: Layer, monkeypatch: pytest.MonkeyPatch, comes_back: bool, paranoid: bool
) -> None:
    """The reader has seen the marks; before it reads, the chunk is dropped, and after that it may come again."""
    shared = Surroundings()
    shared.paranoid = paranoid
    cache = LayerCache(directory, layer.chunks, BOOT, shared)
    cache.put(0, layer.plain(0))
    pread = os.pread

    def late(descriptor: int, length: int, offset: int) -> bytes:
        monkeypatch.setattr(os, "pread", pread)
        assert cache.drop([0]) == 1
        data = pread(descriptor, length, offset)
        assert not any(data[4096:-4096])
        if comes_back:
            cache.put(0, layer.plain(0))
        return data

    monkeypatch.setattr(os, "pread", late)
    assert cache.read(100, 90 * KIB) == (layer.device[100 : 100 + 90 * KIB] if comes_back else None)
    cache.close()


@pytest.mark.parametrize("call", ["fdatasync", "pwrite", "pread"])
def test_a_layer_moves_while_somebody_is_at_it(
    directory: Path, layer: Layer, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """What was begun where it lay counts nowhere."""
    elsewhere = directory.parent / "elsewhere" / TOC_NAME
    elsewhere.parent.mkdir()
    cache = filled(directory, layer)
    original = getattr(os, call)

    def late(*arguments: Any) -> Any:
        monkeypatch.setattr(os, call, original)
        cache.move(elsewhere)
        cache.put(1, layer.plain(1))
        return original(*arguments)

    monkeypatch.setattr(os, call, late)
    if call == "fdatasync":
        cache.flush()
    elif call == "pwrite":
        cache.put(0, layer.plain(0))
    else:
        assert cache.read(0, 1000) is None
    assert cache.directory == elsewhere
    assert present(cache) == [False, True, False]
    cache.flush()
    cache.close()
    cache = LayerCache(elsewhere, layer.chunks, NEXT_BOOT)
    assert present(cache) == [False, True, False]
    cache.close()


def test_what_is_dropped_while_it_syncs_stays_dropped(
    directory: Path, layer: Layer, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = filled(directory, layer)
    fdatasync = os.fdatasync

    def slow(descriptor: int) -> None:
        monkeypatch.setattr(os, "fdatasync", fdatasync)
        fdatasync(descriptor)
        assert cache.drop([0]) == 1

    monkeypatch.setattr(os, "fdatasync", slow)
    cache.flush()
    assert present(cache) == [False, True, True]
    cache.close()


def test_boot_id_fits_the_header() -> None:
    assert len(boot_id()) == 36
    assert boot_id() == boot_id()

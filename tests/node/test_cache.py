"""The cache of a layer: what it must survive, one case at a time. `test_cache_machine` mixes them."""

import errno
import os
import threading
from pathlib import Path

import pytest

from lazyfs.errors import NodeError
from lazyfs.formats.chunks import UNIT_SIZE
from lazyfs.node import cache as cache_module
from lazyfs.node.cache import LayerCache, boot_id

from .conftest import BOOT, KIB
from .samples import TOC_NAME, Layer, has

NEXT_BOOT = b"1" * 36


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


def test_old_marks_never_speak_of_a_new_data_file(
    directory: Path, layer: Layer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after the data file was made anew and before the map was."""

    def killed(*args: object) -> None:
        raise KeyboardInterrupt

    filled(directory, layer).close()
    os.truncate(directory / "data", 512)
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(cache_module, "_open_map", killed)
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
    path.write_bytes(raw[: -len(layer.chunks) - 10] + bytes(range(4, 17)))
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
        fdatasync(descriptor)
        writer.start()
        written.wait(0.2)  # in vain, when all is right: the writer has to wait for us

    monkeypatch.setattr(os, "pread", broken)
    monkeypatch.setattr(os, "fdatasync", slow)
    cache.flush()
    writer.join()
    monkeypatch.setattr(os, "fdatasync", fdatasync)
    cache._dirty = False  # the machine stops here
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
    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    descriptors = len(list(Path("/proc/self/fd").iterdir()))
    with monkeypatch.context() as patched, pytest.raises(NodeError, match="No space left") as caught:
        patched.setattr(os, call, full)
        LayerCache(directory, layer.chunks, BOOT)
    assert "free some space" in caught.value.hint
    assert len(list(Path("/proc/self/fd").iterdir())) == descriptors
    cache = filled(directory, layer)
    assert present(cache) == [True] * 3
    cache.close()


def test_boot_id_fits_the_header() -> None:
    assert len(boot_id()) == 36
    assert boot_id() == boot_id()

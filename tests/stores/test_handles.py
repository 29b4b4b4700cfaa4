"""How many files a store keeps open, and that none is closed while it is read."""

import os
import threading
from contextlib import suppress
from pathlib import Path

from lazyfs.stores import layout, open_store, parse_reference, write_blob
from lazyfs.stores._handles import HandleCache


def open_files(directory: Path) -> int:
    """How many of this process lie there; others come and go as they like."""
    count = 0
    for descriptor in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # the list itself was one
            count += descriptor.readlink().is_relative_to(directory)
    return count


def test_only_so_many_blobs_are_kept_open_and_none_after_close(tmp_path: Path) -> None:
    directory = tmp_path / "images"
    store = open_store(parse_reference(f"oci:{directory}:v1"), create=True)
    digests = [write_blob(store, bytes([number]))[0] for number in range(200)]
    before = open_files(directory)
    for number, digest in enumerate(digests):
        assert store.read(digest, 0, 1) == bytes([number])
    assert 1 < open_files(directory) - before <= layout._MAX_OPEN
    store.close()
    assert open_files(directory) == before


def test_a_descriptor_in_use_is_not_closed(tmp_path: Path) -> None:
    for name in "abc":
        (tmp_path / name).write_text(name)
    cache = HandleCache(lambda name: os.open(tmp_path / name, os.O_RDONLY), 1)
    with cache.lease("a") as first:
        with cache.lease("b") as second:
            assert (os.pread(first, 1, 0), os.pread(second, 1, 0)) == (b"a", b"b")
        with cache.lease("c"):
            pass
        with cache.lease("a") as again:
            assert again != first
        cache.close()
        assert os.pread(first, 1, 0) == b"a"
        assert open_files(tmp_path) == 1
    assert open_files(tmp_path) == 0


def test_a_cache_of_one_serves_many_threads(tmp_path: Path) -> None:
    names = [f"{number:04}" for number in range(8)]
    for name in names:
        (tmp_path / name).write_text(name)
    cache = HandleCache(lambda name: os.open(tmp_path / name, os.O_RDONLY), 1)
    wrong: list[str] = []

    def read(turn: int) -> None:
        for number in range(500):
            name = names[(number * (turn + 1)) % len(names)]
            with cache.lease(name) as descriptor:
                if os.pread(descriptor, 4, 0).decode() != name:
                    wrong.append(name)

    threads = [threading.Thread(target=read, args=(turn,)) for turn in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    cache.close()
    assert wrong == []

"""Files of a cache that somebody removes, and that are made anew under the same names."""

import os
import shutil
from pathlib import Path

import pytest

from lazyfs.node.cache import LayerCache
from lazyfs.node.cache_files import OpenFiles
from lazyfs.node.cache_surroundings import Surroundings

from .samples import BOOT, KIB, NEXT_BOOT, TOC_NAME, Layer


@pytest.mark.parametrize("file", ["data", "map"])
def test_a_cache_that_was_removed_while_its_files_were_open(tmp_path: Path, file: str) -> None:
    """By somebody else, when no image had the layer open: one of its files was kept open, as of any layer."""
    directory, layer = tmp_path / TOC_NAME, Layer([100 * KIB, 512, 40 * KIB])
    shared = Surroundings()
    LayerCache(directory, layer.chunks, BOOT, shared).close()
    with shared.files.open(str(directory / file)):
        pass
    shutil.rmtree(directory)
    cache = LayerCache(directory, layer.chunks, BOOT, shared)
    for index in range(3):
        cache.put(index, layer.plain(index))
    cache.flush()
    assert cache.complete()
    assert (directory / "data").read_bytes() == layer.device
    cache.close()
    cache = LayerCache(directory, layer.chunks, NEXT_BOOT)
    assert cache.read(0, len(layer.device)) == layer.device
    cache.close()


def test_a_file_that_is_replaced_just_when_it_is_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files, path = OpenFiles(), tmp_path / "file"
    path.write_bytes(b"old")
    system_open = os.open

    def and_replace(name: str, flags: int) -> int:
        monkeypatch.setattr(os, "open", system_open)
        descriptor = system_open(name, flags)
        path.unlink()
        path.write_bytes(b"new")
        files.drop(name)
        return descriptor

    monkeypatch.setattr(os, "open", and_replace)
    with files.open(str(path)) as descriptor:
        assert os.pread(descriptor, 3, 0) == b"new"
    files.close()

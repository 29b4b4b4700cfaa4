"""A cold start reads a fraction of the image, and no byte of the store twice."""

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import pytest

from lazyfs.config import NodePaths
from lazyfs.daemon.client import DaemonClient

from .conftest import PATIENCE, Node, drop_page_cache, manifest_of, succeed

pytestmark = pytest.mark.image

NUMPY = ["--entrypoint", "python3"]
Fetched = dict[str, Any]


def fetches(node: Node, since: float = 0.0) -> list[Fetched]:
    """What was begun to be fetched since then: what the kernel read ahead may come when the container is gone."""
    answer = DaemonClient(NodePaths(node.root)).timeline(since)
    assert len(answer["fetched"]) < 20_000, "the oldest would be forgotten"
    return list(answer["fetched"])


def assert_nothing_twice(node: Node) -> None:
    """A range of a device is a range of the blob, so ranges that do not overlap were read once.

    But for what was asked for a second time, since nothing of it had come: which a machine that is slow makes happen.
    """
    ranges = sorted((each["layer"], each["start"], each["end"]) for each in fetches(node))
    assert ranges
    twice = [(one, other) for one, other in pairwise(ranges) if one[0] == other[0] and one[2] > other[1]]
    assert len(twice) <= node.status()["second_requests"], twice


def image_size(reference: str) -> int:
    return sum(layer["size"] for layer in manifest_of(reference)["layers"])


def test_import_of_numpy(node: Node, demo: str) -> None:
    drop_page_cache()
    command = ["run", "--no-fill", *NUMPY, demo, "-c", "import numpy; print(numpy.arange(10).sum())"]
    assert succeed(node(*command)).stdout == "45\n"
    fetched = fetches(node)
    status = node.status()
    assert_nothing_twice(node)
    assert status["failed_fetches"] == status["cache_write_failures"] == 0
    chunks = sum(each["stored"] for each in fetched)
    assert chunks <= status["store_bytes"] < 0.3 * image_size(demo), "manifest, config and TOCs are in it"
    # From a cold page cache again nothing comes from the store, by this daemon or the next.
    drop_page_cache()
    status, began = node.status(), time.monotonic()
    assert succeed(node(*command)).stdout == "45\n"
    assert node.status()["store_bytes"] - status["store_bytes"] < 100_000, "manifest and config alone"
    assert fetches(node, since=began) == []
    succeed(node("shutdown"))
    drop_page_cache()
    assert succeed(node(*command)).stdout == "45\n"
    assert fetches(node) == []
    assert node.status()["store_bytes"] < 100_000


def test_many_cold_starts_at_once(node: Node, demo: str) -> None:
    drop_page_cache()
    processes = [node.start_run(demo) for _ in range(8)]
    said = {process.communicate(timeout=PATIENCE)[0] for process in processes}
    assert {each.split()[0] for each in said} == {"ready"}
    assert_nothing_twice(node)


def test_readers_of_everything_at_once(node: Node, demo: str, tmp_path: Path) -> None:
    """In any order, with many threads: each chunk once, and all bytes right."""
    view = node.mount(demo, tmp_path / "view")
    files = sorted(path for path in view.rglob("*") if path.is_file() and not path.is_symlink())
    sizes: dict[Path, int] = {}
    lock = threading.Lock()

    def read(seed: int) -> None:
        mine = files.copy()
        Random(seed).shuffle(mine)
        for path in mine[: len(files) // 2]:
            size = len(path.read_bytes())
            with lock:
                assert sizes.setdefault(path, size) == size == path.stat().st_size

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(read, range(8)))
    assert_nothing_twice(node)
    node.umount(view)


def test_timeline_speaks_of_what_was_asked_for(node: Node, demo: str) -> None:
    succeed(node.run(demo))
    answer = DaemonClient(NodePaths(node.root)).timeline(0.0)
    layers = {layer["digest"] for layer in manifest_of(demo)["layers"]}
    assert {each["layer"] for each in answer["fetched"]} <= layers
    assert {each["layer"] for each in answer["reads"]} <= layers
    assert json.loads(json.dumps(answer)) == answer
    later = max(each["ended"] for each in answer["fetched"]) + 1000
    assert DaemonClient(NodePaths(node.root)).timeline(later) == {"fetched": [], "reads": []}

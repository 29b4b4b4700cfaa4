"""What the cache saves, and what it costs.

    python -m benchmarks.cache_speed [--json FILE]

- *Sharing*: a node has all of one image and fetches all of the next. What it reads of blobs is put beside what
  `lazyfs diff` promises; chunks that it has are copied and never fetched.
- *The index* over 100 layers of 5,000 chunks: what it costs to make, after a restart, and to ask.
- *Reads* of 128 KiB that are there: through the cache, verified each time (`--paranoid`), and by pread alone.
- *Room*: dropping a thousand chunks of 64 KiB.
"""

import hashlib
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np

from benchmarks.dedup import PAIRS
from benchmarks.images import RECIPES, ensure
from benchmarks.report import Row, conclude, parser
from converter import Settings, compare, convert_image
from lazyfs.config import NodePaths, boot_id
from lazyfs.daemon.node import Node
from lazyfs.formats.chunks import ChunkTable, chunk_digest
from lazyfs.mount.device_table import DeviceTable
from lazyfs.node.cache import LayerCache
from lazyfs.node.cache_directory import CacheDirectory
from lazyfs.node.cache_settings import CacheSettings, Limit
from lazyfs.node.cache_store import NodeCache
from lazyfs.stores import open_store, parse_reference

LAYERS, CHUNKS = 100, 5000
KIB = 1024
READ = 128 * KIB
READS = 2000
STEP_SECONDS = 60.0
SHARING_BAR = 1.01
INDEX_BAR_MS, FIND_BAR_US = 500.0, 50.0


@dataclass(frozen=True, slots=True)
class Figure:
    """One of the figures; `bar` is what it should be at most."""

    name: str
    value: float
    unit: str
    bar: float | None = None


def main() -> int:
    arguments = parser("benchmarks.cache_speed", __doc__).parse_args()
    figures = measure(arguments.cache)
    return conclude(arguments, figures, rows(figures))


def measure(cache: Path) -> list[Figure]:
    found: list[Figure] = []
    with tempfile.TemporaryDirectory(prefix="lazyfs-measure-") as name:
        directory = Path(name)
        for title, (old, new) in PAIRS.items():
            found += sharing(title, old, new, cache, directory / old)
        found += index(directory / "index")
        found += reads(directory / "reads")
        found += room(directory / "room")
    return found


def sharing(title: str, old: str, new: str, cache: Path, directory: Path) -> list[Figure]:
    with ExitStack() as stack:
        references = []
        for name in (old, new):
            image = ensure(RECIPES[name], cache)
            source, target = parse_reference(image.reference), parse_reference(f"oci:{directory}/lazy:{name}")
            store = stack.enter_context(open_store(source))
            converted = stack.enter_context(open_store(target, create=True))
            convert_image(store, source, converted, target, Settings())
            references.append(target)
        promised = compare(converted, references[0], converted, references[1])
        node = Node(NodePaths(directory / "node"), DeviceTable(), CacheSettings())
        stack.callback(node.close)
        _warm(node, str(references[0]))
        before = _fetched(node)
        began = time.perf_counter()
        _warm(node, str(references[1]))
        seconds = time.perf_counter() - began
        fetched = _fetched(node) - before
        copied = node.cache.status()["copied_bytes"]
    return [
        Figure(
            f"{title}: fetched, of what `lazyfs diff` promises",
            fetched / promised.missing_bytes,
            "",
            SHARING_BAR,
        ),
        Figure(f"{title}: fetched for the new image", fetched / 1e6, "MB"),
        Figure(f"{title}: an ordinary pull of its new layers", promised.missing_layer_bytes / 1e6, "MB"),
        Figure(f"{title}: copied instead, plain bytes", copied / 1e6, "MB"),
        Figure(f"{title}: the new image complete in", seconds, "s"),
    ]


def _warm(node: Node, reference: str) -> None:
    after: int | None = 0
    while after is not None:
        after = node.warm(reference, Path("/"), after, STEP_SECONDS)["next"]


def _fetched(node: Node) -> int:
    """Bytes of blobs. What was read last is recorded after it was handed out: until nothing more comes."""
    seen = -1
    while seen != (seen := sum(int(each["stored"]) for each in node.recorded(0)["fetched"])):
        time.sleep(0.2)
    return seen


def index(directory: Path) -> list[Figure]:
    tables = [_table(number) for number in range(LAYERS)]
    cache = _node_cache(directory)
    for number, table in enumerate(tables):
        cache.open(_name(number), table)
    cache.close()
    began = time.perf_counter()
    cache = _node_cache(directory)
    cache._indexed.result()
    chunks = len(cache._index)
    made = time.perf_counter() - began
    rng = Random(1)
    wanted = [(tables[rng.randrange(LAYERS)], rng.randrange(CHUNKS)) for _ in range(READS)]

    def find(number: int) -> None:
        table, chunk = wanted[number]
        assert cache._index.find(table.digest(chunk), table.length(chunk))

    found = _microseconds(find)
    cache.close()
    return [
        Figure(
            f"index of {chunks:,} chunks in {LAYERS} layers, after a restart", made * 1e3, "ms", INDEX_BAR_MS
        ),
        Figure("finding a chunk in it, median", found, "µs", FIND_BAR_US),
    ]


def _table(number: int) -> ChunkTable:
    digests = b"".join(hashlib.sha256(b"%d %d" % (number, chunk)).digest() for chunk in range(CHUNKS))
    start = np.arange(CHUNKS + 1, dtype=np.int64) * 64 * KIB
    nowhere = np.zeros(CHUNKS, np.int64)
    return ChunkTable(start, nowhere, nowhere, digests)


def reads(directory: Path) -> list[Figure]:
    plain, chunk = Random(2).randbytes(64 << 20), 512 * KIB
    pieces = [plain[at : at + chunk] for at in range(0, len(plain), chunk)]
    nowhere = np.zeros(len(pieces), np.int64)
    start = np.arange(len(pieces) + 1, dtype=np.int64) * chunk
    table = ChunkTable(start, nowhere, nowhere, b"".join(map(chunk_digest, pieces)))
    node = _node_cache(directory)
    cache = node.open(_name(1), table)
    for number, piece in enumerate(pieces):
        cache.put(number, piece)
    rng = Random(3)
    offsets = [rng.randrange(len(plain) - READ) for _ in range(READS)]
    descriptor = os.open(cache.directory / "data", os.O_RDONLY)
    alone = _microseconds(lambda number: os.pread(descriptor, READ, offsets[number]))
    os.close(descriptor)
    cached = _microseconds(lambda number: cache.read(offsets[number], READ))
    node.paranoid = True
    paranoid = _microseconds(lambda number: cache.read(offsets[number], READ))
    node.close()
    return [
        Figure("a read of 128 KiB that is there: pread alone", alone, "µs"),
        Figure("the same through the cache", cached, "µs"),
        Figure("the same, verified", paranoid, "µs"),
    ]


def room(directory: Path) -> list[Figure]:
    plain = Random(4).randbytes(64 * KIB)
    start = np.arange(1001, dtype=np.int64) * len(plain)
    nowhere = np.zeros(1000, np.int64)
    directory.mkdir()
    cache = LayerCache(
        directory / _name(1), ChunkTable(start, nowhere, nowhere, chunk_digest(plain) * 1000), boot_id()
    )
    for number in range(1000):
        cache.put(number, plain)
    cache.flush()
    began = time.perf_counter()
    assert cache.drop(range(0, 1000, 2)) == 500
    assert cache.drop(range(1, 1000, 2)) == 500
    seconds = time.perf_counter() - began
    cache.close()
    return [Figure("dropping 1,000 chunks of 64 KiB, every other one first", seconds * 1e3, "ms")]


def _node_cache(directory: Path) -> NodeCache:
    directory.mkdir(exist_ok=True)
    return NodeCache([CacheDirectory(directory, Limit(1 << 40))], boot_id(), lambda reason: None)


def _name(number: int) -> str:
    return f"{number:064x}"


def _microseconds(work: Callable[[int], object]) -> float:
    """Median of one call."""
    taken = []
    for number in range(READS):
        began = time.perf_counter()
        work(number)
        taken.append(time.perf_counter() - began)
    return statistics.median(taken) * 1e6


def rows(figures: list[Figure]) -> list[Row]:
    return [Row(each.name, each.value, each.unit, each.bar) for each in figures]


if __name__ == "__main__":
    sys.exit(main())

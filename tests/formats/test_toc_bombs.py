"""Small TOCs that ask for much memory or time: each read in a process that has little of either."""

import os
import resource
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
import zstandard

from lazyfs.formats import toc
from lazyfs.formats.bootstrap import build
from lazyfs.formats.image_tree import merge
from lazyfs.formats.strings import Strings
from lazyfs.formats.toc_types import INODE_COLUMNS, Inodes, Sparse, Toc
from tests.formats.test_toc import document_of, make_toc
from tests.formats.test_toc_hostile import rich_toc
from tests.layers import layer_tree
from tests.referees import REPOSITORY

MEMORY = 2 << 30
"""Address space of a process that reads bombs, interpreter and numpy included."""
CPU_SECONDS = 60
PATIENCE = 600
"""Seconds of the clock, which say little of who shares the processor with others."""


def nested_maps(levels: int) -> bytes:
    """64 maps in each of 64 maps, and so on: a few bytes each."""
    inner = b"\x80"
    for _ in range(levels):
        inner = b"\xde\x00\x40" + b"".join(b"\xa2%02x" % key + inner for key in range(64))
    return inner


def with_value(path: str, value: Any) -> bytes:
    document = document_of(rich_toc(0))
    *parents, last = path.split(".")
    table = document
    for key in parents:
        table = table[key]
    table[last] = value
    data: bytes = msgpack.packb(document)
    return data


def inodes_of(count: int, **columns: bytes) -> bytes:
    """A TOC of `count` inodes that are all zero, but for some columns."""
    widths = {name: np.dtype(dtype).itemsize for name, dtype in INODE_COLUMNS.items()}
    table = {"count": count, **{name: bytes(width * count) for name, width in widths.items()}, **columns}
    return with_value("tree.inodes", table)


BOMBS: dict[str, Callable[[], bytes]] = {
    "empty lists": lambda: b"\xdd\x0f\xff\xff\xff" + b"\x90" * (200 << 20),
    "lists in lists": lambda: b"\xdd\x00\x0f\xff\xff" * (40 << 20),
    "maps in maps": lambda: b"\x81\xa1a" * (60 << 20),
    "maps beside maps": lambda: nested_maps(4),
    "names that are only ends": lambda: with_value("tree.entries.names", bytes(200 << 20)),
    "short names": lambda: with_value("tree.entries.names", b"ab\0" * (60 << 20)),
    "targets that are only ends": lambda: with_value("tree.targets", bytes(200 << 20)),
    "short targets": lambda: with_value("tree.targets", b"ab\0" * 4_000_000),
    "short names of xattrs": lambda: with_value("tree.xattrs.names", b"ab\0" * (60 << 20)),
    "sets of xattrs": lambda: with_value(
        "tree.xattrs",
        {"sets": 1 << 20, "count": 0, "counts": bytes(4 << 20), "names": b"", "lengths": b"", "values": b""},
    ),
    "very many sets": lambda: with_value("tree.xattrs.sets", 2**63 - 1),
    "four million inodes": lambda: inodes_of(4_000_000),
    "more inodes": lambda: inodes_of(4_000_001),
    "inodes that are not there": lambda: with_value("tree.inodes.count", 2**40),
    "a text": lambda: with_value("codec", "x" * (200 << 20)),
    "an extension": lambda: with_value("later", msgpack.ExtType(5, bytes(200 << 20))),
    "chunks": lambda: with_value("chunks", {"count": 4_000_000, "length": b"", "digests": b""}),
    "digests": lambda: with_value("chunks.digests", bytes(200 << 20)),
    "a big number": lambda: with_value("stream_size", 2**64 - 1),
}

READ_BOMBS = """
import resource, sys
from pathlib import Path
from lazyfs.errors import LazyfsError
from lazyfs.formats import toc
from lazyfs.formats.bootstrap import build
from lazyfs.formats.image_tree import merge
resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[1]),) * 2)
resource.setrlimit(resource.RLIMIT_CPU, (int(sys.argv[2]),) * 2)
for name in sys.argv[3:]:
    data = Path(name).read_bytes()
    try:
        decoded = toc.decode(data)
        build(merge([decoded.tree]), [decoded.chunks.device_size])
    except LazyfsError as error:
        print(Path(name).name, type(error).__name__, str(error)[:100], sep=": ")
    else:
        sys.exit(f"{name} was accepted")
"""


def read_bombs(directory: Path, bombs: dict[str, bytes]) -> str:
    """Read the TOCs in a process of its own, which has little memory and time; each must be refused."""
    paths = []
    for name, data in bombs.items():
        paths.append(directory / name)
        paths[-1].write_bytes(data)
    result = subprocess.run(
        [sys.executable, "-c", READ_BOMBS, str(MEMORY), str(CPU_SECONDS), *map(str, paths)],
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY), "OPENBLAS_NUM_THREADS": "1"},
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def test_documents_that_would_eat_memory(tmp_path: Path) -> None:
    compressor = zstandard.ZstdCompressor(level=1)
    bombs = {name: compressor.compress(make()) for name, make in BOMBS.items()}
    assert all(len(bomb) < 5 << 20 for bomb in bombs.values())
    assert len(read_bombs(tmp_path, bombs).splitlines()) == len(bombs)


def test_frames_that_would_eat_memory(tmp_path: Path) -> None:
    def stated(size: int) -> bytes:
        """A frame that states a size and holds nothing (RFC 8878, 3.1.1)."""
        return bytes.fromhex("28b52ffd e0") + size.to_bytes(8, "little") + bytes.fromhex("010000")

    unknown = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(100))
    bombs = {
        "nothing": b"",
        "a size that is not there": stated(200 << 20),
        "too large": stated(2**62),
        "no size": unknown,
        "two frames": zstandard.compress(b"\x80") * 2,
        "larger than it says": stated(1)[:-3] + zstandard.compress(bytes(1 << 20))[6:],
        "packed too large": bytes(toc.MAX_TOC_SIZE + 1),
        "zeros": zstandard.compress(bytes(toc.MAX_PLAIN_SIZE)),
    }
    read_bombs(tmp_path, bombs)


def uniform(count: int, mode: int, **columns: int) -> Inodes:
    """A root, and `count` inodes that are all alike."""
    values = {"mode": mode, **columns}
    arrays = {
        name: np.array([0, *[values.get(name, 0)] * count], dtype) for name, dtype in INODE_COLUMNS.items()
    }
    arrays["mode"][0] = 0o040755
    return Inodes(**arrays)


def flat(inodes: Inodes, **parts: Any) -> Toc:
    """A root directory with all the other inodes in it; directories among them are empty."""
    count = len(inodes) - 1
    directories = int(np.sum((inodes.mode & 0o170000) == 0o040000))
    return make_toc(
        replace(
            layer_tree([]),
            inodes=inodes,
            counts=np.array([count, *[0] * (directories - 1)], "u4"),
            names=Strings.of(sorted(b"%x" % number for number in range(count))),
            entries=np.arange(1, count + 1, dtype="u4"),
            **parts,
        )
    )


def sparse_files(count: int, size: int, segments: int) -> Toc:
    owners = np.repeat(np.arange(1, count + 1, dtype="u4"), segments)
    offsets = np.tile(np.arange(segments, dtype="u8") * 1024 + 512, count)
    return flat(
        uniform(count, 0o100644, size=size),
        sparse_inodes=np.arange(1, count + 1, dtype="u4"),
        sparse=Sparse(owners, offsets, np.zeros(len(owners), "u8"), np.full(len(owners), 512, "u8")),
    )


AMPLIFIERS: dict[str, Callable[[], Toc]] = {
    "one large set of xattrs for all": lambda: flat(
        uniform(100_000, 0o100644, xattrs=1),
        xattr_sets=[((b"user.a", bytes(65_000)), (b"user.b", bytes(65_000)))],
    ),
    "chunk indexes": lambda: sparse_files(1000, 512 << 20, 1),
    "a file of holes": lambda: sparse_files(1, 2**62 - 1, 0),
    "sparse files": lambda: sparse_files(200_000, 0, 0),
    "a device of petabytes": lambda: make_toc(layer_tree([]), [16 << 20] * 200_000),
}


@pytest.mark.parametrize("name", AMPLIFIERS)
def test_small_tocs_of_large_images(name: str, tmp_path: Path) -> None:
    """Columns that are all alike take no place; what would be built of them would."""
    data = toc.encode(AMPLIFIERS[name]())
    assert len(data) < 24 << 20
    assert "LimitError" in read_bombs(tmp_path, {name: data})


@pytest.mark.usefixtures("time_limit")
def test_the_largest_images_that_are_taken_take_bounded_time() -> None:
    """400,000 files: honest, if rare."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_utime
    decoded = toc.decode(toc.encode(flat(uniform(400_000, 0o100644))))
    build(merge([decoded.tree]), [decoded.chunks.device_size])
    assert resource.getrusage(resource.RUSAGE_SELF).ru_utime - before < CPU_SECONDS / 2

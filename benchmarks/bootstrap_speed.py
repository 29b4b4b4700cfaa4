"""How long a node takes from TOCs to a bootstrap: decode, check, merge, build.

    python -m benchmarks.bootstrap_speed [--runs N] [--json]

Synthetic images of 10,000 and 100,000 inodes (a tenth directories; symlinks, hard links, xattrs as a
distribution has them), in 1, 3 and 12 layers. The figure is the least of the runs, since machines are shared;
the bars are 30 ms and 300 ms.
"""

import argparse
import gc
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from random import Random

import numpy as np

from benchmarks.report import Row
from lazyfs.formats import toc
from lazyfs.formats.bootstrap import build
from lazyfs.formats.chunks import ChunkTable
from lazyfs.formats.image_tree import merge
from lazyfs.formats.layer_tree import TreeBuilder
from lazyfs.formats.tarwalk import Kind, Member
from lazyfs.formats.toc_types import Toc, Tree

BARS = {10_000: 0.030, 100_000: 0.300}
LAYERS = (1, 3, 12)
CHUNK = 512 * 1024
FILES_PER_DIRECTORY = 9


@dataclass(frozen=True, slots=True)
class Result:
    """Times in seconds."""

    inodes: int
    layers: int
    decode: float
    merge: float
    build: float
    total: float
    bar: float
    toc_size: int
    bootstrap_size: int


def member(name: bytes, kind: Kind, size: int = 0, target: bytes = b"", rng: Random | None = None) -> Member:
    xattrs = ((b"security.capability", bytes(20)),) if rng and rng.random() < 0.001 else ()
    return Member(
        header_offset=0,
        data_offset=0,
        stored_size=size,
        name=name,
        kind=kind,
        mode=0o755 if kind is Kind.DIRECTORY else 0o644,
        uid=0,
        gid=0,
        size=size,
        mtime=1_700_000_000 + (rng.randrange(10**6) if rng else 0),
        mtime_nsec=0,
        target=target,
        rdev=(0, 0),
        xattrs=xattrs,
        sparse=None,
    )


def synthetic_layer(inodes: int, layer: int, rng: Random) -> tuple[Tree, int]:
    """A tree of `inodes` inodes, most of them this layer's own, and the size of its device."""
    builder = TreeBuilder("synthetic")
    at = 0
    directories = [b"usr", b"usr/lib"]
    for number in range(inodes):
        if number % (FILES_PER_DIRECTORY + 1) == 0:
            # Every other directory is one that other layers have too.
            own = b"" if number % 20 == 0 else b".%d" % layer
            directories.append(
                rng.choice(directories[: 2 + len(directories) // 3]) + b"/package%d%s" % (number, own)
            )
            builder.add(member(directories[-1], Kind.DIRECTORY, rng=rng), 0, None)
            continue
        path = directories[-1] + b"/module_%d_%s.py" % (number, b"abcdefgh"[number % 8 :])
        if number % 25 == 1:
            builder.add(member(path, Kind.SYMLINK, target=b"../lib/module_%d.so" % number, rng=rng), 0, None)
        else:
            size = int(rng.expovariate(1 / 8000))
            builder.add(member(path, Kind.FILE, size, rng=rng), at + 512, None)
            at += 512 + -(-size // 512) * 512
    return builder.finish(at), at


def synthetic_toc(inodes: int, layer: int) -> bytes:
    tree, size = synthetic_layer(inodes, layer, Random(layer))
    start = np.append(np.arange(0, size, CHUNK), size)
    count = len(start) - 1
    return toc.encode(
        Toc(
            diff_id=bytes(32),
            stream_size=size,
            codec="zstd",
            chunks=ChunkTable(
                start=start,
                blob_offset=np.arange(count) * (CHUNK // 3),
                blob_length=np.minimum(np.diff(start), CHUNK // 3),
                digests=Random(layer).randbytes(32 * count),
            ),
            tree=tree,
        )
    )


def least(runs: int, work: Callable[[], object]) -> float:
    """The time of the fastest of `runs` runs, in seconds."""
    times = []
    for _ in range(runs):
        gc.collect()
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return min(times)


def measure(inodes: int, layers: int, runs: int) -> Result:
    data = [synthetic_toc(inodes // layers, layer) for layer in range(layers)]
    tocs = [toc.decode(each) for each in data]
    sizes = [each.chunks.device_size for each in tocs]
    tree = merge([each.tree for each in tocs])

    def all_of_it() -> bytearray:
        decoded = [toc.decode(each) for each in data]
        return build(merge([each.tree for each in decoded]), [each.chunks.device_size for each in decoded])

    return Result(
        inodes=sum(len(each.tree.inodes) for each in tocs),
        layers=layers,
        decode=least(runs, lambda: [toc.decode(each) for each in data]),
        merge=least(runs, lambda: merge([each.tree for each in tocs])),
        build=least(runs, lambda: build(tree, sizes)),
        total=least(runs, all_of_it),
        bar=BARS[inodes],
        toc_size=sum(map(len, data)),
        bootstrap_size=len(all_of_it()),
    )


def rows(results: Sequence[Result]) -> list[Row]:
    return [
        Row(
            f"bootstrap of {each.inodes:,} inodes in {each.layers} {'layer' if each.layers == 1 else 'layers'}",
            each.total * 1e3,
            "ms",
            each.bar * 1e3,
        )
        for each in results
    ]


def show(results: Sequence[Result]) -> str:
    lines = ["inodes   layers   decode+check   merge    build    total      bar   TOC KiB  bootstrap KiB"]
    lines += [
        f"{each.inodes:7d} {each.layers:7d} {each.decode * 1000:11.1f} ms {each.merge * 1000:7.1f}"
        f" {each.build * 1000:8.1f} {each.total * 1000:8.1f} {each.bar * 1000:8.0f}"
        f" {each.toc_size / 1024:9.0f} {each.bootstrap_size / 1024:14.0f}"
        for each in results
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=15, help="of which the fastest counts (default: 15)")
    parser.add_argument("--json", action="store_true", help="results as JSON")
    options = parser.parse_args()
    results = [measure(inodes, layers, options.runs) for inodes in BARS for layers in LAYERS]
    shown = json.dumps([asdict(each) for each in results]) if options.json else show(results)
    sys.stdout.write(shown + "\n")


if __name__ == "__main__":
    main()

"""What each setting of the converter costs and gives: the table by which its defaults are chosen.

    python -m benchmarks.chunk_choice [--runs 1]

One setting is changed at a time. *Size* is of all blobs, of the image's gzip layers; *CPU* of converting both
images, user and system, the least of the runs; *shared* are the fractions of `benchmarks.dedup`; *fetched* is what a
cold start (`lazyfs run`, nothing in any cache, the store a local directory) reads from the store, TOCs included, and
*start* how long it takes until the container has ended, the least of three. Takes root, and some minutes.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks import dedup
from benchmarks.demo import drop_page_cache
from benchmarks.images import RECIPES, ensure
from converter import CutRules, Settings, convert_image
from lazyfs.config import NodePaths
from lazyfs.daemon.client import ensure_daemon
from lazyfs.formats.frames import CODECS
from lazyfs.stores import open_store, parse_reference

KIB = 1024
IMAGES = ("demo", "science")
DEFAULT = Settings()
START_RUNS = 3


@dataclass(frozen=True, slots=True)
class Outcome:
    """For each image: blob bytes / gzip bytes, chunks, bytes and seconds of a cold start. For both: CPU seconds."""

    size: list[float]
    chunks: list[int]
    fetched: list[int]
    start: list[float]
    cpu: float
    shared: list[float]


def variations() -> dict[str, Settings]:
    rules = DEFAULT.rules
    changed = {"default": DEFAULT}
    changed |= {f"codec {codec}": replace(DEFAULT, codec=codec) for codec in CODECS if codec != DEFAULT.codec}
    changed |= {f"level {level}": replace(DEFAULT, level=level) for level in (1, 2, 4, 5, 6, 9)}
    cuts: dict[str, CutRules] = {}
    for size in (256, 1024, 2048):
        cuts[f"chunks of {size} KiB"] = replace(rules, chunk_size=size * KIB)
    for size in (64, 128, 512):
        cuts[f"large files from {size} KiB"] = replace(rules, large_file=size * KIB)
    for size in (64, 192, 256, 384):
        cuts[f"packs from {size} KiB"] = replace(rules, min_pack=size * KIB)
    for names in (4, 8, 32, 64):
        cuts[f"cut at one name in {names}"] = replace(rules, name_mask=names - 1)
    return changed | {name: replace(DEFAULT, rules=each) for name, each in cuts.items()}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.chunk_choice", description=__doc__)
    parser.add_argument("--cache", type=Path, default=Path(".cache/images"))
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--only", default="", help="settings whose name contains this")
    arguments = parser.parse_args()
    print(
        "| | size: demo, science | CPU | chunks | shared: upgrade, two bases | fetched: demo, science | start |"
    )
    print("|---|---|---|---|---|---|---|")
    for name, settings in variations().items():
        if arguments.only in name:
            outcome = measure(settings, arguments.cache, arguments.runs)
            print(f"| {name} | {_describe(outcome)} |", flush=True)
    return 0


def measure(settings: Settings, cache: Path, runs: int) -> Outcome:
    outcome = Outcome([], [], [], [], 0.0, [])
    shared = [result.fraction for result in dedup.measure(cache, settings.rules)]
    outcome.shared.extend(shared)
    cpu = 0.0
    with tempfile.TemporaryDirectory(prefix="lazyfs-measure-") as name:
        directory = Path(name)
        for image in IMAGES:
            reference = ensure(RECIPES[image], cache).reference
            seconds = []
            for run in range(runs):
                target = f"oci:{directory}/{image}{run}:{image}"
                size, chunks, used = _convert(reference, target, settings)
                seconds.append(used)
            cpu += min(seconds)
            outcome.size.append(size)
            outcome.chunks.append(chunks)
            starts = [_cold_start(target, directory / f"{image}.node{run}") for run in range(START_RUNS)]
            outcome.fetched.append(starts[0][0])
            outcome.start.append(min(seconds for _, seconds in starts))
    return replace(outcome, cpu=cpu)


def _convert(source_text: str, target_text: str, settings: Settings) -> tuple[float, int, float]:
    """Size of the blobs, of the source's; number of chunks; CPU seconds."""
    source, target = parse_reference(source_text), parse_reference(target_text)
    before = os.times()
    with open_store(source) as from_store, open_store(target, create=True) as to_store:
        report = convert_image(from_store, source, to_store, target, settings)
    after = os.times()
    size = sum(layer.size for layer in report.layers) / sum(layer.source_size for layer in report.layers)
    used = after.user + after.system - before.user - before.system
    return size, sum(layer.chunks for layer in report.layers), used


def _cold_start(reference: str, root: Path) -> tuple[int, float]:
    """Bytes read from the store, and seconds."""
    paths = NodePaths.choose(root)
    client = ensure_daemon(paths)
    try:
        drop_page_cache()
        program = [sys.executable, "-m", "lazyfs.cli.main", "--root", str(paths.root), "run", reference]
        began = time.monotonic()
        subprocess.run(program, check=True, capture_output=True)
        seconds = time.monotonic() - began
        fetched: int = client.status()["store_bytes"]
    finally:
        client.shutdown()
    return fetched, seconds


def _describe(outcome: Outcome) -> str:
    size = ", ".join(f"{each:.3f}" for each in outcome.size)
    shared = ", ".join(f"{each:.3f}" for each in outcome.shared)
    fetched = ", ".join(f"{each / 1e6:.1f}" for each in outcome.fetched)
    start = ", ".join(f"{each:.2f}" for each in outcome.start)
    return f"{size} | {outcome.cpu:.1f} s | {sum(outcome.chunks)} | {shared} | {fetched} MB | {start} s"


if __name__ == "__main__":
    sys.exit(main())

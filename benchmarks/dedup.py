"""What two layers share as chunks, beside what an ideal deduplication of whole files would share.

    python -m benchmarks.dedup [--json FILE]

Two pairs of real layers: a Debian root file system before and after a security update of one package, each made
anew as one layer; and python3 installed on two different bases. *Ideal* are the bytes of the new layer's files
whose content (sha256, by Python's tarfile) some file of the old one has; *ours* the bytes of file data in those
chunks of the new layer that the old one has too. What a node with the old image must fetch for the new one is
counted in bytes of blob, as `lazyfs diff` tells it.
"""

import hashlib
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.images import RECIPES, BuiltImage, ensure
from benchmarks.report import Row, conclude, parser
from converter import CutRules, Difference, Settings, compare, convert_image
from lazyfs.formats.chunks import ChunkTable
from lazyfs.node.layers import load_toc
from lazyfs.stores import Reference, Store, load_image, open_store, parse_reference

PAIRS = {
    "one package upgraded": ("outdated", "upgraded"),
    "one package on two bases": ("python-on-much", "python-on-little"),
}
"""Old and new image; their topmost layers are compared."""
BAR = 0.9
_PIECE = 1 << 20


@dataclass(frozen=True, slots=True)
class Result:
    """Sizes in bytes; `size` is of the data of all files of the new layer."""

    name: str
    size: int
    ideal: int
    ours: int
    difference: Difference

    @property
    def fraction(self) -> float:
        return self.ours / self.ideal


def main() -> int:
    arguments = parser("benchmarks.dedup", __doc__).parse_args()
    results = measure(arguments.cache)
    for result in results:
        print(describe(result))
    return conclude(arguments, results, rows(results))


def measure(cache: Path, rules: CutRules | None = None) -> list[Result]:
    with tempfile.TemporaryDirectory(prefix="lazyfs-measure-") as directory:
        return [
            compare_pair(
                name,
                ensure(RECIPES[old], cache),
                ensure(RECIPES[new], cache),
                Path(directory),
                rules or CutRules(),
            )
            for name, (old, new) in PAIRS.items()
        ]


def compare_pair(name: str, old: BuiltImage, new: BuiltImage, directory: Path, rules: CutRules) -> Result:
    tables: list[ChunkTable] = []
    contents: list[list[tuple[bytes, int]]] = []
    references: list[Reference] = []
    with ExitStack() as stack:
        for image in (old, new):
            source = parse_reference(image.reference)
            store = stack.enter_context(open_store(source))
            target = parse_reference(f"oci:{directory}:{image.tag}")
            converted = stack.enter_context(open_store(target, create=True))
            convert_image(store, source, converted, target, Settings(rules=rules))
            layer, diff_id = load_image(converted, target).layers[-1]
            tables.append(load_toc(converted, layer, diff_id).chunks)
            contents.append(list(_file_contents(store, source)))
            references.append(target)
        difference = compare(converted, references[0], converted, references[1])
    known = {content for content, _ in contents[0]}
    return Result(
        name=name,
        size=sum(size for _, size in contents[1]),
        ideal=sum(size for content, size in contents[1] if content in known),
        ours=shared_data(*tables),
        difference=difference,
    )


def shared_data(old: ChunkTable, new: ChunkTable) -> int:
    """The bytes of file data in those chunks of `new` that `old` has."""
    known = {old.digest(index) for index in range(len(old))}
    # Data before each position is what the ranges hold of it; of a chunk, the difference of its ends.
    sums = np.concatenate(([0], np.cumsum(new.data_end - new.data_start)))
    ranges = np.searchsorted(new.data_start, new.start, side="right")
    beyond = np.maximum(0, new.data_end[ranges - 1] - new.start) * (ranges > 0)
    data = np.diff(sums[ranges] - beyond)
    return int(sum(data[index] for index in range(len(new)) if new.digest(index) in known))


def _file_contents(store: Store, reference: Reference) -> Iterator[tuple[bytes, int]]:
    """sha256 and size of the content of each file in the topmost layer."""
    layer, _ = load_image(store, reference).layers[-1]
    blob = Path(reference.location) / "blobs" / layer.digest.replace(":", "/")
    with tarfile.open(blob) as tar:
        for member in tar:
            if member.isreg() and member.size:
                file = tar.extractfile(member)
                assert file is not None
                digest = hashlib.sha256()
                while piece := file.read(_PIECE):
                    digest.update(piece)
                yield digest.digest(), member.size


def describe(result: Result) -> str:
    difference = result.difference
    return (
        f"{result.name}: of {result.size / 1e6:.1f} MB of files an ideal deduplication shares "
        f"{result.ideal / 1e6:.1f} MB, chunks share {result.ours / 1e6:.1f} MB\n"
        f"  lazyfs diff: {difference.missing_chunks} of {difference.chunks} chunks are new, "
        f"{difference.missing_bytes / 1e6:.2f} MB; "
        f"a pull of layers fetches {difference.missing_layer_bytes / 1e6:.1f} MB"
    )


def rows(results: list[Result]) -> list[Row]:
    return [
        Row(
            f"{result.name}: bytes shared, of what whole files share", result.fraction, "", BAR, at_least=True
        )
        for result in results
    ]


if __name__ == "__main__":
    sys.exit(main())

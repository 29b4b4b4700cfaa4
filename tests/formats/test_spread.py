"""Images in one file: the same tree and bytes as GNU tar unpacks, on a file that needs no feature of EROFS."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from random import Random

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lazyfs.errors import LimitError
from lazyfs.formats import erofs, spread
from lazyfs.formats.bootstrap import JOINED, build
from lazyfs.formats.image_tree import ImageTree, merge
from lazyfs.node.mosaic import FileBytes, Mosaic
from tests.layers import convert_image_files, layer_tree
from tests.referees import Snapshot, TarReferee, empty_directory, fsck, mounted, snapshot
from tests.trees import NAMES, SYMLINK, Entry, layer_tar, random_layers

PAGE = spread.PAGE


def joined_file(tree: ImageTree, devices: Sequence[Path], path: Path) -> Path:
    """The one file of an image, written out as a plain one."""
    laid_out = spread.spread(tree)
    metadata = build(laid_out.tree, [laid_out.size], JOINED)
    with path.open("wb") as file, ExitStack() as opened:
        sources = [FileBytes(device) for device in devices]
        for source in sources:
            opened.callback(source.close)
        mosaic = Mosaic(laid_out.size, laid_out.pieces, sources)
        file.write(metadata)
        for at in range(0, laid_out.size, 1 << 20):
            piece = mosaic.peek(at, 1 << 20)
            assert piece is not None
            assert mosaic.request(at, 1 << 20).result() == piece
            if any(piece):
                file.seek(len(metadata) + at)
                file.write(piece)
        file.truncate(len(metadata) + laid_out.size)
    return path


def shown(directory: Path, layers: Sequence[Sequence[Entry]]) -> Snapshot:
    files = convert_image_files([layer_tar(layer) for layer in layers], directory)
    tree = merge([each.tree for each in files.tocs])
    joined = joined_file(tree, files.devices, directory / "joined")
    header = np.frombuffer(joined.read_bytes()[1024:1152], erofs.SUPERBLOCK)[0]
    assert (header["feature_incompat"], header["extra_devices"], header["blkszbits"]) == (0, 0, 12)
    assert header["blocks"] * PAGE == joined.stat().st_size
    fsck(joined, [])
    with mounted(joined, [], directory / "mnt") as root:
        return snapshot(root)


def compare(directory: Path, layers: Sequence[Sequence[Entry]]) -> None:
    referee = TarReferee(empty_directory(directory / "unpacked"))
    for layer in layers:
        referee.apply(layer)
    assert shown(directory, layers) == referee.expected()


@pytest.mark.root
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32 - 1), layers=st.integers(1, 4), members=st.integers(0, 50))
def test_random_images_are_what_tar_unpacks(temp_root: Path, seed: int, layers: int, members: int) -> None:
    compare(empty_directory(temp_root / "image"), random_layers(Random(seed), layers, members))


@pytest.mark.root
def test_names_and_targets_around_the_block(temp_root: Path) -> None:
    layer = [Entry(b"d/" + name) for name in NAMES]
    layer += [Entry(b"many/%04d" % number + b"n" * (number % 200)) for number in range(500)]
    layer += [
        Entry(b"l%d" % size, SYMLINK, target=b"t" * size) for size in (1, 31, 447, 448, 4032, 4033, 4095)
    ]
    compare(temp_root, [layer])


@pytest.mark.root
def test_sizes_around_the_page(temp_root: Path) -> None:
    sizes = (0, 1, 511, 512, 513, PAGE - 1, PAGE, PAGE + 1, 3 * PAGE + 512, 1 << 20)
    compare(temp_root, [[Entry(b"f%d" % size, content=Random(size).randbytes(size)) for size in sizes]])


def test_what_takes_too_much_address_space() -> None:
    tree = merge([layer_tree([Entry(b"f", content=b"x"), Entry(b"g", content=b"y")])])
    sizes = tree.inodes.size.copy()
    sizes[1:] = 1 << 62
    huge = replace(tree, inodes=replace(tree.inodes, size=sizes))
    with pytest.raises(LimitError, match="joined in one file"):
        spread.spread(huge)


@given(
    lengths=st.lists(st.tuples(st.integers(0, 2), st.integers(1, 3 * PAGE)), min_size=1, max_size=30),
    start=st.integers(0, 30 * PAGE),
    length=st.integers(0, 5 * PAGE),
    layer=st.integers(0, 3),
)
def test_what_lies_where_of_a_device(
    lengths: list[tuple[int, int]], start: int, length: int, layer: int
) -> None:
    """Byte by byte, against a table of all bytes."""
    at, ends = 0, [0, 0, 0]
    rows = []
    expected = {}
    for owner, size in lengths:
        begin = ends[owner] + 512
        rows.append((at, owner, begin, size))
        ends[owner] = begin + size
        expected.update({(owner, begin + byte): at + byte for byte in range(size)})
        at += -(-size // PAGE) * PAGE
    columns = np.array(rows, np.int64).T
    pieces = spread.Pieces(columns[0], columns[1], columns[2], columns[3])
    found = {
        placed.start + byte: placed.at + byte
        for placed in spread.ReverseMap(pieces).find(layer, start, start + length)
        for byte in range(placed.length)
    }
    assert found == {
        byte: place for (owner, byte), place in expected.items()
        if owner == layer and start <= byte < start + length
    }  # fmt: skip

"""Damage anywhere in an image's blobs: right bytes or an error that names the blob, and right again when mended.

Without FUSE, in this process; `tests/e2e/test_damage.py` looks at less of it through the kernel.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lazyfs.errors import BadInputError, IntegrityError, LazyfsError, LimitError, NotFoundError, StoreError

from .open_node import PATIENCE, OpenNode, blobs

PIECE = 96 * 1024

# Where in a blob: anywhere, or close to its end, where the TOC and the seek table are.
positions = st.one_of(st.floats(0, 0.999999), st.floats(0.99, 0.999999))
flips = st.tuples(st.integers(0, 1), positions, st.integers(1, 255))


@pytest.fixture(scope="module")
def right(made: Path, tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    """The devices of the undamaged image."""
    node = OpenNode(tmp_path_factory.mktemp("right"))
    devices = node.devices(node.open(made))
    node.close()
    return devices


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with TemporaryDirectory(dir=tmp_path_factory.mktemp("scratch")) as directory:
        yield Path(directory)


def survive(made: Path, right: list[bytes], scratch: Path, damage: Callable[[list[Path]], None]) -> None:
    for name in ("layout", "node"):
        shutil.rmtree(scratch / name, ignore_errors=True)
    layout = Path(shutil.copytree(made, scratch / "layout"))
    node = OpenNode(scratch / "node")
    try:
        damaged = blobs(layout)
        whole = [blob.read_bytes() for blob in damaged]
        damage(damaged)
        read_what_can_be_read(node, layout, right)
        for blob, data in zip(damaged, whole, strict=True):
            mend(blob, data)
        assert node.devices(node.open(layout)) == right
    finally:
        node.close()


def mend(blob: Path, data: bytes) -> None:
    if blob.is_dir():
        blob.rmdir()
    elif not blob.is_file():
        blob.unlink(missing_ok=True)
    blob.write_bytes(data)


def read_what_can_be_read(node: OpenNode, layout: Path, right: list[bytes]) -> None:
    try:
        image = node.open(layout)
    except (IntegrityError, StoreError, BadInputError, LimitError, NotFoundError):
        return
    names = [blob.name for blob in blobs(layout)]
    failed = set()
    for layer, inode in enumerate(image["layers"]):
        device = node.table.numbered(inode)
        assert device is not None
        for offset in range(0, device.content.size, PIECE):
            try:
                data = device.content.request(offset, PIECE).result(PATIENCE)
            except LazyfsError as error:
                failed.add(layer)
                assert names[layer] in error.message
            else:
                assert data == right[layer][offset : offset + PIECE]
    failures = node.node.status()["recent_failures"]
    assert all(any(names[layer] in failure for failure in failures) for layer in failed)


@given(st.lists(flips, min_size=1, max_size=4))
@settings(max_examples=40)
def test_flipped_bytes(
    made: Path, right: list[bytes], scratch: Path, flips: list[tuple[int, float, int]]
) -> None:
    def damage(blobs: list[Path]) -> None:
        for layer, position, mask in flips:
            data = bytearray(blobs[layer].read_bytes())
            data[int(position * len(data))] ^= mask
            blobs[layer].write_bytes(data)

    survive(made, right, scratch, damage)


@given(st.integers(0, 1), positions)
@settings(max_examples=15)
def test_truncated(made: Path, right: list[bytes], scratch: Path, layer: int, position: float) -> None:
    def damage(blobs: list[Path]) -> None:
        data = blobs[layer].read_bytes()
        blobs[layer].write_bytes(data[: int(position * len(data))])

    survive(made, right, scratch, damage)


@pytest.mark.parametrize("what", ["swapped", "empty", "gone", "a directory", "a pipe", "longer"])
def test_something_else(made: Path, right: list[bytes], scratch: Path, what: str) -> None:
    def damage(blobs: list[Path]) -> None:
        lower, upper = blobs
        match what:
            case "swapped":
                one, other = lower.read_bytes(), upper.read_bytes()
                lower.write_bytes(other)
                upper.write_bytes(one)
            case "empty":
                lower.write_bytes(b"")
            case "longer":
                lower.write_bytes(lower.read_bytes() + bytes(1000))
            case _:
                lower.unlink()
        if what == "a directory":
            lower.mkdir()
        elif what == "a pipe":
            os.mkfifo(lower)

    survive(made, right, scratch, damage)

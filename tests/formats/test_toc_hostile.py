"""TOCs that a stranger wrote: refused by name, or safe to build a bootstrap from."""

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import fields, replace
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import zstandard
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from lazyfs.errors import LazyfsError
from lazyfs.formats import toc
from lazyfs.formats.bootstrap import build
from lazyfs.formats.image_tree import merge
from lazyfs.formats.strings import Strings
from lazyfs.formats.toc_types import WHITEOUT, Inodes, Sparse, Strays, Toc, Tree
from tests.formats.test_toc import document_of, make_toc, packed
from tests.layers import layer_tree
from tests.referees import fsck, mounted
from tests.trees import Entry, random_layers

NUMBERS = st.one_of(
    st.integers(0, 40),
    st.sampled_from([255, 256, 511, 512, 1024, 4096, 2**16, 2**20, 2**23, 2**24]),
    st.sampled_from(
        [2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**61, 2**62, 2**63 - 1, 2**63, 2**64 - 512, 2**64 - 1]
    ),
    st.integers(0, 2**64 - 1),
)
MODES = st.sampled_from([0, 0o40755, 0o100644, 0o120777, 0o20644, 0o10644, 0o140644, 0o777, 0o177777])
NAMES = st.sampled_from(
    [
        b"",
        b".",
        b"..",
        b"/",
        b"a/b",
        b"/etc",
        b"n" * 255,
        b"n" * 256,
        b"n" * 4096,
        b"a",
        b"\xff",
        b"...",
        b"\n",
    ]
)


def is_safe(data: bytes, directory: Path) -> bool:
    """Decode, merge with an honest layer below or above, build; only LazyfsError may come of it.

    What is built must pass fsck.erofs.
    """
    try:
        decoded = toc.decode(data)
    except LazyfsError:
        return False
    both = [(decoded.tree, decoded.chunks.device_size), (honest_tree(), HONEST_DEVICE_SIZE)]
    built = False
    for layers in (both, both[::-1]):
        trees, sizes = zip(*layers, strict=True)
        try:
            image = build(merge(trees), sizes)
        except LazyfsError:
            continue
        bootstrap = directory / "bootstrap"
        bootstrap.write_bytes(image)
        fsck(bootstrap, devices(directory, sizes))
        built = True
    return built


HONEST_DEVICE_SIZE = 8 << 20


def honest_tree() -> Tree:
    return layer_tree(random_layers(Random(11), 1, 20)[0])


def devices(directory: Path, sizes: Sequence[int]) -> list[Path]:
    """Sparse files, not larger than any file system takes."""
    made = []
    for number, size in enumerate(sizes):
        made.append(directory / f"device{number}")
        made[-1].touch()
        os.truncate(made[-1], min(size, 1 << 42))
    return made


def rich_toc(seed: int) -> Toc:
    """With something in every column."""
    entries = random_layers(Random(seed), 1, 40)[0]
    entries += [
        Entry(b"x1", content=bytes(8192) + b"x" * 512, sparse=((512, 512), (8192, 512))),
        Entry(b"x2", content=b"y" * 3000, xattrs={b"user.a": b"1", b"user.b": b"2"}),
        Entry(b"x3", "l", target=b"target"),
        Entry(b"x4", "c", rdev=(1, 3)),
        Entry(b"x5", "h", target=b"x2"),
        Entry(b"x6/x7", "d"),
        Entry(b"x6/.wh.gone"),
    ]
    strays = Strays(np.array([512, 4096], "u8"), np.array([100, 8192], "u8"))
    return replace(make_toc(layer_tree(entries)), strays=strays)


def write(column: Any, data: st.DataObject, values: st.SearchStrategy[int] = NUMBERS) -> Any:
    """The column with one value changed, or one row taken away or added, or two rows exchanged."""
    changed = column.copy()
    info = np.iinfo(changed.dtype)
    how = data.draw(st.sampled_from(["set", "set", "set", "swap", "drop", "repeat"]))
    if not len(changed):
        return np.zeros(1, changed.dtype)
    row = data.draw(st.integers(0, len(changed) - 1))
    if how == "set":
        changed[row] = min(data.draw(values), int(info.max))
    elif how == "swap":
        other = data.draw(st.integers(0, len(changed) - 1))
        changed[[row, other]] = changed[[other, row]]
    else:
        changed = np.delete(changed, row) if how == "drop" else np.insert(changed, row, changed[row])
    return changed


def mutated(of: Toc, data: st.DataObject) -> Toc:
    tree, chunks = of.tree, of.chunks
    part = data.draw(
        st.sampled_from(["inodes", "inodes", "entries", "sparse", "chunks", "strings", "numbers"])
    )
    if part == "inodes":
        name = data.draw(st.sampled_from([column.name for column in fields(Inodes)]))
        values = MODES if name == "mode" else NUMBERS
        column = write(getattr(tree.inodes, name), data, values)
        tree = replace(tree, inodes=replace(tree.inodes, **{name: column}))
    elif part == "sparse":
        name = data.draw(st.sampled_from([column.name for column in fields(Sparse)]))
        tree = replace(tree, sparse=replace(tree.sparse, **{name: write(getattr(tree.sparse, name), data)}))
    elif part == "strays":
        name = data.draw(st.sampled_from([column.name for column in fields(Strays)]))
        return replace(of, strays=replace(of.strays, **{name: write(getattr(of.strays, name), data)}))
    elif part == "entries":
        name = data.draw(st.sampled_from(["counts", "entries", "sparse_inodes"]))
        tree = replace(tree, **{name: write(getattr(tree, name), data)})
    elif part == "strings":
        tree = with_strings(tree, data)
    elif part == "chunks":
        name = data.draw(st.sampled_from(["start", "blob_offset", "blob_length"]))
        chunks = replace(chunks, **{name: write(getattr(chunks, name).astype("u8"), data).astype("i8")})
    else:
        return replace(of, stream_size=data.draw(NUMBERS))
    return replace(of, tree=tree, chunks=chunks)


def with_strings(tree: Tree, data: st.DataObject) -> Tree:
    name = data.draw(st.sampled_from(["names", "targets", "xattr_sets"]))
    rows: list[Any] = list(getattr(tree, name))
    column: Any = rows
    row = data.draw(st.integers(0, len(rows) - 1))
    if name == "xattr_sets":
        rows[row] = tuple(
            data.draw(
                st.lists(
                    st.tuples(
                        st.sampled_from(
                            [
                                b"user.a",
                                b"user.",
                                b"trusted.overlay.opaque",
                                b"system.x",
                                b"user." + b"n" * 300,
                            ]
                        ),
                        st.sampled_from([b"", b"v", bytes(2**16 - 1), bytes(2**16)]),
                    ),
                    max_size=3,
                )
            )
        )
    elif data.draw(st.booleans()):
        rows[row] = data.draw(NAMES)
    else:
        other = data.draw(st.integers(0, len(rows) - 1))
        rows[row], rows[other] = rows[other], rows[row]
    if name != "xattr_sets":
        column = Strings.of(rows)
    changed: Tree = replace(tree, **{name: column})
    return changed


@settings(max_examples=250, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 5), rounds=st.integers(1, 3), data=st.data())
def test_columns_of_any_values(tmp_path: Path, seed: int, rounds: int, data: st.DataObject) -> None:
    hostile = rich_toc(seed)
    for _ in range(rounds):
        hostile = mutated(hostile, data)
    try:
        encoded = toc.encode(hostile)
    except (OverflowError, ValueError):  # numbers that a column cannot even hold
        return
    event("accepted" if is_safe(encoded, tmp_path) else "refused")


def test_the_unchanged_toc_is_accepted(tmp_path: Path) -> None:
    """Else the tests around this one would prove nothing."""
    assert all(is_safe(toc.encode(rich_toc(seed)), tmp_path) for seed in range(6))


def paths_of(value: object, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    if not isinstance(value, dict):
        return [path]
    return [path, *(found for key, child in value.items() for found in paths_of(child, (*path, key)))]


ANYTHING = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(2**63), 2**64 - 1),
        st.floats(),
        st.text(max_size=5),
        st.binary(max_size=600),
        NUMBERS,
    ),
    lambda children: st.one_of(
        st.lists(children, max_size=3), st.dictionaries(st.text(max_size=5), children, max_size=3)
    ),
    max_leaves=5,
)


@settings(max_examples=250, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 3), data=st.data())
def test_documents_of_any_shape(tmp_path: Path, seed: int, data: st.DataObject) -> None:
    document = document_of(rich_toc(seed))
    *parents, last = data.draw(st.sampled_from([path for path in paths_of(document) if path]))
    table = document
    for key in parents:
        table = table[key]
    value = table[last]
    if isinstance(value, bytes) and data.draw(st.booleans()):
        raw = bytearray(value)
        if raw:
            raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
        table[last] = (
            bytes(raw[: data.draw(st.integers(0, len(raw)))]) if data.draw(st.booleans()) else bytes(raw)
        )
    elif data.draw(st.integers(0, 9)) == 0:
        del table[last]
    else:
        table[last] = data.draw(ANYTHING)
    is_safe(packed(document), tmp_path)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 3), data=st.data())
def test_damaged_bytes(tmp_path: Path, seed: int, data: st.DataObject) -> None:
    """In the frame, and in what it holds."""
    frame = bytearray(toc.encode(rich_toc(seed)))
    if data.draw(st.booleans()):
        frame = bytearray(zstandard.decompress(bytes(frame)))
        frame[data.draw(st.integers(0, len(frame) - 1))] ^= 1 << data.draw(st.integers(0, 7))
        frame = bytearray(
            zstandard.compress(bytes(frame[: data.draw(st.integers(len(frame) - 9, len(frame)))]))
        )
    else:
        frame[data.draw(st.integers(0, len(frame) - 1))] ^= 1 << data.draw(st.integers(0, 7))
        del frame[data.draw(st.integers(0, len(frame))) :]
    is_safe(bytes(frame), tmp_path)


@settings(max_examples=150)
@given(st.binary(max_size=300))
def test_any_bytes(data: bytes) -> None:
    for attempt in (data, zstandard.compress(data)):
        with pytest.raises(LazyfsError):
            toc.decode(attempt)


@pytest.mark.root
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 5), data=st.data())
def test_the_kernel_walks_what_was_accepted(temp_root: Path, seed: int, data: st.DataObject) -> None:
    """Names, attributes and the first bytes of every file."""
    try:
        encoded = toc.encode(mutated(rich_toc(seed), data))
    except (OverflowError, ValueError):  # numbers that a column cannot even hold
        return
    try:
        decoded = toc.decode(encoded)
        image = build(merge([decoded.tree]), [decoded.chunks.device_size])
    except LazyfsError:
        return
    bootstrap = temp_root / "bootstrap"
    bootstrap.write_bytes(image)
    with mounted(bootstrap, devices(temp_root, [decoded.chunks.device_size]), temp_root / "mnt") as root:
        walked = list(root.rglob("*"))
        for path in walked:
            for name in os.listxattr(path, follow_symlinks=False):
                with suppress(OSError):  # symlinks have no user.*, whatever is written
                    os.getxattr(path, name, follow_symlinks=False)
            if path.is_symlink():
                path.readlink()
            elif path.is_file():
                with path.open("rb") as file:
                    file.read(4096)
        assert len(walked) == len([entry for entry in decoded.tree.entries if entry != WHITEOUT])

"""Layers laid over one another: each case as the OCI image-spec has it. Random ones are in test_bootstrap."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest

from lazyfs.errors import BadInputError, LimitError
from lazyfs.formats import image_tree, layer_view
from lazyfs.formats.image_tree import ImageTree, merge
from tests.layers import inode_paths, layer_tree
from tests.trees import DIRECTORY, HARDLINK, SYMLINK, Entry

Layer = Sequence[Entry]


def merged(*layers: Layer) -> ImageTree:
    return merge([layer_tree(layer) for layer in layers])


def shape(tree: ImageTree) -> dict[bytes, object]:
    """Path -> size, target, or permissions of a directory."""
    targets = iter(tree.targets)
    kinds = (tree.inodes.mode & 0o170000).tolist()
    links = {inode: next(targets) for inode, kind in enumerate(kinds) if kind == 0o120000}
    shown: dict[bytes, object] = {}
    for path, inode in inode_paths(tree).items():
        if kinds[inode] == 0o040000:
            shown[path] = oct(int(tree.inodes.mode[inode]) & 0o7777)
        else:
            shown[path] = links.get(inode, int(tree.inodes.size[inode]))
    del shown[b""]
    return shown


def file(path: bytes, size: int = 1) -> Entry:
    return Entry(path, content=bytes(size))


def directory(path: bytes, mode: int = 0o700) -> Entry:
    return Entry(path, DIRECTORY, mode=mode)


def link(path: bytes, target: bytes) -> Entry:
    return Entry(path, HARDLINK, target=target)


def symlink(path: bytes, target: bytes) -> Entry:
    return Entry(path, SYMLINK, target=target)


IMPLIED = "0o755"
OPAQUE = b"/.wh..wh..opq"


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        pytest.param([[]], {}, id="one empty layer"),
        pytest.param([[], [], [file(b"a")], []], {b"a": 1}, id="empty layers between"),
        pytest.param(
            [[file(b"a")], [file(b"a", 2)], [file(b"b")]], {b"a": 2, b"b": 1}, id="the topmost file"
        ),
        pytest.param(
            [[directory(b"d")], [file(b"d/f")]], {b"d": "0o700", b"d/f": 1}, id="implied over described"
        ),
        pytest.param(
            [[directory(b"d", 0o701)], [directory(b"d", 0o702)], [file(b"d/f")]],
            {b"d": "0o702", b"d/f": 1},
            id="the topmost that describes",
        ),
        pytest.param(
            [[file(b"d/a")], [file(b"d/b")]], {b"d": IMPLIED, b"d/a": 1, b"d/b": 1}, id="never described"
        ),
        pytest.param([[file(b"a")], [file(b".wh.a")]], {}, id="a whiteout"),
        pytest.param([[file(b"a")], [file(b".wh.a")], [file(b"a", 3)]], {b"a": 3}, id="and back"),
        pytest.param([[], [file(b".wh.a")]], {}, id="a whiteout of nothing"),
        pytest.param(
            [[file(b"d/a")], [file(b".wh.d")], [file(b"d/b")]],
            {b"d": IMPLIED, b"d/b": 1},
            id="what was hidden stays so",
        ),
        pytest.param(
            [[directory(b"d"), file(b"d/a")], [file(b"d" + OPAQUE), file(b"d/b")]],
            {b"d": "0o700", b"d/b": 1},
            id="opaque, with the attributes below",
        ),
        pytest.param(
            [[file(b"a"), file(b"d/b")], [file(b"./.wh..wh..opq"), file(b"c")]],
            {b"c": 1},
            id="an opaque root",
        ),
        pytest.param(
            [[file(b"d/a")], [file(b"d" + OPAQUE), file(b"d/b")], [file(b"d/c")]],
            {b"d": IMPLIED, b"d/b": 1, b"d/c": 1},
            id="opaque in the middle",
        ),
        pytest.param([[file(b"d/a")], [file(b"d")]], {b"d": 1}, id="a file over a directory"),
        pytest.param(
            [[directory(b"d"), file(b"d/a")], [file(b"d")], [file(b"d/b")]],
            {b"d": IMPLIED, b"d/b": 1},
            id="a directory over a file over a directory",
        ),
        pytest.param(
            [[directory(b"d"), file(b"d/a")], [file(b"d"), directory(b"d", 0o711)]],
            {b"d": "0o711"},
            id="replaced by a file and back within one layer",
        ),
        pytest.param(
            [[file(b"a/b/c/f")], [file(b"a/b/.wh.c")], [file(b"a/b/c/g")]],
            {b"a": IMPLIED, b"a/b": IMPLIED, b"a/b/c": IMPLIED, b"a/b/c/g": 1},
            id="deeper",
        ),
        pytest.param([[file(b"a", 5)], [link(b"b", b"a")]], {b"a": 5, b"b": 5}, id="link to a lower layer"),
        pytest.param([[file(b"a", 5)], [link(b"b", b"a"), file(b".wh.a")]], {b"b": 5}, id="which is hidden"),
        pytest.param(
            [[file(b"a", 5)], [link(b"b", b"a")], [file(b".wh.a"), link(b"c", b"b")], [file(b".wh.b")]],
            {b"c": 5},
            id="a chain of links",
        ),
        pytest.param(
            [[symlink(b"s", b"d"), file(b"d/f", 3)], [link(b"t", b"s")], [link(b"h", b"t/f")]],
            {b"d": IMPLIED, b"d/f": 3, b"h": 3, b"s": b"d", b"t": b"d"},
            id="through a link to a symlink",
        ),
        pytest.param(
            [[file(b"d/f", 1)], [file(b"d" + OPAQUE), file(b"d/g", 2)], [file(b"d/e")], [link(b"h", b"d/g")]],
            {b"d": IMPLIED, b"d/e": 1, b"d/g": 2, b"h": 2},
            id="past an opaque directory",
        ),
        pytest.param(
            [[file(b"a", 5)], [file(b"a", 6), link(b"b", b"a")]], {b"a": 6, b"b": 6}, id="its own first"
        ),
        pytest.param(
            [[file(b"a", 5)], [link(b"b", b"a"), file(b"a", 6)]], {b"a": 6, b"b": 5}, id="what was there then"
        ),
    ],
)
def test_merge(layers: list[Layer], expected: dict[bytes, object]) -> None:
    assert shape(merged(*layers)) == expected


def test_the_root_is_what_the_topmost_layer_says_of_it() -> None:
    root = [Entry(b".", DIRECTORY, mode=0o711, mtime=5 * 10**9)]
    tree = merged([], root, [file(b"a")])
    assert (int(tree.inodes.mode[0]), int(tree.inodes.mtime[0])) == (0o040711, 5)


def test_links_are_counted_in_the_image() -> None:
    tree = merged(
        [file(b"a"), link(b"b", b"a"), link(b"c", b"a"), directory(b"d/e"), directory(b"d/f")],
        [file(b".wh.b"), link(b"d/g", b"c"), file(b"d/.wh.f")],
    )
    paths = inode_paths(tree)
    links = {path: int(tree.links[inode]) for path, inode in paths.items()}
    assert links == {b"": 3, b"a": 3, b"c": 3, b"d": 3, b"d/e": 2, b"d/g": 3}
    assert paths[b"a"] == paths[b"c"] == paths[b"d/g"]


def test_each_file_has_the_device_of_its_layer() -> None:
    tree = merged([file(b"a"), file(b"b")], [file(b"b"), link(b"c", b"a")], [file(b"d")])
    paths = inode_paths(tree)
    assert {path: int(tree.device[inode]) for path, inode in paths.items() if path} == {
        b"a": 0,
        b"b": 1,
        b"c": 0,
        b"d": 2,
    }


def test_xattrs_and_targets_follow_their_inodes() -> None:
    def with_xattr(path: bytes, value: bytes) -> Entry:
        return Entry(path, xattrs={b"user.v": value})

    tree = merged(
        [with_xattr(b"a", b"1"), symlink(b"s", b"one"), with_xattr(b"gone", b"x")],
        [with_xattr(b"b", b"2"), symlink(b"t", b"two"), file(b".wh.gone"), symlink(b"s", b"other")],
    )
    paths = inode_paths(tree)
    assert tree.xattr_sets[tree.inodes.xattrs[paths[b"a"]] - 1] == ((b"user.v", b"1"),)
    assert tree.xattr_sets[tree.inodes.xattrs[paths[b"b"]] - 1] == ((b"user.v", b"2"),)
    assert shape(tree)[b"s"] == b"other"
    assert shape(tree)[b"t"] == b"two"


def test_sparse_files_that_are_hidden_leave_no_segments() -> None:
    def sparse(path: bytes) -> Entry:
        return Entry(path, content=bytes(4096) + b"x" * 512, sparse=((4096, 512),))

    tree = merged([sparse(b"a"), sparse(b"b")], [sparse(b"a"), file(b".wh.b")])
    assert tree.sparse_inodes.tolist() == [1]
    assert tree.sparse.offset.tolist() == [4096]
    assert tree.device.tolist() == [1, 1]


def test_what_entries_are_sorted_by_is_bytes() -> None:
    names = [b"a", b"A", b"\xff", b"\x01", b"-", b".a", b"..a", b"ab", b"a-"]
    tree = merged([file(name) for name in names[:5]], [file(name) for name in names[5:]])
    assert list(tree.names) == sorted(names)


@pytest.mark.parametrize(
    "layers",
    [
        [[link(b"h", b"none")]],
        [[directory(b"d")], [link(b"h", b"d")]],
        [[file(b"a")], [file(b".wh.a")], [link(b"h", b"a")]],
        [[symlink(b"s", b"s")], [link(b"h", b"s/a")]],
        [[file(b"a")], [link(b"h", b"a/b")]],
        [[], [link(b"h", b"a"), file(b"b")], [file(b"a")]],
    ],
)
def test_a_hard_link_to_nothing_is_named(layers: list[Layer]) -> None:
    with pytest.raises(BadInputError, match="a hard link to"):
        merged(*layers)


def test_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BadInputError, match="no layers"):
        merge([])
    layers = [[file(b"d%d" % number) for number in range(40)] for _ in range(3)]
    merged(*layers)
    monkeypatch.setattr(image_tree, "MAX_INODES", 100)
    with pytest.raises(LimitError, match="123 inodes"):
        merged(*layers)


def test_links_across_layers_cannot_take_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """A path of two thousand symlinks, followed by each of thousands of links, would."""
    monkeypatch.setattr(layer_view, "_MAX_STEPS", 1000)
    deep = b"/".join([b"d"] * 50)
    lower = [file(deep)]
    merged(lower, [link(b"%d" % number, deep) for number in range(20)])
    with pytest.raises(LimitError, match="too many hard links"):
        merged(lower, [link(b"%d" % number, deep) for number in range(21)])


def test_many_layers_of_a_large_directory() -> None:
    """In three layers in turn, every third file of a lower one hidden."""
    names = [b"%05d" % number for number in range(9000)]
    base = [file(b"d/" + name) for name in names]
    hiding = [file(b"d/.wh." + name) for name in names[::3]]
    tree = merged(base, hiding, [file(b"d/" + name, 2) for name in names[::6]])
    kept = [name for number, name in enumerate(names) if number % 3 or number % 6 == 0]
    assert list(tree.names)[1:] == kept
    assert all(one < other for one, other in pairwise(kept))
    assert int(np.sum(tree.inodes.size == 2)) == 1500

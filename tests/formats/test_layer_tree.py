"""What the members of one layer come to: each case is one that images in the wild have, or could."""

import io
from collections.abc import Sequence

import pytest

from lazyfs.errors import BadInputError, LimitError
from lazyfs.formats import layer_tree as layer_tree_module
from lazyfs.formats.layer_columns import APPENDIX
from lazyfs.formats.layer_tree import TreeBuilder
from lazyfs.formats.tarwalk import FileSource, walk
from lazyfs.formats.toc import same_tree
from lazyfs.formats.toc_check import MAX_DEPTH
from lazyfs.formats.toc_types import FLAG_IMPLIED, FLAG_OPAQUE, WHITEOUT, Tree
from tests.layers import inode_paths, layer_tree, stream_tree
from tests.trees import CHAR, DIRECTORY, FILE, HARDLINK, SYMLINK, Entry, layer_tar

HIDDEN = "hidden"


def flags(tree: Tree, path: bytes) -> int:
    return int(tree.inodes.flags[inode_paths(tree)[path]])


def shape(tree: Tree) -> dict[bytes, object]:
    """Path -> size, target or flags, by type."""
    links = iter(tree.targets)
    kinds = (tree.inodes.mode & 0o170000).tolist()
    targets = {inode: next(links) for inode, kind in enumerate(kinds) if kind in (0, 0o120000)}
    shown: dict[bytes, object] = {}
    for path, inode in inode_paths(tree).items():
        if inode == WHITEOUT:
            shown[path] = HIDDEN
        elif kinds[inode] == 0o040000:
            shown[path] = {0: "/", 1: "/implied", 2: "/opaque", 3: "/implied opaque"}[
                int(tree.inodes.flags[inode])
            ]
        else:
            shown[path] = targets.get(inode, int(tree.inodes.size[inode]))
    del shown[b""]
    return shown


def file(path: bytes, size: int = 1) -> Entry:
    return Entry(path, FILE, content=bytes(size))


def directory(path: bytes) -> Entry:
    return Entry(path, DIRECTORY, mode=0o755)


def symlink(path: bytes, target: bytes) -> Entry:
    return Entry(path, SYMLINK, target=target)


def link(path: bytes, target: bytes) -> Entry:
    return Entry(path, HARDLINK, target=target)


def deep(levels: int) -> bytes:
    return b"/".join([b"d"] * levels)


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        pytest.param([], {}, id="an empty layer"),
        pytest.param([file(b"a"), file(b"a", 2)], {b"a": 2}, id="the last of a name counts"),
        pytest.param([file(b"d/f")], {b"d": "/implied", b"d/f": 1}, id="an implied parent"),
        pytest.param([file(b"d/f"), directory(b"d")], {b"d": "/", b"d/f": 1}, id="described later"),
        pytest.param([directory(b"d"), file(b"d/f"), directory(b"d")], {b"d": "/", b"d/f": 1}, id="twice"),
        pytest.param([directory(b"d"), file(b"d/f"), file(b"d")], {b"d": 1}, id="directory becomes file"),
        pytest.param([file(b"d"), directory(b"d")], {b"d": "/opaque"}, id="file becomes directory"),
        pytest.param(
            [file(b"d/old"), file(b"d"), directory(b"d"), file(b"d/f")],
            {b"d": "/opaque", b"d/f": 1},
            id="and back",
        ),
        pytest.param(
            [symlink(b"d", b"e"), directory(b"d")], {b"d": "/opaque"}, id="symlink becomes directory"
        ),
        pytest.param([file(b".wh.f")], {b"f": HIDDEN}, id="a whiteout"),
        pytest.param([file(b".wh.f"), file(b"f")], {b"f": 1}, id="a whiteout does not hide its own layer"),
        pytest.param([file(b"f"), file(b".wh.f")], {b"f": 1}, id="whatever the order"),
        pytest.param([file(b".wh.d"), directory(b"d")], {b"d": "/opaque"}, id="a directory made anew"),
        pytest.param([directory(b"d"), file(b".wh.d")], {b"d": "/opaque"}, id="in either order"),
        pytest.param(
            [file(b".wh.d"), file(b"d/f")], {b"d": "/opaque", b"d/f": 1}, id="an implied directory made anew"
        ),
        pytest.param([file(b"d/f"), file(b".wh.d")], {b"d": "/opaque", b"d/f": 1}, id="that too"),
        pytest.param([file(b"d/.wh..wh..opq")], {b"d": "/implied opaque"}, id="opaque and implied"),
        pytest.param([file(b"d/.wh..wh..opq"), directory(b"d")], {b"d": "/opaque"}, id="opaque"),
        pytest.param([file(b".wh..wh.f"), file(b".wh.")], {}, id="markers of nothing"),
        pytest.param([file(b".wh." + b"n" * 255)], {b"n" * 255: HIDDEN}, id="whiteout of the longest name"),
        pytest.param(
            [directory(b".wh..wh.plnk"), file(b".wh..wh.plnk/1.2", 3), link(b"a", b".wh..wh.plnk/1.2")],
            {b"a": 3},
            id="hard links of AUFS",
        ),
        pytest.param(
            [symlink(b"l", b"d"), file(b"l/f")], {b"d": "/implied", b"d/f": 1, b"l": b"d"}, id="symlinked"
        ),
        pytest.param(
            [symlink(b"e/l", b"/d"), file(b"e/l/f")],
            {b"d": "/implied", b"d/f": 1, b"e": "/implied", b"e/l": b"/d"},
            id="through an absolute symlink",
        ),
        pytest.param(
            [symlink(b"l", b"../../d"), file(b"l/f")],
            {b"d": "/implied", b"d/f": 1, b"l": b"../../d"},
            id="never above the root",
        ),
        pytest.param(
            [symlink(b"l", b"d"), file(b"l/f"), symlink(b"l", b"e"), file(b"l/g")],
            {b"d": "/implied", b"d/f": 1, b"e": "/implied", b"e/g": 1, b"l": b"e"},
            id="the symlink that is there then",
        ),
        pytest.param(
            [symlink(b"s", b"t"), link(b"h", b"s")], {b"h": b"t", b"s": b"t"}, id="link to a symlink"
        ),
        pytest.param([link(b"h", b"below/f")], {b"h": b"below/f"}, id="link to a lower layer"),
        pytest.param(
            [file(b"f"), link(b"h", b"./f"), file(b"f", 2)], {b"f": 2, b"h": 1}, id="link, then replaced"
        ),
    ],
)
def test_tree(entries: Sequence[Entry], expected: dict[bytes, object]) -> None:
    assert shape(layer_tree(entries)) == expected


@pytest.mark.parametrize("prefix", [b"./", b"/", b".//./"])
def test_prefixes_say_nothing(prefix: bytes) -> None:
    entries = [directory(b"d"), file(b"d/f"), link(b"h", b"d/f"), file(b"d/.wh.x"), symlink(b"s", b"d")]
    plain, prefixed = layer_tree(entries), layer_tree(entries, prefix)
    assert shape(prefixed) == shape(plain)


def test_equal_trees_are_equal_bytes_whatever_the_order_of_members() -> None:
    entries = [directory(b"b"), directory(b"a"), Entry(b"a/s", SYMLINK, target=b"t"), Entry(b"p", CHAR)]
    assert same_tree(layer_tree(entries), layer_tree(entries[::-1][2:] + entries[1::-1] + entries[2:]))


def test_a_whiteout_takes_from_a_directory_what_lower_layers_say_of_it() -> None:
    assert flags(layer_tree([file(b"d/f"), file(b".wh.d")]), b"d") == FLAG_OPAQUE
    assert flags(layer_tree([file(b"d/f")]), b"d") == FLAG_IMPLIED


def test_an_owner_that_chown_does_not_set() -> None:
    tree = layer_tree([Entry(b"f", uid=2**32 - 1, gid=5), Entry(b"d", DIRECTORY, uid=5, gid=2**32 - 1)])
    paths = inode_paths(tree)
    owners = [(int(tree.inodes.uid[paths[path]]), int(tree.inodes.gid[paths[path]])) for path in (b"f", b"d")]
    assert owners == [(0, 5), (5, 0)]


def test_hard_links_are_one_inode() -> None:
    tree = layer_tree([file(b"a"), link(b"b", b"a"), link(b"d/c", b"b"), link(b"a", b"b")])
    paths = inode_paths(tree)
    assert paths[b"a"] == paths[b"b"] == paths[b"d/c"]
    assert len(tree.inodes) == 3


def test_xattrs_of_an_image() -> None:
    """Those of overlayfs would let a layer speak for others; those that no unpacker can set are left out."""
    kept = {b"user.a": b"1", b"user.dot.": b"2", b"security.capability": b"3", b"trusted.x": b""}
    acl = {b"system.posix_acl_access": b"\2\0\0\0"}
    dropped = {b"trusted.overlay.opaque": b"y", b"user.": b"", b"com.apple.x": b"", b"system.nfs4_acl": b""}
    tree = layer_tree([Entry(b"f", xattrs=kept | acl | dropped)])
    assert tree.xattr_sets == [tuple(sorted((kept | acl).items()))]


def test_xattrs_that_an_inode_cannot_have() -> None:
    xattrs = {b"user.a": b"1", b"system.posix_acl_access": b"\2\0\0\0", b"trusted.t": b"3"}
    tree = layer_tree([Entry(kind.encode(), kind, target=b"t", xattrs=xattrs) for kind in "fdlcp"])
    paths = inode_paths(tree)
    names = {
        path: [name for name, _ in tree.xattr_sets[int(tree.inodes.xattrs[inode]) - 1]]
        for path, inode in paths.items()
        if path
    }
    everything = sorted(xattrs)
    assert names == {
        b"f": everything,
        b"d": everything,
        b"c": everything[:2],
        b"p": everything[:2],
        b"l": [b"trusted.t"],
    }


@pytest.mark.parametrize(
    ("xattrs", "what"),
    [
        ({b"user.a": bytes(2**16)}, "too long"),
        ({b"user." + b"n" * 251: b""}, "too long"),
        ({b"user.%d" % number: bytes(60_000) for number in range(3)}, "bytes of xattrs"),
    ],
)
def test_xattrs_that_no_file_system_could_hold(xattrs: dict[bytes, bytes], what: str) -> None:
    with pytest.raises(BadInputError, match=f"'f' at byte 0.*{what}"):
        layer_tree([Entry(b"f", xattrs=xattrs)])
    fits = {name[:255]: value[: min(len(value), 2**16 - 1)] for name, value in list(xattrs.items())[:2]}
    assert layer_tree([Entry(b"f", xattrs=fits)]).xattr_sets == [tuple(sorted(fits.items()))]


@pytest.mark.parametrize(
    ("entries", "what"),
    [
        ([file(b"a/../b")], "'..' in the name"),
        ([file(b"n" * 256)], "more than 255 bytes"),
        ([file(b"n" * 256 + b"/f")], "more than 255 bytes"),
        ([file(b".wh." + b"n" * 256)], "more than 255 bytes"),
        ([file(b"f"), file(b"f/g")], "not a directory"),
        ([file(b"./")], "the root is not a directory"),
        ([symlink(b"l", b"l"), file(b"l/f")], "too many symlinks"),
        ([directory(b"d"), link(b"h", b"d")], "hard link to the directory"),
        ([link(b"h", b"../f")], "a hard link to"),
        ([link(b"h", b"/")], "a hard link to"),
        ([link(b"h", b"d/" * 2047 + b"fg")], "too long"),
        ([symlink(b"s", b"x" * 4096)], "longer than 4095"),
        ([file(deep(MAX_DEPTH) + b"/f")], "levels"),
        ([symlink(b"l", deep(1500)), file(b"l/" + deep(1000))], "levels"),
    ],
)
def test_what_cannot_be_unpacked_is_named(entries: Sequence[Entry], what: str) -> None:
    with pytest.raises(BadInputError, match=what):
        layer_tree(entries)


def test_the_deepest_tree() -> None:
    assert deep(MAX_DEPTH) in inode_paths(layer_tree([directory(deep(MAX_DEPTH))]))


def test_implied_directories_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few members can imply very many directories."""
    monkeypatch.setattr(layer_tree_module, "MAX_INODES", 1000)
    with pytest.raises(LimitError, match="more than 1000"):
        layer_tree([file(b"%d/" % number + deep(100)) for number in range(10)])


def test_sparse_segments_of_the_appendix_are_placed_when_the_stream_has_ended() -> None:
    member = next(walk(FileSource(io.BytesIO(layer_tar([file(b"f", 8192)])))))
    builder = TreeBuilder("layer")
    builder.add(member, 0, ((0, 512, 100), (4096, APPENDIX + 4096, 4096)))
    tree = builder.finish(10240)
    assert tree.sparse.data.tolist() == [512, 14336]
    assert tree.inodes.data.tolist() == [0, 0]


def test_a_stream_of_zeros_is_an_empty_layer() -> None:
    assert shape(stream_tree(b"")) == shape(stream_tree(bytes(1024))) == {}

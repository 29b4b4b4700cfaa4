"""Archives that real programs make of real trees: GNU tar and bsdtar in all their formats."""

import io
import os
import subprocess
import tarfile
from pathlib import Path

import pytest

from lazyfs.formats.tarwalk import Kind, Member
from tests.formats.tar_blocks import content, members

MTIMES_NS = [1_700_000_000_123_456_789, 1_000_000_000, 999_999_999]
OLD_NS = -1_500_000_000


def build_tree(root: Path) -> None:
    deep = root / "directory" / ("deep-" + "d" * 90) / ("deeper-" + "e" * 90) / ("deepest-" + "f" * 90)
    deep.mkdir(parents=True)
    (deep / ("name-" + "n" * 200)).write_bytes(b"far down" * 100)
    (root / "empty").write_bytes(b"")
    (root / "suid").write_bytes(os.urandom(512))
    (root / "suid").chmod(0o4755)
    (root / "large").write_bytes(os.urandom(300_001))
    Path(os.fsdecode(os.fsencode(root) + b"/caf\xe9 not UTF-8")).write_bytes(b"latin 1")
    (root / "line\nbreak=é").write_bytes(b"odd name")
    (root / "hard link").hardlink_to(root / "suid")
    (root / ("long-" + "l" * 150)).symlink_to("target-" + "t" * 150)
    (root / "symlink").symlink_to("empty")
    os.mkfifo(root / "fifo", 0o600)
    (root / "sticky").mkdir(mode=0o1777)
    (root / "sticky").chmod(0o1777)
    for number, path in enumerate(sorted(root.rglob("*"))):
        stamp = MTIMES_NS[number % len(MTIMES_NS)]
        os.utime(path, ns=(stamp, stamp), follow_symlinks=False)


def build_sparse(root: Path) -> None:
    for name, pieces, size in (
        ("few", [(0, b"start"), (100_000, b"m" * 5000), (299_990, b"the end!!!")], 300_000),
        ("hole at both ends", [(65_536, b"middle")], 1_000_000),
        ("only a hole", [], 700_000),
        ("many pieces", [(n * 8192, b"%04d" % n * 1024) for n in range(150)], 150 * 8192 + 77),
    ):
        with (root / name).open("wb") as file:
            file.truncate(size)
            for offset, data in pieces:
                file.seek(offset)
                file.write(data)


def gnu_tar(root: Path, *options: str) -> bytes:
    command = ["tar", "-C", str(root), "--sort=name", *options, "-c", "."]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout


def bsdtar(root: Path, *options: str) -> bytes:
    command = ["bsdtar", "-C", str(root), *options, "-cf", "-", "."]
    return subprocess.run(
        command, check=True, stdout=subprocess.PIPE, env={**os.environ, "LC_ALL": "C.UTF-8"}
    ).stdout


def assert_is_tree(stream: bytes, root: Path, *, nanoseconds: bool, complete: bool = True) -> None:
    """The members are the tree: names, types, modes, owners, times, targets, every byte."""
    found = {os.path.normpath(member.name): member for member in members(stream)}
    inodes: dict[int, bytes] = {}
    if complete:
        paths = {os.path.relpath(os.fsencode(path), os.fsencode(root)) for path in root.rglob("*")}
        assert found.keys() == paths | {b"."}
    for name, member in found.items():
        path = os.path.join(os.fsencode(root), name)  # noqa: PTH118
        assert_is_file(stream, path, member, inodes, nanoseconds=nanoseconds)


def assert_is_file(
    stream: bytes, path: bytes, member: Member, inodes: dict[int, bytes], *, nanoseconds: bool
) -> None:
    stat = os.lstat(path)
    assert (member.mode, member.uid, member.gid) == (stat.st_mode & 0o7777, stat.st_uid, stat.st_gid)
    stamp = member.mtime * 1_000_000_000 + member.mtime_nsec
    assert stamp == (stat.st_mtime_ns if nanoseconds else stat.st_mtime_ns // 1_000_000_000 * 1_000_000_000)
    kinds = {0o10: Kind.FILE, 0o12: Kind.SYMLINK, 0o4: Kind.DIRECTORY, 0o1: Kind.FIFO}
    if member.kind is Kind.HARDLINK:
        assert os.path.normpath(member.target) == inodes[stat.st_ino]
        return
    assert member.kind is kinds[stat.st_mode >> 12]
    if member.kind is Kind.FILE:
        inodes[stat.st_ino] = os.path.normpath(member.name)
        assert content(stream, member) == Path(os.fsdecode(path)).read_bytes()
    if member.kind is Kind.SYMLINK:
        assert member.target == os.readlink(path)  # noqa: PTH115


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tree")
    build_tree(root)
    return root


@pytest.fixture(scope="module")
def sparse_tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sparse")
    build_sparse(root)
    return root


@pytest.mark.parametrize("format_", ["gnu", "oldgnu", "pax", "posix"])
def test_gnu_tar(tree: Path, format_: str) -> None:
    stream = gnu_tar(tree, f"--format={format_}")
    assert_is_tree(stream, tree, nanoseconds=format_ in ("pax", "posix"))


@pytest.mark.parametrize("format_", ["ustar", "v7"])
def test_gnu_tar_in_formats_with_short_names(tree: Path, format_: str) -> None:
    stream = gnu_tar(tree, f"--format={format_}", "--exclude=*deep*", "--exclude=*lllll*", "--exclude=fifo")
    assert_is_tree(stream, tree, nanoseconds=False, complete=False)
    assert len(members(stream)) >= 9


def test_gnu_tar_incremental(tree: Path, tmp_path: Path) -> None:
    stream = gnu_tar(tree, "--format=gnu", f"--listed-incremental={tmp_path}/snapshot")
    assert_is_tree(stream, tree, nanoseconds=False)


def test_gnu_tar_with_label(tree: Path) -> None:
    for format_ in ("gnu", "pax"):
        assert_is_tree(
            gnu_tar(tree, f"--format={format_}", "--label=a volume"), tree, nanoseconds=format_ == "pax"
        )


def test_gnu_tar_global_header(tree: Path) -> None:
    stream = gnu_tar(tree, "--format=pax", "--pax-option=gid=70000,uid=4000000000,delete=atime")
    found = members(stream)
    assert {(member.uid, member.gid) for member in found} == {(4_000_000_000, 70_000)}


@pytest.mark.parametrize("format_", ["gnu", "pax"])
@pytest.mark.parametrize("owner", [0, 70_000, 2**21, 2**32 - 2])
def test_gnu_tar_large_owners(tree: Path, format_: str, owner: int) -> None:
    stream = gnu_tar(tree, f"--format={format_}", f"--owner=:{owner}", f"--group=:{owner}")
    assert {(member.uid, member.gid) for member in members(stream)} == {(owner, owner)}


@pytest.mark.parametrize("format_", ["gnu", "pax"])
@pytest.mark.parametrize("stamp", ["@-1.5", "@-1", "@0", "@9000000000"])
def test_gnu_tar_times(tree: Path, format_: str, stamp: str) -> None:
    found = members(gnu_tar(tree, f"--format={format_}", f"--mtime={stamp}"))
    seconds, nanoseconds = (-2, 500_000_000) if stamp == "@-1.5" else (int(stamp[1:]), 0)
    assert {member.mtime for member in found} == {seconds}
    assert {member.mtime_nsec for member in found} == {nanoseconds if format_ == "pax" else 0}


@pytest.mark.parametrize(
    "options",
    [
        ["--format=gnu"],
        ["--format=oldgnu"],
        ["--format=pax", "--sparse-version=0.0"],
        ["--format=pax", "--sparse-version=0.1"],
        ["--format=pax", "--sparse-version=1.0"],
    ],
)
def test_gnu_tar_sparse(sparse_tree: Path, options: list[str]) -> None:
    stream = gnu_tar(sparse_tree, "-S", "--hole-detection=raw", *options)
    assert_is_tree(stream, sparse_tree, nanoseconds="--format=pax" in options)
    found = members(stream)
    assert sum(member.sparse is not None for member in found) == 4
    assert sum(member.stored_size for member in found) < 800_000


def test_bsdtar_sparse(sparse_tree: Path) -> None:
    for options in (["--format=pax"], ["--format=pax", "--no-read-sparse"], ["--format=gnutar"]):
        stream = bsdtar(sparse_tree, *options)
        assert_is_tree(stream, sparse_tree, nanoseconds="--format=pax" in options)


@pytest.mark.parametrize("format_", ["pax", "gnutar"])
def test_bsdtar(tree: Path, format_: str) -> None:
    assert_is_tree(bsdtar(tree, f"--format={format_}"), tree, nanoseconds=format_ == "pax")


@pytest.mark.parametrize("format_", ["ustar", "v7tar"])
def test_bsdtar_in_formats_with_short_names(tree: Path, format_: str) -> None:
    stream = bsdtar(tree, f"--format={format_}", "--exclude=*deep*", "--exclude=*lllll*", "--exclude=fifo")
    assert_is_tree(stream, tree, nanoseconds=False, complete=False)
    assert len(members(stream)) >= 9


def test_extended_attributes_of_both(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"data")
    expected = {
        b"user.empty": b"",
        b"user.binary": bytes(range(256)),
        b"user.line\nbreak": b"a\nb=c\n",
        "user.café".encode(): b"not ASCII",
    }
    for name, value in expected.items():
        os.setxattr(path, name, value)
    for stream in (
        gnu_tar(tmp_path, "--format=pax", "--xattrs"),
        bsdtar(tmp_path, "--format=pax", "--xattrs"),
        bsdtar(tmp_path, "--format=pax", "--xattrs", "--options=xattrheader=LIBARCHIVE"),
    ):
        (found,) = (member.xattrs for member in members(stream) if member.name == b"./file")
        assert dict(found) == expected
        assert list(found) == sorted(found)


def test_characters_that_gnu_tar_escapes_in_attribute_names(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"data")
    os.setxattr(tmp_path / "file", b"user.a=b%c", b"value")
    found = members(gnu_tar(tmp_path, "--format=pax", "--xattrs"))
    assert found[-1].xattrs == ((b"user.a=b%c", b"value"),)


def test_members_are_where_tarfile_finds_them(tree: Path, sparse_tree: Path) -> None:
    for root, options in (
        (tree, ["--format=gnu"]),
        (tree, ["--format=pax", "--xattrs"]),
        (sparse_tree, ["--format=gnu", "-S"]),
        (sparse_tree, ["--format=pax", "-S", "--sparse-version=0.1"]),
    ):
        stream = gnu_tar(root, *options)
        with tarfile.open(fileobj=io.BytesIO(stream)) as archive:
            theirs = [(info.offset, os.fsencode(info.name), info.size, info.mode) for info in archive]
        ours = [(m.header_offset, m.name.rstrip(b"/"), m.size, m.mode) for m in members(stream)]
        assert ours == theirs

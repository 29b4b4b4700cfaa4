"""Random archives: what tarfile writes is what the walk finds; what is damaged ends in a LazyfsError."""

import io
import tarfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lazyfs.errors import LazyfsError
from lazyfs.formats.tarwalk import Kind
from tests.formats.tar_blocks import (
    END,
    GNU,
    content,
    header,
    long_name,
    members,
    padded,
    pax,
    sealed,
    stored,
)

FLAGS = {
    Kind.FILE: tarfile.REGTYPE,
    Kind.HARDLINK: tarfile.LNKTYPE,
    Kind.SYMLINK: tarfile.SYMTYPE,
    Kind.CHAR: tarfile.CHRTYPE,
    Kind.BLOCK: tarfile.BLKTYPE,
    Kind.DIRECTORY: tarfile.DIRTYPE,
    Kind.FIFO: tarfile.FIFOTYPE,
}

# Bytes that are not UTF-8 are lone surrogates to tarfile, as to os.fsdecode.
paths = st.text(st.sampled_from("ab./ é\n=%\udc80\udcff\U0001f600"), min_size=1, max_size=300).filter(
    lambda name: not name.endswith("/")
)
short_paths = st.text(st.sampled_from("ab. é\udc80"), min_size=1, max_size=30)
attributes = st.dictionaries(st.text("abc.", min_size=1, max_size=20), st.text(max_size=50), max_size=4)


def encoded(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape")


@st.composite
def entries(draw: st.DrawFn, names: st.SearchStrategy[str], owners: int) -> tuple[tarfile.TarInfo, bytes]:
    kind = draw(st.sampled_from(Kind))
    info = tarfile.TarInfo(draw(names))
    info.type = FLAGS[kind]
    info.mode = draw(st.integers(0, 0o7777))
    info.uid, info.gid = draw(st.integers(0, owners)), draw(st.integers(0, owners))
    info.mtime = draw(st.integers(0, 2**33 - 1))
    if kind in (Kind.HARDLINK, Kind.SYMLINK):
        info.linkname = draw(names)
    if kind in (Kind.CHAR, Kind.BLOCK):
        info.devmajor, info.devminor = draw(st.integers(0, 4095)), draw(st.integers(0, 2**20 - 1))
    data = draw(st.binary(max_size=2000)) if kind is Kind.FILE else b""
    info.size = len(data)
    return info, data


def check_round_trip(archive: list[tuple[tarfile.TarInfo, bytes]], format_: int) -> None:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=format_) as writer:
        for info, data in archive:
            writer.addfile(info, io.BytesIO(data))
    stream = file.getvalue()
    for member, (info, data) in zip(members(stream), archive, strict=True):
        directory = member.kind is Kind.DIRECTORY
        assert member.name == encoded(info.name) + (b"/" if directory else b"")
        assert (FLAGS[member.kind], member.mode) == (info.type, info.mode)
        assert (member.uid, member.gid, member.size) == (info.uid, info.gid, len(data))
        assert member.target == encoded(info.linkname)
        assert member.rdev == (info.devmajor, info.devminor)
        assert stream[member.data_offset : member.data_offset + member.stored_size] == data
        seconds, _, fraction = info.pax_headers.get("mtime", str(info.mtime)).partition(".")
        assert (member.mtime, member.mtime_nsec) == (int(seconds), int(fraction.ljust(9, "0") or 0))
        prefix = "SCHILY.xattr."
        found = {key.removeprefix(prefix): value for key, value in info.pax_headers.items() if prefix in key}
        assert member.xattrs == tuple(sorted((encoded(key), encoded(value)) for key, value in found.items()))


@settings(deadline=None)
@given(st.lists(entries(short_paths, 0o7777777), max_size=5))
def test_ustar_round_trip(archive: list[tuple[tarfile.TarInfo, bytes]]) -> None:
    check_round_trip(archive, tarfile.USTAR_FORMAT)


@settings(deadline=None)
@given(st.lists(entries(paths, 2**32 - 1), max_size=5), st.integers(-(2**40), 2**40))
def test_gnu_round_trip(archive: list[tuple[tarfile.TarInfo, bytes]], mtime: int) -> None:
    for info, _ in archive[:1]:
        info.mtime = mtime
    check_round_trip(archive, tarfile.GNU_FORMAT)


@settings(deadline=None)
@given(
    st.lists(st.tuples(entries(paths, 2**32 - 1), attributes, st.decimals(0, 2**40, places=9)), max_size=5),
)
def test_pax_round_trip(archive: list[tuple[tuple[tarfile.TarInfo, bytes], dict[str, str], object]]) -> None:
    for (info, _), found, mtime in archive:
        info.pax_headers = {f"SCHILY.xattr.user.{name}": value for name, value in found.items()}
        info.pax_headers["mtime"] = f"{mtime:f}"
    check_round_trip([entry for entry, _, _ in archive], tarfile.PAX_FORMAT)


def corpus() -> bytes:
    """One archive that has every structure which the walk looks into."""
    sparse_tail = bytes(41) + (b"00000000000\x0000000000002\x00" * 4) + b"\1" + b"00000001000\0"
    extension = (b"00000000004\x0000000000003\x00" + bytes(480)) + b"\0" + bytes(7)
    version = ((b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0"), (b"GNU.sparse.realsize", b"99"))
    return b"".join(
        (
            pax((b"comment", b"x"), (b"mtime", b"5.5"), flag=b"g"),
            stored(b"hello" * 130),
            long_name(b"n" * 200),
            long_name(b"t" * 200, b"K"),
            header(b"link", flag=b"2", target=b"t", magic=GNU, mtime=-5),
            pax((b"path", b"p" * 20), (b"size", b"600"), (b"mtime", b"-1.5"), (b"uid", b"70000")),
            header(b"sized", size=1),
            padded(b"z" * 600),
            pax((b"SCHILY.xattr.user.a", b"v\0\n"), (b"LIBARCHIVE.xattr.user.b%20", b"YWJj")),
            header(b"d/", flag=b"\0"),
            header(b"gnu sparse", flag=b"S", size=5, magic=GNU, tail=sparse_tail.replace(b"2", b"0", 3)),
            extension,
            padded(b"12345"),
            pax(*version),
            stored(padded(b"2\n0\n5\n90\n4\n") + b"123456789", b"pax sparse"),
            pax(
                (b"GNU.sparse.map", b"3,4,9,1"), (b"GNU.sparse.numblocks", b"2"), (b"GNU.sparse.size", b"50")
            ),
            stored(b"12345", b"old pax sparse"),
            header(b"device", flag=b"3", rdev=(1, 3), tail=b"prefix"),
            END,
        )
    )


CORPUS = corpus()
BLOCKS = [CORPUS[at : at + 512] for at in range(0, len(CORPUS), 512)]

edits = st.lists(
    st.tuples(st.integers(0, len(CORPUS) - 1), st.binary(min_size=1, max_size=12), st.booleans()),
    min_size=1,
    max_size=4,
)


def walk_damaged(stream: bytes) -> None:
    """Whatever the walk says of the stream, it is members that lie inside it or a LazyfsError."""
    try:
        found = members(stream)
    except LazyfsError as error:
        assert "at byte" in error.message
        assert error.hint
        assert "\n" not in error.message
        return
    for member in found:
        if member.kind is Kind.FILE and member.size < 1 << 20:
            assert len(content(stream, member)) == member.size


def test_corpus_is_whole() -> None:
    found = members(CORPUS)
    assert len(found) == 8
    assert sum(member.sparse is not None for member in found) == 3


@pytest.mark.parametrize("start", range(0, len(CORPUS), 512))
def test_cut_anywhere(start: int) -> None:
    for at in (start, start + 1, start + 100, start + 511):
        walk_damaged(CORPUS[:at])


@settings(deadline=None, max_examples=1000)
@given(edits)
def test_edited_anywhere(edits_: list[tuple[int, bytes, bool]]) -> None:
    stream = CORPUS
    for at, data, resealed in edits_:
        stream = stream[:at] + data + stream[at + len(data) :]
        block = at // 512 * 512
        if resealed and b"ustar" in stream[block + 257 : block + 262]:
            stream = stream[:block] + sealed(stream[block : block + 512]) + stream[block + 512 :]
    walk_damaged(stream)


@settings(deadline=None, max_examples=300)
@given(
    st.lists(st.sampled_from(BLOCKS) | st.binary(min_size=512, max_size=512).map(sealed), max_size=12),
    st.binary(),
)
def test_blocks_in_any_order(blocks: list[bytes], end: bytes) -> None:
    walk_damaged(b"".join(blocks) + end)


@settings(deadline=None, max_examples=300)
@given(
    st.lists(
        st.tuples(st.sampled_from([b"path", b"size", b"uid", b"mtime", b"GNU.sparse.map"]), st.binary())
    ),
    st.sampled_from([b"x", b"g"]),
    st.binary(max_size=600),
)
def test_records_of_any_value(records: list[tuple[bytes, bytes]], flag: bytes, data: bytes) -> None:
    walk_damaged(pax(*records, flag=flag) + stored(data) + END)
    walk_damaged(stored(data, flag=flag) + header() + END)

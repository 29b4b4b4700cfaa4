"""Extended headers of pax: every record that a member takes something from, and lying ones."""

import base64

import pytest

from lazyfs.errors import BadInputError, LimitError, UnsupportedError
from lazyfs.formats.tarwalk import Kind
from tests.formats.tar_blocks import END, content, header, members, only, padded, pax, record, stored


def test_all_that_a_record_replaces() -> None:
    extended = pax(
        (b"path", b"long/" * 100 + b"na\nme=\xff"),
        (b"linkpath", b"target\nof = it"),
        (b"uid", b"4294967295"),
        (b"gid", b"65536"),
        (b"mtime", b"1700000000.123456789"),
        (b"hdrcharset", b"BINARY"),
        (b"atime", b"nonsense that nobody reads"),
    )
    member = only(extended, header(flag=b"2", target=b"short", mtime=1))
    assert member.name == b"long/" * 100 + b"na\nme=\xff"
    assert member.target == b"target\nof = it"
    assert (member.uid, member.gid) == (4294967295, 65536)
    assert (member.mtime, member.mtime_nsec) == (1_700_000_000, 123_456_789)
    assert (member.header_offset, member.data_offset) == (0, len(extended) + 512)


def test_size_of_the_record_counts() -> None:
    stream = pax((b"size", b"700")) + header(size=3) + padded(b"s" * 700)
    member, following = members(stream, header(b"next"), END)
    assert content(stream, member) == b"s" * 700
    assert following.name == b"next"
    assert only(pax((b"size", b"0000000000000000000000000")), header(size=3)).size == 0


def test_size_is_of_no_account_for_a_link() -> None:
    assert only(pax((b"size", b"700")), header(flag=b"1", target=b"a")).stored_size == 0


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (b"0", (0, 0)),
        (b"12", (12, 0)),
        (b"12.", (12, 0)),
        (b"12.5", (12, 500_000_000)),
        (b"12.000000001", (12, 1)),
        (b"12.0000000019", (12, 1)),
        (b"-1.5", (-2, 500_000_000)),
        (b"-0.25", (-1, 750_000_000)),
        (b"-3", (-3, 0)),
        (b"-3.000000000", (-3, 0)),
        (b"+3.1", (3, 100_000_000)),
        (b"9223372036854775806.5", (2**63 - 2, 500_000_000)),
    ],
)
def test_times(value: bytes, expected: tuple[int, int]) -> None:
    member = only(pax((b"mtime", value)), header(mtime=99))
    assert (member.mtime, member.mtime_nsec) == expected


@pytest.mark.parametrize(
    "value",
    [
        b".5",
        b"1e5",
        b"1,5",
        b"nan",
        b" 1",
        b"1 ",
        b"1_0",
        b"--1",
        b"1.5.5",
        b"1.-5",
        b"9" * 20,
        b"-" + b"9" * 19,
    ],
)
def test_times_that_are_none(value: bytes) -> None:
    with pytest.raises(BadInputError, match=r"'file' at byte 1024: .* is not a time"):
        members(pax((b"mtime", value)), header(), END)


@pytest.mark.parametrize("key", [b"uid", b"gid", b"size"])
@pytest.mark.parametrize("value", [b"x", b"1.5", b"0x1", b"1_0", b" 1", b"9" * 19, b"9" * 5000])
def test_numbers_that_are_none(key: bytes, value: bytes) -> None:
    with pytest.raises(BadInputError, match="is not a number of 64 bits"):
        members(pax((key, value)), header(), END)


@pytest.mark.parametrize(("key", "value"), [(b"size", b"-1"), (b"uid", b"-1"), (b"gid", b"4294967296")])
def test_numbers_out_of_range(key: bytes, value: bytes) -> None:
    with pytest.raises(BadInputError):
        members(pax((key, value)), header(), END)


def test_empty_value_leaves_the_header_block_its_word() -> None:
    empty = [(key, b"") for key in (b"path", b"linkpath", b"uid", b"gid", b"mtime")]
    shared = pax((b"uid", b"7"), (b"mtime", b"8.5"), flag=b"g")
    member = only(shared, pax(*empty), header(b"n", flag=b"2", target=b"t", uid=1, gid=2, mtime=3))
    assert (member.name, member.target) == (b"n", b"t")
    assert (member.uid, member.gid, member.mtime, member.mtime_nsec) == (1, 2, 3, 0)


def test_last_record_and_last_header_count() -> None:
    assert only(pax((b"uid", b"1"), (b"uid", b"2")), header()).uid == 2
    member = only(pax((b"uid", b"1"), (b"gid", b"9")), pax((b"uid", b"2")), header())
    assert (member.uid, member.gid) == (2, 0)


def test_records_are_for_one_member() -> None:
    first, second = members(
        pax((b"uid", b"1"), (b"SCHILY.xattr.user.a", b"b")), header(b"a"), header(b"b"), END
    )
    assert (first.uid, second.uid, second.xattrs, second.header_offset) == (1, 0, (), 1536)


def test_solaris_extended_header() -> None:
    assert only(pax((b"path", b"sun"), flag=b"X"), header()).name == b"sun"


def test_global_header_holds_until_the_next() -> None:
    first, second, third = members(
        pax(
            (b"uid", b"5"),
            (b"mtime", b"1.5"),
            (b"comment", b"0123"),
            (b"SCHILY.xattr.user.a", b"all"),
            flag=b"g",
        ),
        header(b"a"),
        pax((b"uid", b"6"), (b"SCHILY.xattr.user.b", b"one")),
        header(b"b"),
        pax((b"uid", b"9"), (b"mtime", b""), flag=b"g"),
        header(b"c", mtime=2),
        END,
    )
    assert (first.uid, first.mtime, first.mtime_nsec, first.header_offset) == (5, 1, 500_000_000, 1024)
    assert (second.uid, second.xattrs) == (6, ((b"user.a", b"all"), (b"user.b", b"one")))
    assert (third.uid, third.mtime, third.mtime_nsec) == (9, 2, 0)


def test_global_header_between_a_header_and_its_member() -> None:
    member = only(pax((b"path", b"mine")), pax((b"path", b"ours"), flag=b"g"), header())
    assert (member.name, member.header_offset) == (b"mine", 0)


@pytest.mark.parametrize("key", [b"size", b"GNU.sparse.map", b"GNU.volume.filename"])
def test_global_header_that_would_move_members(key: bytes) -> None:
    with pytest.raises(UnsupportedError, match="on which readers of tar do not agree"):
        members(pax((key, b"512"), flag=b"g"), stored(b"data"), END)


def test_global_headers_beyond_their_limit() -> None:
    parts = [pax((b"SCHILY.xattr.user.%d" % n, b"v" * 30_000), flag=b"g") for n in range(3)]
    assert len(members(*parts[:2], header(), END)) == 1
    with pytest.raises(LimitError, match="hold more than 65,536 bytes"):
        members(*parts, header(), END)


def test_extended_attributes() -> None:
    capability = bytes.fromhex("0100000200200000000000000000000000000000")
    member = only(
        pax(
            (b"SCHILY.xattr.user.z", b"line\nand NUL\0 and = and \xff"),
            (b"SCHILY.xattr.security.capability", capability),
            (b"SCHILY.xattr.user.empty", b""),
            (b"SCHILY.xattr.user.a%3Db%25c%20d", b"escaped by GNU tar"),
        ),
        header(),
    )
    assert member.xattrs == (
        (b"security.capability", capability),
        (b"user.a=b%c%20d", b"escaped by GNU tar"),
        (b"user.empty", b""),
        (b"user.z", b"line\nand NUL\0 and = and \xff"),
    )


@pytest.mark.parametrize("value", [b"", b"a", b"ab", b"abc", bytes(range(256))])
def test_extended_attributes_of_libarchive(value: bytes) -> None:
    text = base64.b64encode(value)
    for spelling in (text, text.rstrip(b"=")):
        member = only(pax((b"LIBARCHIVE.xattr.user.caf%C3%A9%3d%2", spelling)), header())
        assert member.xattrs == ((b"user.caf\xc3\xa9=%2", value),)


def test_schily_counts_before_libarchive_in_any_order() -> None:
    schily, libarchive = (b"SCHILY.xattr.user.a", b"s"), (b"LIBARCHIVE.xattr.user.a", b"bA==")
    assert only(pax(schily, libarchive), header()).xattrs == ((b"user.a", b"s"),)
    assert only(pax(libarchive, schily), header()).xattrs == ((b"user.a", b"s"),)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        (b"SCHILY.xattr.", b"v"),
        (b"LIBARCHIVE.xattr.user%00a", b"bA=="),
        (b"LIBARCHIVE.xattr.user.a", b"b"),
        (b"LIBARCHIVE.xattr.user.a", b"b A="),
        (b"LIBARCHIVE.xattr.user.a", b"bA==bA=="),
    ],
)
def test_extended_attributes_that_are_none(key: bytes, value: bytes) -> None:
    with pytest.raises(BadInputError, match="an extended attribute"):
        members(pax((key, value)), header(), END)


@pytest.mark.parametrize(
    "body",
    [
        b"path=a\n",
        b"12 path=abc",
        b"11 path=ab\nx",
        b"10 path=ab\n",
        b"12 path=ab\n",
        b"99 path=ab\n",
        b"0 path=ab\n",
        b"-1 path=ab\n",
        b"+11 path=ab\n",
        b" 11 path=ab\n",
        b"11  =ath=ab\n"[:11],
        b"6 =ab\n",
        b"8 patha\n",
        b"11 path=ab\n\0\0\0",
        b"9" * 400 + b" path=ab\n",
        b"2 \n",
        b"\n",
    ],
)
def test_record_that_lies(body: bytes) -> None:
    with pytest.raises(
        BadInputError, match=r"'x' at byte 512: the record at byte \d+ of its extended header"
    ):
        members(header(), stored(body, b"x", flag=b"x"), header(), END)


@pytest.mark.parametrize("key", [b"path", b"linkpath", b"GNU.sparse.name", b"SCHILY.xattr.user.a\0b"])
def test_nul_where_none_can_be(key: bytes) -> None:
    with pytest.raises(BadInputError, match="a NUL byte in the extended header record"):
        members(pax((key, b"a\0b")), header(), END)


def test_empty_extended_header() -> None:
    assert only(pax(), header()).name == b"file"


def test_extended_header_at_and_beyond_its_limit() -> None:
    room = (1 << 20) - len(record(b"comment", b"x" * 1_000_000)) + 1_000_000
    assert only(pax((b"comment", b"c" * room)), header()).kind is Kind.FILE
    with pytest.raises(LimitError, match="1,048,577 bytes, more than 1,048,576"):
        members(pax((b"comment", b"c" * (room + 1))), header(), END)

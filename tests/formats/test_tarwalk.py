"""Header blocks: every layout, type and number, the end of an archive, and what is refused."""

import io
import tracemalloc
from pathlib import Path

import pytest

from lazyfs.errors import BadInputError, LimitError, UnsupportedError
from lazyfs.formats.tarwalk import FileSource, Kind, Member, walk
from tests.formats.tar_blocks import (
    END,
    GNU,
    USTAR,
    V7,
    content,
    header,
    long_name,
    members,
    names,
    only,
    padded,
    pax,
    sealed,
    stored,
)


@pytest.mark.parametrize("size", [0, 1, 100, 512, 700, 1024, 10240])
def test_nothing_and_only_zeros_are_empty_layers(size: int) -> None:
    assert members(bytes(size)) == []


@pytest.mark.parametrize("end", [b"", bytes(512), END, bytes(600)])
def test_archive_ends_with_two_zero_blocks_or_one_or_none(end: bytes) -> None:
    assert names(members(stored(b"data", b"a"), header(b"b"), end)) == [b"a", b"b"]


def test_bytes_after_the_end_are_read_and_not_judged() -> None:
    assert names(members(header(b"a"), END, b"\xff" * 700_001)) == [b"a"]


def test_padding_of_the_last_member_may_be_missing() -> None:
    stream = header(size=5) + b"12345"
    (member,) = members(stream)
    assert content(stream, member) == b"12345"
    assert len(members(stream + bytes(9))) == 1


def test_plain_member() -> None:
    block = header(b"usr/bin/a", size=700, mode=0o104755, uid=1, gid=2, mtime=1_700_000_000)
    expected = Member(
        header_offset=0,
        data_offset=512,
        stored_size=700,
        name=b"usr/bin/a",
        kind=Kind.FILE,
        mode=0o4755,
        uid=1,
        gid=2,
        size=700,
        mtime=1_700_000_000,
        mtime_nsec=0,
        target=b"",
        rdev=(0, 0),
        xattrs=(),
        sparse=None,
    )
    following = header(b"b")
    assert members(block, padded(b"x" * 700), following, END)[0] == expected
    assert members(block, padded(b"x" * 700), following, END)[1].header_offset == 1536


@pytest.mark.parametrize(
    ("flag", "kind"),
    [
        (b"0", Kind.FILE),
        (b"\0", Kind.FILE),
        (b"1", Kind.HARDLINK),
        (b"2", Kind.SYMLINK),
        (b"3", Kind.CHAR),
        (b"4", Kind.BLOCK),
        (b"5", Kind.DIRECTORY),
        (b"6", Kind.FIFO),
        (b"7", Kind.FILE),
        (b"A", Kind.FILE),
        (b"\xff", Kind.FILE),
    ],
)
def test_kinds(flag: bytes, kind: Kind) -> None:
    member = only(header(flag=flag, target=b"there", rdev=(8, 1)))
    assert member.kind is kind
    assert member.target == (b"there" if kind in (Kind.HARDLINK, Kind.SYMLINK) else b"")
    assert member.rdev == ((8, 1) if kind in (Kind.CHAR, Kind.BLOCK) else (0, 0))


@pytest.mark.parametrize("flag", [b"1", b"2", b"3", b"4", b"5", b"6"])
@pytest.mark.parametrize("size", [5, 1 << 40, -1])
def test_members_without_data_have_none_whatever_size_they_state(flag: bytes, size: int) -> None:
    first, second = members(header(flag=flag, size=size), header(b"next"), END)
    assert (first.size, first.stored_size, second.header_offset) == (0, 0, 512)


def test_slash_makes_a_directory_only_of_type_nul() -> None:
    first, second = members(header(b"d/", flag=b"\0", size=3, magic=V7), header(b"f/"), END)
    assert (first.kind, first.stored_size) == (Kind.DIRECTORY, 0)
    assert (second.kind, second.name) == (Kind.FILE, b"f/")
    assert only(pax((b"path", b"d/")), header(b"d", flag=b"\0")).kind is Kind.DIRECTORY


def test_directory_list_is_passed_over() -> None:
    stream = stored(b"Yfile\0\0", b"d/", flag=b"D", magic=GNU)
    member, following = members(stream, header(b"d/file"), END)
    assert (member.kind, member.size, member.stored_size) == (Kind.DIRECTORY, 0, 7)
    assert following.name == b"d/file"


def test_volume_label_is_passed_over_and_belongs_to_no_member() -> None:
    assert only(header(b"label", flag=b"V", magic=GNU), header(b"a")).header_offset == 512


def test_continued_volume_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="'big' at byte 0: it continues a file of another volume"):
        members(header(b"big", flag=b"M", magic=GNU))


def test_names_of_full_length_and_prefix() -> None:
    assert only(header(b"n" * 100)).name == b"n" * 100
    assert only(header(b"n" * 100, tail=b"p" * 155)).name == b"p" * 155 + b"/" + b"n" * 100
    assert only(header(b"n", tail=b"p", magic=V7)).name == b"n"
    assert only(header(b"caf\xe9\n\x01")).name == b"caf\xe9\n\x01"


def test_star_keeps_times_behind_its_prefix() -> None:
    tail = b"p".ljust(131, b"x") + b"00000000001 00000000001 ".ljust(32, b"\0") + b"tar\0"
    assert only(header(b"n", tail=tail)).name == tail[:131] + b"/n"


def test_gnu_times_are_no_prefix() -> None:
    assert only(header(b"n", magic=GNU, tail=b"14000000000\x0014000000000\0")).name == b"n"


def test_prefix_that_old_go_wrote_under_the_gnu_magic() -> None:
    assert only(header(b"n", magic=GNU, tail=b"usr/share/doc")).name == b"usr/share/doc/n"
    assert only(header(b"n", magic=GNU, tail=b"\x01\xff no name")).name == b"n"


@pytest.mark.parametrize("number", [0, 1, 0o7777777, 0o10000000, 65536, 2**32 - 1])
def test_owners(number: int) -> None:
    member = only(header(uid=number, gid=number))
    assert (member.uid, member.gid) == (number, number)


@pytest.mark.parametrize("number", [-1, 2**32])
def test_owners_that_no_kernel_knows(number: int) -> None:
    with pytest.raises(BadInputError, match="is not a pair of 32-bit numbers"):
        members(header(uid=number))


@pytest.mark.parametrize("number", [0, -1, -2, -(2**40), 2**33 - 1, 2**33, 2**62])
def test_times(number: int) -> None:
    member = only(header(mtime=number))
    assert (member.mtime, member.mtime_nsec) == (number, 0)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        (b"0000644\0", 0o644),
        (b"000644 \0", 0o644),
        (b"  644 \0\0", 0o644),
        (b"00000644", 0o644),
        (b"\0" * 8, 0),
        (b"644\0junk", 0o644),
    ],
)
def test_spellings_of_octal(field: bytes, value: int) -> None:
    block = header()
    assert only(sealed(block[:100] + field + block[108:])).mode == value


@pytest.mark.parametrize(
    "field", [b"0000648\0", b"-000644\0", b"0o00644\0", b"06_4_4 \0", b"+000644\0", b"644 644\0"]
)
def test_fields_that_are_not_octal(field: bytes) -> None:
    block = header()
    with pytest.raises(BadInputError, match=r"'file' at byte 0: .* is not an octal number"):
        members(sealed(block[:100] + field + block[108:]))


def test_numbers_beyond_64_bits() -> None:
    with pytest.raises(BadInputError, match="does not fit in 64 bits"):
        members(header(mtime=2**64))


@pytest.mark.parametrize("size", [-1, -(2**62)])
def test_negative_size(size: int) -> None:
    with pytest.raises(BadInputError, match="cannot have a size of -"):
        members(header(size=size))


def test_device_numbers() -> None:
    assert only(header(flag=b"3", rdev=(4095, 2**20 - 1))).rdev == (4095, 2**20 - 1)
    assert only(header(flag=b"4", magic=V7, tail=b"")).rdev == (0, 0)
    with pytest.raises(BadInputError, match="device number 4096:0"):
        members(header(flag=b"3", rdev=(4096, 0)))


def test_checksum_may_be_of_signed_bytes() -> None:
    assert only(sealed(header(b"caf\xe9"), signed=True)).name == b"caf\xe9"
    assert only(sealed(header(b"\xff" * 100, tail=b"\xff" * 155), signed=True)).size == 0


@pytest.mark.parametrize("position", [0, 99, 100, 148, 156, 257, 511])
def test_flipped_bit_in_a_header(position: int) -> None:
    block = bytearray(header(b"a"))
    block[position] ^= 1
    with pytest.raises(
        BadInputError, match=r"at byte 512: the checksum of its header does not match"
    ) as caught:
        members(header(b"first"), bytes(block), END)
    assert caught.value.hint


def test_checksum_that_is_missing() -> None:
    block = header(b"a")
    with pytest.raises(BadInputError, match="checksum"):
        members(block[:148] + bytes(8) + block[156:])


def test_lone_zero_block_before_more_is_damage() -> None:
    with pytest.raises(BadInputError, match="tar header at byte 512: a lone zero block"):
        members(header(b"a"), bytes(512), header(b"b"), END)


@pytest.mark.parametrize("size", [1, 511, 513 + 512, 1023])
def test_stream_that_ends_inside(size: int) -> None:
    stream = header(b"x" * 99, size=512) + b"y" * 512
    with pytest.raises(BadInputError, match=r"the stream ends inside its (header|data)"):
        members((stream + stream)[: 1024 * (size < 512) + size])


def test_error_tells_the_name_that_the_member_would_have() -> None:
    for extended in (long_name(b"usr/long"), pax((b"path", b"usr/long"))):
        with pytest.raises(BadInputError, match="tar member 'usr/long' at byte 1024: owner"):
            members(extended, header(uid=-1))


def test_error_is_one_line_and_short() -> None:
    with pytest.raises(BadInputError) as caught:
        members(long_name(b"line\n" * 2000), header(size=10))
    assert "\n" not in caught.value.message
    assert len(caught.value.message) < 400


def test_long_names() -> None:
    name, target = b"n" * 5000, b"t\xff" * 3000
    stream = long_name(name) + long_name(target, b"K") + header(b"short", flag=b"2", magic=GNU)
    member, following = members(header(b"first"), stream, header(b"last", flag=b"2"), END)[1:]
    assert (member.name, member.target) == (name, target)
    assert (member.header_offset, member.data_offset) == (512, 512 + len(stream))
    assert (following.name, following.target) == (b"last", b"")


def test_gnu_long_name_counts_before_pax() -> None:
    assert only(long_name(b"gnu"), pax((b"path", b"pax")), header()).name == b"gnu"
    assert only(long_name(b"one"), long_name(b"two"), header()).name == b"two"
    assert only(long_name(b""), header()).name == b"file"


def test_long_name_beyond_its_limit() -> None:
    with pytest.raises(LimitError, match="its extended header has 65,537 bytes"):
        members(long_name(b"n" * 65536), header())


@pytest.mark.parametrize("flag", [b"x", b"X", b"g", b"L", b"K", b"V"])
def test_extended_header_of_a_size_that_would_eat_all_memory(flag: bytes) -> None:
    with pytest.raises(LimitError, match="its extended header has"):
        members(header(flag=flag, size=1 << 60))


@pytest.mark.parametrize("end", [b"", END])
def test_extended_header_before_nothing(end: bytes) -> None:
    with pytest.raises(BadInputError, match="the archive ends after an extended header"):
        members(long_name(b"name"), end)


def test_stream_that_ends_inside_an_extended_header() -> None:
    with pytest.raises(BadInputError, match="the stream ends inside its extended header"):
        members(long_name(b"n" * 600)[:-500])


class _Endless:
    """A stream of one member of any size, none of whose data exists."""

    def __init__(self, *blocks: bytes) -> None:
        self._blocks = list(blocks)
        self.position = 0

    def read(self, n: int) -> bytes:
        data = self._blocks.pop(0) if self._blocks else b""
        self.position += len(data)
        return data[:n]

    def skip(self, n: int) -> None:
        self.position += n


@pytest.mark.parametrize("size", [2**33 - 1, 2**33, 2**40 + 1, 2**62])
def test_large_files(size: int) -> None:
    first, second = walk(_Endless(header(size=size), header(b"next")))
    assert first.size == first.stored_size == size
    assert second.header_offset == 512 + (size + 511) // 512 * 512


def test_member_that_is_much_larger_than_the_stream() -> None:
    with pytest.raises(BadInputError, match="the stream ends inside its data"):
        members(header(size=2**62), bytes(10_000))


def test_data_is_never_held_in_memory(tmp_path: Path) -> None:
    path = tmp_path / "layer.tar"
    with path.open("wb") as file:
        file.write(header(size=1 << 28))
        file.truncate((1 << 28) + 512)
    with path.open("rb") as file:
        tracemalloc.start()
        assert len(list(walk(FileSource(file)))) == 1
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 2 << 20


def test_taker_may_read_the_data_itself() -> None:
    source = FileSource(io.BytesIO(stored(b"one", b"a") + stored(b"two", b"b", magic=USTAR) + END))
    assert [source.read(member.size) for member in walk(source)] == [b"one", b"two"]


def test_source_over_a_pipe_that_gives_less_than_asked() -> None:
    class Dripping(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            return super().read(min(size or 0, 100))

    assert [member.name for member in walk(FileSource(Dripping(stored(b"d" * 999) + END)))] == [b"file"]

"""Tar streams made by hand, for what no tar program writes, and the members that a walk finds."""

import io
from collections.abc import Iterable

from lazyfs.formats.tarwalk import FileSource, Kind, Member, walk

END = bytes(1024)
USTAR = b"ustar\x0000"
GNU = b"ustar  \0"
V7 = bytes(8)


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 512)


def octal(value: int, width: int) -> bytes:
    """A numeric field: octal where the number fits, else base-256 as GNU tar writes it."""
    digits = b"%0*o" % (width - 1, value) if value >= 0 else b""
    if 0 < len(digits) < width:
        return digits + b"\0"
    return (value + (1 << 8 * width if value < 0 else 0x80 << 8 * (width - 1))).to_bytes(width)


def sealed(block: bytes, *, signed: bool = False) -> bytes:
    """The header block with its checksum made right."""
    block = block[:148] + b" " * 8 + block[156:]
    total = sum(byte - 256 if signed and byte >= 0x80 else byte for byte in block)
    return block[:148] + b"%06o\0 " % total + block[156:]


def header(
    name: bytes = b"file",
    *,
    flag: bytes = b"0",
    size: int = 0,
    mode: int = 0o644,
    uid: int = 0,
    gid: int = 0,
    mtime: int = 0,
    target: bytes = b"",
    magic: bytes = USTAR,
    rdev: tuple[int, int] = (0, 0),
    tail: bytes = b"",
) -> bytes:
    """One header block; ``tail`` is what it has from byte 345 on (prefix, or the GNU fields)."""
    block = name.ljust(100, b"\0") + octal(mode, 8) + octal(uid, 8) + octal(gid, 8)
    block += octal(size, 12) + octal(mtime, 12) + b" " * 8 + flag + target.ljust(100, b"\0") + magic
    block += bytes(64) + (octal(rdev[0], 8) + octal(rdev[1], 8) if magic != V7 else bytes(16)) + tail
    return sealed(block.ljust(512, b"\0"))


def stored(data: bytes, name: bytes = b"file", *, flag: bytes = b"0", magic: bytes = USTAR) -> bytes:
    """A header and its data."""
    return header(name, flag=flag, size=len(data), magic=magic) + padded(data)


def record(key: bytes, value: bytes) -> bytes:
    size = len(key) + len(value) + 3
    while size != len(line := b"%d %s=%s\n" % (size, key, value)):
        size = len(line)
    return line


def pax(*records: tuple[bytes, bytes], flag: bytes = b"x") -> bytes:
    return stored(b"".join(record(key, value) for key, value in records), b"PaxHeaders/file", flag=flag)


def long_name(name: bytes, flag: bytes = b"L") -> bytes:
    return stored(name + b"\0", b"././@LongLink", flag=flag, magic=GNU)


def members(*parts: bytes) -> list[Member]:
    """All members of the joined parts; what must hold for every walk is asserted on the way."""
    stream = b"".join(parts)
    source = FileSource(io.BytesIO(stream))
    found: list[Member] = []
    end = 0
    for member in walk(source):
        found.append(member)
        assert end <= member.header_offset < member.data_offset <= source.position
        assert member.header_offset % 512 == member.data_offset % 512 == 0
        first = min((segment[1] for segment in member.sparse or ()), default=member.data_offset)
        assert member.data_offset <= source.position <= max(first, source.position)
        assert 0 <= member.mtime_nsec < 1_000_000_000
        end = member.data_offset + member.stored_size
        assert all(start + length <= end for _, start, length in member.sparse or ())
    assert source.position == len(stream)
    return found


def only(*parts: bytes) -> Member:
    (member,) = members(*parts, END)
    return member


def content(stream: bytes, member: Member) -> bytes:
    """The bytes of the regular file, put together from the stream as the member says."""
    assert member.kind is Kind.FILE
    if member.sparse is None:
        assert member.stored_size == member.size
        return stream[member.data_offset : member.data_offset + member.size]
    data = bytearray(member.size)
    for offset, start, length in member.sparse:
        data[offset : offset + length] = stream[start : start + length]
    assert len(data) == member.size
    return bytes(data)


def names(found: Iterable[Member]) -> list[bytes]:
    return [member.name for member in found]

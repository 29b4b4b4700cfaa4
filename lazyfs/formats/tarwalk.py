"""One walk, forward only, through an uncompressed tar stream: what is in it, and at which bytes.

A layer is its tar stream, so the walk tells of every member where its headers and its stored data
lie; nothing is unpacked and no data is read but headers and sparse maps.

It follows POSIX.1-2017 *pax* (ustar and pax Interchange Formats), the GNU tar manual ("Basic Tar
Format", "Storing Sparse Files") and tar(5) of libarchive. Where readers of tar differ, the walk
does as Go's archive/tar does, with which containerd unpacks layers:

- hard links, symbolic links, devices, directories and fifos have no data, whatever size they state;
- a name that ends in a slash makes a directory only of the seventh edition's type NUL;
- of a pax header and a GNU long name for one member the GNU name counts, and of two pax headers
  the later one alone;
- a lone zero block ends the archive only where the stream ends with it: before more it is damage;
- the padding after the last member may be missing.

It differs where Go leaves bytes unexplained. Global pax headers apply, as POSIX and GNU tar have
it (containerd skips them), except that one which would change the stored size of members is
refused: readers would disagree about where the next member is. An extended header that nothing
follows is refused too, as the sign of a stream cut short.

Members of unknown type are regular files, as POSIX asks. Volume labels are passed over; GNU tar's
lists of directories (``D``) are directories whose list is passed over.

Speed, for 100,000 members on one core of a small virtual machine with CPython 3.11: 4.8 us for a
ustar or GNU member, 14 us for one with a pax header of three times.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol

from lazyfs.errors import BadInputError, LazyfsError, LimitError, UnsupportedError
from lazyfs.formats import tar_pax, tar_sparse
from lazyfs.formats.tar_header import (
    BLOCK,
    MAX_SIZE,
    ZERO_BLOCK,
    check_checksum,
    device_numbers,
    is_gnu,
    number,
    prefix,
    text,
    unpack_fields,
)

MAX_PAX_HEADER = 1 << 20
MAX_GLOBAL_RECORDS = 64 << 10
MAX_LONG_NAME = 64 << 10
MAX_ID = 2**32 - 1

_DAMAGED = "the archive is damaged or was cut short: make or fetch it again"
_PIECE = 1 << 18


class Kind(IntEnum):
    """What a member is; the values are the digits of the ustar type flags."""

    FILE = 0
    HARDLINK = 1
    SYMLINK = 2
    CHAR = 3
    BLOCK = 4
    DIRECTORY = 5
    FIFO = 6


# Everything that is not named here is a regular file.
_KINDS = {ord(str(int(kind))): kind for kind in Kind} | {ord("D"): Kind.DIRECTORY}
_LINKS = (Kind.HARDLINK, Kind.SYMLINK)
_DEVICES = (Kind.CHAR, Kind.BLOCK)
_DIRECTORY_LIST, _OLD_GNU_SPARSE = ord("D"), ord("S")

# Headers that say something of the member after them, or of the archive.
_EXTENDING = frozenset(b"xXgLKVM")
_SHAREABLE = frozenset((b"path", b"linkpath", b"uid", b"gid", b"mtime"))


@dataclass(slots=True)
class Member:
    """One member; offsets count bytes of the stream, sizes are bytes.

    The next member's headers start at ``data_offset + stored_size`` rounded up to 512.
    The sparse map that pax format 1.0 keeps at the start of the data counts as data here; the
    segments in ``sparse`` leave it out.
    """

    header_offset: int  # first byte, of the extended headers that belong to it if there are any
    data_offset: int
    stored_size: int  # 0 where nothing is stored
    name: bytes  # as written
    kind: Kind
    mode: int  # 0 to 0o7777
    uid: int
    gid: int
    size: int  # of a regular file, holes included; else 0
    mtime: int  # may be negative
    mtime_nsec: int  # 0 to 999,999,999, forward from mtime
    target: bytes  # of a hard link or symbolic link, as written
    rdev: tuple[int, int]  # major, minor
    xattrs: tuple[tuple[bytes, bytes], ...]  # sorted by name
    sparse: tuple[tuple[int, int, int], ...] | None  # (file offset, stream offset, length), ordered


class Source(Protocol):
    """A stream that is read once."""

    @property
    def position(self) -> int:
        """Bytes read or skipped so far."""

    def read(self, n: int) -> bytes:
        """The next ``n`` bytes, fewer only where the stream ends."""

    def skip(self, n: int) -> None:
        """Pass over ``n`` bytes; where the stream ends first, stop there: ``position`` tells."""


class _Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


class FileSource:
    """A `Source` over whatever can be read like a binary file."""

    def __init__(self, file: _Readable) -> None:
        self._file = file
        self.position = 0

    def read(self, n: int) -> bytes:
        data = self._file.read(n)
        while len(data) < n and (more := self._file.read(n - len(data))):
            data += more
        self.position += len(data)
        return data

    def skip(self, n: int) -> None:
        while n > 0 and (piece := self.read(min(n, _PIECE))):
            n -= len(piece)


def walk(source: Source) -> Iterator[Member]:
    """The members in stream order, then the stream's end: what follows the archive is read, not judged.

    A member is yielded when its headers are read and its data is not, with ``source.position`` at
    its ``data_offset`` (past the map inside the data for sparse format 1.0). Who takes it may read
    or skip on, no further than the member's end; the walk skips what is left.

    Raises BadInputError for what breaks the format, LimitError for what is larger than any honest
    archive needs, UnsupportedError for volumes of a set and foreign sparse formats; each names the
    member and the offset. A stream of no bytes, or of zeros, is an empty layer.
    """
    extensions = _Extensions(source)
    while True:
        offset = source.position
        block = source.read(BLOCK)
        member = None
        try:
            if len(block) < BLOCK or (block[0] == 0 and block == ZERO_BLOCK):
                _check_end(source, block, extensions)
                break
            check_checksum(block)
            if block[156] in _EXTENDING:
                extensions.read(offset, block)
            else:
                member = _read_member(source, offset, block, extensions)
        except (BadInputError, LimitError, UnsupportedError) as error:
            name = extensions.long_name or extensions.records.get(b"path") or text(block[:100])
            raise _placed(error, name, offset) from error
        if member is not None:
            if extensions.start is not None:
                extensions.reset()
            yield member
            if size := member.stored_size:
                end = member.data_offset + size
                source.skip(((end + BLOCK - 1) & -BLOCK) - source.position)
                if source.position < end:
                    raise _cut_short(member)
    while source.read(_PIECE):
        pass


class _Extensions:
    """What the headers before a member say of it: pax records and GNU long names."""

    __slots__ = ("_source", "long_name", "long_target", "records", "shared", "start")

    def __init__(self, source: Source) -> None:
        self._source = source
        self.shared: tar_pax.Records = {}
        self.reset()

    def reset(self) -> None:
        """Forget what was said of the last member; what global headers said stays."""
        self.start: int | None = None
        self.records: tar_pax.Records = {}
        self.long_name = b""
        self.long_target = b""

    def read(self, offset: int, block: bytes) -> None:
        """Take in the header at ``offset``, of a type in `_EXTENDING`, and its data."""
        flag = chr(block[156])
        size = _checked_size(number(block[124:136]))
        if flag == "M":
            raise UnsupportedError("it continues a file of another volume", hint="join the volumes first")
        if flag == "V":
            self._body(size, MAX_LONG_NAME)
        elif flag == "g":
            self._share(tar_pax.parse_records(self._body(size, MAX_PAX_HEADER)))
        else:
            if self.start is None:
                self.start = offset
            if flag == "L":
                self.long_name = text(self._body(size, MAX_LONG_NAME))
            elif flag == "K":
                self.long_target = text(self._body(size, MAX_LONG_NAME))
            else:
                self.records = tar_pax.parse_records(self._body(size, MAX_PAX_HEADER))

    def _body(self, size: int, limit: int) -> bytes:
        if size > limit:
            raise LimitError(
                f"its extended header has {size:,} bytes, more than {limit:,}",
                hint="build the layer again without such long names or attributes",
            )
        body = self._source.read(_padded(size))
        if len(body) < size:
            raise BadInputError("the stream ends inside its extended header", hint=_DAMAGED)
        return body[:size]

    def _share(self, records: tar_pax.Records) -> None:
        for key, value in records.items():
            if key in (b"size", b"GNU.volume.filename") or key.startswith(b"GNU.sparse."):
                raise UnsupportedError(
                    f"a global extended header sets {key[:40]!r}, on which readers of tar do not agree",
                    hint="build the layer again with another tar program",
                )
            if key in _SHAREABLE or key.startswith((tar_pax.SCHILY_XATTR, tar_pax.LIBARCHIVE_XATTR)):
                self.shared[key] = value
        # Every member is read against all of these: to bound them is to bound the time as well.
        if sum(len(key) + len(value) for key, value in self.shared.items()) > MAX_GLOBAL_RECORDS:
            raise LimitError(
                f"the global extended headers hold more than {MAX_GLOBAL_RECORDS:,} bytes",
                hint="build the layer again with attributes on the files that need them",
            )


def _read_member(source: Source, offset: int, block: bytes, extensions: _Extensions) -> Member:
    name, mode, uid, gid, size, mtime, flag, target = unpack_fields(block)
    kind = _KINDS.get(flag, Kind.FILE)
    member = Member(
        header_offset=offset,
        data_offset=offset + BLOCK,
        stored_size=number(size),
        name=name.partition(b"\0")[0],
        kind=kind,
        mode=number(mode) & 0o7777,
        uid=number(uid),
        gid=number(gid),
        size=0,
        mtime=number(mtime),
        mtime_nsec=0,
        target=target.partition(b"\0")[0] if kind in _LINKS else b"",
        rdev=device_numbers(block) if kind in _DEVICES else (0, 0),
        xattrs=(),
        sparse=None,
    )
    if block[345] and (directory := prefix(block)):
        member.name = directory + b"/" + member.name
    records: tar_pax.Records = {}
    if extensions.start is not None or extensions.shared:
        records = _extend(member, extensions)
    if not (0 <= member.uid <= MAX_ID and 0 <= member.gid <= MAX_ID):
        raise BadInputError(f"owner {member.uid}:{member.gid} is not a pair of 32-bit numbers")
    if flag == 0 and member.name.endswith(b"/"):
        member.kind = kind = Kind.DIRECTORY
    if kind is Kind.FILE or flag == _DIRECTORY_LIST:
        _checked_size(member.stored_size)
    else:
        member.stored_size = 0
    if flag == _OLD_GNU_SPARSE or records:
        _read_sparse(member, source, block, records)
    if kind is Kind.FILE and member.sparse is None:
        member.size = member.stored_size
    return member


def _extend(member: Member, extensions: _Extensions) -> tar_pax.Records:
    """Give the member what the headers before it said, and return the records that hold for it."""
    records = extensions.shared | extensions.records
    member.name = extensions.long_name or records.get(b"path") or member.name
    if member.kind in _LINKS:
        member.target = extensions.long_target or records.get(b"linkpath") or member.target
    if value := records.get(b"size"):
        member.stored_size = tar_pax.integer(value)
    if value := records.get(b"uid"):
        member.uid = tar_pax.integer(value)
    if value := records.get(b"gid"):
        member.gid = tar_pax.integer(value)
    if value := records.get(b"mtime"):
        member.mtime, member.mtime_nsec = tar_pax.timestamp(value)
    member.xattrs = tar_pax.extended_attributes(records)
    if extensions.start is not None:
        member.header_offset = extensions.start
    return records


def _read_sparse(member: Member, source: Source, block: bytes, records: tar_pax.Records) -> None:
    """Find out whether the member is sparse; if so read its map, wherever that is kept."""

    def read_block() -> bytes:
        data = source.read(BLOCK)
        if len(data) < BLOCK:
            raise BadInputError("the stream ends inside its sparse map", hint=_DAMAGED)
        return data

    old_gnu = block[156] == _OLD_GNU_SPARSE
    version = "" if old_gnu else tar_sparse.pax_version(records)
    if not old_gnu and not version:
        return
    if member.kind is not Kind.FILE:
        raise BadInputError("only a regular file can be sparse")
    member.size = member.stored_size
    if old_gnu:
        if not is_gnu(block):
            raise UnsupportedError(
                "its sparse map is of a format that only star knows", hint="store the file without holes"
            )
        member.size = number(block[483:495])
        numbers = tar_sparse.read_old_gnu_map(block, read_block)
        member.data_offset = source.position
    else:
        member.name = records.get(b"GNU.sparse.name") or member.name
        if value := records.get(b"GNU.sparse.size") or records.get(b"GNU.sparse.realsize"):
            member.size = tar_pax.integer(value)
        if version == "1.0":
            numbers = tar_sparse.read_map_from_data(read_block, member.stored_size)
        else:
            numbers = tar_sparse.map_from_records(records)
    start = source.position
    stored = member.stored_size - (start - member.data_offset)
    member.sparse = tar_sparse.place(numbers, _checked_size(member.size), start, stored)


def _cut_short(member: Member) -> LazyfsError:
    error = BadInputError("the stream ends inside its data", hint=_DAMAGED)
    return _placed(error, member.name, member.header_offset)


def _check_end(source: Source, block: bytes, extensions: _Extensions) -> None:
    """Check that ``block``, short or zero, is where an archive can end."""
    if len(block) < BLOCK and block.strip(b"\0"):
        raise BadInputError("the stream ends inside its header", hint=_DAMAGED)
    if extensions.start is not None:
        raise BadInputError("the archive ends after an extended header", hint=_DAMAGED)
    if source.read(BLOCK).strip(b"\0"):
        raise BadInputError("a lone zero block, and more after it", hint=_DAMAGED)


def _padded(size: int) -> int:
    return (size + BLOCK - 1) & -BLOCK


def _checked_size(size: int) -> int:
    if not 0 <= size <= MAX_SIZE:
        raise BadInputError(f"it cannot have a size of {size} bytes", hint=_DAMAGED)
    return size


def _placed(error: LazyfsError, name: bytes, offset: int) -> LazyfsError:
    """The same error, telling of which member it is."""
    shown = repr(name[:200].decode("utf-8", "backslashreplace"))
    where = f"tar member {shown} at byte {offset}" if name else f"tar header at byte {offset}"
    return type(error)(f"{where}: {error.message}", hint=error.hint or _DAMAGED)

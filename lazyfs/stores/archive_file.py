"""A tar file as random access: its members by name, each read in place, nothing unpacked.

The headers are read once, from one end to the other by way of the sizes they state; data is not touched. An
archive that is compressed as a whole, as ``docker save | gzip`` makes it, has no random access: it is unpacked
into a nameless temporary file (in ``TMPDIR``) that goes when it is closed.
"""

import os
import posixpath
import tempfile
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

import zstandard
from isal import igzip, isal_zlib

from lazyfs.errors import BadInputError, LimitError, StoreError, UnsupportedError
from lazyfs.formats.strict_json import plain
from lazyfs.formats.tarwalk import Kind, Member, walk
from lazyfs.stores._files import explained, open_regular
from lazyfs.stores.base import STREAM_PIECE, named

_MAX_HEADERS = 64 << 20  # bytes: 130,000 members, where an archive of a large image has some hundred
_MAX_LINKS = 16
_GZIP_MAGIC = b"\x1f\x8b"
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_OTHER_MAGICS = {b"\xfd7zXZ": "xz", b"BZh": "bzip2"}
# Against bombs. Real archives stay below 10; one that is all holes is unpacked by hand.
_MAX_RATIO = 200
_FREE_SPOOL = 1 << 30
# The stubs of isal take its exception for an instance.
_DAMAGED = (cast("type[Exception]", isal_zlib.error), zstandard.ZstdError, EOFError, igzip.BadGzipFile)

Identity = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class Extent:
    """Where the bytes of a member lie in the file."""

    offset: int
    size: int


class ArchiveFile:
    """An open archive; thread safe.

    The descriptor lives for as long as anybody holds this object, so a read under way needs no lock.
    """

    def __init__(self, path: Path) -> None:
        self.descriptor = -1
        self.path = path
        with explained(str(path)):
            self.descriptor = open_regular(path)
            self.identity = identity_of(os.fstat(self.descriptor))
            self._spool_if_compressed()
            with named(path):
                self._members = _index(self.descriptor)

    def __del__(self, close: Callable[[int], None] = os.close) -> None:
        if self.descriptor >= 0:
            close(self.descriptor)

    def names(self) -> Iterator[str]:
        yield from self._members

    def find(self, name: str) -> Extent | None:
        """The regular file of that name, links followed; None when there is none."""
        for _ in range(_MAX_LINKS):
            entry = self._members.get(name)
            if not isinstance(entry, str):
                return entry
            name = entry
        raise BadInputError(
            f"the links of member {plain(name)} lead in a circle", hint="save the image again"
        )

    def member(self, name: str) -> Extent:
        """`find`, and BadInputError when there is none."""
        extent = self.find(name)
        if extent is None:
            raise BadInputError(
                f"there is no member {plain(name)}, which its manifest names",
                hint="the archive is not whole: save the image again",
            )
        return extent

    def read(self, extent: Extent, offset: int, length: int) -> bytes:
        """Exactly ``length`` bytes of the member, a range within it."""
        data = os.pread(self.descriptor, length, extent.offset + offset)
        while len(data) < length:  # Linux reads at most 2 GiB at once
            piece = os.pread(self.descriptor, length - len(data), extent.offset + offset + len(data))
            if not piece:
                raise StoreError(
                    f"{self.path} shrank while it was read", hint="write archives beside, then rename them"
                )
            data += piece
        return data

    def stream(self, extent: Extent, offset: int = 0, piece: int = STREAM_PIECE) -> Generator[bytes]:
        """The member from `offset` to its end."""
        for at in range(offset, extent.size, piece):
            yield self.read(extent, at, min(piece, extent.size - at))

    def document(self, name: str, limit: int) -> bytes:
        """A small member whole; LimitError when it is larger than ``limit`` bytes."""
        extent = self.member(name)
        if extent.size > limit:
            raise LimitError(
                f"member {plain(name)} has {extent.size} bytes, the limit is {limit}",
                hint="save the image again, fewer images in one archive",
            )
        return self.read(extent, 0, extent.size)

    def _spool_if_compressed(self) -> None:
        head = os.pread(self.descriptor, 8, 0)
        for magic, name in _OTHER_MAGICS.items():
            if head.startswith(magic):
                raise UnsupportedError(
                    f"{self.path} is compressed with {name}", hint=f"unpack it first: {name} -dk {self.path}"
                )
        if head.startswith((_GZIP_MAGIC, _ZSTD_MAGIC)):
            packed = self.descriptor
            try:
                self.descriptor = _unpacked(packed, head.startswith(_GZIP_MAGIC), self.path)
            finally:
                if packed != self.descriptor:
                    os.close(packed)


def identity_of(status: os.stat_result) -> Identity:
    """Differs when the file was replaced or written to."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


class _Headers:
    """The `Source` of a walk that reads headers alone, and not without end."""

    def __init__(self, descriptor: int) -> None:
        self.position = 0
        self._descriptor = descriptor
        self._size = os.fstat(descriptor).st_size
        self._left = _MAX_HEADERS

    def read(self, n: int) -> bytes:
        data = os.pread(self._descriptor, n, self.position)
        self.position += len(data)
        self._left -= len(data)
        if self._left < 0:
            raise LimitError(
                f"its headers have more than {_MAX_HEADERS >> 20} MiB",
                hint="save fewer images in one archive",
            )
        return data

    def skip(self, n: int) -> None:
        self.position = min(self.position + n, self._size)


def _index(descriptor: int) -> dict[str, Extent | str]:
    """Where each file lies, and where each link leads to."""
    members: dict[str, Extent | str] = {}
    for member in walk(_Headers(descriptor)):
        if member.kind not in (Kind.FILE, Kind.HARDLINK, Kind.SYMLINK):
            continue
        name = _normal(member.name)
        # Readers do not agree which of two counts: it would be two images in one file.
        if name in members:
            raise BadInputError(f"it has two members {plain(name)}", hint="save the image again")
        members[name] = _entry(name, member)
    return members


def _entry(name: str, member: Member) -> Extent | str:
    if member.kind is Kind.SYMLINK:
        target = member.target.decode("utf-8", "surrogateescape")
        return posixpath.normpath(posixpath.join(posixpath.dirname(name), target))
    if member.kind is Kind.HARDLINK:
        return _normal(member.target)
    if member.sparse is not None:
        raise UnsupportedError(f"member {plain(name)} is stored sparse", hint="use tar without --sparse")
    return Extent(member.data_offset, member.stored_size)


def _normal(name: bytes) -> str:
    text = name.decode("utf-8", "surrogateescape")
    if ".." in text.split("/"):
        raise BadInputError(f"member {plain(text)} climbs out of the archive", hint="do not trust this file")
    return posixpath.normpath(text)


def _unpacked(packed: int, gzip: bool, path: Path) -> int:
    """A descriptor of a nameless file that holds what ``packed`` unpacks to."""
    limit = _FREE_SPOOL + _MAX_RATIO * os.fstat(packed).st_size
    size = 0
    try:
        with tempfile.TemporaryFile() as spool, open(packed, "rb", closefd=False) as file:
            for piece in _plain_pieces(file, gzip):
                size += len(piece)
                if size > limit:
                    raise LimitError(
                        f"{path} unpacks to more than {limit} bytes, {_MAX_RATIO} times its size",
                        hint="if you trust it, unpack it first with gzip -dk or zstd -dk",
                    )
                spool.write(piece)
            if size == 0:
                raise EOFError("it holds nothing")
            spool.flush()
            return os.dup(spool.fileno())
    except _DAMAGED as error:
        raise BadInputError(
            f"{path}: its compressed stream is damaged ({error})", hint="save or copy it again"
        ) from error
    except OSError as error:
        raise StoreError(
            f"{path} is compressed and could not be unpacked into {tempfile.gettempdir()}: {error.strerror}",
            hint="let TMPDIR name a directory with room, or unpack it first with gzip -dk or zstd -dk",
        ) from error


def _plain_pieces(file: BinaryIO, gzip: bool) -> Iterator[bytes]:
    if gzip:
        with igzip.open(file) as reader:  # type: ignore[no-untyped-call]
            while piece := reader.read(STREAM_PIECE):
                yield piece
    else:
        with zstandard.ZstdDecompressor().stream_reader(
            file, read_across_frames=True, closefd=False
        ) as frames:
            while piece := frames.read(STREAM_PIECE):
                yield piece

"""Data of sparse files that cannot be mapped where the tar stream holds it.

EROFS maps whole blocks of 512 bytes; a sparse member may store segments that start or end anywhere, or so
many that the file would need millions of chunk indexes. Such a file's data is laid out again, behind the
stream: the *appendix* of the device. It is kept in a temporary file until the stream has ended, which is made
when the first such file comes.
"""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import IO, Self

from lazyfs.errors import LimitError, StoreError
from lazyfs.formats.bootstrap import MAX_CHUNK_INDEXES, chunk_bits
from lazyfs.formats.layer_columns import APPENDIX, Segment
from lazyfs.formats.tarwalk import Member, Source

BLOCK = 512
_PIECE = 1 << 20
_MIN_CHUNK = 4096
_MAX_GROWTH = 16
_FREE_SIZE = 64 << 20


class Appendix:
    """Collects realigned data; offsets it gives count from `layer_columns.APPENDIX`."""

    def __init__(self, layer: str) -> None:
        self._layer = layer
        self._file: IO[bytes] | None = None
        self.size = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()

    def segments(self, member: Member, source: Source) -> tuple[Segment, ...] | None:
        """Where the device has the data of `member`: None unless it is sparse.

        Reads the member's data from `source` only where it must be laid out again.
        """
        if member.sparse is None:
            return None
        kept = tuple(segment for segment in member.sparse if segment[2])
        return kept if mappable(member) else self._realign(member, kept, source)

    def pieces(self) -> Iterator[bytes]:
        """The appendix's bytes, in order."""
        if self._file is None:
            return
        with _explained():
            self._file.seek(0)
        while piece := self._read():
            yield piece

    def _read(self) -> bytes:
        assert self._file is not None
        with _explained():
            return self._file.read(_PIECE)

    def _realign(self, member: Member, segments: tuple[Segment, ...], source: Source) -> tuple[Segment, ...]:
        chunk = _chunk_for(member.size)
        self._limit(member, segments, chunk)
        with _explained():
            if self._file is None:
                self._file = tempfile.TemporaryFile(prefix="lazyfs-appendix-")  # noqa: SIM115 - closed in __exit__
            return self._lay_out(member.size, segments, chunk, source, self._file)

    def _lay_out(
        self, size: int, segments: tuple[Segment, ...], chunk: int, source: Source, file: IO[bytes]
    ) -> tuple[Segment, ...]:
        placed: list[Segment] = []
        for offset, stream_offset, length in segments:
            source.skip(stream_offset - source.position)
            first = offset // chunk * chunk
            if not placed or first >= placed[-1][0] + placed[-1][2]:
                placed.append((first, self.size, 0))
            start, device, covered = placed[-1]
            end = -(-(offset + length) // chunk) * chunk
            _copy(source, file, device + offset - start, length)
            placed[-1] = (start, device, max(covered, end - start))
            self.size = device + placed[-1][2]
            file.truncate(self.size)
        return tuple(
            (start, APPENDIX + device, min(covered, size - start)) for start, device, covered in placed
        )

    def _limit(self, member: Member, segments: tuple[Segment, ...], chunk: int) -> None:
        grown = sum(length // chunk * chunk + 2 * chunk for _, _, length in segments)
        if self.size + grown > _FREE_SIZE + _MAX_GROWTH * member.stored_size:
            raise LimitError(
                f"{self._layer}: sparse member {member.name[:200]!r} has its data in too many small pieces",
                hint="store the file without holes",
            )


def _copy(source: Source, file: IO[bytes], at: int, length: int) -> None:
    file.seek(at)
    while length:
        piece = source.read(min(length, _PIECE))
        if not piece:
            return  # the walk finds that the member is cut short, and says so
        file.write(piece)
        length -= len(piece)


@contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"the temporary file for sparse members: {error.strerror or error}",
            hint="free some space, or name a directory on another disk in TMPDIR",
        ) from error


def mappable(member: Member) -> bool:
    """Can the sparse member's data be mapped where the stream holds it?"""
    segments = [segment for segment in member.sparse or () if segment[2]]
    for offset, stream_offset, length in segments:
        if offset % BLOCK or stream_offset % BLOCK or (length % BLOCK and offset + length != member.size):
            return False
    bits = chunk_bits(member.size, [(offset, length) for offset, _, length in segments])
    return -(-member.size // (1 << bits)) <= MAX_CHUNK_INDEXES


def _chunk_for(size: int) -> int:
    """The smallest chunk in which a file of `size` stays within the limit of chunk indexes."""
    chunk = _MIN_CHUNK
    while -(-size // chunk) > MAX_CHUNK_INDEXES:
        chunk *= 2
    return chunk

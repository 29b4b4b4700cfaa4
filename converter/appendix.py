"""Data of sparse files that cannot be mapped where the tar stream holds it.

EROFS maps whole blocks of 512 bytes; a sparse member may store segments that start or end anywhere, or so
many that the file would need millions of chunk indexes. Such a file's data is laid out again, behind the
stream: the *appendix* of the device. It is kept in a temporary file until the stream has ended.
"""

import tempfile
from collections.abc import Iterator
from types import TracebackType
from typing import Self

from lazyfs.errors import LimitError
from lazyfs.formats.bootstrap import MAX_CHUNK_INDEXES, chunk_bits
from lazyfs.formats.layer_tree import APPENDIX, Segment
from lazyfs.formats.tarwalk import Member, Source

BLOCK = 512
_PIECE = 1 << 20
_MIN_CHUNK = 4096
_MAX_GROWTH = 16
_FREE_SIZE = 64 << 20


class Appendix:
    """Collects realigned data; offsets it gives count from `layer_tree.APPENDIX`."""

    def __init__(self, layer: str) -> None:
        self._layer = layer
        self._file = tempfile.TemporaryFile(prefix="lazyfs-appendix-")  # noqa: SIM115 - closed in __exit__
        self.size = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
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
        self._file.seek(0)
        while piece := self._file.read(_PIECE):
            yield piece

    def _realign(self, member: Member, segments: tuple[Segment, ...], source: Source) -> tuple[Segment, ...]:
        chunk = _chunk_for(member.size)
        self._limit(member, segments, chunk)
        placed: list[Segment] = []
        for offset, stream_offset, length in segments:
            source.skip(stream_offset - source.position)
            first = offset // chunk * chunk
            if not placed or first >= placed[-1][0] + placed[-1][2]:
                placed.append((first, self.size, 0))
            start, device, size = placed[-1]
            end = -(-(offset + length) // chunk) * chunk
            self._copy(source, device + offset - start, length)
            placed[-1] = (start, device, max(size, end - start))
            self.size = device + placed[-1][2]
            self._file.truncate(self.size)
        return tuple(
            (start, APPENDIX + device, min(size, member.size - start)) for start, device, size in placed
        )

    def _copy(self, source: Source, at: int, length: int) -> None:
        self._file.seek(at)
        while length:
            piece = source.read(min(length, _PIECE))
            if not piece:
                return  # the walk finds that the member is cut short, and says so
            self._file.write(piece)
            length -= len(piece)

    def _limit(self, member: Member, segments: tuple[Segment, ...], chunk: int) -> None:
        grown = sum(length // chunk * chunk + 2 * chunk for _, _, length in segments)
        if self.size + grown > _FREE_SIZE + _MAX_GROWTH * member.stored_size:
            raise LimitError(
                f"{self._layer}: sparse member {member.name[:200]!r} has its data in too many small pieces",
                hint="store the file without holes",
            )


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

"""Maps of sparse members: which pieces of the file are stored, and where in the stream.

Specification: GNU tar manual, appendix "Storing Sparse Files": the old GNU format (type ``S``, map
in the header and in extension blocks) and the pax formats 0.0, 0.1 (map in the extended header)
and 1.0 (map at the start of the stored data). Numbers of 1.0 are decimal, as GNU tar writes them
(the manual says octal).
"""

from array import array
from collections.abc import Callable

from lazyfs.errors import BadInputError, LimitError, UnsupportedError
from lazyfs.formats.tar_header import BLOCK, number
from lazyfs.formats.tar_pax import Records, integer

MAX_SEGMENTS = 1_000_000

Segment = tuple[int, int, int]
ReadBlock = Callable[[], bytes]

_LONGEST_NUMBER = 19


def pax_version(records: Records) -> str:
    """ "0" or "1.0" for a member whose records declare it sparse, "" for any other."""
    major, minor = records.get(b"GNU.sparse.major", b""), records.get(b"GNU.sparse.minor", b"")
    if (major, minor) == (b"1", b"0"):
        return "1.0"
    if (major, minor) in ((b"0", b"0"), (b"0", b"1")):
        return "0"
    if major or minor:
        raise UnsupportedError(
            f"sparse format {major[:9]!r}.{minor[:9]!r} is not known", hint="store the file without holes"
        )
    return "0" if records.get(b"GNU.sparse.map") else ""


def map_from_records(records: Records) -> "array[int]":
    """The map of formats 0.0 and 0.1: offset, length, offset, length, ..."""
    value = records.get(b"GNU.sparse.map", b"")
    numbers = array("q", map(integer, value.split(b","))) if value else array("q")
    if len(numbers) != 2 * integer(records.get(b"GNU.sparse.numblocks", b"")):
        raise BadInputError("its sparse map has not as many entries as it says")
    return numbers


def read_map_from_data(read_block: ReadBlock, stored_size: int) -> "array[int]":
    """The map of format 1.0; reads whole blocks, no further than the one that ends it."""
    numbers = array("q")
    wanted = 1
    rest = b""
    for _ in range(stored_size // BLOCK):
        *lines, rest = (rest + read_block()).split(b"\n")
        for line in lines:
            numbers.append(integer(line))
            if len(numbers) == 1:
                wanted += 2 * _checked_count(numbers[0])
            if len(numbers) == wanted:
                return numbers[1:]
        if len(rest) > _LONGEST_NUMBER:
            raise BadInputError("its sparse map is not a list of decimal numbers")
    raise BadInputError("its sparse map runs past the end of its data")


def read_old_gnu_map(block: bytes, read_block: ReadBlock) -> "array[int]":
    """The map of a header of type ``S``; reads the extension blocks that belong to it."""
    numbers = array("q")
    _append_entries(numbers, block[386:482])
    extended = block[482]
    blocks = 0
    while extended:
        blocks += 1
        _checked_count(21 * blocks)
        block = read_block()
        _append_entries(numbers, block[:504])
        extended = block[504]
    return numbers


def place(numbers: "array[int]", size: int, start: int, stored_size: int) -> tuple[Segment, ...]:
    """(file offset, stream offset, length) of each piece that is not empty.

    ``size`` is the size of the file with its holes; the pieces follow one another in the stream
    from ``start`` and must come to ``stored_size`` bytes exactly.
    """
    segments: list[Segment] = []
    end = 0
    position = start
    pairs = iter(numbers)
    for offset, length in zip(pairs, pairs, strict=True):
        if offset < end or not 0 <= length <= size - offset:
            raise BadInputError(
                f"its sparse map has a piece of {length} bytes at {offset}, which overlaps or leaves the file"
            )
        if length:
            segments.append((offset, position, length))
        end = offset + length
        position += length
    if position - start != stored_size:
        raise BadInputError(f"its sparse map tells of {position - start} bytes, {stored_size} are stored")
    return tuple(segments)


def _append_entries(numbers: "array[int]", area: bytes) -> None:
    for at in range(0, len(area), 24):
        if area[at] == 0:
            return
        numbers.append(number(area[at : at + 12]))
        numbers.append(number(area[at + 12 : at + 24]))


def _checked_count(count: int) -> int:
    if count < 0:
        raise BadInputError(f"its sparse map cannot have {count} entries")
    if count > MAX_SEGMENTS:
        raise LimitError(
            f"its sparse map has more than {MAX_SEGMENTS:,} pieces",
            hint="store the file without holes, or in larger pieces",
        )
    return count

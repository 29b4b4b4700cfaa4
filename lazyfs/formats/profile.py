"""What a start reads, as text that people keep beside a Dockerfile: files, and which of their pages.

    # lazyfs profile 1
    usr/bin/python3.11 0-3,17,40-52
    usr/lib/x86_64-linux-gnu/libc.so.6 0,12-20

A line is a path from the root of the image, a blank, and pages of 4096 bytes (the first is 0) in the order in
which they were first touched; lines are in that order too, and a file that is touched, left and touched again
has several. Blanks, line breaks, `%`, what cannot be printed and what is no UTF-8 stand as `%XX` in a path. Lines that
begin with `#` are comments; the first line says the version.

A profile speaks of files, not of bytes of an image: it holds for the next version of the image as well, as far
as the files are still there. What is not there any more is passed over.
"""

import bisect
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from urllib.parse import quote_from_bytes, unquote_to_bytes

from lazyfs.errors import BadInputError, LimitError
from lazyfs.formats.chunks import UNIT_SIZE, ChunkTable
from lazyfs.formats.image_paths import PAGE, Extent, device_ranges, extents, regular_files
from lazyfs.formats.image_tree import ImageTree
from lazyfs.formats.pack import Place

FIRST_LINE = "# lazyfs profile 1"
MAX_SIZE = 64 << 20
MAX_PAGES = 1 << 40
_RANGE = re.compile(r"(0|[1-9][0-9]{0,12})(?:-([1-9][0-9]{0,12}))?")
_HINT = "a line is PATH PAGES, such as: usr/bin/env 0-3,7"


@dataclass(frozen=True, slots=True)
class Touch:
    """Pages `first` to `last` of the file at `path`."""

    path: bytes
    first: int
    last: int


Profile = Sequence[Touch]
"""In order of first touch; no page twice."""


def parse(text: str, name: str = "profile") -> list[Touch]:
    """Read a profile that anyone may have written; BadInputError names the line."""
    if len(text) > MAX_SIZE:
        raise LimitError(f"{name} has more than {MAX_SIZE} characters")
    lines = text.splitlines()
    if not lines or lines[0].strip() != FIRST_LINE:
        raise BadInputError(
            f"{name} does not begin with {FIRST_LINE!r}", hint="`lazyfs profile REF` writes one"
        )
    touches = []
    for number, line in enumerate(lines, 1):
        if line.strip() and not line.startswith("#"):
            touches += _parse_line(line, f"{name}, line {number}")
    return merge([touches])


def _parse_line(line: str, where: str) -> list[Touch]:
    path, blank, pages = line.strip().rpartition(" ")
    raw = unquote_to_bytes(path.strip())
    if not blank or not raw or raw.startswith(b"/") or b"\0" in raw:
        raise BadInputError(f"{where}: no path from the root of the image: {path[:100]!r}", hint=_HINT)
    touches = []
    for word in pages.split(","):
        match = _RANGE.fullmatch(word)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if last < first:
            raise BadInputError(f"{where}: {word[:50]!r} is no range of pages", hint=_HINT)
        touches.append(Touch(raw, first, last))
    return touches


def render(profile: Profile, comments: Iterable[str] = ()) -> str:
    """The text; equal profiles have equal texts."""
    lines = [FIRST_LINE, *(f"# {' '.join(comment.split())}" for comment in comments)]
    path: bytes | None = None
    pages: list[str] = []
    for touch in [*profile, None]:
        if path is not None and (touch is None or touch.path != path):
            lines.append(f"{quote_path(path)} {','.join(pages)}")
            pages = []
        if touch is not None:
            path = touch.path
            pages.append(str(touch.first) if touch.first == touch.last else f"{touch.first}-{touch.last}")
    return "\n".join(lines) + "\n"


def quote_path(path: bytes) -> str:
    """A path as a word of a profile."""
    try:
        text = path.decode()
    except UnicodeDecodeError:
        return quote_from_bytes(path, safe="/+,:=@~!$&'()*;[]^{}")
    return "".join(
        char
        if char.isprintable() and not char.isspace() and char not in "%#"
        else quote_from_bytes(char.encode())
        for char in text
    )


def merge(profiles: Iterable[Profile]) -> list[Touch]:
    """One profile of all: the first one's order, then what each of the others adds."""
    seen: dict[bytes, list[tuple[int, int]]] = {}
    merged: list[Touch] = []
    for profile in profiles:
        for touch in profile:
            known = seen.setdefault(touch.path, [])
            for first, last in _without(known, touch.first, touch.last):
                known.append((first, last))
                previous = merged[-1] if merged else None
                if previous and previous.path == touch.path and previous.last + 1 == first:
                    merged[-1] = Touch(touch.path, previous.first, last)
                else:
                    merged.append(Touch(touch.path, first, last))
    return merged


def _without(known: list[tuple[int, int]], first: int, last: int) -> list[tuple[int, int]]:
    """What of [first, last] is in none of the ranges."""
    left = []
    for low, high in sorted(known):
        if high < first:
            continue
        if low > last:
            break
        if low > first:
            left.append((first, low - 1))
        first = high + 1
    if first <= last:
        left.append((first, last))
    return left


@dataclass(frozen=True, slots=True)
class Hot:
    """What of an image a profile means: units in order of first touch, and what it does not find any more."""

    units: list[Place]
    pages: int
    gone: list[bytes]


def resolve(profile: Profile, tree: ImageTree, chunks: Sequence[ChunkTable]) -> Hot:
    """The units that hold the pages of a profile, whole pages of the device that they share with others included.

    The kernel keeps whole pages of a device, and a file need not begin where one begins.
    """
    wanted = {touch.path for touch in profile}
    inodes = {path: inode for path, inode in regular_files(tree) if path in wanted}
    first_units = [table.first_units() for table in chunks]
    units: dict[Place, None] = {}
    gone: dict[bytes, None] = {}
    pages = 0
    for touch in profile:
        inode = inodes.get(touch.path)
        if inode is None:
            gone[touch.path] = None
            continue
        last = min(touch.last, (int(tree.inodes.size[inode]) - 1) // PAGE)
        pages += max(0, last - touch.first + 1)
        for layer, start, end in device_ranges(extents(tree, inode), touch.first, last):
            table = chunks[layer]
            low, high = start // PAGE * PAGE, min(-(-end // PAGE) * PAGE, table.device_size)
            for chunk in table.covering(low, high - low):
                begin = int(table.start[chunk])
                one = max(0, low - begin) // UNIT_SIZE
                other = (min(high, int(table.start[chunk + 1])) - 1 - begin) // UNIT_SIZE
                base = int(first_units[layer][chunk])
                units.update(((layer, base + unit), None) for unit in range(one, other + 1))
    return Hot(list(units), pages, list(gone))


def from_reads(
    reads: Iterable[tuple[int, int, int]],
    tree: ImageTree,
    resident: Callable[[bytes], Sequence[int]] | None = None,
) -> list[Touch]:
    """The profile of a start whose reads of devices were (layer, offset, length), in this order.

    A page of a device may hold the ends of two files. `resident` says which pages of a file are in memory, so which
    of them were touched. Where it says of none, the kernel has dropped them since (for want of memory, or when told
    to); there, and without `resident`, those count of which every byte was read.
    """
    finder = _FileFinder(tree)
    order: dict[tuple[int, int], None] = {}
    read_pages: set[tuple[int, int]] = set()
    for layer, offset, length in reads:
        read_pages.update((layer, page) for page in range(offset // PAGE, -(-(offset + length) // PAGE)))
        order.update((place, None) for place in finder.pages(layer, offset, offset + length))
    if resident is None:
        touched = {place for place in order if finder.is_read(*place, read_pages)}
    else:
        files = {file for file, _ in order}
        kept = {(file, page) for file in files for page in resident(finder.paths[file])}
        touched = kept | set(finder.dropped(read_pages, kept))
    return merge([[Touch(finder.paths[file], page, page) for file, page in order if (file, page) in touched]])


class _FileFinder:
    """Which pages of which files a range of a device holds."""

    def __init__(self, tree: ImageTree) -> None:
        self.paths: list[bytes] = []
        self._extents: list[list[Extent]] = []
        rows: list[tuple[int, int, int, int, int]] = []
        seen: set[int] = set()
        for path, inode in regular_files(tree):
            if inode in seen:  # another name of it
                continue
            seen.add(inode)
            found = extents(tree, inode)
            rows += [(each.layer, each.start, each.length, each.offset, len(self.paths)) for each in found]
            self.paths.append(path)
            self._extents.append(found)
        rows.sort()
        self._rows = rows
        self._starts = [(layer, start) for layer, start, *_ in rows]

    def pages(self, layer: int, start: int, end: int) -> Iterator[tuple[int, int]]:
        """(file, page) of the pages of files that lie at least in part in the range."""
        at = max(0, bisect.bisect_right(self._starts, (layer, start)) - 1)
        for row_layer, row_start, length, offset, file in self._rows[at:]:
            if row_layer > layer or (row_layer == layer and row_start >= end):
                break
            low, high = max(start, row_start), min(end, row_start + length)
            if row_layer == layer and low < high:
                shift = offset - row_start
                yield from ((file, page) for page in range((low + shift) // PAGE, -(-(high + shift) // PAGE)))

    def dropped(self, read: set[tuple[int, int]], kept: set[tuple[int, int]]) -> Iterator[tuple[int, int]]:
        """(file, page) of what was read whole from pages of devices of which nothing is among the kept ones."""
        for layer, number in read:
            held = list(self.pages(layer, number * PAGE, (number + 1) * PAGE))
            if kept.isdisjoint(held):
                yield from (place for place in held if self.is_read(*place, read))

    def is_read(self, file: int, page: int, read: set[tuple[int, int]]) -> bool:
        return all(
            (layer, number) in read
            for layer, start, end in device_ranges(self._extents[file], page, page)
            for number in range(start // PAGE, -(-end // PAGE))
        )

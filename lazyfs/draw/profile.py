"""A profile as a picture: a lane for each of the largest files, with a mark where and when its pages are touched."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from lazyfs.draw.svg import BLUE, GREY, PALE, Sheet, byte_words, ticks

PAGE = 4096
WIDTH, LEFT, RIGHT, TOP = 960, 330, 24, 64
LANE, GAP = 22, 6
MAX_FILES = 40
MAX_NAME = 44


@dataclass(slots=True)
class File:
    """`marks` are (pages touched before by all files, first page, pages)."""

    path: str
    pages: int = 0
    last: int = 0
    marks: list[tuple[int, int, int]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Summary:
    """Files in order of first touch."""

    files: list[File]
    pages: int


def summarize(touches: Sequence[tuple[bytes, int, int]]) -> Summary:
    """`touches` are (path, first page, last page), in order."""
    files: dict[bytes, File] = {}
    before = 0
    for path, first, last in touches:
        file = files.setdefault(path, File(path.decode(errors="replace")))
        count = last - first + 1
        file.marks.append((before, first, count))
        file.pages += count
        file.last = max(file.last, last)
        before += count
    return Summary(list(files.values()), before)


def draw(summary: Summary, title: str) -> str:
    """To the right is later, downwards in a lane is further in the file."""
    shown = sorted(summary.files, key=lambda file: -file.pages)[:MAX_FILES]
    shown.sort(key=lambda file: file.marks[0][0])
    height = TOP + len(shown) * (LANE + GAP) + 40
    sheet = Sheet(WIDTH, height, title)
    sheet.text(24, 24, title, size=15, bold=True)
    rest = len(summary.files) - len(shown)
    more = f"; {rest} smaller files are not shown" if rest else ""
    sheet.text(
        24, 42, f"{len(summary.files)} files, {byte_words(summary.pages * PAGE)} touched{more}", colour=GREY
    )
    scale = (WIDTH - LEFT - RIGHT) / max(summary.pages, 1)
    for value in ticks(summary.pages * PAGE, 8):
        x = LEFT + value / PAGE * scale
        sheet.line(x, TOP - 6, x, height - 28)
        sheet.text(x, height - 14, byte_words(value), anchor="middle", colour=GREY)
    for row, file in enumerate(shown):
        top = TOP + row * (LANE + GAP)
        sheet.rect(LEFT, top, WIDTH - LEFT - RIGHT, LANE, PALE, opacity=0.45)
        name = file.path if len(file.path) <= MAX_NAME else "…" + file.path[-MAX_NAME + 1 :]
        sheet.text(LEFT - 8, top + 15, name, anchor="end")
        for before, first, count in file.marks:
            y = top + LANE * first / (file.last + 1)
            depth = max(LANE * count / (file.last + 1), 1.0)
            sheet.rect(LEFT + before * scale, y, max(count * scale, 1.0), depth, BLUE)
    return sheet.render()

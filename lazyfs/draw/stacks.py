"""Ways side by side, each a bar of its parts, with the spread of the whole."""

from collections.abc import Sequence
from dataclasses import dataclass

from lazyfs.draw.svg import GREY, INK, PALE, Sheet, ticks

BAR, ROW, EDGE, TOP = 20, 50, 8, 34
_RIGHT = 24
_TICK = 90


@dataclass(frozen=True, slots=True)
class Bar:
    """Seconds: of the parts, in the order of the colours, and the least and most of the whole; `words` stand beside."""

    name: str
    parts: Sequence[float]
    low: float
    high: float
    words: str


def draw(
    title: str, parts: Sequence[tuple[str, str]], bars: Sequence[Bar], *, width: int, themed: bool
) -> str:
    """`parts` are (colour, name). All bars share one scale."""
    most = max([*(each.high for each in bars), *(sum(each.parts) for each in bars), 1e-3])
    lines = _legend_lines(parts, width)
    top = TOP + 18 * (len(lines) - 1)
    height = top + len(bars) * ROW + 24
    sheet = Sheet(width, height, title)
    for number, line in enumerate(lines):
        sheet.legend(EDGE, 16 + 18 * number, line)
    scale = (width - EDGE - _RIGHT) / most
    for second in ticks(most, max(2, width // _TICK)):
        x = EDGE + second * scale
        sheet.line(x, top, x, height - 20)
        sheet.text(x, height - 6, f"{second:g} s", anchor="middle" if second else "start", colour=GREY)
    for number, bar in enumerate(bars):
        _draw_bar(sheet, top + number * ROW, bar, parts, scale)
    return sheet.render(themed=themed)


def _draw_bar(sheet: Sheet, top: float, bar: Bar, parts: Sequence[tuple[str, str]], scale: float) -> None:
    sheet.text(EDGE, top + 16, bar.name, size=13, bold=True)
    sheet.text(EDGE + 12 + 7.6 * len(bar.name), top + 16, bar.words, colour=GREY)
    y, x = top + 22, float(EDGE)
    sheet.rect(EDGE, y, sheet.width - EDGE - _RIGHT, BAR, PALE, opacity=0.35)
    for (colour, _), seconds in zip(parts, bar.parts, strict=True):
        sheet.rect(x, y, seconds * scale, BAR, colour)
        x += seconds * scale
    low, high, middle = EDGE + bar.low * scale, EDGE + bar.high * scale, y + BAR / 2
    sheet.line(low, middle, high, middle, INK, width=1.5)
    for end in (low, high):
        sheet.line(end, middle - 5, end, middle + 5, INK, width=1.5)


def _legend_lines(parts: Sequence[tuple[str, str]], width: int) -> list[list[tuple[str, str]]]:
    lines: list[list[tuple[str, str]]] = [[]]
    x = float(EDGE)
    for colour, words in parts:
        space = 30 + 6.4 * len(words)
        if lines[-1] and x + space > width:
            lines.append([])
            x = EDGE
        lines[-1].append((colour, words))
        x += space
    return lines

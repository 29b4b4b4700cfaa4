"""Lines over a common axis: bytes over time, or seconds over links."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lazyfs.draw.svg import GREY, Sheet, ticks

HEIGHT, EDGE, LEFT, RIGHT = 260, 8, 62, 20
_BOTTOM = 34
_LINE = 18
_TICK = 110


@dataclass(frozen=True, slots=True)
class Line:
    """`points` from left to right; `spread` are (x, least, most); `end` is marked, where it is known."""

    name: str
    colour: str
    points: Sequence[tuple[float, float]]
    spread: Sequence[tuple[float, float, float]] = ()
    end: float | None = None


def draw(
    title: str,
    lines: Sequence[Line],
    y_words: Callable[[float], str],
    *,
    x_ticks: Sequence[tuple[float, str]] | None,
    width: int,
    themed: bool,
) -> str:
    """`x_ticks` are places and words; None: seconds from 0."""
    top = 14 + _LINE * len(lines)
    sheet = Sheet(width, HEIGHT + top, title)
    ends = [line.end for line in lines if line.end is not None]
    most_x = max([x for line in lines for x, _ in line.points] + ends + [1e-3])
    values = [y for line in lines for _, y in line.points] + [
        high for line in lines for _, _, high in line.spread
    ]
    most_y = max([*values, 1e-9])
    base = top + HEIGHT - _BOTTOM
    across, up = (width - LEFT - RIGHT) / most_x, (base - top - 8) / most_y
    for value in ticks(most_y, 4):
        sheet.line(LEFT, base - value * up, width - RIGHT, base - value * up)
        sheet.text(LEFT - 8, base - value * up + 4, y_words(value), anchor="end", colour=GREY)
    seconds = [(each, f"{each:g} s") for each in ticks(most_x, max(2, width // _TICK))]
    for place, words in seconds if x_ticks is None else x_ticks:
        x = LEFT + place * across
        sheet.line(x, top, x, base)
        anchor = "end" if x_ticks is not None and place == most_x else "middle"
        sheet.text(x, base + 18, words, anchor=anchor, colour=GREY)
    for number, line in enumerate(lines):
        sheet.legend(EDGE, 14 + _LINE * number, [(line.colour, line.name)])
        sheet.polyline([(LEFT + x * across, base - y * up) for x, y in line.points], line.colour)
        for x, low, high in line.spread:
            sheet.line(
                LEFT + x * across,
                base - low * up,
                LEFT + x * across,
                base - high * up,
                line.colour,
                width=2.5,
            )
            middle = next(y for place, y in line.points if place == x)
            sheet.marks([(LEFT + x * across - 3, base - middle * up - 3)], 6, line.colour)
        if line.end is not None:
            x = LEFT + line.end * across
            sheet.line(x, base, x, top, line.colour, width=1.2)
    return sheet.render(themed=themed)

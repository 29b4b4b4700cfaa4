"""Requests in the order in which they were made: from left to right when, from above one after the other."""

from collections.abc import Sequence
from dataclasses import dataclass

from lazyfs.draw.svg import GREY, INK, Sheet, byte_words, ticks

EDGE, RIGHT, TOP = 8, 16, 56
_LEAST, _MOST, _AIM = 1.6, 14.0, 320.0
"""Pixels of a row, and of all rows where they are many."""
_TICK = 110


@dataclass(frozen=True, slots=True)
class Request:
    """Seconds, bytes, and the colour of its kind."""

    began: float
    ended: float
    size: int
    colour: str


def draw(
    title: str,
    requests: Sequence[Request],
    kinds: Sequence[tuple[str, str]],
    ready: float,
    *,
    width: int,
    themed: bool,
) -> str:
    """`kinds` are (colour, name)."""
    row = min(max(_AIM / max(len(requests), 1), _LEAST), _MOST)
    height = round(TOP + row * len(requests) + 30)
    sheet = Sheet(width, height, title)
    total = sum(each.size for each in requests)
    sheet.text(EDGE, 18, f"{len(requests)} requests, {byte_words(total)}", colour=GREY)
    sheet.legend(EDGE, 38, list(kinds))
    last = max([each.ended for each in requests] + [ready, 1e-3])
    scale = (width - EDGE - RIGHT) / last
    bottom = height - 20
    for second in ticks(last, max(2, width // _TICK)):
        x = EDGE + second * scale
        sheet.line(x, TOP - 6, x, bottom)
        sheet.text(x, bottom + 14, f"{second:g} s", anchor="middle" if second else "start", colour=GREY)
    for number, each in enumerate(requests):
        length = max((each.ended - each.began) * scale, 1.5)
        sheet.rect(EDGE + each.began * scale, TOP + number * row, length, max(row - 0.5, 1.2), each.colour)
    x = EDGE + ready * scale
    sheet.line(x, TOP - 6, x, bottom, INK, width=1.5)
    sheet.flag(x, TOP - 8, f"ready {ready:.2f} s")
    return sheet.render(themed=themed)

"""A start as a picture: above, bytes fetched over time; below, what was fetched and read of each layer, and when."""

from collections.abc import Mapping, Sequence
from typing import Any

from lazyfs.draw.svg import BLUE, GREEN, GREY, INK, ORANGE, PALE, Sheet, byte_words, ticks

WIDTH = 960
EDGE, LEFT, RIGHT, TOP = 8, 72, 16, 92
CURVE_HEIGHT = 130
LANE_HEIGHT, LANE_GAP = 110, 28
MAX_READS_DRAWN = 4000
_TICK = 110
"""Pixels between them, or more."""
_LEGEND = [(BLUE, "fetched"), (GREEN, "read, was here"), (ORANGE, "read, had to wait")]


def draw(
    recorded: Mapping[str, Any],
    sizes: Mapping[str, int],
    began: float,
    ready: float | None,
    title: str,
    *,
    width: int = WIDTH,
    themed: bool = False,
) -> str:
    """`recorded` is the daemon's answer to `timeline`, `sizes` the device size of each layer's blob digest.

    Times are seconds on the clock of `time.monotonic`; `began` becomes 0, `ready` is marked where it is known.
    """
    fetched: Sequence[Mapping[str, Any]] = recorded["fetched"]
    reads: Sequence[Mapping[str, Any]] = recorded["reads"]
    moments = [event["ended"] for event in fetched] + [read["at"] for read in reads]
    last = max([*moments, ready or began, began + 0.001]) - began
    height = TOP + CURVE_HEIGHT + 50 + len(sizes) * (LANE_HEIGHT + LANE_GAP) + 20
    sheet = Sheet(width, height, title)
    sheet.text(EDGE, 20, title, size=15, bold=True)
    total = sum(event["stored"] for event in fetched)
    sheet.text(
        EDGE,
        39,
        f"{len(fetched)} fetches, {byte_words(total)}; {len(reads)} reads by the kernel",
        colour=GREY,
    )
    sheet.legend(EDGE, 60, _LEGEND)
    _draw_time_axis(sheet, last, height, None if ready is None else ready - began)
    _draw_curve(sheet, fetched, began, last)
    top = TOP + CURVE_HEIGHT + 40
    for blob, size in sizes.items():
        _draw_lane(sheet, top, blob, size, fetched, reads, began, last)
        top += LANE_HEIGHT + LANE_GAP
    return sheet.render(themed=themed)


def _x(sheet: Sheet, seconds: float, last: float) -> float:
    return LEFT + (sheet.width - LEFT - RIGHT) * seconds / last


def _draw_time_axis(sheet: Sheet, last: float, height: int, ready: float | None) -> None:
    bottom = height - 20
    for second in ticks(last, max(2, sheet.width // _TICK)):
        x = _x(sheet, second, last)
        sheet.line(x, TOP, x, bottom)
        sheet.text(x, bottom + 14, f"{second:g} s", anchor="middle", colour=GREY)
    if ready is not None:
        x = _x(sheet, ready, last)
        sheet.line(x, TOP - 6, x, bottom, INK, width=1.5)
        sheet.flag(x, TOP - 8, f"ready {ready:.2f} s")


def _draw_curve(sheet: Sheet, fetched: Sequence[Mapping[str, Any]], began: float, last: float) -> None:
    total = sum(event["stored"] for event in fetched)
    base = TOP + CURVE_HEIGHT
    for value in ticks(total, 4):
        y = base - CURVE_HEIGHT * value / max(total, 1)
        sheet.line(LEFT, y, sheet.width - RIGHT, y)
        sheet.text(LEFT - 8, y + 4, byte_words(value), anchor="end", colour=GREY)
    points = [(_x(sheet, 0, last), float(base))]
    so_far = 0
    for event in sorted(fetched, key=lambda event: float(event["ended"])):
        x = _x(sheet, event["ended"] - began, last)
        points.append((x, points[-1][1]))
        so_far += event["stored"]
        points.append((x, base - CURVE_HEIGHT * so_far / max(total, 1)))
    points.append((_x(sheet, last, last), points[-1][1]))
    sheet.polyline(points, BLUE)


def _draw_lane(
    sheet: Sheet,
    top: float,
    blob: str,
    size: int,
    fetched: Sequence[Mapping[str, Any]],
    reads: Sequence[Mapping[str, Any]],
    began: float,
    last: float,
) -> None:
    """One layer: up is the start of its device, right is later."""
    sheet.rect(LEFT, top, sheet.width - LEFT - RIGHT, LANE_HEIGHT, PALE, opacity=0.45)
    sheet.text(LEFT, top - 5, f"layer {blob.removeprefix('sha256:')[:12]}, {byte_words(size)}", colour=GREY)

    def y(offset: float) -> float:
        return top + LANE_HEIGHT * offset / max(size, 1)

    for event in fetched:
        if event["layer"] == blob:
            x = _x(sheet, event["began"] - began, last)
            width = max(_x(sheet, event["ended"] - began, last) - x, 2.5)
            sheet.rect(
                x, y(event["start"]), width, max(y(event["end"]) - y(event["start"]), 1.2), BLUE, opacity=0.75
            )
    mine = [read for read in reads if read["layer"] == blob]
    shown = mine[:: max(1, len(mine) // MAX_READS_DRAWN)]
    for waited, colour in ((False, GREEN), (True, ORANGE)):
        places = [
            (_x(sheet, read["at"] - began, last) - 1, y(read["offset"]) - 1)
            for read in shown
            if bool(read["waited"]) == waited
        ]
        sheet.marks(places, 2, colour)

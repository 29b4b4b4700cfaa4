"""Bars side by side: the same measure of several ways to do a thing."""

from collections.abc import Sequence
from dataclasses import dataclass

from lazyfs.draw.svg import BLUE, GREY, ORANGE, PALE, Sheet

COLOURS = (BLUE, ORANGE, GREY)
BAR, GAP, GROUP_GAP = 26, 8, 46
LEFT, RIGHT, TOP = 190, 110, 70


@dataclass(frozen=True, slots=True)
class Group:
    """One measure: its name, and for each way (in the order of `ways`) the value and how to write it."""

    name: str
    values: Sequence[tuple[float, str]]


def draw(title: str, subtitle: str, ways: Sequence[str], groups: Sequence[Group], width: int = 820) -> str:
    """Bars of one group share a scale of their own."""
    group_height = len(ways) * (BAR + GAP) + GROUP_GAP
    sheet = Sheet(width, TOP + len(groups) * group_height, title)
    sheet.text(24, 28, title, size=16, bold=True)
    sheet.text(24, 48, subtitle, colour=GREY)
    top = TOP
    for group in groups:
        sheet.text(24, top + 8, group.name, size=13, bold=True)
        largest = max(value for value, _ in group.values) or 1.0
        for row, (way, (value, words)) in enumerate(zip(ways, group.values, strict=True)):
            y = top + 18 + row * (BAR + GAP)
            length = (width - LEFT - RIGHT) * value / largest
            sheet.rect(LEFT, y, width - LEFT - RIGHT, BAR, PALE, opacity=0.4)
            sheet.rect(LEFT, y, max(length, 1.5), BAR, COLOURS[row % len(COLOURS)])
            sheet.text(LEFT - 10, y + 18, way, anchor="end")
            sheet.text(LEFT + length + 8, y + 18, words, bold=True)
        top += group_height
    return sheet.render()

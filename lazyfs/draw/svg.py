"""A sheet of SVG 1.1 to draw on, and the colours and axes that all pictures share.

The colours are those of Okabe and Ito, which people with any kind of colour vision can tell apart.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

BLUE = "#0072B2"
ORANGE = "#E69F00"
GREEN = "#009E73"
VERMILION = "#D55E00"
SKY = "#56B4E9"
PURPLE = "#CC79A7"
GREY = "#6b7280"
INK = "#1f2937"
PALE = "#e5e7eb"
THEME = {
    BLUE: "blue",
    ORANGE: "orange",
    GREEN: "green",
    VERMILION: "vermilion",
    SKY: "sky",
    PURPLE: "purple",
    GREY: "muted",
    INK: "ink",
    PALE: "pale",
}
"""What each colour is called in a page, whose style says what it is by day and by night."""


@dataclass(slots=True)
class Sheet:
    """Pixels from the upper left corner."""

    width: int
    height: int
    title: str
    _parts: list[str] = field(default_factory=list)

    def rect(
        self, x: float, y: float, width: float, height: float, colour: str, *, opacity: float = 1.0
    ) -> None:
        self._parts.append(
            f'<rect x="{x:.2f}" y="{y:.2f}" width="{max(width, 0):.2f}" height="{max(height, 0):.2f}" '
            f'fill="{colour}" fill-opacity="{opacity:g}"/>'
        )

    def line(
        self, x1: float, y1: float, x2: float, y2: float, colour: str = PALE, *, width: float = 1.0
    ) -> None:
        self._parts.append(
            f'<line x1="{x1:.2f}" y1="{y1:.2f}" x2="{x2:.2f}" y2="{y2:.2f}" '
            f'stroke="{colour}" stroke-width="{width:g}"/>'
        )

    def marks(self, points: Sequence[tuple[float, float]], size: float, colour: str) -> None:
        """Small squares, very many of them, in little text."""
        path = "".join(f"M{x:.1f} {y:.1f}h{size:g}v{size:g}h-{size:g}z" for x, y in points)
        if path:
            self._parts.append(f'<path d="{path}" fill="{colour}"/>')

    def polyline(self, points: list[tuple[float, float]], colour: str, *, width: float = 2.0) -> None:
        path = " ".join(f"{x:.2f},{y:.2f}" for x, y in points)
        self._parts.append(
            f'<polyline points="{path}" fill="none" stroke="{colour}" '
            f'stroke-width="{width:g}" stroke-linejoin="round"/>'
        )

    def text(
        self,
        x: float,
        y: float,
        text: str,
        *,
        size: int = 12,
        anchor: str = "start",
        colour: str = INK,
        bold: bool = False,
    ) -> None:
        weight = ' font-weight="600"' if bold else ""
        self._parts.append(
            f'<text x="{x:.2f}" y="{y:.2f}" font-size="{size}" text-anchor="{anchor}" fill="{colour}"{weight}>'
            f"{escape(text)}</text>"
        )

    def flag(self, x: float, y: float, words: str) -> None:
        """Words beside a line that stands at `x`: before it, or behind it where there is no room."""
        room = 7.2 * len(words) + 8
        self.text(
            *((x - 4, y) if x > room else (x + 4, y)), words, anchor="end" if x > room else "start", bold=True
        )

    def legend(self, x: float, y: float, entries: list[tuple[str, str]]) -> None:
        """(colour, words) side by side."""
        for colour, words in entries:
            self.rect(x, y - 9, 10, 10, colour)
            self.text(x + 15, y, words, colour=GREY)
            x += 30 + 6.4 * len(words)

    def render(self, *, themed: bool = False) -> str:
        """A picture by itself; `themed` for a page, with its colours, as wide as its place."""
        size = "" if themed else f'width="{self.width}" height="{self.height}" '
        paper = "" if themed else f'<rect width="{self.width}" height="{self.height}" fill="#ffffff"/>\n'
        body = "\n".join(self._parts)
        if themed:
            for colour, name in THEME.items():
                body = body.replace(f'"{colour}"', f'"var(--{name})"')
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} {self.height}" {size}'
            f'role="img" font-family="system-ui, -apple-system, Segoe UI, sans-serif">\n'
            f"<title>{escape(self.title)}</title>\n{paper}{body}\n</svg>\n"
        )


def escape(text: str) -> str:
    # xml.sax and html would do the same, after importing half a web client.
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def ticks(largest: float, about: int = 6) -> list[float]:
    """Round values from 0 to `largest`, about that many."""
    if largest <= 0:
        return [0.0]
    raw = largest / about
    magnitude = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * magnitude for factor in (1, 2, 5, 10) if factor * magnitude >= raw)
    return [step * index for index in range(int(largest / step + 1e-9) + 1)]


def byte_words(count: float) -> str:
    """Bytes for people, in powers of 1000 as storage and networks are sold."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"

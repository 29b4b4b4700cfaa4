"""Figures beside their bars: a Markdown table to read, JSON to keep."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Row:
    """One figure, and what it should be at most (or at least)."""

    measure: str
    value: float
    unit: str
    bar: float | None = None
    at_least: bool = False

    @property
    def met(self) -> bool:
        return self.bar is None or (self.value >= self.bar if self.at_least else self.value <= self.bar)


def markdown(rows: Sequence[Row]) -> str:
    lines = ["| measure | figure | bar | |", "|---|---|---|---|"]
    for row in rows:
        bar, verdict = "", ""
        if row.bar is not None:
            bar = f"{'≥' if row.at_least else '≤'} {_figure(row.bar, row.unit)}"
            verdict = "met" if row.met else "**missed**"
        lines.append(f"| {row.measure} | {_figure(row.value, row.unit)} | {bar} | {verdict} |")
    return "\n".join(lines)


def write_json(path: Path, results: Sequence[Any]) -> None:
    """Dataclasses as a JSON array."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([asdict(result) for result in results], indent=2) + "\n")


def _figure(value: float, unit: str) -> str:
    # Three digits, more only where they stand before the point.
    shown = f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return f"{shown} {unit}".rstrip()

"""Figures beside their bars: rows of a Markdown table to read, JSON to keep."""

import argparse
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lazyfs.errors import BadInputError

LEFT_OUT = "left out"
"""What the reason of a part begins with that was not measured, and did not fail."""
CACHE = Path(".cache/images")


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

    @property
    def goal(self) -> str:
        return "" if self.bar is None else f"{'≥' if self.at_least else '≤'} {shown(self.bar, self.unit)}"

    @property
    def figure(self) -> str:
        return shown(self.value, self.unit)

    @property
    def verdict(self) -> str:
        return "" if self.bar is None else "met" if self.met else "**missed**"


@dataclass(frozen=True, slots=True)
class Measured:
    """A part of a report: `failed` says why there is nothing, or not all of it. `load` was before it began."""

    when: str
    seconds: float
    load: float
    failed: str
    rows: list[Row]

    @classmethod
    def of_part(cls, file: Path, failed: str, when: str, seconds: float, load: float) -> "Measured":
        """Of the file that a part has written, if it came so far."""
        values: dict[str, Any] = {"failed": "it ended without a result", "rows": []}
        if file.exists():
            values = json.loads(file.read_text())
        rows = [Row(**each) for each in values["rows"]]
        return cls(when, seconds, load, failed or values["failed"], rows)


@dataclass(slots=True)
class Report:
    """All parts that were measured, by name."""

    parts: dict[str, Measured] = field(default_factory=dict)

    def row(self, measure: str) -> Row | None:
        return next(
            (row for part in self.parts.values() for row in part.rows if row.measure == measure), None
        )

    def write(self, file: Path) -> None:
        unfinished = file.with_name(f".{file.name}.new")
        unfinished.write_text(json.dumps(asdict(self), indent=1) + "\n")
        unfinished.replace(file)


def read_report(file: Path) -> Report:
    """BadInputError where it is none of ours."""
    try:
        parts = json.loads(file.read_text())["parts"]
        return Report(
            {
                name: Measured(**each | {"rows": [Row(**row) for row in each["rows"]]})
                for name, each in parts.items()
            }
        )
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise BadInputError(f"{file} holds no rows of `make bench`", hint="remove it") from error


def markdown(rows: Iterable[Row]) -> str:
    lines = ["| measure | figure | bar | |", "|---|---|---|---|"]
    lines += [f"| {row.measure} | {row.figure} | {row.goal} | {row.verdict} |" for row in rows]
    return "\n".join(lines)


def write_json(path: Path, results: Sequence[Any]) -> None:
    """Dataclasses as a JSON array."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([asdict(result) for result in results], indent=2) + "\n")


def shown(value: float, unit: str) -> str:
    # Three digits, more only where they stand before the point.
    words = f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return f"{words} {unit}".rstrip()


def parser(module: str, about: str | None) -> argparse.ArgumentParser:
    """Of a measurement as a program of its own: what all of them have to choose."""
    made = argparse.ArgumentParser(
        prog=f"python -m {module}",
        description=about,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--cache", type=Path, default=CACHE, help="of input images (default: %(default)s)")
    made.add_argument("--json", type=Path, help="write the figures to this file as well")
    return made


def conclude(arguments: argparse.Namespace, found: Sequence[Any], rows: Iterable[Row]) -> int:
    """What a measurement as a program ends with: its table, and its figures where they shall be kept."""
    print(markdown(rows))
    if arguments.json:
        write_json(arguments.json, found)
    return 0

"""What was fuzzed so far, over all runs: `.cache/fuzz.json`, for each parser as long as its source is what it was."""

import json
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from .parser import Parser, version

LEDGER = Path(__file__).parents[2] / ".cache" / "fuzz.json"


@dataclass(frozen=True, slots=True)
class Count:
    """`batches` are numbered from 0: the next one has that number. `slowest` is in seconds of the processor."""

    version: str = ""
    batches: int = 0
    inputs: int = 0
    taken: int = 0
    findings: int = 0
    slowest: float = 0.0
    seconds: float = 0.0

    def plus(self, other: "Count") -> "Count":
        return replace(
            self,
            batches=self.batches + other.batches,
            inputs=self.inputs + other.inputs,
            taken=self.taken + other.taken,
            findings=self.findings + other.findings,
            slowest=max(self.slowest, other.slowest),
            seconds=self.seconds + other.seconds,
        )


class Ledger:
    """Written after each batch: what is broken off loses no more than that."""

    def __init__(self, path: Path = LEDGER) -> None:
        self._path = path
        self._counts: dict[str, Count] = {}
        with suppress(FileNotFoundError, ValueError, TypeError):
            self._counts = {name: Count(**each) for name, each in json.loads(path.read_bytes()).items()}

    def count(self, parser: Parser) -> Count:
        found, now = self._counts.get(parser.name), version(parser.code)
        return found if found is not None and found.version == now else Count(now)

    def add(self, parser: Parser, more: Count) -> None:
        self._counts[parser.name] = self.count(parser).plus(more)
        self._path.parent.mkdir(exist_ok=True)
        new = self._path.with_suffix(".new")
        new.write_text(json.dumps({name: asdict(each) for name, each in self._counts.items()}, indent=1))
        new.replace(self._path)

    def table(self, parsers: list[Parser]) -> str:
        """As docs/faults.md has it."""
        lines = ["| parser | inputs | taken | refused | findings | slowest |", "|---|---|---|---|---|---|"]
        for parser in parsers:
            each = self.count(parser)
            refused = each.inputs - each.taken - each.findings
            lines.append(
                f"| {parser.name} | {each.inputs:,} | {each.taken:,} | {refused:,} | {each.findings} | "
                f"{each.slowest * 1000:.0f} ms |"
            )
        return "\n".join(lines)

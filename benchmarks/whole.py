"""The report of all that `make bench` has measured: one page that needs nothing else, and the same as Markdown."""

import os
import platform
from collections.abc import Iterator, Mapping
from html import escape
from pathlib import Path

from benchmarks import bars, readme
from benchmarks.parts import STARTS, Part
from benchmarks.report import LEFT_OUT, Report, markdown
from lazyfs.bench.page import table, write_page
from lazyfs.bench.results import Results, read_results
from lazyfs.bench.text import markdown as starts_markdown

_ROOT = Path(__file__).parent.parent
DEFAULT = _ROOT / "benchmarks" / "results"


def write_whole(report: Report, parts: Mapping[str, Part], directory: Path) -> str:
    """Writes report.md, report.html and, for the project's own results, what README and docs show; the bars' table."""
    starts = directory / "starts.json"
    results = read_results(starts) if starts.exists() else None
    (directory / "report.md").write_text("\n".join(_lines(report, parts, results)) + "\n")
    if results is not None:
        write_page(results, directory / "report.html", "".join(_html(report, parts, results)))
    if directory.resolve() == DEFAULT:
        readme.write(_ROOT / "docs" / "benchmarks.md", "bars", f"{when(report)}\n\n{bars.markdown(report)}")
        if results is not None:
            readme.write(_ROOT / "README.md", "figures", readme.table(results))
    return bars.markdown(report)


def when(report: Report) -> str:
    """One line: of when and of what machine the figures are, and how much else it did."""
    load = max(part.load for part in report.parts.values())
    last = max(part.when for part in report.parts.values())
    seconds = sum(part.seconds for part in report.parts.values())
    return (
        f"{last}, {os.cpu_count()} cores, Linux {platform.release()}, Python {platform.python_version()}; "
        f"{len(report.parts)} parts in {seconds / 60:.0f} minutes, images built before; "
        f"load average before a part at most {load:.1f}"
    )


def table_of_plan(parts: Mapping[str, Part]) -> str:
    lines = [f"{part.seconds:5} s  {name:20}{part.about}" for name, part in parts.items()]
    return "\n".join([*lines, f"{sum(part.seconds for part in parts.values()):5} s"])


def _lines(report: Report, parts: Mapping[str, Part], results: Results | None) -> Iterator[str]:
    yield "# What was measured"
    yield ""
    yield when(report)
    yield ""
    yield "## Goals and figures"
    yield ""
    yield bars.markdown(report)
    yield ""
    yield "## Parts"
    yield ""
    yield "| part | planned | took | load before | |"
    yield "|---|---|---|---|---|"
    for cells in _parts(report, parts, results):
        yield f"| {' | '.join(cells)} |"
    for name, part in report.parts.items():
        if part.rows:
            yield f"\n## {name}: {parts[name].about}\n" if name in parts else f"\n## {name}\n"
            yield markdown(part.rows)
    if results is not None:
        yield "\n## Cold starts\n"
        yield starts_markdown(results)


def _parts(report: Report, parts: Mapping[str, Part], results: Results | None) -> Iterator[tuple[str, ...]]:
    """What was planned, what it took, and what is missing."""
    for name, part in parts.items():
        done = report.parts.get(name)
        if done is None:
            yield name, f"{part.seconds} s", "", "", "not measured"
            continue
        failures = [done.failed] if done.failed else []
        failures += results.failures if results is not None and name == STARTS else []
        told = [f"**failed**: {'; '.join(failures)}"] if failures else []
        if done.failed.startswith(LEFT_OUT):
            told = [done.failed]
        elif part.left_out:
            told.append(f"{LEFT_OUT}: {part.left_out}")
        yield name, f"{part.seconds} s", f"{done.seconds:.0f} s", f"{done.load:.1f}", "; ".join(told)


def _html(report: Report, parts: Mapping[str, Part], results: Results) -> Iterator[str]:
    """What stands before the pictures of the starts."""
    yield "<h1>What was measured</h1>"
    yield "<h2>Goals and figures</h2>"
    yield f'<p class="about">{escape(when(report))}</p>'
    for topic, rows in bars.tables(report):
        yield f"<h3>{escape(topic)}</h3>"
        yield table(bars.HEAD, [[_plain(cell) for cell in row] for row in rows])
    yield "<h2>Parts of the measurement</h2>"
    yield table(
        ("part", "planned", "took", "load before", ""),
        [[_plain(cell) for cell in row] for row in _parts(report, parts, results)],
    )
    for name, part in report.parts.items():
        if part.rows:
            yield f"<details><summary>{escape(name)}: every figure</summary>"
            yield table(
                ("measure", "figure", "goal", ""),
                [[row.measure, row.figure, row.goal, _plain(row.verdict)] for row in part.rows],
            )
            yield "</details>"


def _plain(cell: str) -> str:
    return cell.replace("**", "").replace("`", "")

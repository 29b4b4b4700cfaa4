"""Four figures of the suite for the README, each with the command that repeats it.

    python -m benchmarks.readme [--results benchmarks/results/starts.json]

They are told only where the ratio is clear of the noise; else the line says so. `make bench` writes them into the
README, and the table of bars into docs/benchmarks.md, between marks.
"""

import argparse
import statistics
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.workloads import SUITE
from lazyfs.bench.figures import paired
from lazyfs.bench.results import Results, read_results
from lazyfs.errors import BadInputError, LazyfsError


@dataclass(frozen=True, slots=True)
class Figure:
    workload: str
    link: str
    ours: str
    theirs: str = "overlayfs"


FIGURES = (
    Figure("numpy", "1gbit,2ms", "lazyfs-pack"),
    Figure("numpy", "100mbit,20ms", "lazyfs-pack"),
    Figure("nginx", "1gbit,2ms", "lazyfs"),
    Figure("stack", "1gbit,2ms", "lazyfs-pack"),
)


def table(results: Results) -> str:
    return "\n".join(_lines(results))


def _lines(results: Results) -> Iterator[str]:
    yield "| start | lazyfs | containerd, overlayfs | of it | bytes | command |"
    yield "|---|---|---|---|---|---|"
    for figure in FIGURES:
        case = (figure.workload, figure.link)
        ours, theirs = results.of(*case, figure.ours), results.of(*case, figure.theirs)
        ratio = paired(results, *case, figure.ours, figure.theirs)
        command = f"`python -m benchmarks.suite --workloads {figure.workload} --links {figure.link}`"
        what = f"{SUITE[figure.workload].about}, {figure.link}"
        if ratio is None:
            yield f"| {what} | not measured | | | | {command} |"
            continue
        seconds = [statistics.median(start.seconds for start in starts) for starts in (ours, theirs)]
        share = statistics.median(start.down for start in ours) / statistics.median(
            start.down for start in theirs
        )
        pack = ", launch pack" if figure.ours == "lazyfs-pack" else ""
        yield (
            f"| {what} | {seconds[0]:.2f} s{pack} | {seconds[1]:.2f} s | "
            f"{f'{ratio.median:.2f}' if ratio.is_clear else ratio} | {share:.0%} | {command} |"
        )


def write(file: Path, name: str, text: str) -> None:
    """Between the marks of this name, instead of what is there."""
    begin, end = f"<!-- {name}: written by make bench -->\n", f"<!-- end of {name} -->\n"
    before, found, rest = file.read_text().partition(begin)
    _, ended, after = rest.partition(end)
    if not (found and ended):
        raise BadInputError(f"{file} has no place for {name}", hint=f"{begin.strip()} and {end.strip()}")
    file.write_text(f"{before}{begin}\n{text.strip()}\n\n{end}{after}")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.readme", description=__doc__)
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results/starts.json"))
    arguments = parser.parse_args()
    try:
        print(table(read_results(arguments.results)))
    except LazyfsError as error:
        print(f"{error.message}: `make bench` measures it", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())

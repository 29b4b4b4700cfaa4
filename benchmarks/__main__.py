"""`make bench`: every measurement in turn, and one report. Takes root, and 25 minutes on 2 quiet cores.

    python -m benchmarks [--only NAME…] [--resume] [--plan] [--minutes 25] [--cache DIR] [--results DIR]

Input images, and programs of rivals, are built before the clock starts, once, and kept. Then each part runs in
namespaces of its own, and is ended when it takes three times what is planned (`benchmarks/parts.py`): one that fails is
told in the report, and the others go on; what does not fit into --minutes any more is left out, and told. Writes the
figures of each part as JSON, and report.html, report.md and rows.json of all. --only measures some parts anew and keeps
what is there of the others; --resume goes on with a run that was ended, and tries again what failed or was left out;
--plan prints the plan.
"""

import argparse
import os
import signal
import sys
import time
from pathlib import Path

from benchmarks.bars import MINUTES
from benchmarks.parts import PARTS, ROWS
from benchmarks.prepare import prepare
from benchmarks.report import LEFT_OUT, Measured, Report, read_report
from benchmarks.whole import table_of_plan, write_whole
from lazyfs.bench.enclosure import run_enclosed, scratch
from lazyfs.errors import LazyfsError, NodeError

_MOST = 3
_LEAST_SECONDS = 120
_SCRATCH = Path("/var/tmp")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--cache", type=Path, default=Path(".cache/images"), help="default: %(default)s")
    parser.add_argument(
        "--results", type=Path, default=Path("benchmarks/results"), help="default: %(default)s"
    )
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), metavar="NAME")
    parser.add_argument("--resume", action="store_true", help="keep what a run that was ended has measured")
    parser.add_argument("--plan", action="store_true", help="print what is measured, and in how many seconds")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="for all parts (default: %(default)s)")
    arguments = parser.parse_args()
    if arguments.plan:
        print(table_of_plan(PARTS))
        return 0
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return _measure(arguments)
    except LazyfsError as error:
        print(f"lazyfs: {error.message}" + (f"\n  hint: {error.hint}" if error.hint else ""), file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print(
            "interrupted: what was measured is kept, --resume goes on; nothing else is left", file=sys.stderr
        )
        return 130


def _measure(arguments: argparse.Namespace) -> int:
    names: list[str] = arguments.only
    file = arguments.results / "rows.json"
    report = read_report(file) if file.exists() else Report()
    if not arguments.resume and len(names) == len(PARTS):
        report = Report()
    if os.geteuid() != 0:
        raise NodeError("measuring needs root", hint="it empties caches, mounts, and runs containers")
    prepare(arguments.cache)
    ends = time.monotonic() + arguments.minutes * 60
    for name in names:
        before = report.parts.get(name)
        if arguments.resume and before is not None and not before.failed:
            continue
        print(f"{name} … ({PARTS[name].seconds} s)", file=sys.stderr, flush=True)
        if time.monotonic() + PARTS[name].seconds > ends:
            left = f"{LEFT_OUT}: it would take longer than the time that is left; --resume measures it"
            report.parts[name] = Measured(_now(), 0.0, os.getloadavg()[0], left, [])
        else:
            report.parts[name] = _part(name, arguments.cache, arguments.results)
        report.write(file)
        done = report.parts[name]
        print(f"{name}: {done.failed or 'done'}, {done.seconds:.0f} s", file=sys.stderr, flush=True)
    print(write_whole(report, PARTS, arguments.results))
    return 1 if any(each.failed for each in report.parts.values()) else 0


def _part(name: str, cache: Path, results: Path) -> Measured:
    results.mkdir(parents=True, exist_ok=True)
    began, load, when = time.monotonic(), os.getloadavg()[0], _now()
    with scratch(_SCRATCH) as directory:
        os.environ["TMPDIR"] = str(directory)
        limit = max(_MOST * PARTS[name].seconds, _LEAST_SECONDS)
        failed = ""
        try:
            run_enclosed("benchmarks.parts", [name, cache.absolute(), results.absolute()], limit)
        except NodeError as error:
            failed = error.message
        finally:
            del os.environ["TMPDIR"]
        seconds = time.monotonic() - began
        return Measured.of_part(directory / ROWS, failed, when, seconds, load)


def _now() -> str:
    return time.strftime("%Y-%m-%d %H:%M")


if __name__ == "__main__":
    sys.exit(main())

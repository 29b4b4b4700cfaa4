"""Feed parsers what strangers might write, and count it: `python -m tests.fuzz [--inputs 1000000] [--only tar]`.

Inputs come in batches, each of which is one seed: another run goes on with the next, until a parser has had as many
as are asked for, and begins anew when the parser's source has changed (`ledger`). A process is of bounded memory; an
input has a second. What a parser does not take or refuse by a `LazyfsError` is kept below
tests/fuzz/corpus/<parser>/, which the tests read again.
"""

import argparse
import logging
import multiprocessing
import resource
import signal
import sys
import tempfile
import time
import traceback
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from random import Random
from tempfile import TemporaryDirectory

from lazyfs.errors import LazyfsError

from .corpus import keep
from .ledger import Count, Ledger
from .parser import Parser
from .parsers import PARSERS

BATCH = 5000
MEMORY = 3 << 30
SECONDS = 1.0
SHOWN = 5
"""Lines of a traceback."""
_known: set[tuple[tuple[str, int | None], ...]] = set()
"""The findings of this process, one input for each."""
_BY_NAME = {parser.name: parser for parser in PARSERS}


class TooSlowError(Exception):
    pass


def main() -> int:
    arguments = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    arguments.add_argument("--inputs", type=int, default=1_000_000, help="for each parser, over all runs")
    arguments.add_argument("--seconds", type=float, default=float("inf"), help="at most, of this run")
    arguments.add_argument("--jobs", type=int, default=1, help="processes")
    arguments.add_argument("--only", default="", help="parsers whose names begin so")
    arguments.add_argument("--table", action="store_true", help="show what was counted, and do nothing")
    asked = arguments.parse_args()
    parsers = [parser for parser in PARSERS if parser.name.startswith(asked.only)]
    ledger = Ledger()
    if not asked.table:
        with TemporaryDirectory(
            prefix="lazyfs-fuzz-"
        ) as tempfile.tempdir:  # of processes that end without a word
            _run(ledger, parsers, asked.inputs, time.monotonic() + asked.seconds, asked.jobs)
    sys.stdout.write(f"{ledger.table(parsers)}\n")
    return 1 if any(ledger.count(parser).findings for parser in parsers) else 0


def _run(ledger: Ledger, parsers: list[Parser], inputs: int, ends: float, jobs: int) -> None:
    """Those that have had least come first."""
    left = {parser.name: ledger.count(parser).batches for parser in parsers}
    running: dict[Future[Count], Parser] = {}
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(jobs, context, initializer=_bound) as pool:
        while True:
            wanted = [name for name, batches in left.items() if batches * BATCH < inputs]
            while wanted and len(running) < jobs and time.monotonic() < ends:
                name = min(wanted, key=left.__getitem__)
                running[pool.submit(fuzz, name, left[name])] = _BY_NAME[name]
                left[name] += 1
                wanted = [name for name, batches in left.items() if batches * BATCH < inputs]
            if not running:
                return
            for done in wait(running, return_when=FIRST_COMPLETED).done:
                ledger.add(running.pop(done), done.result())


def _bound() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    signal.signal(signal.SIGALRM, _too_slow)
    logging.disable()


def fuzz(name: str, batch: int) -> Count:
    """Feed a parser one batch."""
    parser = _BY_NAME[name]
    rng = Random(f"{batch} {name}")
    begun = time.monotonic()
    taken = found = 0
    slowest = 0.0
    for _ in range(BATCH):
        data = parser.make(rng)
        before = time.process_time()
        signal.setitimer(signal.ITIMER_REAL, 30 * SECONDS)
        try:
            parser.take(data)
            taken += 1
        except LazyfsError:
            pass
        except Exception as error:  # noqa: BLE001 - what fuzzing is for
            found += 1
            where = tuple(
                (frame.filename, frame.lineno) for frame in traceback.extract_tb(error.__traceback__)
            )
            if where not in _known:
                _known.add(where)
                sys.stdout.write(f"{keep(name, data)}\n{traceback.format_exc(-SHOWN)}\n")
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        took = time.process_time() - before
        if took > SECONDS:
            found += 1
            sys.stdout.write(f"{keep(name, data)}: {took:.1f} s\n")
        slowest = max(slowest, took)
    sys.stdout.flush()
    return Count("", 1, BATCH, taken, found, slowest, time.monotonic() - begun)


def _too_slow(*_: object) -> None:
    raise TooSlowError


if __name__ == "__main__":
    sys.exit(main())

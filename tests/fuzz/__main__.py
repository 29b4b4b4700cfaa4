"""Feed parsers what strangers might write, and count it: `python -m tests.fuzz --inputs 1000000 [--only tar]`.

One process, of bounded memory; an input has a second. What a parser does not take or refuse by a `LazyfsError` is
kept below tests/fuzz/corpus/<parser>/, which the tests read again. Inputs come of a seed: the same run finds the same.
"""

import argparse
import resource
import signal
import sys
import time
import traceback
from random import Random

from lazyfs.errors import LazyfsError

from .corpus import keep
from .parsers import PARSERS, Parser

MEMORY = 3 << 30
SECONDS = 1.0
SHOWN = 5


class TooSlowError(Exception):
    pass


def main() -> int:
    arguments = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    arguments.add_argument("--inputs", type=int, default=1_000_000, help="for each parser")
    arguments.add_argument("--seconds", type=float, default=float("inf"), help="at most for each parser")
    arguments.add_argument("--seed", type=int, default=1)
    arguments.add_argument("--only", help="parsers whose names begin so")
    asked = arguments.parse_args()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    signal.signal(signal.SIGALRM, _too_slow)
    found = 0
    for parser in PARSERS:
        if parser.name.startswith(asked.only or ""):
            found += fuzz(parser, asked.inputs, asked.seconds, asked.seed)
    return 1 if found else 0


def fuzz(parser: Parser, inputs: int, seconds: float, seed: int) -> int:
    rng = Random(f"{seed} {parser.name}")
    begun = time.monotonic()
    made = taken = found = 0
    slowest = 0.0
    while made < inputs and time.monotonic() - begun < seconds:
        data = parser.make(rng)
        made += 1
        before = time.process_time()
        signal.setitimer(signal.ITIMER_REAL, 30 * SECONDS)
        try:
            parser.take(data)
            taken += 1
        except LazyfsError:
            pass
        except Exception:  # noqa: BLE001 - what fuzzing is for
            found += 1
            path = keep(parser.name, data)
            if found <= SHOWN:
                sys.stdout.write(f"{path}\n{traceback.format_exc()}\n")
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        took = time.process_time() - before
        if took > SECONDS:
            found += 1
            sys.stdout.write(f"{keep(parser.name, data)}: {took:.1f} s\n")
        slowest = max(slowest, took)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    sys.stdout.write(
        f"{parser.name}: {made} inputs, {taken} taken, {made - taken - found} refused, {found} findings; "
        f"slowest {slowest * 1000:.0f} ms, {peak} MiB, {time.monotonic() - begun:.0f} s\n"
    )
    sys.stdout.flush()
    return found


def _too_slow(*_: object) -> None:
    raise TooSlowError


if __name__ == "__main__":
    sys.exit(main())

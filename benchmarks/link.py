"""The simulated link, by hand.

python -m benchmarks.link 1gbit,2ms            proves itself: a download through it, and a round trip
python -m benchmarks.link 1gbit,2ms HOST:PORT  stands before that server until it is interrupted
"""

import argparse
import sys
from collections.abc import Sequence
from contextlib import suppress

from benchmarks.report import Row
from lazyfs.bench.link import FAR, FAST, MIDDLING, Counts, Link, LinkSpec, parse_link
from lazyfs.bench.link_proof import Proof, prove
from lazyfs.bench.link_proxy import serve

__all__ = ["FAR", "FAST", "MIDDLING", "Counts", "Link", "LinkSpec", "Proof", "parse_link", "prove"]


def rows(proofs: Sequence[Proof]) -> list[Row]:
    made = []
    for proof in proofs:
        rates = (proof.rate, proof.parallel_rate)
        off = max(abs(rate / proof.spec.rate - 1) for rate in rates)
        late = abs(proof.round_trip / proof.spec.round_trip - 1)
        made += [
            Row(f"link {proof.spec.name}: a download is off its rate by", off * 100, "%", 3),
            Row(f"link {proof.spec.name}: its round trip is off by", late * 100, "%", 10),
        ]
    return made


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.link", description=__doc__)
    parser.add_argument("link", type=parse_link, help="RATE,ROUND-TRIP, for example 100mbit,20ms")
    parser.add_argument("target", nargs="?", help="HOST:PORT of the server; without it the link is measured")
    arguments = parser.parse_args()
    if arguments.target:
        with suppress(KeyboardInterrupt):
            serve(arguments.link, arguments.target)
        return 0
    proof = prove(arguments.link)
    print(f"one connection     {proof.rate * 8 / 1e6:9.1f} Mbit/s  {proof.rate / proof.spec.rate:6.3f}")
    print(
        f"eight connections  {proof.parallel_rate * 8 / 1e6:9.1f} Mbit/s  {proof.parallel_rate / proof.spec.rate:6.3f}"
    )
    print(f"CPU of the proxy   {proof.cpu * 100:9.1f} %")
    print(
        f"round trip         {proof.round_trip * 1e3:9.2f} ms      {proof.round_trip / proof.spec.round_trip:6.3f}"
    )
    print(f"connect and ask    {proof.connect * 1e3:9.2f} ms")
    return 0


if __name__ == "__main__":
    sys.exit(main())

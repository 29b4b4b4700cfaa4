"""The measurement itself, in an enclosure: `python -m lazyfs.bench.inside PLAN`.

Every round has each way once, in an order that the seed gives, so that what else the machine does meets all alike, and
ways are compared round by round. The results are written after each round: what was measured stays when it is ended.
"""

import random
import sys
from functools import partial
from pathlib import Path

from lazyfs.bench import subjects
from lazyfs.bench.cold import in_peace
from lazyfs.bench.engine import engine_version
from lazyfs.bench.link import LinkSpec, parse_link
from lazyfs.bench.link_proof import prove
from lazyfs.bench.plan import Plan, Subject
from lazyfs.bench.registry import serve_layout
from lazyfs.bench.results import Measured, Results, this_machine, trace_key
from lazyfs.bench.starts import REPOSITORY, Served, Trace, measure
from lazyfs.bench.ways import PACKED
from lazyfs.errors import LazyfsError

_PROOFS = 5
_MOST_FAILED = 3
"""Starts of an image, then it is left: one that fails is told, and the others of its round still count."""
MOST_OFF = 0.03
"""Of its rate, and of its round trip, that a link may be off."""
WAKING = 100e-6
"""Seconds of a round trip that are not counted: in which the proxy, who answers and who asks are woken."""


def run(plan: Plan) -> Results:
    results = Results(this_machine(engine_version()), plan.seed, plan.runs)
    links = [parse_link(text) for text in plan.links]
    results.links = [_proved(spec, plan.proof_seconds, results) for spec in links if spec.round_trip]
    for subject in plan.subjects:
        try:
            _measure_image(plan, subject, links, results)
        except LazyfsError as error:
            _note_failure(results, subject.name, error)
        results.write(plan.output)
    return results


def _measure_image(plan: Plan, subject: Subject, links: list[LinkSpec], results: Results) -> None:
    tags = list(dict.fromkeys(way.tag for way in plan.ways))
    if PACKED in tags:
        _tell(f"{subject.name}: recording a start for its launch pack")
        subjects.add_pack(subject, plan.scratch)
    results.images[subject.name] = subjects.describe(subject.layout, tags)
    traces: dict[tuple[str, str, int], Trace] = {}
    failed = 0
    order = random.Random(f"{plan.seed} {subject.name}")
    with serve_layout(subject.layout, REPOSITORY) as registry:
        served = Served(
            subject.name,
            registry,
            subjects.documents(subject.layout, tags),
            {tag: subjects.blobs(subject.layout, tag) for tag in tags},
            subject.ready,
            subject.words,
            subject.env,
            subject.patience,
        )
        for number in range(plan.runs):
            turns = [(spec, way) for spec in links for way in plan.ways]
            order.shuffle(turns)
            for place, (spec, way) in enumerate(turns):
                what = f"{subject.name}, {spec.name}, {way.name}, {number + 1} of {plan.runs}"
                try:
                    start, trace = in_peace(
                        partial(measure, plan.scratch, served, spec, way, (number, place)),
                        lambda words, what=what: _tell(f"{what}: {words}"),  # type: ignore[misc]
                    )
                except LazyfsError as error:
                    failed += 1
                    if failed >= _MOST_FAILED:
                        raise
                    _note_failure(results, what, error)
                    continue
                results.starts.append(start)
                traces[spec.name, way.name, number] = trace
                _tell(f"{what}: {start.seconds:.2f} s, {start.down / 1e6:.1f} MB")
            _keep_traces(results, subject.name, traces)
            results.write(plan.output)


def _note_failure(results: Results, what: str, error: LazyfsError) -> None:
    results.failures.append(f"{what}: {error.message}")
    _tell(f"{what}: {error.message}" + (f" ({error.hint})" if error.hint else ""))


def _keep_traces(results: Results, image: str, traces: dict[tuple[str, str, int], Trace]) -> None:
    for link, way in dict.fromkeys((link, way) for link, way, _ in traces):
        starts = sorted(results.of(image, link, way), key=lambda start: start.seconds)
        middle = starts[(len(starts) - 1) // 2]
        results.traces[trace_key(image, link, way)] = traces[link, way, middle.round]


def _proved(spec: LinkSpec, seconds: float, results: Results) -> Measured:
    """The best of a few tries: what else runs on the machine may be in the way of one."""
    tries: list[Measured] = []
    while len(tries) < _PROOFS and min((off(each, spec) for each in tries), default=1.0) > MOST_OFF:
        proof = prove(spec, seconds)
        rates = (proof.rate / spec.rate, proof.parallel_rate / spec.rate)
        tries.append(Measured(spec.name, min(rates), proof.round_trip / spec.round_trip))
    best = min(tries, key=lambda each: off(each, spec))
    _tell(f"link {spec.name}: {best.rate:.1%} of its rate, {best.round_trip:.1%} of its round trip")
    if off(best, spec) > MOST_OFF:
        results.failures.append(
            f"link {spec.name} is off by {off(best, spec):.0%}: the machine is too busy, or too slow for it"
        )
    return best


def off(measured: Measured, spec: LinkSpec) -> float:
    """The part of its rate, or of its round trip beyond `WAKING`, by which a link is not what its name says."""
    late = abs(measured.round_trip - 1) - WAKING / spec.round_trip
    return max(abs(measured.rate - 1), late)


def _tell(words: str) -> None:
    sys.stderr.write(f"{words}\n")
    sys.stderr.flush()


def main() -> int:
    try:
        plan = Plan.read(Path(sys.argv[1]))
        results = run(plan)
    except LazyfsError as error:
        _tell(f"lazyfs: {error.message}" + (f"\n  hint: {error.hint}" if error.hint else ""))
        return error.exit_code
    return 1 if results.failures else 0


if __name__ == "__main__":
    sys.exit(main())

"""What became slower between two measurements.

Two measurements met a machine in two states, so seconds are not compared with seconds: they are held against the way
that is not ours of the same round, and these ratios are compared. Counts are compared as they are.
"""

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

from lazyfs.bench.figures import Ratio, paired, ratio
from lazyfs.bench.results import Results
from lazyfs.bench.starts import Start
from lazyfs.errors import UsageError


class Verdict(StrEnum):
    SLOWER = "slower"
    MORE = "more"
    FASTER = "faster"
    LESS = "less"
    SAME = "the same"
    NOISE = "within the noise"
    FEW = "too few runs"

    @property
    def is_bad(self) -> bool:
        return self in (Verdict.SLOWER, Verdict.MORE)


@dataclass(frozen=True, slots=True)
class Change:
    """`measure` of one image, link and way: what it was and is, the new one of the old one's, and what that means."""

    image: str
    link: str
    way: str
    measure: str
    old: float
    new: float
    factor: float
    verdict: Verdict


_COUNTS: tuple[tuple[str, Callable[[Start], float]], ...] = (
    ("bytes fetched", lambda start: start.down),
    ("requests", lambda start: start.requests),
    ("reads by the kernel", lambda start: start.device_reads),
)


def compare(old: Results, new: Results, threshold: float) -> list[Change]:
    """`threshold` is the part by which more is too much. UsageError where the two have nothing in common."""
    found = [
        change
        for image in old.image_names
        for link in old.link_names
        for way in old.way_names
        if old.of(image, link, way) and new.of(image, link, way)
        for change in _of_way(old, new, (image, link, way), threshold)
    ]
    if not found:
        raise UsageError(
            "the two have no start of lazyfs in common",
            hint="measure the same images over the same links by the same ways",
        )
    return found


def _of_way(old: Results, new: Results, case: tuple[str, str, str], threshold: float) -> Iterator[Change]:
    image, link, way = case
    if not way.startswith("lazyfs"):
        return
    yield _seconds(old, new, case, threshold)
    for name, count in _COUNTS:
        before, after = (
            statistics.median(map(count, results.of(image, link, way))) for results in (old, new)
        )
        factor = after / before if before else (1.0 if not after else float("inf"))
        verdict = (
            Verdict.MORE
            if factor > 1 + threshold
            else Verdict.LESS
            if factor < 1 - threshold
            else Verdict.SAME
        )
        yield Change(*case, name, before, after, factor, verdict)


def _seconds(old: Results, new: Results, case: tuple[str, str, str], threshold: float) -> Change:
    image, link, way = case
    for theirs in old.way_names:
        if theirs.startswith("lazyfs"):
            continue
        before, after = (paired(results, image, link, way, theirs) for results in (old, new))
        if before is not None and after is not None:
            factor = after.median / before.median
            verdict = _verdict(before, after, factor, threshold)
            return Change(
                *case, f"time to ready, of {theirs}'s", before.median, after.median, factor, verdict
            )
    then, now = ([start.seconds for start in results.of(image, link, way)] for results in (old, new))
    return _without_reference(case, then, now, threshold)


def _without_reference(
    case: tuple[str, str, str], old: Sequence[float], new: Sequence[float], threshold: float
) -> Change:
    """Round by round with the other measurement's; what else the machine did then and now is part of it."""
    pairs = min(len(old), len(new))
    found = ratio(new[:pairs], old[:pairs])
    one = Ratio(1.0, 1.0, 1.0, found.confidence, found.pairs)
    before, after = statistics.median(old), statistics.median(new)
    return Change(
        *case, "time to ready, s", before, after, found.median, _verdict(one, found, found.median, threshold)
    )


def _verdict(old: Ratio, new: Ratio, factor: float, threshold: float) -> Verdict:
    if not (old.is_sure and new.is_sure):
        return Verdict.FEW
    if factor > 1 + threshold:
        return Verdict.SLOWER if new.low > old.high else Verdict.NOISE
    if factor < 1 - threshold:
        return Verdict.FASTER if new.high < old.low else Verdict.NOISE
    return Verdict.SAME


def table(changes: Sequence[Change]) -> str:
    """Markdown; what is worse stands out."""
    lines = ["| image, link, way | measure | old | new | new of old | |", "|---|---|---|---|---|---|"]
    for each in changes:
        case = f"{each.image}, {each.link}, {each.way}"
        verdict = f"**{each.verdict}**" if each.verdict.is_bad else each.verdict
        lines.append(
            f"| {case} | {each.measure} | {_figure(each.old)} | {_figure(each.new)} | {each.factor:.2f} | {verdict} |"
        )
    return "\n".join(lines)


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"

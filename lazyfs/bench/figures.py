"""What figures say, and when they say nothing: medians with their spread, and ratios of pairs.

Two ways are compared round by round, since what else a machine does meets both of a round alike. Of n ratios the
median lies between the k-th smallest and the k-th largest with a probability that no distribution is assumed for
(order statistics; of 5 ratios between the smallest and the largest: 94 %). Where 1 lies between those two, the
difference is not larger than the noise, and nobody should read a ratio.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from lazyfs.bench.results import Results
from lazyfs.bench.starts import PHASES, Start

_CONFIDENCE = 0.9


@dataclass(frozen=True, slots=True)
class Spread:
    median: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Ratio:
    """Of the seconds of two ways: the median of the pairs lies between `low` and `high` with this probability."""

    median: float
    low: float
    high: float
    confidence: float
    pairs: int

    @property
    def is_sure(self) -> bool:
        """Whether there are pairs enough for its bounds to mean something."""
        return self.confidence >= _CONFIDENCE

    @property
    def is_clear(self) -> bool:
        return self.is_sure and (self.low > 1 or self.high < 1)

    def __str__(self) -> str:
        between = f"{self.low:.2f} to {self.high:.2f}, {self.confidence:.0%} of {self.pairs} pairs"
        if self.is_clear:
            return f"{self.median:.2f} ({between})"
        if not self.is_sure:
            return f"too few runs for a ratio: {self.pairs} of at least 5"
        return f"no difference beyond the noise ({between})"


def spread(values: Sequence[float]) -> Spread:
    return Spread(statistics.median(values), min(values), max(values))


def ratio(numerators: Sequence[float], denominators: Sequence[float]) -> Ratio:
    """Of pairs, in the same order."""
    ratios = sorted(ours / theirs for ours, theirs in zip(numerators, denominators, strict=True))
    count = len(ratios)
    rank = 0
    while rank + 1 <= (count - 1) // 2 and _within(count, rank + 1) >= _CONFIDENCE:
        rank += 1
    return Ratio(statistics.median(ratios), ratios[rank], ratios[-1 - rank], _within(count, rank), count)


def _within(count: int, rank: int) -> float:
    """That the median lies between the values of that rank from below and from above; 0 is the smallest."""
    outside: float = sum(math.comb(count, below) for below in range(rank + 1)) / 2.0**count
    return max(0.0, 1 - 2 * outside)


def paired(results: Results, image: str, link: str, ours: str, theirs: str) -> Ratio | None:
    """Of the rounds that have both."""
    seconds = {
        way: {start.round: start.seconds for start in results.of(image, link, way)} for way in (ours, theirs)
    }
    rounds = sorted(seconds[ours].keys() & seconds[theirs].keys())
    if not rounds or ours == theirs:
        return None
    return ratio([seconds[ours][each] for each in rounds], [seconds[theirs][each] for each in rounds])


def phases(starts: Sequence[Start]) -> dict[str, float]:
    """Medians of each; they need not add up to the median of all."""
    return {name: statistics.median(start.phases[name] for start in starts) for name in PHASES}

"""A cold start asks for no more than it did: requests, bytes, reads and calls are no matter of a machine's mood."""

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import stable

CACHE = Path(__file__).parents[2] / ".cache/images"


@pytest.mark.root
@pytest.mark.image
def test_a_cold_start_asks_for_no_more_than_it_did(temp_root: Path) -> None:
    found = stable.measure(temp_root, CACHE)
    recorded = stable.read_recorded()
    assert found.keys() == recorded.keys()
    assert stable.too_many(found, recorded) == []
    # What would be half of what was recorded is measured wrongly, or should be recorded anew.
    assert all(found[start].down > counts.down / 2 for start, counts in recorded.items())


def test_more_is_told() -> None:
    recorded = stable.read_recorded()
    assert stable.too_many(recorded, recorded) == []
    start, counts = next(iter(recorded.items()))
    more = recorded | {start: replace(counts, requests=counts.requests * 2)}
    assert stable.too_many(more, recorded) == [
        f"{start}: requests {counts.requests * 2}, recorded {counts.requests}"
    ]
    assert stable.too_many(dict.fromkeys(recorded, counts), recorded), "a launch pack that is of no use"

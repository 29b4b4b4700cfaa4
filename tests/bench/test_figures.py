"""When a ratio is told, and when it is not; results as they are kept."""

import json
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazyfs.bench.figures import paired, phases, ratio, spread
from lazyfs.bench.results import Results, read_results
from lazyfs.bench.text import markdown
from lazyfs.bench.ways import LAZYFS, OVERLAYFS, Way, parse_against
from lazyfs.errors import BadInputError, NotFoundError, UsageError

from .samples import made_up

SECONDS = st.floats(0.001, 1000)
KEYS = st.sampled_from([*Results.__slots__, "format"])
NONSENSE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(KEYS, inner),
)


def test_a_ratio_of_pairs_outlives_noise_that_meets_both() -> None:
    slow_machine = [1.0, 5.0, 2.0, 9.0, 1.5]
    found = ratio([0.5 * each for each in slow_machine], slow_machine)
    assert found.is_clear
    assert str(found) == "0.50 (0.50 to 0.50, 94% of 5 pairs)"


def test_no_ratio_where_the_noise_is_larger_than_the_difference() -> None:
    found = ratio([0.9, 1.1, 0.8, 1.2, 0.95], [1.0] * 5)
    assert not found.is_clear
    assert str(found) == "no difference beyond the noise (0.80 to 1.20, 94% of 5 pairs)"


def test_no_ratio_of_a_few_runs() -> None:
    found = ratio([0.1] * 3, [1.0] * 3)
    assert not found.is_clear
    assert str(found) == "too few runs for a ratio: 3 of at least 5"


@given(st.lists(st.tuples(SECONDS, SECONDS), min_size=1, max_size=40))
def test_the_median_lies_in_its_bounds(pairs: list[tuple[float, float]]) -> None:
    found = ratio([ours for ours, _ in pairs], [theirs for _, theirs in pairs])
    assert found.low <= found.median <= found.high
    assert len(pairs) < 5 or found.confidence >= 0.9


@given(st.lists(SECONDS, min_size=5, max_size=40))
def test_equal_ways_have_no_clear_ratio(seconds: list[float]) -> None:
    assert not ratio(seconds, seconds).is_clear


def test_bounds_hold_as_often_as_they_say() -> None:
    chance = random.Random(7)
    tries, false_alarms = 2000, 0
    for _ in range(tries):
        found = ratio([chance.lognormvariate(0, 0.2) for _ in range(8)], [1.0] * 8)
        false_alarms += found.is_clear
    assert false_alarms / tries < 0.1


def test_rounds_that_lack_a_way_are_left_out() -> None:
    results = made_up()
    lost = next(each for each in results.starts if each.way == "overlayfs" and each.round == 2)
    results.starts.remove(lost)
    found = paired(results, lost.image, lost.link, "lazyfs", "overlayfs")
    assert found is not None
    assert (found.pairs, found.median) == (4, 0.5)
    assert paired(results, lost.image, lost.link, "lazyfs", "nobody") is None


def test_spread_and_phases() -> None:
    starts = made_up().of("app:1.0", "1gbit,2ms", "overlayfs")
    assert spread([each.seconds for each in starts]).low == 1.0
    assert sum(phases(starts).values()) == pytest.approx(1.04)


def test_results_are_read_as_they_were_written(tmp_path: Path) -> None:
    results = made_up()
    results.write(tmp_path / "deep" / "results.json")
    assert read_results(tmp_path / "deep" / "results.json") == results


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        "nothing",
        '{"format": 99}',
        '{"format": 1}',
        "[" * 10_000,
        '{"format": 1, "starts": [{}]}',
    ],
)
def test_says_that_a_file_is_none_of_ours(tmp_path: Path, text: str) -> None:
    file = tmp_path / "file"
    file.write_text(text)
    with pytest.raises(BadInputError, match="file"):
        read_results(file)


@given(NONSENSE)
def test_reads_no_nonsense(tmp_path_factory: pytest.TempPathFactory, value: object) -> None:
    file = tmp_path_factory.mktemp("nonsense") / "file"
    file.write_text(json.dumps(value))
    with pytest.raises(BadInputError):
        read_results(file)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        read_results(tmp_path / "none")


def test_ways() -> None:
    assert parse_against("overlayfs") == OVERLAYFS
    assert parse_against("local").is_local
    assert parse_against("x=/run/x.sock,oci:d:t") == Way("x", "x", "x", "/run/x.sock", "oci:d:t")
    assert parse_against("x=prog --a b,c {socket},docker://h/i:t").address == "prog --a b,c {socket}"
    assert LAZYFS.is_lazyfs


@pytest.mark.parametrize(
    "text", ["", "zfs", "x=", "x=/run/s", "=a,b", "lazyfs=a,b", "local=a,b", "X=a,b", "x=,b", "x=a,"]
)
def test_says_what_can_be_measured(text: str) -> None:
    with pytest.raises(UsageError):
        parse_against(text)


def test_markdown_tells_everything() -> None:
    text = markdown(made_up())
    assert "### app:1.0, 1gbit,2ms" in text
    assert "- time to ready, lazyfs of overlayfs's: 0.50 (0.50 to 0.50, 94% of 5 pairs)" in text
    assert "| overlayfs | **1.04** | 1.00 to 1.08 | 0.21 |" in text
    assert "Linux 6.18, containerd 2.3.3" in text
    assert "- link 1gbit,2ms: 99.9% of its rate, 101.0% of its round trip" in text

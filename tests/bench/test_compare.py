"""What `lazyfs bench compare` calls slower, and what noise."""

import random
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from lazyfs.bench.compare import Verdict, compare
from lazyfs.bench.results import Results
from lazyfs.cli.app import app
from lazyfs.errors import UsageError

from .samples import made_up


def verdicts(old: Results, new: Results, measure: str) -> set[Verdict]:
    return {each.verdict for each in compare(old, new, 0.1) if each.measure.startswith(measure)}


def changed(results: Results, factor: float, ways: str = "") -> Results:
    """Each start whose way begins with that takes so many times as long."""
    results.starts = [
        replace(each, seconds=each.seconds * factor) if each.way.startswith(ways) else each
        for each in results.starts
    ]
    return results


def test_what_is_slower_is_told() -> None:
    assert verdicts(made_up(), changed(made_up(), 1.5, "lazyfs"), "time") == {Verdict.SLOWER}
    assert verdicts(made_up(), changed(made_up(), 0.5, "lazyfs"), "time") == {Verdict.FASTER}


def test_a_slower_machine_is_not() -> None:
    assert verdicts(made_up(), changed(made_up(), 3.0), "time") == {Verdict.SAME}


def test_noise_is_not() -> None:
    chance = random.Random(1)
    noisy = made_up(rounds=8)
    noisy.starts = [replace(each, seconds=each.seconds * chance.uniform(0.5, 2.5)) for each in noisy.starts]
    assert Verdict.SLOWER not in verdicts(made_up(rounds=8), noisy, "time")


def test_a_few_runs_tell_nothing() -> None:
    assert verdicts(made_up(rounds=4), changed(made_up(rounds=4), 9.0, "lazyfs"), "time") == {Verdict.FEW}


def test_without_another_way_seconds_are_held_against_seconds() -> None:
    old, new = made_up(), changed(made_up(), 2.0)
    for results in (old, new):
        results.starts = [each for each in results.starts if each.way == "lazyfs"]
    assert verdicts(old, new, "time to ready, s") == {Verdict.SLOWER}


def test_counts() -> None:
    new = made_up()
    new.starts = [replace(each, requests=each.requests * 2, device_reads=1) for each in new.starts]
    assert verdicts(made_up(), new, "requests") == {Verdict.MORE}
    assert verdicts(made_up(), new, "reads") == {Verdict.LESS}
    assert verdicts(made_up(), new, "bytes") == {Verdict.SAME}


def test_nothing_in_common() -> None:
    with pytest.raises(UsageError, match="in common"):
        compare(made_up(), made_up(images=("other:1",)), 0.1)


def test_the_command(tmp_path: Path) -> None:
    old, new = tmp_path / "old.json", tmp_path / "new.json"
    made_up().write(old)
    changed(made_up(), 1.2, "lazyfs").write(new)
    same = CliRunner().invoke(app, ["bench", "compare", str(old), str(old)], standalone_mode=False)
    assert same.return_value == 0
    slower = CliRunner().invoke(app, ["bench", "compare", str(old), str(new)], standalone_mode=False)
    assert slower.return_value == 1
    assert "| time to ready, of overlayfs's | 0.5 | 0.6 | 1.20 | **slower** |" in slower.output
    borne = ["bench", "compare", "--threshold", "30", str(old), str(new)]
    assert CliRunner().invoke(app, borne, standalone_mode=False).return_value == 0

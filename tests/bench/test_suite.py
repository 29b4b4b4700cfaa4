"""The suite's own parts: what is measured of which workload, and what becomes of the results."""

import subprocess
from pathlib import Path

import pytest

from benchmarks import growth, readme, suite
from benchmarks.images import RECIPES, BuildError
from benchmarks.workloads import QUICK, SUITE
from lazyfs.bench.results import merge, read_results
from lazyfs.errors import LazyfsError, NodeError
from lazyfs.run.ready import parse_probe

from .samples import made_up


def test_workloads_have_images_and_can_be_told_ready() -> None:
    for workload in SUITE.values():
        assert workload.recipe in RECIPES
        parse_probe(workload.ready)
    assert set(QUICK) <= SUITE.keys()


def test_a_ping_that_nobody_answers() -> None:
    command = SUITE["redis"].ready.removeprefix("exec:")
    assert subprocess.run(["sh", "-c", command], capture_output=True, check=False).returncode != 0


def test_rows_hold_ours_against_local_starts_and_pulls() -> None:
    rows = {row.measure: row for row in suite.rows(made_up())}
    assert rows["app:1.0, 1gbit,2ms: lazyfs-pack"].bar == rows["app:1.0, 1gbit,2ms: local"].value
    # Its bytes take longer than the local start, and a tenth and a half is allowed besides three round trips.
    slow = rows["app:1.0, 100mbit,20ms: lazyfs-pack"]
    assert slow.bar == pytest.approx(1.15 * 10_400_000 / 12_500_000 + 3 * 0.02)
    assert rows["app:1.0, 1gbit,2ms: lazyfs"].met
    assert not rows["app:1.0, 1gbit,2ms: lazyfs-pack"].met


def test_results_of_several_images_become_one() -> None:
    one, other = made_up(images=("a",)), made_up(images=("b",))
    other.failures.append("b: failed")
    merged = merge([one, other])
    assert merged.image_names == ["a", "b"]
    assert merged.of("b", "1gbit,2ms", "lazyfs") == other.of("b", "1gbit,2ms", "lazyfs")
    assert [each.link for each in merged.links] == ["1gbit,2ms", "100mbit,20ms"]
    assert merged.failures == ["b: failed"]


def test_a_workload_that_fails_is_told_and_the_others_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measured(turn: suite.Turn, *_: object) -> object:
        if turn.workload == "nginx":
            raise BuildError("no mirror")
        if turn.workload == "go":
            raise NodeError("did not get ready")
        return made_up(images=(turn.workload,))

    def turn(name: str) -> suite.Turn:
        return suite.Turn(name, suite.LINKS[:1], ("lazyfs", "overlayfs"), 1)

    monkeypatch.setattr(suite, "_measured", measured)
    found = suite.run([turn(name) for name in QUICK], tmp_path, tmp_path / "starts.json")
    assert found.image_names == ["numpy"]
    assert found.failures == ["nginx: no mirror", "go: did not get ready"]
    suite.write(found, tmp_path / "results")
    assert read_results(tmp_path / "results" / "starts.json") == found
    assert "failed: go: did not get ready" in (tmp_path / "results" / "starts.md").read_text()
    in_time = suite.run([turn("numpy")], tmp_path, tmp_path / "starts.json", seconds=60)
    assert not in_time.failures
    with pytest.raises(LazyfsError) as caught:
        suite.run([turn("numpy")], tmp_path, tmp_path / "starts.json", seconds=-1)
    assert caught.value.hint == "numpy, 1gbit,2ms: no time was left for it"
    with pytest.raises(LazyfsError, match="no workload"):
        suite.run([turn("go")], tmp_path, tmp_path / "starts.json")


def test_growth_is_fitted_to_what_grows() -> None:
    sizes = [1e2, 1e3, 1e4, 1e5]
    assert growth.exponent(sizes, [1.0, 1.1, 1.2, 1.1]) == 0
    assert growth.exponent(sizes, [1 + 1e-3 * size for size in sizes]) == pytest.approx(1, abs=0.05)
    assert growth.exponent(sizes, [1 + size**0.5 for size in sizes]) == pytest.approx(0.5, abs=0.1)


def test_growth_is_told_beside_its_goal() -> None:
    found = [
        growth.Mounted("bytes", 10**7, 0.2, 1000, 10**7),
        growth.Mounted("bytes", 10**9, 0.3, 5000, 2 * 10**7),
    ]
    long, fetched, memory, _ = growth.rows(found)
    assert long.value == pytest.approx(1.5)
    assert not long.met
    assert (fetched.value, memory.value) == (5, 10)


def test_the_readme_has_four_figures_with_their_commands() -> None:
    lines = readme.table(made_up(images=("numpy",))).splitlines()
    assert len(lines) == 2 + 4
    assert (
        "| 0.26 s, launch pack | 1.04 s | 0.25 | 25% | `python -m benchmarks.suite --workloads numpy"
        in lines[2]
    )
    assert "not measured" in lines[4]
    few = readme.table(made_up(images=("numpy",), rounds=2))
    assert "too few runs for a ratio" in few

"""The simulation of many nodes: what can be told by hand, and what must hold whatever is simulated."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.simulate import SIGMA, SPREAD, Recipe, Step, World, recipe, simulate
from lazyfs.bench.link import Trip

START = Recipe((Step(0.1, 1_000_000), Step(0.2, 9_000_000)), 0.5)
RATE = 1e7
KINDS = ("registry", "mirrors", "peers")


def world(kind: str, nodes: int, regions: int = 1) -> World:
    alike = (0.0, 0.0) if nodes == 1 else (SPREAD, SIGMA)
    return World(kind, nodes, regions, RATE, RATE, RATE, 0.01, *alike)


def test_one_node_takes_what_its_steps_take() -> None:
    outcome = simulate(world("registry", 1), START)
    assert outcome.ready == [pytest.approx(0.1 + 0.2 + 0.5 + 2 * 0.01 + 1.0)]
    assert outcome.origin == START.size


def test_a_mirror_that_has_nothing_passes_everything_on() -> None:
    (through,), (straight,) = (simulate(world(kind, 1), START).ready for kind in ("mirrors", "registry"))
    assert through == pytest.approx(straight + START.size / RATE)


def test_many_nodes_wait_for_one_registry() -> None:
    outcome = simulate(world("registry", 100), START)
    assert 100 * START.size / RATE - SPREAD < outcome.percentile(0.99) < 100 * START.size / RATE + 3
    assert outcome.origin == 100 * START.size


def test_peers_are_quicker_than_mirrors_than_one_registry() -> None:
    medians = [simulate(world(kind, 200, 10), START).percentile(0.5) for kind in KINDS]
    assert medians == sorted(medians, reverse=True)
    assert medians[2] < 0.1 * medians[0]


@given(
    st.sampled_from(KINDS),
    st.integers(1, 30),
    st.integers(1, 4),
    st.lists(st.tuples(st.floats(0, 1), st.integers(0, 10**7)), min_size=1, max_size=5),
)
def test_everybody_gets_ready_and_the_registry_gives_what_is_asked_of_it(
    kind: str, nodes: int, regions: int, steps: list[tuple[float, int]]
) -> None:
    start = Recipe(tuple(Step(*each) for each in steps), 0.1)
    outcome = simulate(world(kind, nodes, regions), start)
    assert len(outcome.ready) == nodes
    assert outcome.origin == start.size * (nodes if kind == "registry" else min(regions, nodes))
    least = start.size / RATE
    assert outcome.ready[0] >= least * 0.999


def test_requests_that_were_under_way_together_are_one_step() -> None:
    trips = [Trip("GET", "a", 0.1, 0.3, 5), Trip("GET", "b", 0.2, 0.6, 7), Trip("GET", "c", 0.9, 1.0, 1)]
    found = recipe([*trips, Trip("GET", "after it was ready", 2.5, 3.0, 100)], 2.0)
    assert [step.size for step in found.steps] == [12, 1]
    assert [step.busy for step in found.steps] == pytest.approx([0.1, 0.3])
    assert found.tail == pytest.approx(1.0)
    assert recipe([], 2.0) == Recipe((), 2.0)

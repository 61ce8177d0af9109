"""Where in time the parts of a measurement go."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_symmetry.measurement.schedule import Costs, bundles_of, earliest, ladder, next_multiple, stretched

COST = st.floats(1e-6, 10.0)


def rungs():
    return {digit * 10**power for digit in (1, 2, 5) for power in range(9)}


@given(st.integers(1, 10**7))
def test_the_ladder_gives_its_least_rung_that_is_long_enough(steps):
    assert ladder(steps) == min(rung for rung in rungs() if rung >= steps)


def test_next_multiple_is_at_or_after_the_step():
    assert [next_multiple(step, 5) for step in (0, 1, 5, 6)] == [0, 5, 5, 10]


@given(
    pieces=st.lists(COST, max_size=30),
    preparation=st.just(0.0) | COST,
    world_size=st.integers(1, 5),
    least=st.just(0.0) | COST,
)
def test_bundles_hold_every_piece_once_and_pay_for_their_preparation(pieces, preparation, world_size, least):
    bundles = bundles_of(Costs(tuple(pieces), preparation), world_size, least)
    assert sorted(number for bundle in bundles for number in bundle.pieces) == list(range(len(pieces)))
    for bundle in bundles:
        rounds = [bundle.pieces[place : place + world_size] for place in range(0, len(bundle.pieces), world_size)]
        slowest = sum(max(pieces[number] for number in each) for each in rounds)
        assert bundle.cost == pytest.approx(preparation + slowest)
        if len(bundles) > 1:
            assert slowest >= max(preparation, least) * (1 - 1e-9)


@given(pieces=st.lists(COST, min_size=1, max_size=30), world_size=st.integers(1, 8))
def test_the_work_falls_with_the_number_of_ranks(pieces, world_size):
    """All rounds together take no longer than the dearest piece and an even share of the others."""
    taken = sum(bundle.cost for bundle in bundles_of(Costs(tuple(pieces)), world_size))
    assert taken <= max(pieces) + sum(pieces) / world_size + 1e-9


@given(
    costs=st.lists(COST, min_size=1, max_size=20),
    rate=st.floats(1e-3, 1.0),
    since=st.integers(0, 1000),
    before=st.lists(st.tuples(st.integers(-300, 0), COST), max_size=5, unique_by=lambda each: each[0]).map(sorted),
    longer=st.integers(0, 1000),
)
def test_bundles_wait_until_they_are_earned_and_until_their_window_has_room(costs, rate, since, before, longer):
    before = [(since + step, cost) for step, cost in before]
    first = earliest(costs, rate, since, before, window=200)
    assert all(later > earlier for earlier, later in zip([since, *first], first, strict=False))
    drawn = stretched(first, since, first[-1] + longer)
    assert drawn[-1] == first[-1] + longer
    for steps in (first, drawn):
        assert sum(costs) <= rate * (steps[-1] - since) * (1 + 1e-9)
        for step, cost in zip(steps, costs, strict=True):
            placed = [*before, *zip(steps, costs, strict=True)]
            others = sum(c for at, c in placed if step - 200 < at < step)
            assert cost + others <= max(200 * rate, cost) * (1 + 1e-9)


def test_a_bundle_that_no_window_can_pay_for_is_paid_by_more_steps_and_alone_in_its_window():
    assert earliest([1.0, 5.0, 1.0], rate=0.01, since=0, window=200) == [100, 600, 800]

"""When the next measurement is due, and what is measured at which step until then."""

import json
import math
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_symmetry.measurement.budget import WARM_UP, Budget
from lightning_symmetry.measurement.schedule import WINDOW, Costs, ladder

SECONDS = st.floats(1e-5, 1.0)
COSTS = st.builds(
    Costs,
    pieces=st.lists(SECONDS, min_size=1, max_size=12).map(tuple),
    preparation=st.just(0.0) | SECONDS,
    gathering=st.just(0.0) | SECONDS,
    rest=SECONDS,
)


def test_a_fixed_interval_is_a_grid_from_step_zero_wherever_training_starts():
    budget = Budget(share=0.01, every_n_steps=50)
    for step, due in [(0, 50), (50, 100), (117, 150)]:
        budget.plan(step, Costs((100.0, 100.0)), step_time=0.001)
        assert budget.due == budget.next_step == budget.gather_at == due
        assert budget.take(due - 1) == ()
        assert sorted(budget.take(due)) == [0, 1]  # all at once


@given(step=st.integers(0, 10**6), costs=COSTS, step_time=st.floats(1e-4, 10.0), share=st.floats(1e-3, 0.5))
def test_the_cost_is_within_its_share_of_the_steps_until_the_next_measurement(step, costs, step_time, share):
    budget = Budget(share)
    budget.plan(step, costs, step_time)
    steps = budget.due - step
    paid = sum(costs.pieces) + costs.preparation + costs.gathering + costs.rest
    assert paid <= share * step_time * steps * (1 + 1e-9)


def test_due_steps_are_multiples_of_a_rung_so_that_runs_share_a_grid():
    for cost in (0.0031, 0.0029, 0.0025):
        budget = Budget(share=0.01)
        budget.plan(1234, Costs((cost,)), step_time=0.002)
        assert budget.due == 1400  # 155, 145 and 125 steps needed: interval 200


def test_what_costs_less_than_a_step_earns_is_measured_at_each_step():
    budget = Budget(share=0.01)
    budget.plan(7, Costs((0.001, 0.002, 0.003), preparation=0.001, rest=0.002), step_time=1.0)
    assert budget.due == 8
    assert sorted(budget.take(8)) == [0, 1, 2]


def test_a_measurement_is_spread_over_the_steps_to_the_due_one_a_bundle_at_a_step():
    budget = Budget(share=0.01)
    budget.plan(0, Costs((0.03, 0.01, 0.02, 0.04), preparation=0.0, rest=0.0), step_time=0.1)
    assert budget.due == 100
    taken = {step: budget.take(step) for step in range(101)}
    assert {step: pieces for step, pieces in taken.items() if pieces} == {40: (3,), 70: (0,), 90: (2,), 100: (1,)}


def test_what_was_gathered_is_taken_before_anything_is_measured_of_it():
    budget = Budget(share=0.01)
    budget.plan(0, Costs((0.02, 0.03), gathering=0.05), step_time=0.1)
    assert (budget.gather_at, budget.next_step, budget.due) == (50, 80, 100)


def test_steps_that_were_passed_over_are_made_up_for_one_bundle_a_step_and_all_when_due():
    budget = Budget(share=0.01)
    budget.plan(0, Costs((0.01,) * 5), step_time=0.1)
    assert [budget.take(step) for step in (35, 36, 37, 50)] == [(0,), (1,), (2,), (3, 4)]


def test_ranks_measure_one_piece_each_at_the_same_step():
    budget = Budget(share=0.01, world_size=2)
    budget.plan(0, Costs((0.01, 0.04, 0.02, 0.03)), step_time=0.1)
    assert budget.due == 100  # 0.04 for the first round, 0.02 for the second: half of what one rank would take
    assert [(step, pieces) for step in range(101) if (pieces := budget.take(step))] == [(67, (1, 3)), (100, (2, 0))]


def spent_at(budget, costs, step_time):
    """The seconds spent at each step of a training in which all costs are what they were before."""
    budget.plan(0, costs, step_time)
    for step in range(4 * WINDOW):
        pieces = budget.take(step)
        seconds = costs.gathering if step == budget.gather_at < budget.due else 0.0
        if pieces:
            seconds += costs.preparation + sum(costs.pieces[number] for number in pieces)
        if step == budget.due:
            seconds += costs.rest
            budget.plan(step, costs, step_time)
        yield seconds


@settings(max_examples=200)
@given(
    costs=COSTS,
    scale=st.floats(1e-3, 1.0),
    step_time=st.floats(1e-3, 1.0),
    share=st.floats(1e-3, 0.2),
    after=st.integers(1, 3 * WINDOW - 1),
)
def test_what_is_spent_keeps_to_its_share_over_any_window(costs, scale, step_time, share, after):
    """As long as no part alone costs more than a window earns: then it cannot, but in slices."""
    earned = share * step_time * WINDOW
    largest = max(costs.gathering, max(costs.pieces) + 2 * costs.preparation + costs.rest)
    factor = scale * earned / largest
    costs = Costs(
        tuple(factor * piece for piece in costs.pieces),
        *(factor * part for part in (costs.preparation, costs.gathering, costs.rest)),
    )
    spent = list(spent_at(Budget(share), costs, step_time))
    assert sum(spent[after : after + WINDOW]) <= earned * (1 + 1e-9)


def spent_in_slices(budget, costs, step_time):
    """The seconds spent at each step, where work that comes again is cut, and all before it is done first."""
    budget.plan(0, costs, step_time)
    left, begun = 0.0, set()
    for step in range(8 * WINDOW):
        due = step == budget.due
        spent = costs.gathering if step == budget.gather_at < budget.due else 0.0
        pieces = budget.take(step)
        at_most = math.inf if due else budget.at_once
        if new := set(pieces) - begun:
            spent, left = spent + left, costs.preparation + sum(costs.pieces[number] for number in new)
            at_most = at_most if budget.comes_again(pieces) else math.inf
            begun |= new
        if pieces:
            now = min(left, at_most)
            spent, left = spent + now, left - now
        if due:
            assert begun == set(range(len(costs.pieces))) and left == 0.0
            spent, begun = spent + costs.rest, set()
            budget.plan(step, costs, step_time)
        yield spent


@settings(max_examples=200)
@given(
    costs=COSTS,
    times=st.floats(0.1, 20.0),
    step_time=st.floats(1e-3, 1.0),
    share=st.floats(1e-3, 0.2),
    after=st.integers(1, 7 * WINDOW - 1),
)
def test_pieces_that_cost_many_windows_keep_to_the_share_in_slices(costs, times, step_time, share, after):
    earned = share * step_time * WINDOW
    factor = times * earned / (max(costs.pieces) + costs.preparation)
    few = 0.2 * earned / max(costs.gathering + costs.rest, 1e-12)
    costs = Costs(
        tuple(factor * piece for piece in costs.pieces),
        factor * costs.preparation,
        few * costs.gathering,
        few * costs.rest,
    )
    budget = Budget(share)
    budget.in_slices = True
    spent = list(spent_in_slices(budget, costs, step_time))
    assert sum(spent[after : after + WINDOW]) <= earned * (1 + 1e-9)
    assert max(spent) <= (earned / 2 + costs.gathering + costs.rest) * (1 + 1e-9)  # no step takes more than one bundle


def test_a_dear_piece_comes_again_until_its_last_slice():
    """200 steps earn 0.04 s, a slice is a quarter of it: twenty for a piece of 0.2 s, and as many to spare."""
    budget = Budget(share=0.01)
    budget.in_slices = True
    budget.plan(0, Costs((0.01, 0.2)), step_time=0.02)
    taken = [(step, pieces, budget.comes_again(pieces)) for step in range(5001) if (pieces := budget.take(step))]
    assert budget.at_once == pytest.approx(0.01)
    assert [pieces for _, pieces, _ in taken] == [(1,)] * 40 + [(0,)]
    assert [again for *_, again in taken] == [True] * 39 + [False] * 2
    assert all(later - step >= 40 for (step, *_), (later, *_) in pairwise(taken))


def test_before_any_step_is_timed_the_warm_up_is_waited_for():
    budget = Budget(share=0.01)
    budget.plan(0, Costs((0.1,)), step_time=0.0)
    assert not budget.planned
    assert budget.due == budget.next_step == WARM_UP
    budget.plan(WARM_UP, budget.costs, step_time=0.01)
    assert budget.planned
    assert budget.due == 2000


def test_the_step_time_leaves_out_what_was_spent_on_measuring(monkeypatch):
    clock = iter([0.0, 1.0, 2.0, 2.5, 12.5, 13.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    budget = Budget(share=0.01)
    for step in range(3):
        budget.step_begins(step)
    with budget.measuring():
        pass
    budget.step_begins(3)
    assert budget.step_time == pytest.approx(1.0)


def test_batches_of_one_accumulated_step_count_as_one_step(monkeypatch):
    clock = iter([0.0, 2.0, 4.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    budget = Budget(share=0.01)
    for step in (0, 0, 1, 1, 2):
        budget.step_begins(step)
    assert budget.step_time == pytest.approx(2.0)


def restored(saved, step, n_pieces, **arguments):
    """A new budget that goes on from what another saved, by way of JSON."""
    budget = Budget(**{"share": 0.01, **arguments})
    budget.restore(json.loads(json.dumps(saved.state(), allow_nan=False)), step, n_pieces)
    return budget


def test_a_resumed_run_keeps_to_the_due_step_and_spreads_all_pieces_over_what_is_left():
    saved = Budget(share=0.01)
    saved.plan(0, Costs((0.02, 0.02, 0.02, 0.04)), step_time=0.1)
    budget = restored(saved, step=60, n_pieces=4)
    assert budget.due == saved.due == 100
    assert [(step, pieces) for step in range(101) if (pieces := budget.take(step))] == [
        (76, (3,)),
        (84, (0,)),
        (92, (1,)),
        (100, (2,)),
    ]


@pytest.mark.parametrize("n_pieces", [None, 0, 3])
def test_where_there_are_other_pieces_than_before_all_are_measured_when_due(n_pieces):
    saved = Budget(share=0.01)
    saved.plan(0, Costs((0.02, 0.02, 0.02, 0.04)), step_time=0.1)
    budget = restored(saved, step=60, n_pieces=n_pieces)
    assert (budget.next_step, budget.take(100)) == (100, ())
    assert budget.costs == (saved.costs if n_pieces is None else Costs())


def test_a_resumed_run_that_starts_past_the_due_step_measures_at_once():
    saved = Budget(share=0.01)
    saved.plan(0, Costs((0.02,)), step_time=0.1)
    assert restored(saved, step=137, n_pieces=1).due == 137


@pytest.mark.parametrize(("step", "due"), [(23, 30), (30, 30), (37, 40)])
def test_a_fixed_interval_goes_on_with_its_grid(step, due):
    saved = Budget(share=0.01, every_n_steps=10)
    saved.plan(20, Costs((0.02,)), step_time=0.1)
    assert restored(saved, step, n_pieces=1, every_n_steps=10).due == due


def test_an_interval_is_no_longer_than_the_grid_asks_for():
    for cost in (0.0011, 0.02, 0.7, 3.0):
        budget = Budget(share=0.01)
        budget.plan(777, Costs((cost,)), step_time=0.1)
        needed = cost / 0.001
        assert budget.due - 777 <= needed + 1 + ladder(int(needed) + 1)


@pytest.mark.parametrize(("idle", "due"), [(0.0, 1000), (0.0005, 2000), (0.02, 5000)])
def test_what_a_step_costs_in_any_case_is_paid_first_and_a_quarter_is_left(idle, due):
    """A step of 0.1 s earns 1 ms at a share of 1 %, and a measurement takes a second."""
    budget = Budget(0.01, idle=idle)
    budget.plan(0, Costs((1.0,)), 0.1)
    assert budget.due == due


def test_no_two_monitors_measure_at_one_step():
    """They are due at the same steps of the ladder; the bundles up to there are apart."""
    budgets: list[Budget] = []
    for costs in (Costs((0.1, 0.2)), Costs((0.3,)), Costs((0.1, 0.1, 0.1))):
        budgets.append(Budget(0.01, others=lambda: budgets))
        budgets[-1].plan(0, costs, 0.1)
    assert len({budget.due for budget in budgets}) == 1
    steps = [step for budget in budgets for step in range(budget.due + 1) if budget.measures_at(step)]
    assert len(steps) == len(set(steps)) == 6

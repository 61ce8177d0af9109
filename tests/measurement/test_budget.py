"""When the next measurement is due."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_symmetry.measurement.budget import WARM_UP, Budget, ladder, next_multiple


def rungs():
    return {digit * 10**power for digit in (1, 2, 5) for power in range(9)}


@given(st.integers(1, 10**7))
def test_the_ladder_gives_its_least_rung_that_is_long_enough(steps):
    assert ladder(steps) == min(rung for rung in rungs() if rung >= steps)


def test_a_fixed_interval_is_a_grid_from_step_zero_wherever_training_starts():
    budget = Budget(share=0.01, every_n_steps=50)
    for step, due in [(0, 50), (50, 100), (117, 150)]:
        budget.plan(step, cost=100.0, step_time=0.001)
        assert budget.due == due


@given(
    step=st.integers(0, 10**6),
    cost=st.floats(1e-4, 1e2),
    step_time=st.floats(1e-4, 10.0),
    share=st.floats(1e-3, 0.5),
)
def test_the_cost_is_within_its_share_of_the_steps_until_the_next_measurement(step, cost, step_time, share):
    budget = Budget(share)
    budget.plan(step, cost, step_time)
    steps = budget.due - step
    assert cost <= share * step_time * steps * (1 + 1e-9)
    needed = max(1, cost / (share * step_time))
    assert steps <= needed + 1 + ladder(int(needed) + 1)  # no longer than the grid asks for


def test_due_steps_are_multiples_of_a_rung_so_that_runs_share_a_grid():
    for cost in (0.0031, 0.0029, 0.0025):
        budget = Budget(share=0.01)
        budget.plan(1234, cost, step_time=0.002)
        assert budget.due == 1400  # 155, 145 and 125 steps needed: interval 200


def test_before_any_step_is_timed_the_warm_up_is_waited_for():
    budget = Budget(share=0.01)
    budget.plan(0, cost=0.1, step_time=0.0)
    assert not budget.planned
    assert budget.due == WARM_UP
    budget.plan(WARM_UP, cost=0.1, step_time=0.01)
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
    clock = iter([0.0, 1.0, 2.0, 4.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    budget = Budget(share=0.01)
    for step in (0, 0, 1, 2):
        budget.step_begins(step)
    assert budget.step_time == pytest.approx(2.0)


def test_a_resumed_run_that_starts_past_the_due_step_measures_at_once_and_goes_on_with_the_grid():
    budget = Budget(share=0.01, every_n_steps=10)
    assert budget.due <= 137
    budget.plan(137, cost=0.0, step_time=0.0)
    assert budget.due == 140


def test_next_multiple_is_at_or_after_the_step():
    assert [next_multiple(step, 5) for step in (0, 1, 5, 6)] == [0, 5, 5, 10]

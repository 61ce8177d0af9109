"""Which of many things pass, by trials of any number of them at once."""

import math

from hypothesis import given
from hypothesis import strategies as st

from lightning_symmetry.symmetry.halving import MOST_TRIALS, passing


def tried(n_things: int, culprits: set[int], most_trials: int = MOST_TRIALS) -> tuple[list[int], int]:
    """Those of the first numbers that pass, and how many trials were made."""
    trials = 0

    def passes(some: list[int]) -> bool:
        nonlocal trials
        trials += 1
        return culprits.isdisjoint(some)

    return passing(range(n_things), passes, most_trials), trials


@given(st.integers(0, 60), st.sets(st.integers(0, 59)))
def test_all_but_the_culprits_pass_where_there_are_trials_enough(n_things: int, culprits: set[int]) -> None:
    passed, trials = tried(n_things, culprits, most_trials=1000)
    assert passed == [thing for thing in range(n_things) if thing not in culprits]
    assert trials <= 1 + 2 * n_things


def test_one_trial_is_enough_where_all_pass() -> None:
    assert tried(1000, set()) == (list(range(1000)), 1)


@given(st.integers(2, 1000).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n - 1))))
def test_one_culprit_is_found_in_twice_the_logarithm(case: tuple[int, int]) -> None:
    n_things, culprit = case
    passed, trials = tried(n_things, {culprit})
    assert len(passed) == n_things - 1
    assert trials <= 2 + 2 * math.ceil(math.log2(n_things))


@given(st.sets(st.integers(0, 999), min_size=200))
def test_the_number_of_trials_is_bounded_and_no_culprit_ever_passes(culprits: set[int]) -> None:
    passed, trials = tried(1000, culprits)
    assert trials <= MOST_TRIALS + 2
    assert culprits.isdisjoint(passed)


def test_most_pass_where_trials_run_out() -> None:
    passed, trials = tried(1000, set(range(0, 1000, 25)))
    assert trials > MOST_TRIALS
    assert len(passed) > 700

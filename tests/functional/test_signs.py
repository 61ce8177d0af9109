from __future__ import annotations

import itertools

import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_symmetry.functional.signs import at_signs, least_over_signs


@given(terms=st.dictionaries(st.integers(0, 31), st.tuples(st.integers(-9, 9), st.integers(-9, 9)), max_size=8))
def test_the_least_sum_is_that_over_all_signs(terms: dict[int, tuple[int, int]]) -> None:
    costs = {term: (torch.tensor(float(plus)), torch.tensor(float(minus))) for term, (plus, minus) in terms.items()}
    every = (sum(cost[(term & choice).bit_count() % 2] for term, cost in terms.items()) for choice in range(32))
    assert least_over_signs(costs).item() == min(every)


def test_signs_that_one_sign_joins_are_not_tried_all_together() -> None:
    """As in a residual stream that is read behind 40 norms: each joined to the stream's sign, none to another."""
    numbers = torch.randn(81, 3, generator=torch.Generator().manual_seed(0))
    terms = [1, *itertools.chain.from_iterable((1 << k, (1 << k) | 1) for k in range(1, 41))]
    costs = {term: (-number, number) for term, number in zip(terms, numbers, strict=True)}
    stream = [
        -sign * numbers[0] - sum((numbers[1 + 2 * k] + sign * numbers[2 + 2 * k]).abs() for k in range(40))
        for sign in (1, -1)
    ]
    torch.testing.assert_close(least_over_signs(costs), torch.minimum(*stream))


def test_a_choice_of_some_signs_leaves_the_others() -> None:
    one, two = torch.tensor(1.0), torch.tensor(2.0)
    assert at_signs({3: (one, two), 2: (one, two)}, signs=1, choice=1) == {2: (two + one, one + two)}

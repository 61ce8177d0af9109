"""Charges: the exponents that solve the equations of an axis."""

from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from lightning_symmetry.labelling.charges import NEUTRAL, scalings, signs, unknown

forms = st.dictionaries(st.integers(0, 5), st.integers(-3, 3).filter(bool).map(Fraction), max_size=4)


def test_products_add_powers_multiply_and_quotients_subtract():
    one, other = unknown(), unknown()
    assert (one + other - other).unshifted == one.unshifted
    assert (one + other).mean == one.mean | other.mean
    assert (one * 2).scale == {next(iter(one.scale)): 2}
    assert (one * 2).sign == frozenset()
    assert (one * 3).sign == one.sign
    half = one * Fraction(1, 2)
    assert half + half == one.of_scale + one.of_shift + one.of_mean  # a sign does not survive a root
    assert one - one == NEUTRAL + one.of_mean  # what is added to means adds up to nothing in no case


def test_the_parts_of_an_axis_have_unknowns_of_their_own():
    whole = unknown()
    assert whole.part(0) != whole.part(1)
    assert whole.part(0) == whole.part(0)
    assert (whole + whole).part(1) == whole.part(1) + whole.part(1)


def test_a_hidden_unit_between_two_maps():
    """Incoming weight and bias are scaled alike, the outgoing weight inversely."""
    weight, bias, out = 0, 1, 2
    (solution,) = scalings([{weight: 1, bias: -1}, {weight: 1, out: 1}], [weight, bias, out])
    assert solution[weight] == solution[bias] == -solution[out] != 0
    assert signs([frozenset({weight, bias}), frozenset({weight, out})], [weight, bias, out]) == [
        frozenset({weight, bias, out})
    ]


def test_unknowns_that_are_not_of_interest_are_eliminated():
    activation = 9
    (solution,) = scalings([{0: 1, activation: -1}, {1: 1, activation: 1}], [0, 1])
    assert solution[0] == -solution[1]


@given(st.lists(forms, max_size=5))
def test_solutions_solve_and_are_as_many_as_there_are(equations):
    """Against linear algebra over the rationals done elsewhere: the rank of the whole system."""
    from sympy import Matrix

    unknowns = list(range(6))
    solutions = scalings(equations, unknowns)
    for solution in solutions:
        for form in equations:
            assert sum(value * solution.get(key, 0) for key, value in form.items()) == 0
    matrix = Matrix([[form.get(key, 0) for key in unknowns] for form in equations] or [[0] * 6])
    assert len(solutions) == 6 - matrix.rank()


@given(st.lists(st.frozensets(st.integers(0, 5)), max_size=5))
def test_signs_are_all_solutions_over_two_elements(equations):
    """Against trying all sixty-four."""
    from itertools import product

    solutions = signs(equations, list(range(6)))
    spanned = set()
    for chosen in product([False, True], repeat=len(solutions)):
        total = frozenset()
        for solution, taken in zip(solutions, chosen, strict=True):
            total = total ^ solution if taken else total
        spanned.add(total)
    every = {frozenset(k for k in range(6) if flips[k]) for flips in product([False, True], repeat=6)}
    assert spanned == {flips for flips in every if all(len(form & flips) % 2 == 0 for form in equations)}

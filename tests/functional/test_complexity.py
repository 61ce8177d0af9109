"""The number of effective parameters; `tests/measurement/test_effective_parameters.py` counts those of models."""

import math

import pytest

from lightning_symmetry.functional import effective_parameters


def test_each_axis_leaves_its_share_of_a_tensor():
    assert float(effective_parameters([12, 20, 7], [[0.5, 0.25], [0.1], []])) == pytest.approx(1.5 + 2 + 7)


def test_the_ends_of_its_range():
    assert effective_parameters([6, 4], [[1.0, 1.0], [1.0]]) == 10
    assert effective_parameters([6, 4], [[1.0, 0.0], [0.0]]) == 0
    assert effective_parameters([], []) == 0


def test_what_is_not_known_of_one_axis_is_not_known():
    assert math.isnan(effective_parameters([6, 4], [[math.nan], [1.0]]))


@pytest.mark.parametrize(
    ("shares", "said"),
    [([[1.0]], "1 lists of shares for 2"), ([[1.5], []], r"share of 1\.5"), ([[-0.1], []], "in \\[0, 1\\]")],
)
def test_what_does_not_fit_is_refused(shares, said):
    with pytest.raises(ValueError, match=said):
        effective_parameters([6, 4], shares)

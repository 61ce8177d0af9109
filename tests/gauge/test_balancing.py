"""Scales at which units balance: closed forms, an independent reference, and how many steps it takes."""

import math

import numpy as np
import pytest
import torch

from lightning_symmetry.gauge.balancing import MOST_STEPS, Part, Sum, alive, balance
from lightning_symmetry.gauge.gauge import Acting, gather, spread
from tests.reference.balancing import balanced_chain


def matrices(widths, spread_of_units=0.0):
    generator = np.random.default_rng(0)
    shapes = zip(widths[1:], widths, strict=False)
    return [
        generator.standard_normal(shape) * np.exp(spread_of_units * generator.standard_normal((shape[0], 1)))
        for shape in shapes
    ]


def chain(weights):
    """The sums of a chain of matrices, of which ``unit k`` are the rows of number k and the columns of the next."""
    sums = []
    for k, weight in enumerate(weights):
        acting = [Acting(f"unit {k}", 1, (0,))] if k < len(weights) - 1 else []
        acting += [Acting(f"unit {k - 1}", -1, (1,))] if k > 0 else []
        sums.append(Sum((Part(torch.from_numpy(weight).square(), tuple(acting)),)))
    levels = {f"unit {k}": torch.zeros(len(weight)).double() for k, weight in enumerate(weights[:-1])}
    return sums, levels


def test_a_unit_is_balanced_where_both_its_sides_have_one_norm():
    sums, levels = chain([np.array([[3.0], [0.5]]), np.array([[12.0, 0.5]])])
    found, _ = balance(sums, levels, {})
    torch.testing.assert_close(found["unit 0"], torch.tensor([math.log(2.0), 0.0]).double())


def test_what_a_norm_divides_by_its_size_has_the_size_of_its_level():
    part = Part(torch.tensor([9.0, 0.01]).double(), (Acting("rows", 1, (0,)),))
    found, _ = balance([Sum((part,))], {"rows": torch.tensor([1.0, 4.0]).double()}, {})
    torch.testing.assert_close(found["rows"].exp(), torch.tensor([1 / 3, 20.0]).double())


def test_a_chain_agrees_with_balancing_one_layer_after_another():
    weights = matrices([5, 7, 6, 4, 3], spread_of_units=2.0)
    found, steps = balance(*chain(weights), {})
    expected = balanced_chain(weights, sweeps=2000)
    for k, (weight, other) in enumerate(zip(weights[:-1], expected, strict=False)):
        scaled = weight * found[f"unit {k}"].exp().numpy()[:, None]
        scaled = scaled / (found[f"unit {k - 1}"].exp().numpy() if k else 1.0)
        np.testing.assert_allclose(scaled, other, rtol=1e-7)
    assert 0 < steps <= MOST_STEPS


@pytest.mark.parametrize("spread_of_units", [0.0, 1.0, 4.0])
def test_the_solver_ends_within_50_steps_on_48_layers(spread_of_units):
    sums, levels = chain(matrices([6] + 48 * [12] + [6], spread_of_units))
    found, steps = balance(sums, levels, {})
    assert steps < MOST_STEPS
    excess = {name: torch.zeros_like(level) for name, level in levels.items()}
    total = {name: torch.zeros_like(level) for name, level in levels.items()}
    for each in sums:
        (part,) = each.parts
        squares = part.values
        for acting in part.scaled:
            squares = squares * spread((2 * acting.degree * found[acting.by]).exp(), acting.dims, squares.ndim)
        for acting in part.scaled:
            excess[acting.by] += acting.degree * gather(squares, acting.dims)
            total[acting.by] += gather(squares, acting.dims)
    assert max(float((excess[name] / total[name]).abs().max()) for name in levels) < 1e-6


def test_a_start_at_the_solution_takes_no_step():
    sums, levels = chain(matrices([5, 7, 6, 4]))
    found, _ = balance(sums, levels, {})
    again, steps = balance(sums, levels, found)
    assert steps <= 1
    torch.testing.assert_close(again, found, rtol=0, atol=1e-9)


def test_a_rooted_sum_takes_the_least_norm_of_two_maps_with_any_scale_between():
    """2 |a| |b| is what the scale t leaves of |a|^2 t^2 + |b|^2 / t^2: with or without t the others are the same."""
    a, b, c = (torch.tensor(x).double() for x in ([2.0, 1.0], [0.7], [5.0, 0.1]))
    units = Part(c.square(), (Acting("units", -1, (0,)),))
    levels = {"units": torch.zeros(2).double()}
    with_t, _ = balance(
        [
            Sum((Part(a.square(), (Acting("t", 1, ()), Acting("units", 1, (0,)))),)),
            Sum((Part(b.square(), (Acting("t", -1, ()),)),)),
            Sum((units,)),
        ],
        {**levels, "t": torch.zeros(()).double()},
        {},
    )
    product = Part((a * b).square(), (Acting("units", 1, (0,)),))
    rooted, _ = balance([Sum((product,), rooted=True), Sum((units,))], levels, {})
    torch.testing.assert_close(rooted["units"], with_t["units"])


def test_a_dead_unit_leaves_those_dead_that_only_it_feeds():
    weights = matrices([3, 4, 2, 3])
    weights[0][1] = 0  # nothing comes into unit 1 of the first layer,
    weights[1][0] = [0, 5.0, 0, 0]  # from which all comes that unit 0 of the second has
    living = alive(*chain(weights))
    assert living["unit 0"].tolist() == [True, False, True, True]
    assert living["unit 1"].tolist() == [False, True]

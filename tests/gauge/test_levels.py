"""The levels to which scales are balanced: where there is a minimum, and what they are where there would be none."""

import pytest
import torch

from lightning_symmetry.gauge.balancing import Part, Sum, balance
from lightning_symmetry.gauge.gauge import Acting
from lightning_symmetry.gauge.levels import within_reach


def part(values, **degrees):
    """One part, scaled by names with degrees: as a whole, or along its units by names that begin so."""
    acting = (Acting(name, degree, (0,) if name.startswith("unit") else ()) for name, degree in degrees.items())
    return Sum((Part(torch.tensor(values).double(), tuple(acting)),))


def gated(gate=2.0, gain=5.0, up=3.0, down=0.5):
    """A gated layer behind a norm's gain and before another norm: its scale turns the gate up and the gain down."""
    return [
        part([gate] * 4, scale=1, unit_gain=-1),
        part([gain] * 4, scale=-1, unit_gain=1),
        part([up] * 4, unit_gain=-1, unit_up=1),
        part([down] * 4, unit_up=-1),
    ]


def levels_of(scale, n=4):
    return {
        "scale": torch.tensor(float(scale)).double(),
        "unit_gain": torch.zeros(n).double(),
        "unit_up": torch.zeros(n).double(),
    }


def test_levels_at_which_there_is_a_minimum_stay():
    sums = [part([3.0, 2.0], scale=1, unit=1), part([5.0, 7.0], unit=-1)]
    levels = {"scale": torch.tensor(6.0).double(), "unit": torch.zeros(2).double()}
    torch.testing.assert_close(within_reach(sums, levels, {}, {}), levels)


def test_a_level_at_which_there_is_none_becomes_that_of_squares_that_are_all_one():
    """The gain balances gate and up, and up balances down: for each unit, gate + up = gain, up = down."""
    reached = within_reach(gated(), levels_of(4), {}, {})
    # with r for the gain, u for up: e^(-2r) + e^(2u - 2r) = e^(2r), e^(2u - 2r) = e^(-2u), so u = r / 2
    r = torch.linspace(0, 1, 1_000_001, dtype=torch.float64)
    r = r[((-2 * r).exp() + (-r).exp() - (2 * r).exp()).abs().argmin()]
    expected = 4 * ((-2 * r).exp() - (2 * r).exp())
    torch.testing.assert_close(reached["scale"], expected, rtol=1e-5, atol=0)
    assert expected < 0
    assert not reached["unit_gain"].any()


def test_there_is_a_minimum_then_and_it_is_one_point_of_the_orbit():
    balanced = []
    for factor in (1.0, 30.0):  # an element of the scale's group
        sums = gated(gate=2 * factor, gain=5 / factor)
        found, _ = balance(sums, within_reach(sums, levels_of(4), {}, {}), {})
        scaled = []
        for each in sums:
            (one,) = each.parts
            scaled.append(
                one.values * torch.stack([2 * a.degree * found[a.by].expand(4) for a in one.scaled]).sum(0).exp()
            )
        balanced.append(torch.stack(scaled))
    torch.testing.assert_close(balanced[1], balanced[0], rtol=1e-6, atol=0)
    gate, gain, up, down = balanced[0]
    torch.testing.assert_close(gate + up, gain)
    torch.testing.assert_close(up, down)


def test_what_is_zero_is_no_side_to_balance():
    sums = [part([3.0], scale=1), part([0.0], scale=-1)]
    assert within_reach(sums, {"scale": torch.tensor(-2.0).double()}, {}, {})["scale"] > 0


@pytest.mark.parametrize("before", [4.0, -7.0])
def test_levels_that_are_known_are_not_sought_again_but_for_those_without_a_minimum(before):
    of_ones = within_reach(gated(), levels_of(4), {}, {})
    reached = within_reach(gated(), levels_of(4), {}, levels_of(before))
    torch.testing.assert_close(reached, of_ones if before == 4 else levels_of(before))

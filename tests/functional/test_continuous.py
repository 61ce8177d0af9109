"""Order parameters of continuous groups: units that are dead, and directions that a product has lost."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_symmetry.functional import alive_units, living_units, product_rank
from tests.reference import order_parameters as reference


def test_a_unit_is_alive_when_something_comes_in_and_goes_out():
    incoming = torch.tensor([[1.0, 2.0], [0.0, 0.0], [3.0, 1.0]])
    outgoing = torch.tensor([[1.0], [1.0], [0.0]])
    assert alive_units(incoming, outgoing) == 1
    assert alive_units(incoming) == 2


def test_a_unit_much_weaker_than_the_others_is_dead():
    incoming = torch.tensor([[1.0], [1.0], [1e-5]])
    assert alive_units(incoming, torch.ones(3, 1)) == 2
    assert alive_units(incoming, torch.ones(3, 1), tolerance=1e-4) == 3


def test_much_weaker_is_by_the_root_mean_square() -> None:
    """Of strengths 1, ..., 1, 0.2, 0.09, 100 it is 10.05; by the mean, 2, all would live, by the most two die."""
    strengths = torch.ones(100, 1)
    strengths[97:, 0] = torch.tensor([0.2, 0.09, 100.0])
    for sides in ((strengths,), (strengths, strengths), (strengths**2, torch.ones(100, 3) / math.sqrt(3))):
        assert (~living_units(*sides)).nonzero().flatten().tolist() == [98]
        assert alive_units(*sides) == 99


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@given(n=st.integers(1, 8), tolerance=st.sampled_from([1e-2, 0.3, 0.9]), seed=st.integers(0, 2**16))
def test_those_live_that_live_by_the_definition(dtype: torch.dtype, n: int, tolerance: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    incoming, outgoing = (
        (torch.randn(n, dim, generator=generator) * 4 ** torch.randint(-4, 1, (n, 1), generator=generator)).to(dtype)
        for dim in (3, 2)
    )
    exact = incoming.double().numpy(), outgoing.double().numpy()
    assert living_units(incoming, outgoing, tolerance).tolist() == reference.living(*exact, tolerance)
    assert living_units(incoming, tolerance=tolerance).tolist() == reference.living(exact[0], tolerance=tolerance)
    assert alive_units(incoming, outgoing, tolerance) == sum(reference.living(*exact, tolerance))


def test_all_units_of_nothing_are_dead():
    assert alive_units(torch.zeros(4, 3), torch.zeros(4, 2)) == 0


@given(st.integers(1, 6), st.integers(0, 2**16))
def test_rescaling_the_units_changes_nothing(n, seed):
    generator = torch.Generator().manual_seed(seed)
    incoming, outgoing = (torch.randn(n, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    outgoing[: n // 2] = 0
    factors = torch.rand(n, 1, generator=generator, dtype=torch.float64) * 10 + 0.1
    assert alive_units(incoming * factors, outgoing / factors) == alive_units(incoming, outgoing) == n - n // 2


def test_the_rank_of_a_product_is_that_of_the_product():
    torch.manual_seed(0)
    incoming, outgoing = torch.randn(5, 9), torch.randn(5, 7)
    outgoing[2:] = 0
    assert product_rank(incoming, outgoing) == torch.linalg.matrix_rank(incoming.T @ outgoing) == 2


def test_by_weight_decay_those_singular_values_survive_that_exceed_it():
    """The least of |UV - Y|^2 + g (|U|^2 + |V|^2) has singular values max(s_k - g, 0)."""
    torch.manual_seed(0)
    strengths, decay = torch.tensor([3.0, 2.0, 1.0, 0.3, 0.2]), 0.5
    target = torch.diag(strengths)
    left, right = (torch.randn(5, 5, requires_grad=True) for _ in range(2))
    optimizer = torch.optim.LBFGS([left, right], max_iter=2000, tolerance_grad=1e-10, tolerance_change=1e-14)

    def closure():
        optimizer.zero_grad()
        loss = (left @ right - target).square().sum() + decay * (left.square().sum() + right.square().sum())
        loss.backward()
        return loss

    optimizer.step(closure)
    assert product_rank(left.detach().T, right.detach()) == (strengths > decay).sum() == 3


@given(st.integers(1, 5), st.integers(1, 5), st.integers(1, 5), st.integers(0, 2**16))
def test_mixing_the_directions_changes_nothing(d, m, p, seed):
    generator = torch.Generator().manual_seed(seed)
    incoming = torch.randn(d, m, generator=generator, dtype=torch.float64)
    outgoing = torch.randn(d, p, generator=generator, dtype=torch.float64)
    mixture = torch.eye(d, dtype=torch.float64) + 0.1 * torch.randn(d, d, generator=generator, dtype=torch.float64)
    mixed = product_rank(mixture @ incoming, torch.linalg.solve(mixture.T, outgoing), tolerance=1e-6)
    assert mixed == product_rank(incoming, outgoing, tolerance=1e-6)


@pytest.mark.parametrize("measure", [alive_units, product_rank])
def test_what_is_not_finite_gives_nan(measure):
    incoming = torch.ones(3, 2)
    incoming[1, 1] = math.inf
    assert math.isnan(measure(incoming, torch.ones(3, 2)))


@pytest.mark.parametrize("measure", [alive_units, product_rank])
def test_bad_input_is_refused(measure):
    with pytest.raises(ValueError, match=r"tolerance=-1 .* above 0 and below 1"):
        measure(torch.ones(3, 2), torch.ones(3, 2), tolerance=-1)
    with pytest.raises(ValueError, match=r"one n; got \[\(3, 2\), \(4, 2\)\]"):
        measure(torch.ones(3, 2), torch.ones(4, 2))

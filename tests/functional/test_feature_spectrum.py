"""Indicators of clouds of features against their definitions, known values, and the edges."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lightning_symmetry import functional
from lightning_symmetry.functional import effective_rank, feature_indicators, moments
from lightning_symmetry.functional.feature_spectrum import FEATURE_INDICATORS, Moments
from tests.reference import representation as reference
from tests.reference.spectrum import exp_entropy, singular_values

FUNCTIONS = {
    "participation_ratio": functional.covariance_participation_ratio,
    "stable_rank": functional.covariance_stable_rank,
    "isotropy": functional.isotropy,
    "alpha_req": functional.alpha_req,
    "nesum": functional.nesum,
}
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def gaussian(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def values(features: Tensor, batch_size: int | None = None) -> dict[str, float]:
    sums = [moments(batch) for batch in features.split(batch_size or max(len(features), 1))]
    joined = Moments(*(sum(parts) for parts in zip(*sums, strict=True)))
    return {name: value.item() for name, value in feature_indicators(joined).items()}


def spread(variances: list[float]) -> Tensor:
    """Features with mean 0 whose covariance is diagonal, with variances in these proportions."""
    axes = torch.diag(torch.tensor(variances, dtype=torch.float64).sqrt())
    return torch.cat([axes, -axes])


def test_a_diagonal_covariance_has_the_known_values() -> None:
    expected = {
        "effective_rank": exp_entropy(np.array([2.0, 1.0, 1.0])),
        "participation_ratio": 36 / 18,
        "stable_rank": 18 / 16,
        "isotropy": 0.5,
        "alpha_req": (math.log(4) * (1 / 2 * math.log(2) + 1 / 3 * math.log(3)) * (1 - (5 / 6) / (11 / 6)))
        / (
            (1 / 2 * math.log(2) ** 2 + 1 / 3 * math.log(3) ** 2)
            - (1 / 2 * math.log(2) + 1 / 3 * math.log(3)) ** 2 / (11 / 6)
        ),
        "nesum": 6 / 4,
    }
    assert values(spread([4.0, 1.0, 1.0])) == pytest.approx(expected, rel=1e-9)


def test_a_power_law_has_its_exponent() -> None:
    for exponent in (0.5, 1.0, 2.5):
        features = spread([i**-exponent for i in range(1, 60)])
        assert functional.alpha_req(features).item() == pytest.approx(exponent, rel=1e-9)


@given(
    n=st.integers(2, 40),
    dim=st.integers(1, 12),
    rank=st.integers(1, 12),
    shift=st.sampled_from([0.0, 1.0, 30.0]),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 10**6),
)
def test_all_indicators_agree_with_their_definitions(
    n: int, dim: int, rank: int, shift: float, dtype: torch.dtype, seed: int
) -> None:
    features = (gaussian(n, rank, seed=seed) @ gaussian(rank, dim, seed=seed + 1) + shift).to(dtype)
    exact = features.double().numpy()
    eigenvalues = reference.covariance_eigenvalues(exact)
    result = values(features, batch_size=7)
    assert result["effective_rank"] == pytest.approx(exp_entropy(singular_values(exact)), rel=1e-4)
    if eigenvalues[0] == 0:
        return
    assert result["participation_ratio"] == pytest.approx(eigenvalues.sum() ** 2 / (eigenvalues**2).sum(), rel=1e-6)
    assert result["stable_rank"] == pytest.approx((eigenvalues**2).sum() / eigenvalues[0] ** 2, rel=1e-6)
    assert result["nesum"] == pytest.approx(eigenvalues.sum() / eigenvalues[0], rel=1e-6)
    if dim > 1:
        assert result["isotropy"] == pytest.approx(reference.isoscore(exact), abs=1e-6)
    clear = (eigenvalues > 1e-7 * eigenvalues[0]) | (eigenvalues < 1e-25 * eigenvalues[0])
    if clear.all() and (eigenvalues > 1e-7 * eigenvalues[0]).sum() > 1:
        assert result["alpha_req"] == pytest.approx(reference.alpha_req(exact), rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_effective_rank_is_rankme_as_published(dtype: torch.dtype) -> None:
    features = gaussian(400, 32, dtype=dtype) * torch.linspace(0.1, 3, 32).to(dtype)
    expected = reference.rankme(features.double().numpy())
    assert effective_rank(features).item() == pytest.approx(expected, rel=1e-5)
    assert values(features, batch_size=33)["effective_rank"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("rank", [1, 10])
def test_rank_collapse_of_float32_features_is_seen_from_sums(rank: int) -> None:
    features = gaussian(900, rank) @ gaussian(rank, 768, seed=1)
    expected = exp_entropy(singular_values(features.double().numpy()))
    assert values(features, batch_size=300)["effective_rank"] == pytest.approx(expected, rel=1e-3)


def test_sums_over_batches_are_those_of_all_samples_and_a_mask_leaves_samples_out() -> None:
    features = gaussian(30, 5) + 2
    assert values(features, batch_size=4) == pytest.approx(values(features), rel=1e-9)
    mask = torch.arange(30) % 3 > 0
    spoiled = torch.where(mask[:, None], features, torch.nan)
    for masked, chosen in zip(moments(spoiled, mask), moments(features[mask]), strict=True):
        torch.testing.assert_close(masked, chosen)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_each_function_is_one_entry_of_the_table(name: str) -> None:
    features = gaussian(20, 4) + 1
    alone = FUNCTIONS[name](features)
    assert alone.shape == () and alone.dtype == torch.float64 and not alone.requires_grad
    assert alone.item() == pytest.approx(feature_indicators(moments(features), [name])[name].item(), rel=1e-9)


@given(
    n=st.integers(0, 4),
    dim=st.integers(0, 4),
    exponent=st.sampled_from([-1000, -300, -140, -30, 0, 30, 120, 300, 1000]),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 100),
)
def test_finite_features_have_finite_values_within_their_ranges(
    n: int, dim: int, exponent: int, dtype: torch.dtype, seed: int
) -> None:
    limits = torch.finfo(dtype)
    scaled = gaussian(n, dim, seed=seed).double() * 2.0**exponent
    features = scaled.clamp(-limits.max, limits.max).to(dtype)
    for name, function in FUNCTIONS.items():
        value = function(features).item()
        assert 0 <= value < math.inf, name
        if name == "isotropy":
            assert value <= 1 + 1e-9
        elif name != "alpha_req":
            assert value <= dim * (1 + 1e-9)


@pytest.mark.parametrize("features", [torch.zeros(5, 3), torch.zeros(0, 3), torch.zeros(4, 0)], ids=str)
def test_zero_and_empty_features_have_rank_zero_in_every_sense(features: Tensor) -> None:
    assert values(features) == dict.fromkeys(FEATURE_INDICATORS, 0.0)


@pytest.mark.parametrize("n", [1, 5])
def test_features_that_are_all_the_same_have_rank_one_and_no_covariance(n: int) -> None:
    features = torch.tensor([[3.0, 1.0, 0.1]]).expand(n, 3)
    assert values(features) == {**dict.fromkeys(FEATURE_INDICATORS, 0.0), "effective_rank": pytest.approx(1.0)}


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_an_entry_that_is_not_finite_makes_everything_nan(bad: float) -> None:
    features = gaussian(5, 3)
    features[1, 2] = bad
    assert all(math.isnan(value) for value in values(features).values())


def test_tokens_that_are_not_flattened_and_unknown_names_are_refused_with_what_to_do() -> None:
    with pytest.raises(ValueError, match=r"must be \(n_samples, dim\), got shape \(2, 3, 4\): flatten"):
        functional.isotropy(torch.ones(2, 3, 4))
    with pytest.raises(ValueError, match=r"out of effective_rank, .*nesum; got 'rank'"):
        feature_indicators(moments(torch.eye(2)), ["rank"])

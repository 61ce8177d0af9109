"""CKA and canonical alignment against explicit sums, and with known values."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lightning_symmetry.functional import canonical_alignment, linear_cka
from lightning_symmetry.functional.similarity import hsic, linear_cka_of
from tests.reference import representation as reference

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def gaussian(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@given(n=st.integers(4, 7), dim=st.integers(1, 5), other=st.integers(1, 5), seed=st.integers(0, 1000))
def test_hsic_is_a_mean_over_different_samples(n: int, dim: int, other: int, seed: int) -> None:
    x, y = gaussian(n, dim, seed=seed), gaussian(n, other, seed=seed + 1) + 1
    result = hsic([x, y]).numpy()
    k, l = (z @ z.T for z in (x.double().numpy(), y.double().numpy()))  # noqa: E741
    expected = [[reference.hsic(a, b) for b in (k, l)] for a in (k, l)]
    np.testing.assert_allclose(result, expected, rtol=1e-9, atol=1e-9 * np.abs(expected).max())


@pytest.mark.parametrize("dtype", DTYPES)
def test_cka_agrees_with_its_definition(dtype: torch.dtype) -> None:
    x, y = gaussian(9, 4, dtype=dtype), (gaussian(9, 4) @ gaussian(4, 3, seed=1) + gaussian(9, 3, seed=2)).to(dtype)
    expected = reference.linear_cka(x.double().numpy(), y.double().numpy())
    assert linear_cka(x, y).item() == pytest.approx(expected, rel=1e-9)


def test_mini_batches_agree_with_all_samples_at_once() -> None:
    """Two views of one signal, each with noise of its own: far from 0 and from 1."""
    signal = gaussian(2048, 8)
    first = torch.cat([signal, gaussian(2048, 8, seed=1)], dim=1)
    second = signal @ gaussian(8, 20, seed=2) + 2 * gaussian(2048, 20, seed=3)
    full = linear_cka(first, second).item()
    assert 0.3 < full < 0.7
    for batch_size in (64, 256):
        sums = sum(hsic(pair) for pair in zip(first.split(batch_size), second.split(batch_size), strict=True))
        assert linear_cka_of(sums)[0, 1].item() == pytest.approx(full, abs=1e-2)


@pytest.mark.parametrize("n", [4, 5, 64])
def test_against_itself_turned_shifted_and_stretched_cka_is_one(n: int) -> None:
    features = gaussian(n, 6).double()
    rotation = torch.linalg.qr(gaussian(6, 6, seed=1).double()).Q
    assert linear_cka(features, features).item() == pytest.approx(1, abs=1e-6)
    assert linear_cka(features, 1e-3 * features @ rotation + 7).item() == pytest.approx(1, abs=1e-6)


def test_independent_features_have_a_cka_of_zero_on_average_though_they_are_many() -> None:
    """The biased estimate would be near 1: there are more dimensions than samples."""
    drawn = [linear_cka(gaussian(16, 64, seed=seed), gaussian(16, 64, seed=seed + 500)).item() for seed in range(100)]
    assert abs(np.mean(drawn)) < 0.02


@pytest.mark.parametrize("n", [0, 1, 3])
def test_too_few_samples_tell_nothing(n: int) -> None:
    assert linear_cka(gaussian(n, 2), gaussian(n, 3)) == 0


def test_features_that_do_not_vary_are_like_nothing() -> None:
    assert linear_cka(torch.zeros(8, 3), gaussian(8, 3)) == 0


@given(
    n=st.integers(0, 8),
    dim=st.integers(0, 4),
    exponents=st.tuples(*[st.sampled_from([-1000, -140, 0, 120, 1000])] * 2),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 1000),
)
def test_finite_features_have_finite_similarities(
    n: int, dim: int, exponents: tuple[int, int], dtype: torch.dtype, seed: int
) -> None:
    limit = torch.finfo(dtype).max
    x, y = (
        (gaussian(n, dim, seed=seed + k).double() * 2.0**exponent).clamp(-limit, limit).to(dtype)
        for k, exponent in enumerate(exponents)
    )
    assert math.isfinite(linear_cka(x, y))
    for value in canonical_alignment(x, y, x.T).values():
        assert 0 <= value.item() <= 1 + 1e-9


def test_a_nan_makes_similarities_nan() -> None:
    features = gaussian(6, 3)
    features[2, 1] = math.nan
    assert math.isnan(linear_cka(features, gaussian(6, 3, seed=1)))
    assert math.isnan(canonical_alignment(features, gaussian(6, 3))["activation_gradient"])


@pytest.mark.parametrize("dtype", DTYPES)
def test_alignments_are_cosines_of_second_moments(dtype: torch.dtype) -> None:
    h, g, weight = (
        gaussian(12, 5, dtype=dtype),
        gaussian(9, 5, seed=1, dtype=dtype),
        gaussian(5, 7, seed=2, dtype=dtype),
    )
    a, b, w = (one.double().numpy() for one in (h, g, weight))
    expected = {
        "activation_gradient": reference.cosine(a.T @ a, b.T @ b),
        "activation_weight": reference.cosine(a.T @ a, w @ w.T),
        "gradient_weight": reference.cosine(b.T @ b, w @ w.T),
    }
    result = {name: value.item() for name, value in canonical_alignment(h, g, weight).items()}
    assert result == pytest.approx(expected, rel=1e-9)


def test_proportional_moments_are_aligned_and_disjoint_ones_are_not() -> None:
    first, second = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    assert canonical_alignment(first, -3 * first)["activation_gradient"].item() == 1
    assert canonical_alignment(first, second)["activation_gradient"].item() == 0


def test_samples_that_do_not_match_and_weights_that_are_not_turned_are_refused() -> None:
    with pytest.raises(ValueError, match="of the same samples, in the same order; got 5, 6 samples"):
        linear_cka(torch.ones(5, 2), torch.ones(6, 2))
    with pytest.raises(ValueError, match=r"must have one dim; got activation 5, .* weight 3. Give .* weight.T"):
        canonical_alignment(torch.ones(2, 5), torch.ones(2, 5), torch.ones(3, 5))

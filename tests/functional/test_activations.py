"""Silent units and equal tokens."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_symmetry.functional import dormant_fraction, token_rank_residual
from tests.reference import representation as reference

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


@given(
    n=st.integers(1, 6),
    units=st.integers(1, 9),
    threshold=st.sampled_from([0.0, 0.025, 0.5]),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 1000),
)
def test_dormant_units_are_counted(n: int, units: int, threshold: float, dtype: torch.dtype, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(n, units, generator=generator) * torch.rand(units, generator=generator).pow(4).round(
        decimals=2
    )
    features = features.to(dtype)
    if not features.any():
        assert dormant_fraction(features, threshold) == 1
        return
    expected = reference.dormant_fraction(features.double().numpy(), threshold)
    assert dormant_fraction(features, threshold).item() == pytest.approx(expected)


def test_a_silent_layer_is_dormant_and_so_is_none_at_all() -> None:
    assert dormant_fraction(torch.zeros(4, 3)) == 1
    assert dormant_fraction(torch.zeros(0, 3)) == 1
    assert dormant_fraction(torch.zeros(4, 0)) == 1


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_residual_is_the_mean_over_sequences_without_their_padding(dtype: torch.dtype) -> None:
    tokens = (torch.randn(5, 7, 3, generator=torch.Generator().manual_seed(0)) + 1).to(dtype)
    lengths = [7, 3, 1, 5, 2]
    mask = torch.arange(7) < torch.tensor(lengths)[:, None]
    spoiled = torch.where(mask[..., None], tokens, torch.inf)
    exact = tokens.double().numpy()
    expected = reference.token_rank_residual([x[:length] for x, length in zip(exact, lengths, strict=True)])
    assert token_rank_residual(spoiled, mask).item() == pytest.approx(expected, rel=1e-9)
    assert token_rank_residual(spoiled, mask.long()).item() == pytest.approx(expected, rel=1e-9)


def test_equal_tokens_have_no_residual_and_centred_ones_nothing_else() -> None:
    assert token_rank_residual(torch.full((2, 5, 3), 0.1)).item() == pytest.approx(0, abs=1e-12)
    assert token_rank_residual(torch.tensor([[1.0, 2.0], [-1.0, -2.0]])) == 1
    assert token_rank_residual(torch.ones(2, 5, 3), torch.zeros(2, 5)) == 0
    assert token_rank_residual(torch.zeros(2, 5, 3)) == 0
    assert token_rank_residual(torch.zeros(0, 5, 3)) == 0
    assert token_rank_residual(torch.zeros(2, 0, 3)) == 0


@pytest.mark.parametrize("scale", [2.0**-1000, 2.0**1000])
def test_the_size_of_the_entries_changes_nothing(scale: float) -> None:
    tokens = torch.randn(3, 4, 2, generator=torch.Generator().manual_seed(0)).double()
    assert token_rank_residual(tokens * scale).item() == pytest.approx(token_rank_residual(tokens).item())
    assert dormant_fraction(tokens[0] * scale, 0.7) == dormant_fraction(tokens[0], 0.7)


def test_a_nan_makes_both_nan() -> None:
    assert math.isnan(token_rank_residual(torch.tensor([[1.0], [math.nan]])))
    assert math.isnan(dormant_fraction(torch.tensor([[1.0, 2.0], [math.nan, 1.0]])))


def test_what_has_no_meaning_is_refused() -> None:
    with pytest.raises(ValueError, match="threshold must be at least 0, got -1"):
        dormant_fraction(torch.eye(2), -1)
    with pytest.raises(ValueError, match=r"mask must be \(2, 3\)"):
        token_rank_residual(torch.ones(2, 3, 4), torch.ones(3))
    with pytest.raises(ValueError, match="tokens must be"):
        token_rank_residual(torch.ones(3))

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lightning_symmetry import functional
from lightning_symmetry.functional import (
    condition_number,
    effective_rank,
    numerical_rank,
    perplexity,
    singular_values,
    spectral_indicators,
    srank,
)
from lightning_symmetry.functional.spectrum import SPECTRAL_INDICATORS
from tests.reference import spectrum as reference

RANKS = ("effective_rank", "stable_rank", "participation_ratio", "entropy_rank", "numerical_rank", "srank")
NORMS = ("spectral_norm", "nuclear_norm", "frobenius_norm")


def gaussian(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def values(matrix: Tensor) -> dict[str, float]:
    return {name: value.item() for name, value in spectral_indicators(matrix).items()}


def test_a_diagonal_matrix_has_the_known_values() -> None:
    expected = {
        "effective_rank": math.exp(math.log(7) - (3 * math.log(3) + 4 * math.log(4)) / 7),
        "stable_rank": 25 / 16,
        "participation_ratio": 25**2 / (81 + 256),
        "entropy_rank": math.exp(math.log(25) - (9 * math.log(9) + 16 * math.log(16)) / 25),
        "numerical_rank": 2,
        "srank": 2,
        "spectral_norm": 4,
        "nuclear_norm": 7,
        "frobenius_norm": 5,
        "condition_number": 4 / 3,
        "alpha": 1 + 2 / math.log(16 / 9),
    }
    assert values(torch.diag(torch.tensor([3.0, 4.0]))) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.complex64])
def test_an_orthogonal_matrix_has_full_rank_in_every_sense(dtype: torch.dtype) -> None:
    result = values(3 * torch.eye(5, dtype=dtype))
    assert {name: result[name] for name in RANKS} == pytest.approx(dict.fromkeys(RANKS, 5.0))
    assert result["condition_number"] == 1
    assert result["alpha"] == math.inf


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_a_matrix_of_ones_has_rank_one_in_every_sense_and_is_singular(dtype: torch.dtype) -> None:
    result = values(torch.ones(3, 7, dtype=dtype))
    assert {name: result[name] for name in RANKS} == pytest.approx(dict.fromkeys(RANKS, 1.0))
    assert result["condition_number"] == math.inf
    assert result["alpha"] == math.inf


@pytest.mark.parametrize("shape", [(3, 4), (4, 3), (0, 4), (4, 0), (2, 0, 3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_zero_or_empty_matrix_has_rank_zero_in_every_sense(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    result = values(torch.zeros(shape, dtype=dtype))
    assert {name: result[name] for name in (*RANKS, *NORMS)} == dict.fromkeys((*RANKS, *NORMS), 0.0)
    assert result["condition_number"] == math.inf
    assert result["alpha"] == math.inf


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_an_entry_that_is_not_finite_makes_everything_nan(bad: float, dtype: torch.dtype) -> None:
    matrix = torch.eye(4, dtype=dtype)
    matrix[1, 2] = bad
    assert singular_values(matrix).isnan().all()
    assert all(math.isnan(value) for value in values(matrix).values())


@pytest.mark.parametrize("matrix", [torch.ones(3), torch.tensor(1.0)])
def test_a_vector_or_scalar_is_refused_with_what_to_do(matrix: Tensor) -> None:
    with pytest.raises(ValueError, match=r"at least 2 dimensions.*reshape\(1, -1\)"):
        effective_rank(matrix)


def test_a_kernel_is_read_as_out_by_in_times_kernel() -> None:
    kernel = gaussian(4, 3, 2, 2)
    assert values(kernel) == values(kernel.reshape(4, 12))


@given(
    rows=st.integers(1, 12),
    columns=st.integers(1, 12),
    rank=st.integers(1, 12),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]),
    seed=st.integers(0, 10**6),
)
def test_all_indicators_agree_with_the_svd_in_float64(
    rows: int, columns: int, rank: int, dtype: torch.dtype, seed: int
) -> None:
    matrix = (gaussian(rows, rank, seed=seed) @ gaussian(rank, columns, seed=seed + 1)).to(dtype)
    exact = matrix.double().numpy()
    eps = min(torch.finfo(dtype).eps, torch.finfo(torch.float32).eps)
    expected = reference.indicators(exact, eps)
    result = values(matrix)
    s = reference.singular_values(exact) / expected["spectral_norm"]
    for name in set(SPECTRAL_INDICATORS) - {"numerical_rank", "srank", "condition_number", "alpha"}:
        assert result[name] == pytest.approx(expected[name], rel=1e-4), name
    if np.all(np.abs(np.log(s / reference.rank_tolerance(exact, eps))) > 0.1):  # no value on the edge of the tolerance
        assert result["numerical_rank"] == expected["numerical_rank"]
    if np.all(np.abs(np.cumsum(s) - 0.99 * np.sum(s)) > 1e-4 * np.sum(s)):
        assert result["srank"] == expected["srank"]
    if s[-1] > 1e-6:
        assert result["condition_number"] == pytest.approx(expected["condition_number"], rel=1e-2)
    if dtype == torch.float64 and s[-1] > 1e-6:  # the tail that fits best can change with the last digit
        assert result["alpha"] == pytest.approx(expected["alpha"], rel=1e-6)


@pytest.mark.parametrize("rank", [1, 10])
def test_rank_collapse_is_seen_in_float32(rank: int) -> None:
    matrix = gaussian(768, rank) @ gaussian(rank, 768, seed=1)
    expected = reference.exp_entropy(reference.singular_values(matrix.double().numpy()))
    assert effective_rank(matrix).item() == pytest.approx(expected, rel=1e-3)
    assert numerical_rank(matrix) == rank


def test_condition_number_and_rank_of_float64_reach_beyond_the_square_root_of_eps() -> None:
    matrix = torch.diag(torch.tensor([1.0, 1e-10], dtype=torch.float64))
    assert condition_number(matrix).item() == pytest.approx(1e10)
    assert numerical_rank(matrix) == 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("width", [4, 300])
@pytest.mark.parametrize("digits", [0.25, 0.5, 0.75, 0.9])
def test_condition_numbers_are_right_up_to_the_inverse_of_eps(dtype: torch.dtype, width: int, digits: float) -> None:
    """A Gram matrix squares them, and can tell no more than 1 / sqrt(n eps64): the SVD is taken from there on."""
    left, right = (torch.linalg.qr(gaussian(width, width, seed=seed).double()).Q for seed in (0, 1))
    values = torch.logspace(0, digits * math.log10(torch.finfo(dtype).eps), width, dtype=torch.float64)
    matrix = (left * values @ right).to(dtype)
    expected = np.linalg.cond(matrix.double().numpy())
    assert condition_number(matrix).item() == pytest.approx(expected, rel=max(1e-2, 1e-14 * expected))


def test_a_singular_matrix_of_float32_is_told_from_one_that_is_nearly_so() -> None:
    nearly = torch.full((60, 60), 0.5) + 2.0**-23 * torch.eye(60)
    assert condition_number(nearly).item() == pytest.approx(1 + 30 * 2**23, rel=1e-6)
    assert condition_number(torch.full((60, 60), 0.5)) == condition_number(torch.full((50, 60), 0.1)) == math.inf


@pytest.mark.parametrize("scale", [2.0**-120, 2.0**-60, 2.0**60, 2.0**120])
def test_the_size_of_the_entries_changes_no_rank(scale: float) -> None:
    matrix = gaussian(5, 8)
    small, large = values(matrix), values(matrix * scale)
    assert {name: large[name] for name in RANKS} == {name: small[name] for name in RANKS}
    assert {name: large[name] for name in NORMS} == pytest.approx({name: scale * small[name] for name in NORMS})


def test_norms_of_the_largest_float32_entries_are_finite() -> None:
    matrix = torch.full((4, 4), torch.finfo(torch.float32).max)
    assert values(matrix)["spectral_norm"] == pytest.approx(4 * torch.finfo(torch.float32).max)


@pytest.mark.parametrize("name", SPECTRAL_INDICATORS)
def test_each_function_is_one_entry_of_the_table(name: str) -> None:
    matrix = gaussian(6, 4)
    alone = getattr(functional, name)(matrix)
    assert alone.shape == () and alone.dtype == torch.float64
    assert alone == spectral_indicators(matrix, [name])[name]


def test_singular_values_descend_and_are_those_of_the_transpose() -> None:
    result = singular_values(gaussian(7, 30))
    assert (result.diff() <= 0).all()
    torch.testing.assert_close(result, singular_values(gaussian(7, 30).T), rtol=1e-6, atol=0)


def test_singular_values_of_a_complex_matrix() -> None:
    matrix = torch.complex(gaussian(5, 3), gaussian(5, 3, seed=1))
    expected = torch.from_numpy(np.linalg.svd(matrix.to(torch.complex128).numpy(), compute_uv=False))
    torch.testing.assert_close(singular_values(matrix), expected)


def test_srank_counts_what_carries_all_but_delta() -> None:
    matrix = torch.diag(torch.tensor([6.0, 3.0, 1.0]))
    assert [srank(matrix, delta).item() for delta in (0.0, 0.05, 0.2, 0.5)] == [3, 3, 2, 1]


@pytest.mark.parametrize("delta", [-0.1, 1.0])
def test_srank_refuses_a_share_outside_of_its_range(delta: float) -> None:
    with pytest.raises(ValueError, match=rf"delta must be in \[0, 1\), got {delta}"):
        srank(torch.eye(2), delta)


def test_an_unknown_indicator_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"out of effective_rank, .*alpha; got 'efective_rank'"):
        spectral_indicators(torch.eye(2), ["efective_rank"])


def test_perplexity_of_equal_weights_is_their_number_and_of_none_zero() -> None:
    assert perplexity(torch.full((5,), 0.3)).item() == pytest.approx(5)
    assert perplexity(torch.tensor([0.0, 2.0])) == 1
    assert perplexity(torch.zeros(3)) == 0
    assert perplexity(torch.zeros(0)) == 0


def test_a_measurement_carries_no_gradient_and_leaves_the_random_state() -> None:
    before = torch.get_rng_state()
    assert not effective_rank(torch.nn.Parameter(torch.eye(3))).requires_grad
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("aspect", [0.25, 0.5, 1.0])
def test_a_large_gaussian_matrix_has_the_effective_rank_of_marchenko_and_pastur(aspect: float) -> None:
    rows = 512
    share = effective_rank(gaussian(rows, int(rows / aspect))).item() / rows
    assert share == pytest.approx(reference.marchenko_pastur_effective_rank(aspect), rel=2e-3)

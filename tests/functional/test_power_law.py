"""The exponent of the tail, against the published procedure, one attempt after another."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lightning_symmetry.functional import alpha
from lightning_symmetry.functional.power_law import power_law_exponent
from tests.reference import spectrum as reference


def quantiles(exponent: float, n: int) -> Tensor:
    """n evenly spaced quantiles of the law with this exponent."""
    return (1 - (torch.arange(n, dtype=torch.float64) + 0.5) / n) ** (-1 / (exponent - 1))


def drawn(n: int, seed: int) -> Tensor:
    return torch.rand(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("exponent", [1.5, 2.0, 4.0, 6.0])
def test_a_law_has_its_exponent(exponent: float) -> None:
    assert power_law_exponent(quantiles(exponent, 1000)).item() == pytest.approx(exponent, rel=5e-3)


def test_it_is_what_the_powerlaw_package_finds() -> None:
    """Computed by version 2.0.0 of https://github.com/jeffalstott/powerlaw (arXiv:1305.0215)."""
    assert power_law_exponent(quantiles(2.5, 1000)).item() == pytest.approx(2.5012710616011047, rel=1e-12)


def test_the_tail_is_found_above_what_is_no_law() -> None:
    bulk = drawn(300, 0)
    sample = torch.cat([bulk, quantiles(3.0, 300)])
    assert power_law_exponent(sample).item() == pytest.approx(3.0, rel=0.05)
    assert power_law_exponent(bulk).item() > 6


@given(n=st.integers(2, 30), digits=st.integers(1, 6), seed=st.integers(0, 10**6))
def test_it_is_what_one_attempt_after_another_finds(n: int, digits: int, seed: int) -> None:
    """Rounded to few digits, so that many values are equal, and some zero."""
    sample = drawn(n, seed).round(decimals=digits)
    assert power_law_exponent(sample).item() == pytest.approx(reference.power_law_exponent(sample.numpy()), rel=1e-9)


def test_blocks_of_attempts_join_to_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    sample = drawn(40, 1)
    whole = power_law_exponent(sample)
    monkeypatch.setattr("lightning_symmetry.functional.power_law.BLOCK_ELEMENTS", 100)
    assert power_law_exponent(sample) == whole


@pytest.mark.parametrize("values", [[], [0.0, 0.0], [2.0], [3.0, 3.0, 3.0], [0.0, 5.0, -1.0]])
def test_what_does_not_vary_has_no_tail(values: list[float]) -> None:
    assert power_law_exponent(torch.tensor(values)) == math.inf


@pytest.mark.parametrize(
    "matrix", [torch.ones(1, 1), torch.zeros(1, 1), torch.ones(1, 5), torch.eye(4), torch.ones(4, 4)]
)
def test_a_matrix_without_a_tail_has_an_infinite_alpha(matrix: Tensor) -> None:
    assert alpha(matrix) == math.inf


def test_the_factor_of_a_matrix_changes_nothing() -> None:
    matrix = torch.randn(40, 60, generator=torch.Generator().manual_seed(0))
    assert alpha(matrix * 2.0**80).item() == alpha(matrix).item()
    assert alpha(3 * matrix.T).item() == pytest.approx(alpha(matrix).item(), rel=1e-4)


def test_entries_of_a_heavy_tail_have_the_known_exponent_and_gaussian_ones_no_tail() -> None:
    """Entries with P(|w| > x) ~ x^-mu, mu < 2, give alpha = 1 + mu / 2 (arXiv:1810.01075, section 3)."""
    generator = torch.Generator().manual_seed(0)
    cauchy = torch.empty(300, 400).cauchy_(generator=generator)  # mu = 1
    assert alpha(cauchy).item() == pytest.approx(1.5, abs=0.15)
    assert alpha(torch.randn(300, 400, generator=generator)) > 6

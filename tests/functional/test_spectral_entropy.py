"""The effective number of eigenvalues from products alone, against the eigenvalues."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lightning_symmetry.functional import Units, effective_units, permutation_indicators
from lightning_symmetry.functional.order_parameters import MOST_EIGENVALUES
from lightning_symmetry.functional.spectral_entropy import estimated_perplexity

N_UNITS = 500
LIMITS = "lightning_symmetry.functional.order_parameters"


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


NOISE = gaussian(N_UNITS, 600)
UNITS = {
    "independent": NOISE,
    "of a power law": NOISE * torch.arange(1, 601) ** -0.5,
    "in five directions and noise": gaussian(N_UNITS, 5) @ gaussian(5, 600, seed=2) + 0.3 * NOISE,
    "in one direction": 30 * gaussian(1, 600, seed=3) + NOISE,
    "of forty equal singular values": torch.linalg.qr(gaussian(N_UNITS, 40)).Q @ torch.eye(40, 600),
    "in fifty clusters": gaussian(50, 600)[torch.arange(N_UNITS) % 50] + 0.1 * NOISE,
    "half of them zero": NOISE * (torch.arange(N_UNITS) % 2)[:, None],
    "all equal": gaussian(1, 600).expand(N_UNITS, -1),
}


@pytest.mark.parametrize("name", UNITS)
def test_the_estimate_is_near_what_the_eigenvalues_give(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """At 500 units, of which 32 of the eigenvalues are a larger part than at 4,096 and more."""
    units = Units(parts=(UNITS[name][:, :100], UNITS[name][:, 100:]))
    exact = effective_units(units).item()
    monkeypatch.setattr(f"{LIMITS}.MOST_EIGENVALUES", 100)
    assert effective_units(units).item() == pytest.approx(exact, rel=0.02)
    assert permutation_indicators(units)["effective_units"].item() == effective_units(units).item()


@pytest.mark.parametrize("name", UNITS)
def test_with_signs_it_is_still_near_though_eigenvalues_may_be_negative(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    units = Units(parts=(UNITS[name],), signs=(1,))
    exact = effective_units(units).item()
    assert math.isfinite(exact)  # float32 eigenvalues of a matrix with many zero rows can be NaN
    monkeypatch.setattr(f"{LIMITS}.MOST_EIGENVALUES", 100)
    assert permutation_indicators(units)["effective_units"].item() == pytest.approx(exact, rel=0.1)


def test_random_units_beyond_the_limit_have_the_entropy_of_page() -> None:
    """The mean over random states of d levels beside n is log d - d / 2n, both large (Page, arXiv:gr-qc/9305007)."""
    n_units, dimension = 5000, MOST_EIGENVALUES + 100
    expected = dimension * math.exp(-dimension / (2 * n_units))
    assert effective_units(gaussian(n_units, dimension)).item() == pytest.approx(expected, rel=1e-2)


class Largest(TorchDispatchMode):
    """The number of entries of the largest tensor that an operation makes anew."""

    entries = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        given = {one.untyped_storage().data_ptr() for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor)}
        for one in tree_leaves(result):
            if isinstance(one, Tensor) and one.untyped_storage().data_ptr() not in given:
                self.entries = max(self.entries, one.numel())
        return result


@pytest.mark.parametrize("signs", [(), (1,)], ids=["as they are", "up to signs"])
@pytest.mark.parametrize(
    ("dimension", "offset"), [(50, 0), (1000, 0), (1000, 1e3)], ids=["thin", "wide", "wide and collapsed"]
)
def test_beyond_the_limit_no_array_holds_all_pairs(
    dimension: int, offset: float, signs: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor a copy of the units, where they are so near one another that float64 must tell them apart."""
    monkeypatch.setattr(f"{LIMITS}.MOST_EIGENVALUES", 200)
    for module in (LIMITS, "lightning_symmetry.functional.units"):
        monkeypatch.setattr(f"{module}.BLOCK_ELEMENTS", 2**16)
    units = gaussian(1000, dimension) + offset * gaussian(1, dimension, seed=1)
    units[700] = units[30]
    with Largest() as largest:
        values = permutation_indicators(Units(parts=(units,), signs=signs))
    assert largest.entries <= 2**16
    assert values["nearest_distance_min"] == 0
    assert values["distinct_units"] == (1 if offset else 999)


def test_a_matrix_of_zeros_has_no_eigenvalues_and_the_same_one_has_the_same_estimate() -> None:
    def multiply(vectors: Tensor) -> Tensor:
        return vectors / 100

    assert estimated_perplexity(torch.zeros_like, torch.zeros(100)) == 0
    first, again = estimated_perplexity(multiply, torch.ones(100)), estimated_perplexity(multiply, torch.ones(100))
    assert first == again
    assert first.item() == pytest.approx(100, rel=1e-3)

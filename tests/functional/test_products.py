from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lightning_symmetry.functional import (
    attention_logit_bound,
    effective_rank,
    product_core,
    rotary_attention_logit_bound,
    singular_values,
)


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@given(d=st.integers(1, 6), m=st.integers(1, 8), p=st.integers(1, 8), seed=st.integers(0, 10**6))
def test_the_core_has_the_singular_values_of_the_product(d: int, m: int, p: int, seed: int) -> None:
    a, b = gaussian(d, m, seed=seed), gaussian(d, p, seed=seed + 1)
    expected = np.linalg.svd((a.T @ b).numpy(), compute_uv=False)
    core = product_core(a, b)
    found = singular_values(core).numpy()
    assert max(core.shape) <= d
    np.testing.assert_allclose(found, expected[: len(found)], rtol=1e-6, atol=1e-7 * expected[0])
    assert np.all(expected[len(found) :] < 1e-12 * expected[0])


def test_a_rotation_of_the_directions_between_changes_nothing() -> None:
    a, b, mixture = gaussian(4, 30), gaussian(4, 20, seed=1), gaussian(4, 4, seed=2)
    turned = product_core(mixture @ a, torch.linalg.inv(mixture).T @ b)
    torch.testing.assert_close(singular_values(turned), singular_values(product_core(a, b)))
    assert attention_logit_bound(mixture @ a, torch.linalg.inv(mixture).T @ b).item() == pytest.approx(
        attention_logit_bound(a, b).item()
    )


def test_no_attention_logit_is_beyond_the_bound_and_one_reaches_it() -> None:
    query, key = gaussian(4, 30), gaussian(4, 30, seed=1)
    bound = attention_logit_bound(query, key).item()
    x, y = (torch.nn.functional.normalize(gaussian(500, 30, seed=seed), dim=1) for seed in (2, 3))
    logits = (x @ query.T) @ (key @ y.T) / math.sqrt(4)
    assert logits.abs().max() <= bound
    left, values, right = torch.linalg.svd(query.T @ key)
    assert (query @ left[:, 0]) @ (key @ right[0]) / math.sqrt(4) == pytest.approx(bound) == values[0] / 2


@given(planes=st.integers(1, 4), seed=st.integers(0, 10**6))
def test_no_rotation_of_the_planes_brings_logits_beyond_their_bound(planes: int, seed: int) -> None:
    query, key = gaussian(planes, 2, 6, seed=seed), gaussian(planes, 2, 5, seed=seed + 1)
    query[0] *= 30
    bound = rotary_attention_logit_bound(query, key).item()
    for turn in torch.linalg.qr(gaussian(9, planes, 2, 2, seed=seed + 2)).Q:
        assert attention_logit_bound((turn @ query).flatten(0, 1), key.flatten(0, 1)).item() <= bound * (1 + 1e-9)
    factors = gaussian(planes, 1, 1, seed=seed + 3).exp()
    assert rotary_attention_logit_bound(factors * query, key / factors).item() == pytest.approx(bound)


def test_a_plane_that_queries_or_keys_do_not_use_counts_for_nothing() -> None:
    query, key = gaussian(3, 2, 6), gaussian(3, 2, 5, seed=1)
    query[1], key[2] = 0.0, 0.0
    expected = rotary_attention_logit_bound(query[:1], key[:1]) / math.sqrt(3)
    assert rotary_attention_logit_bound(query, key).item() == pytest.approx(expected.item())
    assert rotary_attention_logit_bound(query, 0 * key) == 0
    assert rotary_attention_logit_bound(query * math.nan, key).isnan()
    with pytest.raises(ValueError, match=r"\(d / 2, 2, p\), by plane; got \[\(3, 2, 6\), \(6, 5\)\]"):
        rotary_attention_logit_bound(query, key.flatten(0, 1))


def test_a_large_product_of_few_directions_is_never_formed() -> None:
    """It would have 10^12 entries."""
    a = torch.ones(1, 1).expand(2, 10**6)
    assert effective_rank(product_core(a, a)).item() == pytest.approx(1)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_an_entry_that_is_not_finite_makes_it_nan(bad: float) -> None:
    a = gaussian(3, 4)
    a[1, 2] = bad
    assert product_core(a, gaussian(3, 5)).isnan().all()
    assert attention_logit_bound(gaussian(3, 5), a).isnan()


def test_nothing_between_and_zero_maps_have_no_logits() -> None:
    assert attention_logit_bound(torch.zeros(3, 4), gaussian(3, 4)) == 0
    assert effective_rank(product_core(torch.zeros(3, 4), gaussian(3, 4))) == 0


@pytest.mark.parametrize(("left", "right"), [((3, 4), (4, 3)), ((3,), (3,)), ((2, 3, 4), (3, 4))])
def test_maps_that_do_not_meet_are_refused(left: tuple[int, ...], right: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"must be of shape \(d, m\) and \(d, p\).*got \["):
        product_core(torch.ones(left), torch.ones(right))

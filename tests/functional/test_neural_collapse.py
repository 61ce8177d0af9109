"""The four marks of neural collapse, against two passes over the data of a trained classifier."""

from __future__ import annotations

import math
from functools import cache

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from torch import Tensor, nn

from lightning_symmetry.functional import nc1, nc2_equiangularity, nc2_equinorm, nc3, nc4
from tests.reference import representation as reference

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


@cache
def trained_classifier() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Last-layer features of the digits, their labels, and the classifier's weight and logits, after training."""
    torch.manual_seed(0)
    digits = load_digits()
    inputs, labels = torch.tensor(digits.data / 16).float(), torch.tensor(digits.target)
    body, head = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 24), nn.ReLU()), nn.Linear(24, 10)
    optimizer = torch.optim.Adam([*body.parameters(), *head.parameters()], 3e-3)
    for _ in range(150):
        optimizer.zero_grad()
        nn.functional.cross_entropy(head(body(inputs)), labels).backward()
        optimizer.step()
    with torch.no_grad():
        features = body(inputs)
        return features, labels, head.weight, head(features)


def all_marks(features: Tensor, labels: Tensor, weight: Tensor, logits: Tensor) -> dict[str, float]:
    return {
        "nc1": nc1(features, labels).item(),
        "nc2_equinorm": nc2_equinorm(features, labels).item(),
        "nc2_equiangularity": nc2_equiangularity(features, labels).item(),
        "nc3": nc3(features, labels, weight).item(),
        "nc4": nc4(features, labels, logits.argmax(-1)).item(),
    }


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_trained_classifier_agrees_with_papyan(dtype: torch.dtype) -> None:
    features, labels, weight, logits = trained_classifier()
    features, weight = features.to(dtype), weight.to(dtype)
    expected = reference.neural_collapse(
        features.double().numpy(), labels.numpy(), weight.detach().double().numpy(), logits.numpy()
    )
    assert 0.02 < expected["nc1"] < 1 and 0.9 < expected["nc4"] < 1
    assert all_marks(features, labels, weight, logits) == pytest.approx(expected, rel=1e-6, abs=1e-9)


def simplex(n_classes: int) -> Tensor:
    return torch.eye(n_classes, dtype=torch.float64) - 1 / n_classes


@pytest.mark.parametrize("n_classes", [2, 3, 7])
def test_a_collapsed_classifier_has_every_mark(n_classes: int) -> None:
    corners = simplex(n_classes)
    labels = torch.arange(n_classes).repeat(4)
    result = all_marks(corners[labels] + 5, labels, 3 * corners, corners[labels])
    assert result == pytest.approx({**dict.fromkeys(result, 0.0), "nc4": 1.0}, abs=1e-12)


def test_noise_within_classes_has_the_known_ratio() -> None:
    """Two classes at +-a on one axis, +-b within each: S_W = b^2, S_B = a^2, C = 2."""
    features = torch.tensor([[3.5], [2.5], [-3.5], [-2.5]])
    assert nc1(features, torch.tensor([0, 0, 1, 1])).item() == pytest.approx(0.5**2 / 3**2 / 2)


def test_variability_across_the_means_does_not_count() -> None:
    features = torch.tensor([[1.0, 7.0], [1.0, -7.0], [-1.0, 7.0], [-1.0, -7.0]])
    assert nc1(features, torch.tensor([0, 0, 1, 1])).item() == pytest.approx(0, abs=1e-12)


def test_classes_of_different_sizes_count_alike_and_missing_ones_not_at_all() -> None:
    corners = simplex(3)
    labels = torch.tensor([0, 0, 0, 0, 0, 2, 4])
    features = corners[labels // 2] + 1
    weight = torch.zeros(6, 3)
    weight[[0, 2, 4]] = corners.float()
    assert nc2_equinorm(features, labels).item() == pytest.approx(0, abs=1e-12)
    assert nc2_equiangularity(features, labels).item() == pytest.approx(0, abs=1e-12)
    assert nc3(features, labels, weight).item() == pytest.approx(0, abs=1e-12)
    assert nc4(features, labels, labels).item() == 1


def test_samples_with_another_label_count_for_nothing() -> None:
    """As -100, which the cross-entropy leaves out too: they would have no class whose mean could be nearest."""
    features, labels, weight, logits = trained_classifier()
    spoiled = torch.cat([features, 3 * features[:500].flip(1)])
    ignored = torch.cat([labels, torch.full((500,), -100)])
    expected = all_marks(features, labels, weight, logits)
    assert all_marks(spoiled, ignored, weight, torch.cat([logits, logits[:500]])) == pytest.approx(expected, rel=1e-9)
    assert nc4(features, torch.full_like(labels, -100), labels) == 1


def test_a_classifier_turned_around_is_as_far_as_can_be_from_the_means() -> None:
    corners = simplex(3)
    assert nc3(corners, torch.arange(3), -corners).item() == pytest.approx(4)


@given(
    n=st.integers(0, 12),
    dim=st.integers(0, 5),
    n_classes=st.integers(1, 5),
    exponent=st.sampled_from([-1000, -140, 0, 120, 1000]),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 1000),
)
def test_finite_features_have_finite_marks_within_their_ranges(
    n: int, dim: int, n_classes: int, exponent: int, dtype: torch.dtype, seed: int
) -> None:
    """One sample, one class, missing classes, features that are zero or as large as can be."""
    generator = torch.Generator().manual_seed(seed)
    limit = torch.finfo(dtype).max
    scaled = torch.randn(n, dim, generator=generator).double() * 2.0**exponent
    features = scaled.clamp(-limit, limit).to(dtype)
    labels = torch.randint(0, n_classes, (n,), generator=generator)
    weight = torch.randn(n_classes, dim, generator=generator).to(dtype)
    logits = torch.randn(n, n_classes, generator=generator)
    result = all_marks(features, labels, weight, logits)
    bounds = {
        "nc1": math.inf,
        "nc2_equinorm": math.sqrt(n_classes),
        "nc2_equiangularity": 2.0,
        "nc3": 4.0,
        "nc4": 1.0,
    }
    for name, value in result.items():
        assert math.isfinite(value) and -1e-12 <= value <= bounds[name] + 1e-9, name
    if len(labels.unique()) < 2:
        assert all(value == 0 for name, value in result.items() if name != "nc4")


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_an_entry_that_is_not_finite_makes_every_mark_nan(bad: float) -> None:
    features, labels = simplex(3)[[0, 1, 2, 0]], torch.tensor([0, 1, 2, 0])
    features[1, 2] = bad
    result = all_marks(features, labels, simplex(3), simplex(3)[labels])
    assert all(math.isnan(value) for value in result.values()), result


def test_labels_of_another_shape_are_refused_with_what_to_do() -> None:
    with pytest.raises(ValueError, match=r"labels must be \(n_samples,\).* 4 samples.* shape \(4, 3\).*argmax"):
        nc1(torch.eye(4), torch.ones(4, 3))
    with pytest.raises(ValueError, match=r"weight must be \(2, 4\).* got \(2, 3\)"):
        nc3(torch.eye(4), torch.tensor([0, 1, 0, 1]), torch.ones(2, 3))

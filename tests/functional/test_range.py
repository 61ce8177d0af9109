"""Every function over the range of every dtype: what is measured of 2^k x is that of x, times a power of 2^k."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchmetrics import Metric

from lightning_symmetry import functional as f
from lightning_symmetry import metrics
from lightning_symmetry.functional import Inner, Product, Units

Measured = Tensor | Mapping[str, Tensor]

LABELS = torch.tensor([0, 1, 1, 0])

RATIOS: dict[str, Callable[[Tensor, Tensor], Measured]] = {
    "rescaling_imbalance": f.rescaling_imbalance,
    "rotation_imbalance": f.rotation_imbalance,
    "mean_component": lambda a, b: f.mean_component(a),
    "angular_speed": lambda a, b: f.angular_speed(a, a.flip(0)),
    "noise_imbalance": lambda a, b: f.noise_imbalance(torch.stack([a, -a, a]), torch.stack([b, b, b.flip(0)])),
    "alive_units": f.alive_units,
    "alive_units of signs": lambda a, b: f.alive_units(a),
    "living_units": lambda a, b: f.living_units(a, b).double(),
    "product_rank": f.product_rank,
    "product_core": lambda a, b: f.effective_rank(f.product_core(a, b)),
    "pair_distances": lambda a, b: f.pair_distances(a),
    "nearest_distances": lambda a, b: f.nearest_distances(a),
    "of parts": lambda a, b: f.permutation_indicators(Units((a, b), signs=(0, 1))),
    "of coupled": lambda a, b: f.permutation_indicators(Units(coupled=(a[:, None] + a,))),
    "of inner": lambda a, b: f.permutation_indicators(Units(inner=(b.view(4, 5, 1),))),
    "of products": lambda a, b: f.permutation_indicators(
        Units(inner=(Inner(products=(Product((a.view(4, 1, 1, 3),), (b.view(4, 1, 1, 5),)),)),))
    ),
    "update_ratio": lambda a, b: f.update_ratio(a, a.flip(0)),
    "update_stable_rank": lambda a, b: f.update_stable_rank(a, -a),
    "ranks": lambda a, b: {
        name: value for name, value in f.spectral_indicators(a).items() if not name.endswith("norm")
    },
    "perplexity": lambda a, b: f.perplexity(a.abs().flatten()),
    "linear_cka": f.linear_cka,
    "canonical_alignment": lambda a, b: f.canonical_alignment(a, a.flip(0), a.mT),
    "covariance_participation_ratio": lambda a, b: f.covariance_participation_ratio(a),
    "covariance_stable_rank": lambda a, b: f.covariance_stable_rank(a),
    "isotropy": lambda a, b: f.isotropy(a),
    "alpha_req": lambda a, b: f.alpha_req(a),
    "nesum": lambda a, b: f.nesum(a),
    "nc1": lambda a, b: f.nc1(a, LABELS),
    "nc2_equinorm": lambda a, b: f.nc2_equinorm(a, LABELS),
    "nc2_equiangularity": lambda a, b: f.nc2_equiangularity(a, LABELS),
    "nc3": lambda a, b: f.nc3(a, LABELS, a[:2]),
    "nc4": lambda a, b: f.nc4(a, LABELS, LABELS.flip(0)),
    "dormant_fraction": lambda a, b: f.dormant_fraction(a),
    "token_rank_residual": lambda a, b: f.token_rank_residual(a),
}
QUANTITIES: dict[str, tuple[Callable[[Tensor, Tensor], Measured], int]] = {
    "singular_values": (lambda a, b: f.singular_values(a), 1),
    "norms": (lambda a, b: f.spectral_indicators(a, ["spectral_norm", "nuclear_norm", "frobenius_norm"]), 1),
    "rescaling_charges": (f.rescaling_charges, 2),
    "attention_logit_bound": (f.attention_logit_bound, 2),
    "rotary_attention_logit_bound": (
        lambda a, b: f.rotary_attention_logit_bound(a.view(2, 2, 3), b.view(2, 2, 5)),
        2,
    ),
    "effective_learning_rate": (lambda a, b: f.effective_learning_rate(a, 0.5), -2),
    "effective_learning_rate of Adam": (lambda a, b: f.effective_learning_rate(a, 0.5, adaptive=True), -1),
}
MEASURES = {**{name: (measure, 0) for name, measure in RATIOS.items()}, **QUANTITIES}
EXPONENTS = {torch.float64: 1015, torch.float32: 120, torch.bfloat16: 120, torch.float16: 10}


@st.composite
def sides(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Of four units, in eighths up to 2, which every dtype holds; some are zero, and some equal."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    units = torch.randint(-16, 17, (4, 8), generator=generator).double() / 8
    units[1] *= draw(st.integers(0, 1))
    units[2] = units[draw(st.integers(2, 3))]
    return units[:, :3], units[:, 3:]


def flat(measured: Measured) -> list[float]:
    values = measured.values() if isinstance(measured, Mapping) else [measured]
    return [number for value in values for number in value.flatten().tolist()]


def times_power(value: float, exponent: int) -> float:
    try:
        return math.ldexp(value, exponent)
    except OverflowError:
        return math.copysign(math.inf, value)


@pytest.mark.parametrize("name", MEASURES)
@given(units=sides(), dtype=st.sampled_from(list(EXPONENTS)), share=st.sampled_from([-1.0, -0.6, 0.0, 0.6, 1.0]))
@settings(max_examples=20)
def test_every_dtype_is_measured_as_float64_at_every_size(
    name: str, units: tuple[Tensor, Tensor], dtype: torch.dtype, share: float
) -> None:
    """Only what has the dimension of its input may overflow, where it is itself beyond the range of float64."""
    measure, power = MEASURES[name]
    exponent = round(share * EXPONENTS[dtype])
    scaled = (side.to(dtype) * 2.0**exponent for side in units)
    expected = [times_power(value, power * exponent) for value in flat(measure(*units))]
    found = flat(measure(*scaled))
    if power == 0 and name != "ranks":  # alpha and the condition number of a singular matrix are infinite
        assert all(map(math.isfinite, found))
    assert found == pytest.approx(expected, rel=1e-4, abs=2e-6 if power == 0 else 0)


def test_units_that_were_rescaled_as_far_as_can_be_are_as_alive_as_before() -> None:
    incoming, outgoing = torch.ones(2, 3, 1, dtype=torch.float64)
    factors = torch.tensor([[2.0**700], [1.0], [2.0**-700]], dtype=torch.float64)
    assert f.alive_units(incoming * factors, outgoing / factors) == 3
    turned = f.angular_speed(factors * torch.tensor([1.0, 0.0]), torch.tensor([[0.0, 1.0]]) / factors)
    assert turned.tolist() == pytest.approx([math.pi / 2] * 3)


def test_the_core_of_a_product_has_its_size_where_that_is_in_range() -> None:
    """Beyond it, of maps that are themselves in range, a power of two is left out."""
    for size, norm in ((2.0**40, 2.0**80), (2.0**-40, 2.0**-80), (2.0**100, 1.0), (2.0**-100, 1.0)):
        core = f.product_core(size * torch.eye(2), size * torch.eye(2))
        assert 1 / 4 <= f.spectral_norm(core).item() / norm <= 1 and f.stable_rank(core) == 2
    assert f.spectral_norm(f.product_core(2.0**100 * torch.eye(2), 2.0**-100 * torch.eye(2))) == 1


def test_the_largest_entries_of_float64_have_ranks_though_their_norm_is_infinite() -> None:
    matrix = torch.full((4, 4), torch.finfo(torch.float64).max, dtype=torch.float64)
    values = f.spectral_indicators(matrix, ["effective_rank", "spectral_norm"])
    assert values["effective_rank"].item() == pytest.approx(1)
    assert values["spectral_norm"] == math.inf
    assert f.update_ratio(matrix, -matrix) == 2


METRICS: dict[str, tuple[Callable[[], Metric], tuple[Callable[[Tensor], Tensor], ...]]] = {
    "LinearCKA": (metrics.LinearCKA, (lambda h: h, lambda h: h[:, :2])),
    "CanonicalAlignment": (lambda: metrics.CanonicalAlignment(4), (lambda h: h, lambda h: h.flip(0))),
    "EffectiveRank": (lambda: metrics.EffectiveRank(4), (lambda h: h,)),
    "NESum": (lambda: metrics.NESum(4), (lambda h: h,)),
    "NC1": (lambda: metrics.NC1(3, 4), (lambda h: h, lambda h: torch.arange(len(h)) % 3)),
    "NoiseImbalance": (
        lambda: metrics.NoiseImbalance(4, 4, 4),
        (lambda h: h.view(8, 4, 4), lambda h: h.view(8, 4, 4).mT),
    ),
}


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("size", [2.0**-245, 2.0**245])
def test_streaming_twins_of_float64_reach_as_far_as_they_say(name: str, size: float) -> None:
    build, views = METRICS[name]
    features = torch.randn(32, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    values = []
    for factor in (1.0, size):
        metric = build()
        metric.update(*(view(factor * features) for view in views))
        values.append(flat(metric.compute()))
    assert values[1] == pytest.approx(values[0])

from __future__ import annotations

import itertools
import math
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lightning_symmetry.functional import (
    Inner,
    Product,
    Units,
    broken_fraction,
    distinct_units,
    effective_units,
    nearest_distances,
    pair_distances,
    permutation_indicators,
    relative_distance,
)
from lightning_symmetry.functional.order_parameters import PERMUTATION_INDICATORS
from tests.memory import STATUS
from tests.reference import order_parameters as reference

MEASURES: tuple[Callable[..., Tensor], ...] = (
    pair_distances,
    nearest_distances,
    distinct_units,
    broken_fraction,
    relative_distance,
    effective_units,
)


def gaussian(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def state_of(units: Units) -> reference.State:
    """All in float64, signs told even where there are none, and of products P formed."""
    inner, inner_signs = [], []
    for each in (one if isinstance(one, Inner) else Inner((one,)) for one in units.inner):
        rows = [array(tensor) for tensor in each.rows] + [as_matrix(product) for product in each.products]
        inner.append(tuple(rows))
        inner_signs.append((*(each.signs or ((0, 0),) * len(each.rows)), *((0, 0),) * len(each.products)))
    return reference.State(
        tuple(map(array, units.parts)),
        tuple(map(array, units.coupled)),
        tuple(inner),
        units.signs or (0,) * len(units.parts),
        units.coupled_signs or ((0, 0),) * len(units.coupled),
        tuple(inner_signs),
    )


def array(tensor: Tensor) -> reference.Array:
    return tensor.double().numpy()


def as_matrix(product: Product) -> reference.Array:
    """sqrt(2 / |P|) P of each unit, ``(n_units, n_inner, entries)``: what d directions or one by one carry."""
    left, right = (np.concatenate([array(tensor) for tensor in side], -1) for side in (product.left, product.right))
    formed = np.einsum(
        "nrda,nrdb->nrab" if product.mixed else "nrda,nrdb->nrdab",
        left,
        np.broadcast_to(right, (*left.shape[:3], right.shape[3])),
    )
    formed = formed.reshape(*formed.shape[:2], -1)
    lengths = np.linalg.norm(formed, axis=(1, 2), keepdims=True)
    return formed * np.sqrt(np.divide(2, lengths, out=np.zeros_like(lengths), where=lengths > 0))


def mapped(
    units: Units,
    part: Callable[[Tensor], Tensor],
    coupled: Callable[[Tensor], Tensor],
    inner: Callable[[Tensor], Tensor],
) -> Units:
    """The same units with other tensors."""
    return replace(
        units,
        parts=tuple(map(part, units.parts)),
        coupled=tuple(map(coupled, units.coupled)),
        inner=tuple(one.of(map(inner, one.tensors)) if isinstance(one, Inner) else inner(one) for one in units.inner),
    )


def permuted(units: Units, order: Tensor) -> Units:
    return mapped(units, lambda t: t[order], lambda t: t[order][:, order], lambda t: t[order])


LAYOUTS = ("parts", "coupled", "inner", "rows", "products")


@st.composite
def unit_sets(
    draw: st.DrawFn, dtypes: tuple[torch.dtype, ...] = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
) -> Units:
    """Up to five units in up to three tensors of any layout, with up to two signs; some units equal, some zero."""
    n_units = draw(st.integers(1, 5))
    dtype, seeds = draw(st.sampled_from(dtypes)), itertools.count(draw(st.integers(0, 10**6)))
    sign = st.integers(0, draw(st.sampled_from([0, 1, 3])))
    found: dict[str, tuple[Any, ...]] = {"parts": (), "coupled": (), "inner": (), "signs": (), "coupled_signs": ()}

    def drawn(*shape: int) -> Tensor:
        return gaussian(n_units, *shape, draw(st.integers(1, 3)), seed=next(seeds), dtype=dtype)

    for layout in draw(st.lists(st.sampled_from(LAYOUTS), min_size=1, max_size=3)):
        n_inner = draw(st.integers(1, 3))
        if layout == "parts":
            found["parts"] += (drawn(),)
            found["signs"] += (draw(sign),)
        elif layout == "coupled":
            found["coupled"] += (drawn(n_units),)
            found["coupled_signs"] += ((draw(sign), draw(sign)),)
        elif layout == "inner":
            found["inner"] += (drawn(n_inner),)
        elif layout == "rows":
            signs = tuple((draw(sign), draw(st.integers(0, 1))) for _ in range(2))
            found["inner"] += (Inner((drawn(n_inner), drawn(n_inner)), signs),)
        else:
            d, shared = draw(st.integers(1, 2)), draw(st.sampled_from([1, n_inner]))
            left = tuple(drawn(n_inner, d) for _ in range(draw(st.integers(1, 2))))
            product = Product(left, (drawn(shared, d),), mixed=draw(st.booleans()))
            rows = (drawn(n_inner),) if draw(st.booleans()) else ()
            found["inner"] += (Inner(rows, products=(product,)),)
    order = torch.tensor(draw(st.lists(st.integers(0, n_units - 1), min_size=n_units, max_size=n_units)))
    dead = torch.tensor(draw(st.lists(st.booleans(), min_size=n_units, max_size=n_units)))
    alive = (~dead).to(dtype)

    def buried(tensor: Tensor) -> Tensor:
        return tensor * alive.view(-1, *[1] * (tensor.ndim - 1))

    units = permuted(Units(**found), order)  # repeats make equal units
    return mapped(units, buried, lambda t: buried(t) * alive[:, None], buried)


# Known cases


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_two_equal_units_cost_one_unit_and_log_two_of_the_group(dtype: torch.dtype) -> None:
    units = gaussian(6, 50, dtype=dtype)
    units[4] = units[1]
    assert distinct_units(units) == 5
    assert broken_fraction(units).item() == pytest.approx(1 - math.log(2) / math.log(math.factorial(6)))
    nearest = nearest_distances(units)
    assert nearest[1] == nearest[4] == 0
    assert (nearest[[0, 2, 3, 5]] > 0.5).all()


def test_orthogonal_units_are_at_one_over_root_two_and_opposite_ones_at_one() -> None:
    distances = pair_distances(torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]]))
    torch.testing.assert_close(distances[0], torch.tensor([0.0, math.sqrt(0.5), 1.0]))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
def test_orthogonal_units_break_everything(dtype: torch.dtype) -> None:
    units = torch.eye(4, dtype=dtype)
    assert broken_fraction(units) == 1
    assert distinct_units(units) == 4
    assert effective_units(units).item() == pytest.approx(4)
    assert relative_distance(units).item() == pytest.approx(math.sqrt(3 / 4))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_equal_units_break_nothing_exactly(dtype: torch.dtype) -> None:
    units = gaussian(1, 300, dtype=dtype).expand(100, -1)
    assert broken_fraction(units) == 0
    assert distinct_units(units) == 1
    assert relative_distance(units) == 0
    assert (nearest_distances(units) == 0).all()
    assert (pair_distances(units) == 0).all()
    assert effective_units(units).item() == pytest.approx(1, rel=1e-3)


def test_zero_units_are_equal_and_count_for_nothing() -> None:
    units = torch.zeros(3, 2)
    assert (pair_distances(units) == 0).all()
    assert broken_fraction(units) == 0
    assert relative_distance(units) == 0
    assert effective_units(units) == 0
    assert effective_units(torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 2.0]])).item() == pytest.approx(2)


def test_one_unit_has_nothing_to_merge_with() -> None:
    unit = torch.tensor([[3.0, 4.0]])
    assert nearest_distances(unit).tolist() == [1]
    assert broken_fraction(unit) == 1
    assert distinct_units(unit) == 1
    assert relative_distance(unit) == 0
    assert pair_distances(unit).tolist() == [[0]]


def test_units_without_entries_are_zero_units() -> None:
    assert distinct_units(torch.zeros(3, 0)) == 1
    assert effective_units(torch.zeros(3, 0)) == 0


def test_clusters_are_chained() -> None:
    angles = torch.tensor([0.0, 0.018, 0.036, 1.0])  # neighbours at 0.018 / 2 = 0.009, ends at 0.018
    units = torch.stack([angles.cos(), angles.sin()], 1)
    assert pair_distances(units)[0, 2] > 0.01
    assert distinct_units(units) == 2
    assert distinct_units(units, tolerance=0.008) == 4


def test_a_recurrent_matrix_that_the_exchange_preserves_is_unbroken() -> None:
    matrix = torch.full((4, 4, 1), 0.3)
    matrix.diagonal().fill_(1.7)  # all diagonal entries equal, all others equal: the fixed points of S_n
    units = Units(coupled=(matrix,))
    assert (pair_distances(units) == 0).all()
    assert broken_fraction(units) == 0
    assert relative_distance(units).item() == pytest.approx(0, abs=1e-7)


def test_units_that_differ_by_an_inner_permutation_alone_are_equal() -> None:
    expert = gaussian(6, 3)
    units = Units(parts=(torch.ones(2, 1),), inner=(torch.stack([expert, expert[torch.tensor([3, 1, 5, 0, 2, 4])]]),))
    assert (nearest_distances(units) == 0).all()
    assert relative_distance(units) == 0
    assert effective_units(units).item() == pytest.approx(1, rel=1e-4)


# Against the definitions


@given(units=unit_sets())
def test_distances_agree_with_applying_each_transposition(units: Units) -> None:
    expected = reference.pair_distances(state_of(units))
    np.testing.assert_allclose(pair_distances(units).double().numpy(), expected, atol=2e-6)
    if units.n_units > 1:
        np.fill_diagonal(expected, np.inf)
        np.testing.assert_allclose(nearest_distances(units).double().numpy(), expected.min(1), atol=2e-6)


@given(units=unit_sets(), tolerance=st.sampled_from([1e-5, 1e-2, 0.3, 0.6]))
def test_clusters_agree_with_a_search_over_the_exact_graph(units: Units, tolerance: float) -> None:
    distances = reference.pair_distances(state_of(units))
    if np.any(np.abs(distances - tolerance) < 1e-6):
        return  # on the edge rounding decides
    sizes = reference.cluster_sizes(distances, tolerance)
    assert distinct_units(units, tolerance) == len(sizes)
    assert broken_fraction(units, tolerance).item() == pytest.approx(reference.broken_fraction(sizes), abs=1e-6)


@given(units=unit_sets())
def test_relative_distance_agrees_with_the_mean_over_the_group(units: Units) -> None:
    assert relative_distance(units).item() == pytest.approx(reference.relative_distance(state_of(units)), abs=1e-5)


@given(units=unit_sets())
def test_effective_units_agree_with_the_score_of_vendi(units: Units) -> None:
    assert effective_units(units).item() == pytest.approx(reference.effective_units(state_of(units)), rel=1e-4)


def test_effective_units_from_the_smaller_side_are_the_same() -> None:
    thin = gaussian(30, 4)
    padded = torch.cat([thin, torch.zeros(30, 40)], 1)
    torch.testing.assert_close(effective_units(thin), effective_units(padded))


# All in one pass


@given(units=unit_sets(dtypes=(torch.float64, torch.float32)), tolerance=st.sampled_from([1e-2, 0.5]))
def test_one_pass_gives_what_the_functions_give(units: Units, tolerance: float) -> None:
    result, nearest, state = permutation_indicators(units, tolerance), nearest_distances(units), state_of(units)
    alive = reference.living(np.sqrt(reference.joint_norms(state))[:, None], tolerance=tolerance)
    expected = {
        "broken_fraction": broken_fraction(units, tolerance),
        "distinct_units": distinct_units(units, tolerance),
        "distinct_alive_units": reference.distinct_alive_units(state, tolerance, alive),
        "effective_units": effective_units(units),
        "relative_distance": relative_distance(units),
        "nearest_distance_min": nearest.min(),
        "nearest_distance_q05": nearest.quantile(0.05),
        "nearest_distance_median": nearest.quantile(0.5),
    }
    assert tuple(result) == tuple(expected) == PERMUTATION_INDICATORS
    for name, value in expected.items():
        assert result[name].shape == ()
        assert result[name].item() == pytest.approx(float(value), rel=1e-5, abs=1e-6), name


def test_clusters_of_dead_units_alone_are_not_alive() -> None:
    """Of strengths 1, ..., 1, 0.2, 0.09, 100 the root mean square is 10.05; their mean is 2, their most is 100."""
    strengths = torch.ones(100, dtype=torch.float64)
    strengths[97:] = torch.tensor([0.2, 0.09, 100.0])
    values = permutation_indicators(torch.diag(strengths))
    assert values["distinct_units"] == 100
    assert values["distinct_alive_units"] == 99
    assert permutation_indicators(torch.diag(strengths), alive=strengths > 0.5)["distinct_alive_units"] == 98
    merged = torch.diag(strengths)[[0, 0, 98, 98, 99]]
    assert (
        permutation_indicators(merged, alive=torch.tensor([True, False, False, False, True]))["distinct_alive_units"]
        == 2
    )


@given(units=unit_sets(dtypes=(torch.float64,)), seed=st.integers(0, 10**6))
def test_the_order_of_the_units_does_not_matter(units: Units, seed: int) -> None:
    order = torch.randperm(units.n_units, generator=torch.Generator().manual_seed(seed))
    moved = permuted(units, order)
    torch.testing.assert_close(nearest_distances(moved), nearest_distances(units)[order], rtol=0, atol=1e-7)
    before, after = permutation_indicators(units), permutation_indicators(moved)
    for name in PERMUTATION_INDICATORS:
        torch.testing.assert_close(after[name], before[name], rtol=1e-6, atol=1e-7)


@given(units=unit_sets(dtypes=(torch.float32,)), exponent=st.sampled_from([-90, -40, 40, 90]))
def test_the_size_of_the_entries_does_not_matter(units: Units, exponent: int) -> None:
    scaled = mapped(units, *[lambda t: t * 2.0**exponent] * 3)
    before, after = permutation_indicators(units), permutation_indicators(scaled)
    for name in PERMUTATION_INDICATORS:
        torch.testing.assert_close(after[name], before[name], rtol=1e-5, atol=1e-6)


# Large groups: blocks of rows, and more close pairs than are measured one by one


def clustered(n_units: int, n_clusters: int, spread: float, dimension: int = 40) -> Tensor:
    """Unit directions in clusters of equal size, at distances of about ``spread`` within a cluster."""
    centres = torch.nn.functional.normalize(gaussian(n_clusters, dimension), dim=1)
    noise = gaussian(n_units, dimension, seed=1) / math.sqrt(dimension)
    return centres[torch.arange(n_units) % n_clusters] + spread * math.sqrt(2) * noise


@pytest.mark.parametrize("n_clusters", [1, 3, 200, 1500])
@pytest.mark.parametrize("spread", [0.0, 1e-3])
def test_large_groups_merge_into_their_clusters(n_clusters: int, spread: float) -> None:
    units = clustered(1500, n_clusters, spread)
    sizes = np.bincount(np.arange(1500) % n_clusters).tolist()
    result = permutation_indicators(units)
    assert result["distinct_units"] == n_clusters
    assert result["broken_fraction"].item() == pytest.approx(
        1 - sum(math.lgamma(size + 1) for size in sizes) / math.lgamma(1501), abs=1e-6
    )
    if n_clusters < 1500:
        assert (nearest_distances(units) == 0).all() if spread == 0 else result["nearest_distance_median"] < 2e-3


@pytest.mark.parametrize(("spread", "distinct"), [(1e-5, 1), (1e-3, 1500)])
def test_a_tolerance_that_float32_products_cannot_resolve_still_decides(spread: float, distinct: int) -> None:
    assert distinct_units(clustered(1500, 1, spread), tolerance=1e-4) == distinct


def test_distances_of_large_groups_agree_with_the_definition() -> None:
    units = gaussian(1300, 20)
    expected = exact_distances(units)
    torch.testing.assert_close(pair_distances(units).double(), expected, rtol=1e-4, atol=1e-6)
    expected.fill_diagonal_(math.inf)
    torch.testing.assert_close(nearest_distances(units).double(), expected.amin(1), rtol=1e-5, atol=0)


def exact_distances(units: Tensor) -> Tensor:
    """d_ij from differences in float64."""
    units = units.double()
    squares = units.square().sum(1)
    distances = torch.cdist(units, units, compute_mode="donot_use_mm_for_euclid_dist")
    return distances / (2 * (squares[:, None] + squares)).sqrt()


@pytest.mark.parametrize("offset", [0.0, 1.0, 10.0, 100.0, 1e3, 1e5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("centres", [1, 2])
def test_near_a_collapse_every_nearest_distance_is_exact(offset: float, dtype: torch.dtype, centres: int) -> None:
    """Of units far from 0 and near one another a Gram matrix in float32 tells nothing: it is off by 4e-3."""
    side = torch.tensor([1.0, -1.0])[torch.arange(200) % centres, None]
    units = (gaussian(200, 64, dtype=torch.float64) + offset * side * gaussian(1, 64, seed=1)).to(dtype)
    units[7] = units[3]
    expected = exact_distances(units)
    for tolerance in (1e-3, 1e-2):
        assert distinct_units(units, tolerance) == len(reference.cluster_sizes(expected.numpy(), tolerance))
    nearest = nearest_distances(units).double()
    torch.testing.assert_close(nearest, expected.fill_diagonal_(math.inf).amin(1), rtol=1e-6, atol=0)
    assert nearest[3] == nearest[7] == 0


def test_clusters_at_the_tolerance_are_exact_in_many_dimensions() -> None:
    """The distances of all pairs are within 5 % of the tolerance, which float32 products cannot tell."""
    units = (gaussian(1, 8000) + 1.445e-2 * gaussian(120, 8000, seed=1)).float()
    sizes = reference.cluster_sizes(exact_distances(units).numpy(), 1e-2)
    assert 1 < len(sizes) < 120
    assert distinct_units(units) == len(sizes)


@pytest.mark.parametrize("offset", [0.0, 100.0, 1e4])
def test_near_a_collapse_up_to_signs_the_relative_distance_is_that_of_float64(offset: float) -> None:
    flips = torch.where(torch.arange(50) % 3 > 0, 1.0, -1.0)[:, None]
    units = flips * (gaussian(50, 64) + offset * gaussian(1, 64, seed=1))
    expected = relative_distance(Units((units.double(),), signs=(1,)))
    torch.testing.assert_close(relative_distance(Units((units,), signs=(1,))).double(), expected, rtol=1e-5, atol=0)
    assert nearest_distances(Units((units,), signs=(1,))).max() < 2 / max(offset, 1.0)


LARGE = """
import torch
from lightning_symmetry.functional import Units, permutation_indicators
from lightning_symmetry.functional.neighbours import neighbours
from lightning_symmetry.functional.units import pair_geometry
from tests.memory import peak_beyond
units = torch.randn(16384, 8, generator=torch.Generator().manual_seed(0))
collapsed = units[:1] + 1e-3 * units
units[9000] = units[16000] = units[17]
collapsed[9000] = collapsed[16000] = collapsed[17]
rows = torch.tensor([0, 17, 9000, 16000, 16383])
first, others = collapsed[rows].double(), collapsed.double()
squares = 2 * (first.square().sum(1)[:, None] + others.square().sum(1))
exact = torch.cdist(first, others, compute_mode="donot_use_mm_for_euclid_dist") / squares.sqrt()
exact = exact.scatter(1, rows[:, None], torch.inf).amin(1)
def measure():
    global values, nearest, clusters
    values = permutation_indicators(units, tolerance=1e-3)
    nearest, clusters = neighbours(pair_geometry(Units((collapsed,))), tolerance=1e-2)
used = peak_beyond(measure)
error = (nearest[rows].double() - exact).abs().max() / exact.max()
print(used, len(clusters.unique()), float(error), *map(float, values.values()))
"""


@pytest.mark.skipif(not STATUS.exists(), reason="the memory is read from /proc")
def test_sixteen_thousand_units_need_no_matrix_of_all_pairs() -> None:
    """That matrix would be 1 GiB; the clusters and the nearest distances are exact without it, collapsed or not."""
    printed = subprocess.run([sys.executable, "-c", LARGE], capture_output=True, check=True, text=True).stdout
    used, merged, error, *numbers = map(float, printed.split())
    values = dict(zip(PERMUTATION_INDICATORS, numbers, strict=True))
    assert 0 < used < 200 * 2**20
    assert values["nearest_distance_min"] == 0
    assert values["distinct_units"] == 16384 - 2
    assert merged == 1
    assert error < 1e-6


# What may not be asked, and what may not happen


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("layout", ["parts", "coupled", "inner"])
def test_an_entry_that_is_not_finite_makes_everything_nan(bad: float, layout: str) -> None:
    tensors = {"parts": torch.ones(3, 2), "coupled": torch.ones(3, 3, 1), "inner": torch.ones(3, 2, 2)}
    tensors[layout].view(-1)[1] = bad
    units = Units(**{name: (tensor,) for name, tensor in tensors.items()})
    shapes = {pair_distances: (3, 3), nearest_distances: (3,)}
    for measure in MEASURES:
        assert measure(units).shape == shapes.get(measure, ())
        assert measure(units).isnan().all()
    assert all(value.isnan() for value in permutation_indicators(units).values())


@pytest.mark.parametrize("measure", [distinct_units, broken_fraction, permutation_indicators])
@pytest.mark.parametrize("tolerance", [0.0, 1.0, -0.1, math.nan])
def test_a_tolerance_outside_of_its_range_is_refused(measure: Callable[..., object], tolerance: float) -> None:
    with pytest.raises(ValueError, match=rf"tolerance must be in \(0, 1\), got {tolerance}"):
        measure(torch.eye(2), tolerance)


@pytest.mark.parametrize("measure", [*MEASURES, permutation_indicators])
def test_a_vector_is_refused(measure: Callable[..., object]) -> None:
    with pytest.raises(ValueError, match=r"n_units"):
        measure(torch.ones(3))


def test_complex_units_are_compared_by_real_and_imaginary_part() -> None:
    real, imaginary = gaussian(4, 3), gaussian(4, 3, seed=1)
    expected = pair_distances(Units(parts=(real, imaginary)))
    torch.testing.assert_close(pair_distances(torch.complex(real, imaginary)), expected)


def test_measuring_changes_neither_the_units_nor_the_random_state() -> None:
    parameter = torch.nn.Parameter(gaussian(5, 5, 1))
    copy, before = parameter.detach().clone(), torch.get_rng_state()
    results = [measure(Units(coupled=(parameter,))) for measure in MEASURES]
    assert not any(result.requires_grad for result in results)
    assert torch.equal(parameter, copy)
    assert torch.equal(before, torch.get_rng_state())


def test_measuring_works_under_deterministic_algorithms() -> None:
    torch.use_deterministic_algorithms(True)
    try:
        permutation_indicators(Units(parts=(gaussian(5, 2),), coupled=(gaussian(5, 5, 1),), inner=(gaussian(5, 2, 2),)))
    finally:
        torch.use_deterministic_algorithms(False)

"""Order parameters of a permutation group: how far n interchangeable units are from being equal.

At a symmetric state units coincide; training, weight decay and noise tell them apart or merge them. Everything here is
a function of the distances m_ij and d_ij to the mirror that exchanges units i and j, defined and computed in
`lightning_symmetry.functional.units`: d_ij is 0 for equal units, 1/sqrt(2) for orthogonal ones, 1 for opposite ones of
equal norm.

A NaN or Inf in any entry makes every result NaN. Results are detached, in the dtype in which they were measured
(float32 or float64), on the device of the units, and use no random numbers. Source: Ziyin, Xu, Poggio, Chuang,
"Parameter Symmetry Potentially Unifies Deep Learning Theory" (arXiv:2502.05300).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from lightning_symmetry.functional.neighbours import neighbours
from lightning_symmetry.functional.singular_values import eigenvalues_of
from lightning_symmetry.functional.spectral_entropy import estimated_perplexity
from lightning_symmetry.functional.spectrum import perplexity
from lightning_symmetry.functional.units import BLOCK_ELEMENTS, PairGeometry, Units, pair_geometry

CLOSE = 1e-2
"""Below this d_ij^2 a Gram matrix in float32 costs digits, and distances are measured again."""

MOST_EIGENVALUES = 4096
"""The largest matrix of which `effective_units` computes the eigenvalues: 64 MiB in float32, seconds on a CPU."""

ROUNDING = 64
"""How many units in the last place of the largest norm a unit may have that is zero but for rounding."""

PERMUTATION_INDICATORS = (
    "broken_fraction",
    "distinct_units",
    "distinct_alive_units",
    "effective_units",
    "relative_distance",
    "nearest_distance_min",
    "nearest_distance_q05",
    "nearest_distance_median",
)
"""The names in what `permutation_indicators` returns."""


def pair_distances(units: Tensor | Units) -> Tensor:
    """Relative distance d_ij of each two units to the mirror that exchanges them.

    d_ij = m_ij / sqrt(2 |theta_M|^2), as the module describes; sqrt(|w_i - w_j|^2 / (2 |w_i|^2 + 2 |w_j|^2)) for parts.
    Ziyin, Xu, Poggio, Chuang, "Parameter Symmetry Potentially Unifies Deep Learning Theory" (arXiv:2502.05300).

    Args:
        units: ``(n_units, dim)``, or `Units`.

    Returns:
        ``(n_units, n_units)``, symmetric, in [0, 1]: 0 equal (or both zero), 1/sqrt(2) orthogonal, 1 opposite.

    Raises:
        ValueError: If ``units`` has not the shape of units.

    Example:
        >>> pair_distances(torch.tensor([[1.0, 0.0], [1.0, 0.0], [-1.0, 0.0]]))
        tensor([[0., 0., 1.],
                [0., 0., 1.],
                [1., 1., 0.]])
    """
    units = _as_units(units)
    return _measure(units, _pair_distances, (units.n_units, units.n_units))


def nearest_distances(units: Tensor | Units) -> Tensor:
    """Relative distance of each unit to the unit nearest to it, min over j of d_ij: the early warning of a merger.

    Ziyin, Xu, Poggio, Chuang, "Parameter Symmetry Potentially Unifies Deep Learning Theory" (arXiv:2502.05300).

    Args:
        units: ``(n_units, dim)``, or `Units`.

    Returns:
        ``(n_units,)``, in [0, 1]: 0 where another unit is equal, about 1/sqrt(2) between independent random units of
        large dimension; 1 for a single unit, which has nothing to merge with.

    Raises:
        ValueError: If ``units`` has not the shape of units.

    Example:
        >>> nearest_distances(torch.tensor([[1.0, 0.0], [1.0, 0.0], [-1.0, 0.0]]))
        tensor([0., 0., 1.])
    """
    units = _as_units(units)
    return _measure(units, lambda geometry: neighbours(geometry)[0], (units.n_units,))


def distinct_units(units: Tensor | Units, tolerance: float = 1e-2) -> Tensor:
    """How many distinct units there are: connected components of the graph d_ij <= tolerance.

    Ziyin, Xu, Poggio, Chuang, "Parameter Symmetry Potentially Unifies Deep Learning Theory" (arXiv:2502.05300).

    Args:
        units: ``(n_units, dim)``, or `Units`.
        tolerance: The distance up to which two units count as merged, in (0, 1).

    Returns:
        0-d, a whole number in [1, n_units]: 1 if the units are all equal, n_units if no two are.

    Raises:
        ValueError: If ``tolerance`` is outside (0, 1), or ``units`` has not the shape of units.

    Example:
        >>> distinct_units(torch.tensor([[1.0, 0.0], [1.0, 0.0], [-1.0, 0.0]]))
        tensor(2.)
    """
    _check_tolerance(tolerance)
    return _measure(_as_units(units), lambda geometry: _distinct(neighbours(geometry, tolerance)[1]), (), tolerance)


def broken_fraction(units: Tensor | Units, tolerance: float = 1e-2) -> Tensor:
    """How much of the permutation symmetry is broken: 1 - sum_c log(|c|!) / log(n!), over clusters c of merged units.

    The residual symmetry is the product of the permutations within clusters; this compares the logarithm of its order
    with that of the whole group. Clusters are those of `distinct_units`. Ziyin, Xu, Poggio, Chuang, "Parameter Symmetry
    Potentially Unifies Deep Learning Theory" (arXiv:2502.05300).

    Args:
        units: ``(n_units, dim)``, or `Units`.
        tolerance: The distance up to which two units count as merged, in (0, 1).

    Returns:
        0-d, in [0, 1]: 0 if all units are equal, 1 if no two are (and for a single unit).

    Raises:
        ValueError: If ``tolerance`` is outside (0, 1), or ``units`` has not the shape of units.

    Example:
        >>> broken_fraction(torch.eye(5))
        tensor(1.)
    """
    _check_tolerance(tolerance)
    return _measure(_as_units(units), lambda geometry: _broken(neighbours(geometry, tolerance)[1]), (), tolerance)


def relative_distance(units: Tensor | Units) -> Tensor:
    """Relative distance to the symmetric state: |theta - P theta| / |theta|, P the mean over all permutations.

    For parts P puts the mean unit in place of each, and the distance is sqrt(sum_{i<j} m_ij^2 / (n sum |w_i|^2)). For
    coupled tensors P averages the diagonal and the off-diagonal entries, each among themselves. For inner tensors,
    whose group is a wreath product, the formula in m_ij is used. Ziyin, Xu, Poggio, Chuang, "Parameter Symmetry
    Potentially Unifies Deep Learning Theory" (arXiv:2502.05300).

    Args:
        units: ``(n_units, dim)``, or `Units`.

    Returns:
        0-d, in [0, 1]: 0 if all units are equal (or zero), 1 if their mean is zero.

    Raises:
        ValueError: If ``units`` has not the shape of units.

    Example:
        >>> relative_distance(torch.tensor([[1.0], [-1.0]]))
        tensor(1.)
    """
    return _measure(_as_units(units), _relative_distance, ())


def effective_units(units: Tensor | Units) -> Tensor:
    """Effective number of units, the Vendi score: exp(H(lambda)), lambda the eigenvalues of K / n.

    K_ij is the cosine similarity of w_i and w_j, under the best inner permutation for inner tensors (negative
    eigenvalues, which that can cause, are set to 0 and the rest normalised), of the vectors (row, column) for coupled
    ones. Zero units, up to rounding, are left out. The eigenvalues are those of the smaller of K and the scatter of
    directions; where both have more than 4,096 rows the result is an estimate
    (`lightning_symmetry.functional.spectral_entropy`): within 1 % where nothing is matched, 10 % where signs are, which
    can make eigenvalues negative. Friedman and Dieng, "The Vendi Score" (arXiv:2210.02410).

    Args:
        units: ``(n_units, dim)``, or `Units`.

    Returns:
        0-d, in [1, n_units]: 1 if all units are parallel, n_units if all are orthogonal; 0 if all are zero.

    Raises:
        ValueError: If ``units`` has not the shape of units.

    Example:
        >>> round(effective_units(torch.eye(3)).item(), 5)
        3.0
    """
    return _measure(_as_units(units), _effective_units, ())


def permutation_indicators(
    units: Tensor | Units, tolerance: float = 1e-2, alive: Tensor | None = None
) -> dict[str, Tensor]:
    """All order parameters of a permutation group that a monitor logs, from one pass over the pairs.

    Ziyin, Xu, Poggio, Chuang, "Parameter Symmetry Potentially Unifies Deep Learning Theory" (arXiv:2502.05300).

    Args:
        units: ``(n_units, dim)``, or `Units`.
        tolerance: The distance up to which two units count as merged, in (0, 1).
        alive: ``(n_units,)``: which units are alive, where more is known of it than that the joint vector of a dead
            unit is at most the tolerance times the root mean square over units.

    Returns:
        0-d tensors: `broken_fraction`, `distinct_units`, `effective_units`, `relative_distance` under their names, the
        clusters that hold an alive unit as ``distinct_alive_units``, and of `nearest_distances` the least, the 5 %
        quantile and the median as ``nearest_distance_min``, ``nearest_distance_q05`` and ``nearest_distance_median``.

    Raises:
        ValueError: If ``tolerance`` is outside (0, 1), or ``units`` has not the shape of units.

    Example:
        >>> indicators = permutation_indicators(torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]))
        >>> {name: round(value.item(), 3) for name, value in indicators.items()}  # doctest: +NORMALIZE_WHITESPACE
        {'broken_fraction': 0.782, 'distinct_units': 3.0, 'distinct_alive_units': 3.0, 'effective_units': 1.876,
         'relative_distance': 0.592, 'nearest_distance_min': 0.0, 'nearest_distance_q05': 0.0,
         'nearest_distance_median': 0.204}
    """
    _check_tolerance(tolerance)

    def all_values(geometry: PairGeometry) -> Tensor:
        gram = _stored_gram(geometry)
        nearest, clusters = neighbours(geometry, tolerance, gram)
        quantiles = nearest.quantile(nearest.new_tensor([0.0, 0.05, 0.5]))
        norms = geometry.squared_norms
        living = norms > tolerance**2 * norms.mean() if alive is None else alive
        scalars = (
            _broken(clusters),
            _distinct(clusters),
            _distinct(clusters[living.cpu()]),
            _effective_units(geometry, gram),
            _relative_distance(geometry, gram),
        )
        return torch.stack([scalar.to(quantiles) for scalar in (*scalars, *quantiles)])

    values = _measure(_as_units(units), all_values, (len(PERMUTATION_INDICATORS),), tolerance)
    return dict(zip(PERMUTATION_INDICATORS, values, strict=True))


def _as_units(units: Tensor | Units) -> Units:
    return units if isinstance(units, Units) else Units(parts=(units,))


def _check_tolerance(tolerance: float) -> None:
    if not 0 < tolerance < 1:
        raise ValueError(
            f"tolerance must be in (0, 1), got {tolerance}: it is the relative distance up to which units count as "
            "merged, such as 0.01 (orthogonal units are at 0.71)."
        )


def _measure(
    units: Units, formula: Callable[[PairGeometry], Tensor], shape: tuple[int, ...], resolution: float = 1.0
) -> Tensor:
    """``formula`` of the geometry of ``units``, on their device; NaN in ``shape`` if an entry is NaN or Inf."""
    geometry = pair_geometry(units, resolution)
    if geometry is None:
        return torch.full(shape, math.nan, device=units.tensors[0].device)
    return formula(geometry).to(geometry.squared_norms)


def _pair_distances(geometry: PairGeometry) -> Tensor:
    squares = geometry.squared_norms.new_zeros(geometry.n_units, geometry.n_units)
    for start, block in geometry.square_blocks():
        squares[start : start + len(block), start:] = block
    i, j = (squares < CLOSE).triu(1).nonzero().T
    squares[i, j] = geometry.exact_squares(i, j)
    squares = squares.triu(1)
    return (squares + squares.T).sqrt()


def _distinct(clusters: Tensor) -> Tensor:
    return torch.tensor(float(len(clusters.unique())))


def _broken(clusters: Tensor) -> Tensor:
    log_orders = torch.lgamma(clusters.bincount().double() + 1)
    log_order = torch.lgamma(torch.tensor(len(clusters) + 1.0, dtype=torch.float64))
    return 1 - log_orders.sum() / log_order if log_order > 0 else torch.ones(())


def _relative_distance(geometry: PairGeometry, gram: Tensor | None = None) -> Tensor:
    """By the mean over the group; where units have signs, and of what is inner, by the formula in m_ij."""
    n_units = geometry.n_units
    total = geometry.squared_norms.sum()
    distance = torch.zeros_like(total)
    if geometry.has_signs:
        distance = _sum_of_squares(geometry, gram) / n_units
        if bool(distance < CLOSE * total) and total.dtype != torch.float64:
            distance = _sum_of_squares(geometry.in_float64()) / n_units
        return torch.where(total > 0, distance / total, 0.0).clamp(0.0, 1.0).sqrt()
    for squares in geometry.inner_squares.values():
        distance += squares.sum() / (2 * n_units)  # each pair is there twice
    for part in geometry.parts:
        distance += _scatter(part)
    for tensor in geometry.coupled:
        total -= torch.linalg.vector_norm(tensor).square()  # each entry is in the norm of two vectors
        entries = tensor.flatten(0, 1)
        distance += _scatter(entries[:: n_units + 1])  # the diagonal, and what lies between its entries
        if n_units > 1:
            distance += _scatter(entries[1:].reshape(n_units - 1, n_units + 1, -1)[:, :-1].flatten(0, 1))
    return torch.where(total > 0, distance / total, 0.0).clamp(0.0, 1.0).sqrt()


def _sum_of_squares(geometry: PairGeometry, gram: Tensor | None = None) -> Tensor:
    """sum_{i<j} m_ij^2."""
    blocks = [squares.triu(1).sum() for _, squares, _ in geometry.mirror_blocks(gram)]
    return torch.stack(blocks).sum()


def _scatter(rows: Tensor) -> Tensor:
    """sum_i |w_i - mean w|^2, seen from the first row so that it is exactly 0 for equal ones."""
    columns = rows.split(max(1, BLOCK_ELEMENTS // len(rows)), 1)
    return torch.stack([(part - part[:1]).var(0, correction=0).sum() for part in columns]).sum() * len(rows)


def _effective_units(geometry: PairGeometry, gram: Tensor | None = None) -> Tensor:
    """From the eigenvalues of the smaller side; where that is too large, from products with the similarity matrix."""
    norms = geometry.squared_norms.sqrt()
    living = norms > ROUNDING * torch.finfo(norms.dtype).eps * norms.max()
    weights = torch.where(living, norms.reciprocal(), 0.0)[:, None]
    if (geometry.dimension if _is_thin(geometry) else geometry.n_units) > MOST_EIGENVALUES:
        alive = living.to(norms)
        weights = weights / alive.sum().clamp_min(1.0).sqrt()
        multiply = geometry.product if _is_linear(geometry) else geometry.product_by_rows if gram is None else gram.mm
        return estimated_perplexity(lambda vectors: weights * multiply(weights * vectors), alive)
    if _is_thin(geometry):  # the same eigenvalues but for zeros
        similarity = geometry.scatter(weights)
    else:
        similarity = (geometry.gram() if gram is None else gram) * weights * weights.T
    return perplexity(eigenvalues_of(similarity).clamp_min(0.0))


def _stored_gram(geometry: PairGeometry) -> Tensor | None:
    """All inner products, where eigenvalues or an estimate of them need all at once."""
    return None if _is_thin(geometry) or geometry.n_units > MOST_EIGENVALUES else geometry.gram()


def _is_linear(geometry: PairGeometry) -> bool:
    """Whether inner products are those of the joint vectors as they are, nothing to be matched."""
    return not geometry.inner_squares and not geometry.has_signs


def _is_thin(geometry: PairGeometry) -> bool:
    return _is_linear(geometry) and geometry.dimension < geometry.n_units

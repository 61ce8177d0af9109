"""Rotations in the gauge: the balanced point of two maps with GL(d) between, and what scales have to do with it.

Of A (d, m) and B (d, p), ``M A`` and ``M^-T B`` have the same product for every M. They are balanced at A A^T = B B^T,
where both have the square roots of the singular values of A^T B: the point of least norm.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lightning_symmetry.gauge.balancing import Part, Sum, part_of
from lightning_symmetry.gauge.gauge import Acting, Gauge, Tensors
from lightning_symmetry.symmetry.actions import Block
from lightning_symmetry.symmetry.groups import SymmetryGroup

MOST_SWEEPS = 100
"""How often rotations that meet in one map, as in a deep linear net, are balanced one after another."""


@dataclass(frozen=True)
class _Side:
    """One block of one side of a rotation, as ``(*rows, d, *scaled, rest)``, and by what it is scaled."""

    entries: Tensor
    scaled: tuple[Acting, ...]
    n_scaled: int


def rooted_sums(
    gauge: Gauge,
    rotations: Sequence[SymmetryGroup],
    levels: Mapping[str, Tensor],
    tensors: Tensors,
) -> Iterator[Sum]:
    """The squared entries of the product of the two sides of each rotation, one sum for each of its rows."""
    apart = meeting(gauge)
    for group in rotations:
        n_rows = len(group.rows)
        sides: tuple[list[_Side], list[_Side]] = ([], [])
        for block, acting in gauge.mixed.items():
            for each in acting:
                if each.by == group.name and block not in apart:
                    free = [one for one in gauge.scaled.get(block, ()) if one.by in levels]
                    sides[each.degree < 0].append(_side(_real(gauge.of(block, tensors)), each.dims, free))
        if any(side.scaled for side in (*sides[0], *sides[1])):
            parts = tuple(_product(left, right, n_rows) for left in sides[0] for right in sides[1])
            if parts:
                yield Sum(parts, rooted=True, row_dims=n_rows)


def _real(entries: Tensor) -> Tensor:
    """In float64, complex entries as pairs in one more dimension: they are mixed by real numbers."""
    return (torch.view_as_real(entries) if entries.is_complex() else entries).double()


def _side(entries: Tensor, dims: Sequence[int], free: Sequence[Acting]) -> _Side:
    touched = [dim for dim in sorted({dim for each in free for dim in each.dims}) if dim not in dims]
    rest = [dim for dim in range(entries.ndim) if dim not in (*dims, *touched)]
    order = [*dims, *touched, *rest]
    moved = entries.permute(order).flatten(len(dims) + len(touched)) if rest else entries.permute(order)[..., None]
    again = tuple(Acting(each.by, each.degree, tuple(order.index(dim) for dim in each.dims)) for each in free)
    return _Side(moved, again, len(touched))


def _product(left: _Side, right: _Side, n_rows: int) -> Part:
    """The squared entries of A^T B, summed over what is not scaled: ``(*rows, *scaled of A, *scaled of B)``."""
    if left.n_scaled < right.n_scaled:
        left, right = right, left
    rows = left.entries.shape[:n_rows]
    a, b = left.entries.flatten(n_rows + 1), right.entries.flatten(n_rows + 1)
    kept = left.entries.shape[n_rows + 1 : -1]
    if right.n_scaled:
        product = a.mT @ b
        shape = (*rows, *left.entries.shape[n_rows + 1 :], *right.entries.shape[n_rows + 1 :])
        squares = product.view(shape).square().sum((n_rows + left.n_scaled, -1))
    else:
        squares = ((b @ b.mT) @ a * a).sum(n_rows).clamp_min(0.0)
        squares = squares.view(*rows, *kept, -1).sum(-1)
    return part_of(
        squares,
        (
            *(_placed(each, n_rows, n_rows + 1, n_rows) for each in left.scaled),
            *(_placed(each, n_rows, n_rows + 1, n_rows + left.n_scaled) for each in right.scaled),
        ),
        keep=n_rows,
    )


def _placed(each: Acting, n_rows: int, since: int, to: int) -> Acting:
    """The same with the dimensions behind the rows moved to another place."""
    return Acting(each.by, each.degree, tuple(dim if dim < n_rows else dim - since + to for dim in each.dims))


def mixtures_of(gauge: Gauge, rotations: Sequence[SymmetryGroup], tensors: Tensors) -> dict[str, tuple[Tensor, Tensor]]:
    """The matrices that balance the two sides of each rotation, where rotations meet one after another."""
    mixtures: dict[str, tuple[Tensor, Tensor]] = {}
    together = {each.by for block in meeting(gauge) for each in gauge.mixed[block]}
    for group in rotations:
        if group.name not in together:
            mixtures[group.name] = _mixture(gauge, group, tensors)[0]
    last: dict[str, Tensor] = {}
    previous = 0.0
    for _ in range(MOST_SWEEPS if together else 0):
        change = 0.0
        for group in rotations:
            if group.name in together:
                so_far = replace(gauge, mixtures=mixtures)
                mixtures[group.name], strengths = _mixture(so_far, group, tensors)
                before = last.get(group.name, torch.zeros_like(strengths))
                change = max(change, float((strengths - before).abs().max() / strengths.max().clamp_min(1e-300)))
                last[group.name] = strengths
        if change < 1e-11 or (change < 1e-7 and change > 0.9 * previous):  # what is left is rounding
            break
        previous = change
    return mixtures


def meeting(gauge: Gauge) -> set[Block]:
    """The blocks in which two rotations meet."""
    return {block for block, acting in gauge.mixed.items() if len({each.by for each in acting}) > 1}


def _mixture(gauge: Gauge, group: SymmetryGroup, tensors: Tensors) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """M and N with M A = (N B) R, R orthogonal, both of the singular values S^(1/2), where A^T B has S; and S.

    With A = R_A^T Q_A^T, B = R_B^T Q_B^T and the singular value decomposition R_A R_B^T = U S V^T these are
    M = S^(-1/2) V^T R_B and N = S^(-1/2) U^T R_A; directions without a singular value become zero.
    """
    sides = sides_of_rotation(gauge, group, tensors)
    if not all(bool(side.isfinite().all()) for side in sides):
        undefined = sides[0].new_full((*sides[0].shape[:-1], group.size), torch.nan)
        return (undefined, undefined), undefined[..., 0]
    triangles = [torch.linalg.qr(side.mT, mode="r").R for side in sides]
    left, values, right = torch.linalg.svd(triangles[0] @ triangles[1].mT, full_matrices=False)
    told = values > 1e-14 * values[..., :1]  # the largest; none where one side has nothing
    inverse = torch.where(told, values.rsqrt(), 0.0)[..., None]
    matrices = (inverse * (right @ triangles[1]), inverse * (left.mT @ triangles[0]))
    missing = group.size - values.shape[-1]
    padded = [torch.nn.functional.pad(matrix, (0, 0, 0, missing)) for matrix in matrices]
    return (padded[0], padded[1]), torch.nn.functional.pad(values, (0, missing))


def sides_of_rotation(gauge: Gauge, group: SymmetryGroup, tensors: Tensors) -> tuple[Tensor, Tensor]:
    """The two maps of a rotation at the representative, but for itself: A ``(*rows, d, m)`` and B ``(*rows, d, p)``."""
    sides: tuple[list[Tensor], list[Tensor]] = ([], [])
    some: Tensor | None = None
    for block, acting in gauge.mixed.items():
        own = [each for each in acting if each.by == group.name]
        if len(own) == 1:
            (each,) = own
            front = _real(gauge.of(block, tensors, unmixed=group.name)).movedim(each.dims, tuple(range(len(each.dims))))
            some = front.reshape(*front.shape[: len(each.dims)], -1)
            sides[each.degree < 0].append(some)
    assert some is not None
    nothing = some[..., :0]
    return torch.cat([nothing, *sides[0]], -1), torch.cat([nothing, *sides[1]], -1)

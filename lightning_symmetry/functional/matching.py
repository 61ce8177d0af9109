"""What is inside a unit, and may be permuted, flipped or rotated there without a trace: the matching of two units.

The hidden rows of an expert may be permuted, and each flipped where the map between is odd; two experts are compared
under the best assignment of their rows. The coordinates of a head may be mixed by any matrix as long as query and key
absorb it: heads are compared by what that leaves unchanged, the product P = A^T B of the two maps. As a part of the
joint vector it counts as sqrt(2 / |P|) P, which has the squared norm 2 |P|: for d = 1 this is |a|^2 + |b|^2 where
these are equal. Inner products of products are traces of d x d matrices,

    <P_i, P_j> = sum_ab (A_i A_j^T)_ab (B_i B_j^T)_ab,

so that P itself is never formed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist
from torch import Tensor

from lightning_symmetry.functional.signs import bits_of, least_over_signs


@dataclass(frozen=True, eq=False)
class Product:
    """Two maps of each unit, of which only the product is told.

    Args:
        left: Each ``(n_units, n_inner or 1, d, dim)``: A, the map into the d directions between; side by side.
        right: Each ``(n_units, n_inner or 1, d, dim)``: B, the map out of them.
        mixed: Whether the d directions are mixed by any matrix; else each is flipped by itself. With a last dimension
            of 2 a direction is a plane, turned by an angle: A and B are complex there, and P = A^* B.
    """

    left: tuple[Tensor, ...]
    right: tuple[Tensor, ...]
    mixed: bool = True

    def similarities(self, unit: int) -> tuple[Tensor, Tensor]:
        """The inner products of one unit's products with those of all units.

        Returns:
            Of what is by inner row, ``(n_units, n_inner, n_inner)``, and of what is common to all, ``(n_units,)``.
        """
        lefts, rights = ([self._gram(side, unit) for side in sides] for sides in (self.left, self.right))
        common = torch.zeros(len(self.left[0]), dtype=torch.float64, device=self.left[0].device)
        rows = common.new_zeros(len(common), 1, 1)
        for left in lefts:
            for right in rights:
                products = (left * right.conj()).sum((-2, -1) if self.mixed else -1).real
                if products.shape[1] == 1:
                    common = common + products[:, 0, 0]
                else:
                    rows = rows + products
        return rows, common

    def _gram(self, side: Tensor, unit: int) -> Tensor:
        """``(n_units, n_inner, n_inner, d, d)``; without the last dimension where directions are not mixed."""
        side = side.double()
        if self.mixed:
            n_units, n_rows, d, _ = side.shape
            products = side[unit].flatten(0, 1) @ side.flatten(0, 2).T
            return products.view(n_rows, d, n_units, n_rows, d).permute(2, 0, 3, 1, 4)
        if side.ndim > 4:
            side = torch.view_as_complex(side.contiguous())
        return torch.einsum("kax,nlax->nkla", side[unit].conj(), side)


@dataclass(frozen=True, eq=False)
class Inner:
    """What is inside each of n units, by rows that may be permuted.

    Args:
        rows: Each ``(n_units, n_inner, dim)``: all permuted alike.
        signs: By which signs of the unit each of these is flipped, as for `Units`, and by which signs of the row.
        products: What is also rotated within each unit; with one row where nothing is permuted.
    """

    rows: tuple[Tensor, ...] = ()
    signs: tuple[tuple[int, int], ...] = ()
    products: tuple[Product, ...] = ()

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All tensors."""
        return (*self.rows, *(tensor for product in self.products for tensor in (*product.left, *product.right)))

    def of(self, tensors: Iterator[Tensor]) -> Inner:
        """The same with other tensors, in their order."""
        rows = tuple(next(tensors) for _ in self.rows)
        products = tuple(
            Product(tuple(next(tensors) for _ in each.left), tuple(next(tensors) for _ in each.right), each.mixed)
            for each in self.products
        )
        return Inner(rows, self.signs, products)

    @property
    def unit_signs(self) -> int:
        """The signs of the unit that flip something in it."""
        return bits_of(unit for unit, _ in self.signs)


def matched_squares(inner: Sequence[Inner], nothing: Tensor) -> tuple[Tensor, Mapping[int, Tensor]]:
    """The squared norms of what is inside units, and squared distances under the best matching.

    Args:
        inner: What is inside them, each matched by itself.
        nothing: ``(n_units,)`` zeros, in the dtype of the results.

    Returns:
        ``(n_units,)``, and for each choice of the signs of the unit, as the bits of those that are -1,
        ``(n_units, n_units)``.
    """
    if not inner:
        return nothing, {}
    signs = bits_of(each.unit_signs for each in inner)
    choices = [choice for choice in range(signs + 1) if choice & ~signs == 0]
    norms = nothing.double()
    squares = {choice: norms.new_zeros(len(norms), len(norms)) for choice in choices}
    for each in inner:
        own, pairs = _matched(each, choices)
        norms = norms + own
        for choice in choices:
            squares[choice] += pairs[choice]
    return norms.to(nothing), {choice: square.to(nothing) for choice, square in squares.items()}


def _matched(inner: Inner, choices: Sequence[int]) -> tuple[Tensor, dict[int, Tensor]]:
    n_units = len(inner.tensors[0])
    scales = [_lengths(product) for product in inner.products]
    product_norms = sum((2 * scale for scale in scales), start=inner.tensors[0].new_zeros(n_units).double())
    norms = sum((tensor.double().square().sum((1, 2)) for tensor in inner.rows), start=product_norms)
    squares = {choice: norms.new_zeros(n_units, n_units) for choice in choices}
    rows = [tensor.double().cpu().numpy() for tensor in inner.rows]
    for i in range(n_units):
        by_row, common = norms.new_zeros(n_units, 1, 1), 0 * norms
        for product, scale in zip(inner.products, scales, strict=True):
            weights = 2 * _reciprocal((scale[i] * scale).sqrt())
            similarities = product.similarities(i)
            by_row = by_row + weights[:, None, None] * similarities[0]
            common = common + weights * similarities[1]
        apart = product_norms[i] + product_norms - 2 * common
        if by_row.shape[1] == 1 and not rows:
            for choice in choices:
                squares[choice][i] = apart - 2 * by_row[:, 0, 0]
            continue
        for j in range(i + 1, n_units):
            similar = 2 * by_row[j].cpu().numpy()
            for choice in choices:
                cost = _costs(rows, inner.signs, i, j, choice) - similar
                assigned = float(cost[linear_sum_assignment(cost)].sum())
                squares[choice][i, j] = squares[choice][j, i] = apart[j] + assigned
    for square in squares.values():
        square.clamp_(min=0.0).fill_diagonal_(0.0)
    return norms, squares


def _costs(rows: Sequence[NDArray[np.float64]], signs: Sequence[tuple[int, int]], i: int, j: int, choice: int) -> Any:
    """Squared distances of the rows of one unit to those of another, under the best sign of each row."""
    costs: dict[int, tuple[Tensor, Tensor]] = {}
    for tensor, (of_unit, of_row) in zip(rows, signs or ((0, 0),) * len(rows), strict=True):
        pair = tuple(torch.from_numpy(cdist(tensor[i], sign * tensor[j], "sqeuclidean")) for sign in (1.0, -1.0))
        plus, minus = reversed(pair) if (of_unit & choice).bit_count() % 2 else pair
        known = costs.get(of_row, (0.0, 0.0))
        costs[of_row] = (known[0] + plus, known[1] + minus)
    return least_over_signs(costs).numpy() if costs else 0.0


def _lengths(product: Product) -> Tensor:
    """|P| of each unit."""
    lengths = []
    for unit in range(len(product.left[0])):
        left, right = (tuple(side[unit : unit + 1] for side in sides) for sides in (product.left, product.right))
        by_row, common = Product(left, right, product.mixed).similarities(0)
        lengths.append(common.sum() + by_row[0].diagonal().sum())
    return torch.stack(lengths).clamp_min(0.0).sqrt()


def _reciprocal(lengths: Tensor) -> Tensor:
    return torch.where(lengths > 0, lengths.reciprocal(), 0.0)

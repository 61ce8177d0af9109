"""The nearest of each unit, and the clusters of units that are close: exact, and a block of pairs at a time."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from lightning_symmetry.functional.units import BLOCK_ELEMENTS, PairGeometry

MOST_RIVALS = 16
"""How many pairs for each unit are measured exactly, where the Gram matrix cannot tell which of them is nearest."""


def neighbours(geometry: PairGeometry, tolerance: float = 0.0, gram: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The distance of each unit to its nearest one, ``(n_units,)``, and the number of its cluster, ``(n_units,)``.

    A pair is measured exactly if by the Gram matrix, up to its error, it may be the nearest of one of its units, or
    about the tolerance. Where these are too many, as near a collapse, that matrix is taken again in float64, and if
    they are still too many, it decides.
    """
    if geometry.n_units == 1:
        return torch.ones_like(geometry.squared_norms), torch.zeros(1, dtype=torch.long)
    found = _search(geometry, tolerance, gram)
    if found is None:
        found = _search(geometry.in_float64(), tolerance)
    assert found is not None  # in float64 a search always ends
    return found


def _search(geometry: PairGeometry, tolerance: float, gram: Tensor | None = None) -> tuple[Tensor, Tensor] | None:
    """What `neighbours` returns; None where float32 leaves too many pairs to be measured."""
    n_units, error = geometry.n_units, geometry.gram_resolution
    decides = geometry.inner_norms.dtype == torch.float64
    labels = torch.arange(n_units, device=geometry.inner_norms.device)
    units, partner = labels, torch.zeros_like(labels)
    best = torch.full_like(geometry.squared_norms, math.inf)
    rivals: _Pairs | None = _Pairs(partner[:0], partner[:0], best[:0])
    for start, squares in geometry.square_blocks(gram):
        rows = slice(start, start + len(squares))
        for axis, ends in ((1, rows), (0, slice(start, n_units))):
            least, index = squares.min(axis)
            partner[ends] = torch.where(least < best[ends], index + start, partner[ends])
            best[ends] = torch.minimum(least, best[ends])
        if rivals is not None:
            rivals = rivals.joined(squares, best, start, 2 * error)
            if rivals is None and not decides:
                return None
        if tolerance:
            labels = _merge_block(labels, squares <= tolerance**2 - error, start)
            apart = labels[rows, None] != labels[start:]
            doubtful = apart & ((squares - tolerance**2).abs() <= error)
            if int(doubtful.sum()) <= MOST_RIVALS * len(squares):
                i, j = doubtful.nonzero().T + start
                edge = geometry.exact_squares(i, j) <= tolerance**2
                labels = _merge(labels, i[edge], j[edge])
            elif decides:
                labels = _merge_block(labels, squares <= tolerance**2, start)
            else:
                return None
    nearest = geometry.exact_squares(units, partner)
    if rivals is not None:
        i, j, _ = rivals.below(best, 2 * error)
        exact = geometry.exact_squares(i, j)
        for end in (i, j):
            nearest.scatter_reduce_(0, end, exact, "amin")
    return nearest.sqrt(), labels.cpu()


class _Pairs(NamedTuple):
    """Pairs that may be the nearest of one of their units."""

    i: Tensor
    """``(n_pairs,)``."""
    j: Tensor
    """``(n_pairs,)``."""
    squares: Tensor
    """Their d_ij^2 by the Gram matrix, ``(n_pairs,)``."""

    def below(self, best: Tensor, margin: float) -> _Pairs:
        """Those that are within a margin of the best of one of their units."""
        kept = self.squares <= torch.maximum(best[self.i], best[self.j]) + margin
        return _Pairs(*(each[kept] for each in self))

    def joined(self, squares: Tensor, best: Tensor, start: int, margin: float) -> _Pairs | None:
        """These and those of a block; None where they are too many."""
        close = squares <= torch.maximum(best[start : start + len(squares), None], best[start:]) + margin
        most = MOST_RIVALS * len(best)
        if int(close.sum()) > most:
            return None
        i, j = close.nonzero().T
        added = (i + start, j + start, squares[i, j])
        joined = _Pairs(*(torch.cat(both) for both in zip(self, added, strict=True)))
        if len(joined.i) > most:
            joined = joined.below(best, margin)
        return joined if len(joined.i) <= most else None


def _merge_block(labels: Tensor, edges: Tensor, start: int) -> Tensor:
    """The labels after joining units by the edges of a block of rows, few at a time: most edges join nothing new."""
    size = max(1, BLOCK_ELEMENTS // 8 // edges.shape[1])
    for row in range(0, len(edges) if bool(edges.any()) else 0, size):
        some = edges[row : row + size]
        first = start + row
        i, j = (some & (labels[first : first + len(some), None] != labels[start:])).nonzero().T
        labels = _merge(labels, i + first, j + start)
    return labels


def _merge(labels: Tensor, i: Tensor, j: Tensor) -> Tensor:
    """The labels of the connected components after joining unit i[k] to unit j[k] for all k."""
    if not len(i):
        return labels
    ends = labels[i].cpu().numpy(), labels[j].cpu().numpy()
    graph = coo_array((np.ones(len(ends[0]), dtype=bool), ends), shape=(len(labels), len(labels)))
    merged = torch.from_numpy(connected_components(graph, directed=False)[1]).to(labels)
    return merged[labels]

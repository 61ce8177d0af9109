"""The geometry of interchangeable units: inner products of their joint vectors, and what exchanging two of them moves.

Unit i is described by its joint vector w_i, all entries of all parameters that move with it. Exchanging i and j, the
transposition tau, leaves the model as it is; theta = tau theta is its mirror. The distance to that mirror is

    m_ij^2 = 1/2 |theta - tau theta|^2,    d_ij = m_ij / sqrt(2 |theta_M|^2)  in [0, 1],

theta_M the entries that tau moves. Three layouts of parameters (`Units`) differ in what tau does to them:

- parts, W (n, dim): tau exchanges rows. m^2 = |w_i - w_j|^2 and |theta_M|^2 = |w_i|^2 + |w_j|^2.
- coupled, B (n, n, r), both axes being the units': tau exchanges rows and columns. With w_i = (row i, column i) the
  formulas for parts meet the 2 x 2 block where rows and columns cross twice; there m^2 is too large by
  |(B_ii + B_jj) - (B_ij + B_ji)|^2, and |theta_M|^2 by |B_ii|^2 + |B_jj|^2 + |B_ij|^2 + |B_ji|^2.
- inner, U (n, m, r): the m rows within a unit may be permuted too, so m^2 = min over pi of sum_k |U_ik - U_jpi(k)|^2.

Every m_ij^2 comes out of one Gram matrix of the joint vectors, built tensor by tensor and a block of rows at a time.
Where units nearly agree, |w_i|^2 + |w_j|^2 - 2 w_i . w_j is the rounding error of its terms;
`PairGeometry.exact_squares` then takes the differences themselves, so that equal units are at distance 0.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist
from torch import Tensor

from lightning_symmetry.functional.precision import binary_scale, for_measuring, working_dtype

BLOCK_ELEMENTS = 2**20
"""How many entries an intermediate array may hold."""


@dataclass(frozen=True, eq=False)
class Units:
    """The joint vectors of n interchangeable units, left in the tensors they come from.

    Args:
        parts: Each ``(n_units, dim)``: slices that move with their unit, dim free to differ.
        coupled: Each ``(n_units, n_units, dim)``: parameters that hold the axis of the units twice, as a recurrent
            matrix does.
        inner: Each ``(n_units, n_inner, dim)``: slices whose rows may also be permuted within each unit, as the hidden
            rows of an expert; each tensor by a permutation of its own. Costs an assignment of n_inner rows per pair.

    Raises:
        ValueError: If there is no tensor or no unit, or if shapes disagree.

    Example:
        >>> Units(parts=(torch.zeros(4, 3), torch.zeros(4, 1)), coupled=(torch.zeros(4, 4, 1),)).n_units
        4
    """

    parts: tuple[Tensor, ...] = ()
    coupled: tuple[Tensor, ...] = ()
    inner: tuple[Tensor, ...] = ()

    def __post_init__(self) -> None:
        if not self.tensors:
            raise ValueError("Units needs at least one tensor: give parts=(tensor,), one row per unit.")
        n_units = self.tensors[0].shape[0] if self.tensors[0].ndim else 0
        agree = (
            n_units > 0
            and all(tensor.ndim == 2 and tensor.shape[0] == n_units for tensor in self.parts)
            and all(tensor.ndim == 3 and tensor.shape[:2] == (n_units, n_units) for tensor in self.coupled)
            and all(tensor.ndim == 3 and tensor.shape[0] == n_units for tensor in self.inner)
        )
        if not agree:
            shapes = {name: [tuple(tensor.shape) for tensor in getattr(self, name)] for name in self.__annotations__}
            raise ValueError(
                "units must agree on n_units >= 1 in all tensors: parts (n_units, dim), coupled (n_units, n_units, "
                f"dim), inner (n_units, n_inner, dim); got {shapes}. Move the axis of the units to the front and "
                "flatten the others."
            )

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All tensors: parts, coupled, inner."""
        return (*self.parts, *self.coupled, *self.inner)

    @property
    def n_units(self) -> int:
        """The number of units."""
        return len(self.tensors[0])


@dataclass(frozen=True, eq=False)
class PairGeometry:
    """Distances and inner products of finite units, in a dtype and at a scale at which they can be computed.

    Distances are relative: the common scale of all tensors does not matter. Made by `pair_geometry`.

    Args:
        parts: Each ``(n_units, dim)``.
        coupled: Each ``(n_units, n_units, dim)``.
        inner_norms: The share of the inner tensors in |w_i|^2, ``(n_units,)``.
        inner_squares: Their share in m_ij^2, ``(n_units, n_units)``; None if there are none.
    """

    parts: tuple[Tensor, ...]
    coupled: tuple[Tensor, ...]
    inner_norms: Tensor
    inner_squares: Tensor | None

    @cached_property
    def vectors(self) -> tuple[Tensor, ...]:
        """The joint vectors but for inner tensors, each ``(n_units, dim)``: parts, and rows and columns if coupled."""
        views = (view for tensor in self.coupled for view in (tensor, tensor.transpose(0, 1)))
        return (*self.parts, *(view.flatten(1) for view in views))

    @cached_property
    def squared_norms(self) -> Tensor:
        """|w_i|^2, ``(n_units,)``; in it each entry of a coupled tensor counts once per axis."""
        return sum((_squared_norm(vectors, 1) for vectors in self.vectors), start=self.inner_norms)

    @property
    def n_units(self) -> int:
        """The number of units."""
        return len(self.inner_norms)

    @property
    def dimension(self) -> int:
        """The dimension of the joint vectors but for inner tensors."""
        return sum(vectors.shape[1] for vectors in self.vectors)

    @property
    def gram_resolution(self) -> float:
        """The error of d_ij^2 by the Gram matrix: rounding errors of dim terms add as a random walk."""
        return 4 * torch.finfo(self.inner_norms.dtype).eps * math.sqrt(self.dimension + 4)

    def gram_rows(self, start: int, stop: int) -> Tensor:
        """Inner products of units start to stop with those from start on, ``(stop - start, n_units - start)``."""
        products = self.inner_norms.new_zeros(stop - start, self.n_units - start)
        for vectors in self.vectors:
            products.addmm_(vectors[start:stop], vectors[start:].T)
        if self.inner_squares is not None:
            norms = self.inner_norms[start:stop, None] + self.inner_norms[start:]
            products += (norms - self.inner_squares[start:stop, start:]) / 2
        return products

    def gram(self) -> Tensor:
        """Inner products of all units, ``(n_units, n_units)``."""
        gram = self.inner_norms.new_empty(self.n_units, self.n_units)
        for start, stop in self._blocks():
            rows = self.gram_rows(start, stop)
            gram[start:stop, start:] = rows
            gram[start:, start:stop] = rows.T
        return gram

    def square_blocks(self, gram: Tensor | None = None) -> Iterator[tuple[int, Tensor]]:
        """The upper triangle of d_ij^2, up to `gram_resolution`, in blocks of rows.

        Args:
            gram: What `gram` returned, if it is there already.

        Yields:
            The first row of a block, and d_ij^2 for its rows and the columns from that row on; inf where j <= i.
        """
        for start, stop in self._blocks():
            products = self.gram_rows(start, stop) if gram is None else gram[start:stop, start:]
            moved = self.squared_norms[start:stop, None] + self.squared_norms[start:]
            squares = moved - 2 * products
            for tensor in self.coupled:
                diagonal = tensor.diagonal().T
                above, below = tensor[start:stop, start:], tensor[start:, start:stop].transpose(0, 1)
                crossing = (diagonal[start:stop, None], diagonal[start:], above, below)
                squares -= (crossing[0] + crossing[1] - above - below).square().sum(2)
                moved -= sum(entries.square().sum(-1) for entries in crossing)
            squares = _relative(squares, moved)
            past = torch.ones_like(squares, dtype=torch.bool).tril_()
            yield start, squares.masked_fill_(past, math.inf)

    def exact_squares(self, i: Tensor, j: Tensor) -> Tensor:
        """d_ij^2 of some pairs, i != j, from the differences of their vectors: exactly 0 for equal units.

        Args:
            i: ``(n_pairs,)``, the first unit of each pair.
            j: ``(n_pairs,)``, the second.

        Returns:
            ``(n_pairs,)``.
        """
        size = max(1, BLOCK_ELEMENTS // max([1, *(vectors.shape[1] for vectors in self.vectors)]))
        batches = [slice(start, start + size) for start in range(0, len(i), size)]
        return torch.cat([self.inner_norms[:0], *(self._exact_squares(i[batch], j[batch]) for batch in batches)])

    def _exact_squares(self, i: Tensor, j: Tensor) -> Tensor:
        moved = self.squared_norms[i] + self.squared_norms[j]
        squares = torch.zeros_like(moved) if self.inner_squares is None else self.inner_squares[i, j]
        for vectors in self.parts:
            squares = squares + _squared_norm(vectors[i] - vectors[j], 1)
        pairs = torch.arange(len(i), device=i.device)
        for tensor in self.coupled:
            for view in (tensor, tensor.transpose(0, 1)):
                difference = view[i] - view[j]
                difference[pairs, i] = difference[pairs, j] = 0.0
                squares = squares + _squared_norm(difference, (1, 2))
            crossing = (tensor[i, i], tensor[j, j], tensor[i, j], tensor[j, i])
            for first, second in (crossing[:2], crossing[2:]):
                squares = squares + _squared_norm(first - second, 1)
            moved = moved - sum(_squared_norm(entries, 1) for entries in crossing)
        return _relative(squares, moved)

    def _blocks(self) -> Iterator[tuple[int, int]]:
        width = self.n_units * max([1, *(tensor.shape[2] for tensor in self.coupled)])
        size = max(1, BLOCK_ELEMENTS // width)
        for start in range(0, self.n_units, size):
            yield start, min(start + size, self.n_units)


def pair_geometry(units: Units, resolution: float = 1.0) -> PairGeometry | None:
    """Prepares ``units`` for comparison: detached, real, in a working dtype, at a scale where squares are in range.

    Args:
        units: The units.
        resolution: The least distance that the Gram matrix must tell from 0; below what float32 can, float64 is used.

    Returns:
        Their geometry; None if any entry is NaN or Inf.

    Example:
        >>> pair_geometry(Units(parts=(torch.eye(2),))).gram()
        tensor([[1., 0.],
                [0., 1.]])
    """
    dtype = working_dtype(*units.tensors)
    if resolution**2 < 64 * torch.finfo(dtype).eps:
        dtype = torch.float64
    parts, coupled, inner = (
        tuple(for_measuring(torch.view_as_real(t).flatten(-2) if t.is_complex() else t, dtype) for t in layout)
        for layout in (units.parts, units.coupled, units.inner)
    )
    extremes = [torch.linalg.vector_norm(t, math.inf) for t in (*parts, *coupled, *inner) if t.numel()]
    magnitude = torch.stack(extremes).amax().item() if extremes else 0.0
    if not math.isfinite(magnitude):
        return None
    if magnitude > 1e6 or 0 < magnitude < 1e-6:  # elsewhere squares are in range, and no copy is needed
        scale = binary_scale(magnitude)
        parts, coupled, inner = (tuple(t / scale for t in layout) for layout in (parts, coupled, inner))
    nothing = (*parts, *coupled, *inner)[0].new_zeros(units.n_units)
    inner_norms = sum((_squared_norm(t, (1, 2)) for t in inner), start=nothing)
    inner_squares = sum((_matched_squares(t) for t in inner), start=nothing) if inner else None
    return PairGeometry(parts, coupled, inner_norms, inner_squares)


def _matched_squares(inner: Tensor) -> Tensor:
    """Min over permutations pi of sum_k |U_ik - U_jpi(k)|^2 for all i, j: ``(n, m, r)`` to ``(n, n)``."""
    rows = inner.double().cpu().numpy()
    squares = torch.zeros(len(rows), len(rows), dtype=torch.float64)
    for i, j in itertools.combinations(range(len(rows)), 2):
        cost = cdist(rows[i], rows[j], "sqeuclidean")
        squares[i, j] = squares[j, i] = float(cost[linear_sum_assignment(cost)].sum())
    return squares.to(inner)


def _squared_norm(tensor: Tensor, dim: int | tuple[int, ...]) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(tensor, dim=dim)
    return norm.square()


def _relative(squares: Tensor, moved: Tensor) -> Tensor:
    """d^2 = m^2 / (2 |theta_M|^2) in [0, 1], 0 where nothing that moves is nonzero."""
    return torch.where(moved > 0, squares / (2 * moved), 0.0).clamp_(0.0, 1.0)

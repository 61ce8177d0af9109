"""The geometry of interchangeable units: inner products of their joint vectors, and what exchanging two of them moves.

Unit i is described by its joint vector w_i, all entries of all parameters that move with it. Exchanging i and j, the
transposition tau, leaves the model as it is; theta = tau theta is its mirror. The distance to that mirror is

    m_ij^2 = 1/2 |theta - tau theta|^2,    d_ij = m_ij / sqrt(2 |theta_M|^2)  in [0, 1],

theta_M the entries that tau moves. Layouts of parameters (`Units`) differ in what tau does to them:

- parts, W (n, dim): tau exchanges rows. m^2 = |w_i - w_j|^2 and |theta_M|^2 = |w_i|^2 + |w_j|^2.
- coupled, B (n, n, r), both axes being the units': tau exchanges rows and columns. With w_i = (row i, column i) the
  formulas for parts meet the 2 x 2 block where rows and columns cross twice; there m^2 is too large by
  |(B_ii + B_jj) - (B_ij + B_ji)|^2, and |theta_M|^2 by |B_ii|^2 + |B_jj|^2 + |B_ij|^2 + |B_ji|^2.
- inner, what may also be permuted, flipped or rotated within each unit: see `lightning_symmetry.functional.matching`.

Where a unit may be flipped by itself, as through tanh, m_ij is the least over the signs of unit j. Each tensor says
by which signs it is flipped: a number whose bit k is set where it is odd under sign k.

Every m_ij^2 comes out of one Gram matrix of the joint vectors, built tensor by tensor and a block of rows at a time.
Where units nearly agree, |w_i|^2 + |w_j|^2 - 2 w_i . w_j is the rounding error of its terms;
`PairGeometry.exact_squares` then takes the differences themselves, so that equal units are at distance 0. Where too
many nearly agree for that, `PairGeometry.in_float64` takes the same inner products in float64, for twice the time.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, reduce

import torch
from torch import Tensor

from lightning_symmetry.functional.matching import Inner, matched_squares
from lightning_symmetry.functional.precision import binary_scale, for_measuring, working_dtype
from lightning_symmetry.functional.signs import Costs, at_signs, bits_of, least_over_signs

BLOCK_ELEMENTS = 2**20
"""How many entries an intermediate array may hold."""


@dataclass(frozen=True, eq=False)
class Units:
    """The joint vectors of n interchangeable units, left in the tensors they come from.

    Args:
        parts: Each ``(n_units, dim)``: slices that move with their unit, dim free to differ.
        coupled: Each ``(n_units, n_units, dim)``: parameters that hold the axis of the units twice, as a recurrent
            matrix does.
        inner: Each an `Inner`, or ``(n_units, n_inner, dim)``: slices whose rows may also be permuted within each unit,
            as the hidden rows of an expert; each by a permutation of its own. Costs an assignment of n_inner rows per
            pair.
        signs: By which signs of its own a unit flips each of the parts; none of them if empty.
        coupled_signs: The same of the coupled tensors, for the unit of the row and for that of the column.

    Raises:
        ValueError: If there is no tensor or no unit, or if shapes disagree.

    Example:
        >>> Units(parts=(torch.zeros(4, 3), torch.zeros(4, 1)), coupled=(torch.zeros(4, 4, 1),)).n_units
        4
    """

    parts: tuple[Tensor, ...] = ()
    coupled: tuple[Tensor, ...] = ()
    inner: tuple[Tensor | Inner, ...] = ()
    signs: tuple[int, ...] = ()
    coupled_signs: tuple[tuple[int, int], ...] = ()

    def __post_init__(self) -> None:
        if not self.tensors:
            raise ValueError("Units needs at least one tensor: give parts=(tensor,), one row per unit.")
        n_units = self.tensors[0].shape[0] if self.tensors[0].ndim else 0
        rows = [tensor for tensor in self.inner if isinstance(tensor, Tensor)]
        agree = (
            n_units > 0
            and all(tensor.ndim == 2 and tensor.shape[0] == n_units for tensor in self.parts)
            and all(tensor.ndim == 3 and tensor.shape[:2] == (n_units, n_units) for tensor in self.coupled)
            and all(tensor.ndim == 3 for tensor in rows)
            and all(tensor.shape[0] == n_units for tensor in self.tensors)
        )
        if not agree:
            shapes = {
                "parts": [tuple(tensor.shape) for tensor in self.parts],
                "coupled": [tuple(tensor.shape) for tensor in self.coupled],
                "inner": [tuple(tensor.shape) for inner in self.inner for tensor in _tensors_of(inner)],
            }
            raise ValueError(
                "units must agree on n_units >= 1 in all tensors: parts (n_units, dim), coupled (n_units, n_units, "
                f"dim), inner (n_units, n_inner, dim); got {shapes}. Move the axis of the units to the front and "
                "flatten the others."
            )
        for name, given in (("signs", self.parts), ("coupled_signs", self.coupled)):
            if len(getattr(self, name)) not in (0, len(given)):
                raise ValueError(
                    f"{name} must be empty, or one for each of {len(given)} tensors: {getattr(self, name)}"
                )

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All tensors: parts, coupled, inner."""
        return (*self.parts, *self.coupled, *(tensor for inner in self.inner for tensor in _tensors_of(inner)))

    @property
    def n_units(self) -> int:
        """The number of units."""
        return len(self.tensors[0])


def _tensors_of(inner: Tensor | Inner) -> tuple[Tensor, ...]:
    return inner.tensors if isinstance(inner, Inner) else (inner,)


@dataclass(frozen=True, eq=False)
class PairGeometry:
    """Distances and inner products of finite units, in a dtype and at a scale at which they can be computed.

    Distances are relative: the common scale of all tensors does not matter. Made by `pair_geometry`. Inner products are
    added up in the dtype of ``inner_norms``.

    Args:
        parts: Each ``(n_units, dim)``.
        coupled: Each ``(n_units, n_units, dim)``.
        inner_norms: The share of what is inner in |w_i|^2, ``(n_units,)``.
        inner_squares: Its share in m_ij^2, ``(n_units, n_units)``, for each choice of the signs that flip it, told by
            a number with the bits of those that are -1; empty if there is none.
        signs: By which signs each of the parts is flipped.
        coupled_signs: The same of the coupled tensors.
    """

    parts: tuple[Tensor, ...]
    coupled: tuple[Tensor, ...]
    inner_norms: Tensor
    inner_squares: Mapping[int, Tensor]
    signs: tuple[int, ...]
    coupled_signs: tuple[tuple[int, int], ...]

    @cached_property
    def vectors(self) -> tuple[tuple[int, Tensor], ...]:
        """The joint vectors but for what is inner, each ``(n_units, dim)``, with the signs that flip them."""
        views = (
            (sign, view.flatten(1))
            for tensor, signs in zip(self.coupled, self.coupled_signs, strict=True)
            for sign, view in zip(signs, (tensor, tensor.transpose(0, 1)), strict=True)
        )
        return (*zip(self.signs, self.parts, strict=True), *views)

    @cached_property
    def squared_norms(self) -> Tensor:
        """|w_i|^2, ``(n_units,)``; in it each entry of a coupled tensor counts once per axis."""
        slices = (part for _, vectors in self.vectors for part in self._slices(vectors))
        return sum((_squared_norm(part, 1) for part in slices), start=self.inner_norms)

    @property
    def n_units(self) -> int:
        """The number of units."""
        return len(self.inner_norms)

    @property
    def dimension(self) -> int:
        """The dimension of the joint vectors but for what is inner."""
        return sum(vectors.shape[1] for _, vectors in self.vectors)

    @property
    def has_signs(self) -> bool:
        """Whether units may be flipped."""
        return bits_of((*self.inner_squares, *(sign for sign, _ in self.vectors))) > 0

    @property
    def gram_resolution(self) -> float:
        """The error of d_ij^2 by the Gram matrix: rounding errors of dim terms add as a random walk."""
        return 4 * torch.finfo(self.inner_norms.dtype).eps * math.sqrt(self.dimension + 4)

    def in_float64(self) -> PairGeometry:
        """The same units with their inner products in float64, of which no tensor is copied as a whole."""
        squares = {choice: square.double() for choice, square in self.inner_squares.items()}
        return replace(self, inner_norms=self.inner_norms.double(), inner_squares=squares)

    def gram_rows(self, start: int, stop: int) -> Tensor:
        """Inner products of units start to stop with those from start on, ``(stop - start, n_units - start)``.

        Under the best signs, and the best matching within the units.
        """
        return self._best(self._products(start, stop), start, stop)

    def _products(self, start: int, stop: int) -> dict[int, Tensor]:
        """Inner products of the joint vectors but for what is inner, by the signs that flip them."""
        products = {0: self.inner_norms.new_zeros(stop - start, self.n_units - start)}
        for sign, vectors in self.vectors:
            total = products.setdefault(sign, torch.zeros_like(products[0]))
            for part in self._slices(vectors[start:]):
                total.addmm_(part[: stop - start], part.T)
        return products

    def _slices(self, vectors: Tensor) -> Iterator[Tensor]:
        """Vectors in the dtype of their inner products, some of their entries at a time where that is a copy."""
        dtype = self.inner_norms.dtype
        width = vectors.shape[1] if vectors.dtype == dtype else BLOCK_ELEMENTS // len(vectors)
        return (part.to(dtype) for part in vectors.split(max(1, width), 1))

    def _best(self, products: Mapping[int, Tensor], start: int, stop: int) -> Tensor:
        norms = (self.inner_norms[start:stop, None] + self.inner_norms[start:]) / 2
        inner = {choice: squares[start:stop, start:] / 2 - norms for choice, squares in self.inner_squares.items()}
        return -_least({sign: (-total, total) for sign, total in products.items()}, inner)

    def gram(self) -> Tensor:
        """Inner products of all units, ``(n_units, n_units)``."""
        gram = self.inner_norms.new_empty(self.n_units, self.n_units)
        for start, stop in self._blocks(self.n_units):
            rows = self.gram_rows(start, stop)
            gram[start:stop, start:] = rows
            gram[start:, start:stop] = rows.T
        return gram

    def scatter(self, weights: Tensor) -> Tensor:
        """The inner products of the columns of the joint vectors, their rows times weights ``(n_units, 1)``.

        Returns:
            ``(dimension, dimension)``.
        """
        total = self.inner_norms.new_zeros(self.dimension, self.dimension)
        for start, stop in self._blocks(self.dimension):
            rows = torch.cat([vectors[start:stop] for _, vectors in self.vectors], 1) * weights[start:stop]
            total.addmm_(rows.T, rows)
        return total

    def product(self, vectors: Tensor) -> Tensor:
        """The product of `gram` with ``(n_units, k)`` where nothing is matched, without that matrix."""
        return sum((own @ (own.T @ vectors) for _, own in self.vectors), start=torch.zeros_like(vectors))

    def product_by_rows(self, vectors: Tensor) -> Tensor:
        """The product of `gram` with ``(n_units, k)``, a block of its rows at a time."""
        total = torch.zeros_like(vectors)
        for start, stop in self._blocks(self.n_units):
            rows = self.gram_rows(start, stop)
            total[start:stop] += rows @ vectors[start:]
            total[stop:] += rows[:, stop - start :].T @ vectors[start:stop]
        return total

    def mirror_blocks(self, gram: Tensor | None = None) -> Iterator[tuple[int, Tensor, Tensor]]:
        """m_ij^2 and |theta_M|^2 for a block of rows and the columns from its first one on.

        Args:
            gram: What `gram` returned, if it is there already.

        Yields:
            The first row of a block, and two tensors ``(n_rows, n_units - first row)``, of use where j > i.
        """
        signed = self.has_signs and bool(self.coupled)
        for start, stop in self._blocks(self.n_units * max([1, *(tensor.shape[2] for tensor in self.coupled)])):
            norms = self.squared_norms[start:stop, None] + self.squared_norms[start:]
            products = self._products(start, stop) if signed else {}
            moved, too_large = norms, torch.zeros_like(norms)
            for tensor, (of_row, of_column) in zip(self.coupled, self.coupled_signs, strict=True):
                diagonal = tensor.diagonal().T.to(norms)
                own, other = diagonal[start:stop, None], diagonal[start:]
                above, below = (
                    tensor[start:stop, start:].to(norms),
                    tensor[start:, start:stop].transpose(0, 1).to(norms),
                )
                moved = moved - sum(entries.square().sum(-1) for entries in (own, other, above, below))
                too_large += (own + other - above - below).square().sum(-1)
                if signed:
                    products[of_row] -= (own * below + above * other).sum(-1)
                    products[of_column] -= (own * above + below * other).sum(-1)
                    crossed = products.setdefault(of_row ^ of_column, torch.zeros_like(norms))
                    crossed += (own * other + above * below).sum(-1)
            if signed:
                yield start, moved - 2 * self._best(products, start, stop), moved
            else:
                best = self.gram_rows(start, stop) if gram is None else gram[start:stop, start:]
                yield start, norms - 2 * best - too_large, moved

    def square_blocks(self, gram: Tensor | None = None) -> Iterator[tuple[int, Tensor]]:
        """The upper triangle of d_ij^2, up to `gram_resolution`, in blocks of rows.

        Args:
            gram: What `gram` returned, if it is there already.

        Yields:
            The first row of a block, and d_ij^2 for its rows and the columns from that row on; inf where j <= i.
        """
        for start, squares, moved in self.mirror_blocks(gram):
            relative = _relative(squares, moved)
            past = torch.ones_like(relative, dtype=torch.bool).tril_()
            yield start, relative.masked_fill_(past, math.inf)

    def exact_squares(self, i: Tensor, j: Tensor) -> Tensor:
        """d_ij^2 of some pairs, i != j, from the differences of their vectors: exactly 0 for equal units.

        Args:
            i: ``(n_pairs,)``, the first unit of each pair.
            j: ``(n_pairs,)``, the second.

        Returns:
            ``(n_pairs,)``.
        """
        size = max(1, BLOCK_ELEMENTS // max([1, *(vectors.shape[1] for _, vectors in self.vectors)]))
        batches = [slice(start, start + size) for start in range(0, len(i), size)]
        return torch.cat([self.inner_norms[:0], *(self._exact_squares(i[batch], j[batch]) for batch in batches)])

    def _exact_squares(self, i: Tensor, j: Tensor) -> Tensor:
        moved = self.squared_norms[i] + self.squared_norms[j]
        costs: dict[int, tuple[Tensor, Tensor]] = {}

        def add(sign: int, first: Tensor, second: Tensor, dim: int | tuple[int, ...]) -> None:
            same = _squared_norm(first - second, dim)
            opposite = _squared_norm(first + second, dim) if sign else same
            known = costs.get(sign, (0.0, 0.0))
            costs[sign] = (known[0] + same, known[1] + opposite)

        for sign, vectors in zip(self.signs, self.parts, strict=True):
            add(sign, vectors[i], vectors[j], 1)
        pairs = torch.arange(len(i), device=i.device)
        for tensor, signs in zip(self.coupled, self.coupled_signs, strict=True):
            for sign, view in zip(signs, (tensor, tensor.transpose(0, 1)), strict=True):
                first, second = view[i], view[j]
                for end in (i, j):
                    first[pairs, end] = second[pairs, end] = 0.0
                add(sign, first, second, (1, 2))
            crossing = (tensor[i, i], tensor[j, j], tensor[i, j], tensor[j, i])
            for one, other in (crossing[:2], crossing[2:]):
                add(signs[0] ^ signs[1], one, other, 1)
            moved = moved - sum(_squared_norm(entries, 1) for entries in crossing)
        inner = {choice: squares[i, j] for choice, squares in self.inner_squares.items()}
        return _relative(torch.zeros_like(moved) + _least(costs, inner), moved)

    def _blocks(self, width: int) -> Iterator[tuple[int, int]]:
        size = max(1, BLOCK_ELEMENTS // max(1, width))
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
    prepared = [for_measuring(torch.view_as_real(t).flatten(-2) if t.is_complex() else t, dtype) for t in units.tensors]
    extremes = [torch.linalg.vector_norm(t, math.inf) for t in prepared if t.numel()]
    magnitude = torch.stack(extremes).amax().item() if extremes else 0.0
    if not math.isfinite(magnitude):
        return None
    if magnitude > 1e6 or 0 < magnitude < 1e-6:  # elsewhere squares are in range, and no copy is needed
        scale = binary_scale(magnitude, dtype)
        prepared = [t / scale for t in prepared]
    rest = iter(prepared)
    parts = tuple(next(rest) for _ in units.parts)
    coupled = tuple(next(rest) for _ in units.coupled)
    inner = [each.of(rest) if isinstance(each, Inner) else Inner((next(rest),)) for each in units.inner]
    norms, squares = matched_squares(inner, prepared[0].new_zeros(units.n_units))
    signs = units.signs or (0,) * len(parts)
    coupled_signs = units.coupled_signs or ((0, 0),) * len(coupled)
    return PairGeometry(parts, coupled, norms, squares, signs, coupled_signs)


def _least(costs: Costs, inner: Mapping[int, Tensor]) -> Tensor:
    """The least total cost over all signs: those that flip what is inner one choice after another."""
    bits = bits_of(inner)
    totals = [cost + least_over_signs(at_signs(costs, bits, choice)) for choice, cost in inner.items()]
    return reduce(torch.minimum, totals) if totals else least_over_signs(costs)


def _squared_norm(tensor: Tensor, dim: int | tuple[int, ...]) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(tensor, dim=dim)
    return norm.square()


def _relative(squares: Tensor, moved: Tensor) -> Tensor:
    """d^2 = m^2 / (2 |theta_M|^2) in [0, 1], 0 where nothing that moves is nonzero."""
    return torch.where(moved > 0, squares / (2 * moved), 0.0).clamp_(0.0, 1.0)

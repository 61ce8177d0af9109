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
All that is computed is a sum over parts, so that one of them at a time is enough: of a residual stream, whose units
are all of the model, none need be held (`Deferred`).
Where units nearly agree, |w_i|^2 + |w_j|^2 - 2 w_i . w_j is the rounding error of its terms;
`PairGeometry.exact_squares` then takes the differences themselves, so that equal units are at distance 0. Where too
many nearly agree for that, `PairGeometry.in_float64` takes the same inner products in float64, for twice the time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, reduce
from itertools import chain

import torch
from torch import Tensor

from lightning_symmetry.functional.joint_vectors import Deferred as Deferred
from lightning_symmetry.functional.joint_vectors import Units as Units
from lightning_symmetry.functional.matching import Inner, matched_squares
from lightning_symmetry.functional.precision import binary_scale, for_measuring, in_pairs, working_dtype
from lightning_symmetry.functional.signs import Costs, at_signs, bits_of, least_over_signs

BLOCK_ELEMENTS = 2**20
"""How many entries an intermediate array may hold."""

FEWEST_COLUMNS = 256
"""In slices of so many columns products are about as fast as of whole matrices."""


@dataclass(frozen=True, eq=False)
class PairGeometry:
    """Distances and inner products of finite units, in a dtype and at a scale at which they can be computed.

    Distances are relative: the common scale of all tensors does not matter. Made by `pair_geometry`. Inner products are
    added up in the dtype of ``inner_norms``.

    Args:
        sources: The parts as they were given.
        prepared: From a tensor to it in this dtype and at this scale.
        coupled: Each ``(n_units, n_units, dim)``.
        inner_norms: The share of what is inner in |w_i|^2, ``(n_units,)``.
        inner_squares: Its share in m_ij^2, ``(n_units, n_units)``, for each choice of the signs that flip it, told by
            a number with the bits of those that are -1; empty if there is none.
        signs: By which signs each of the parts is flipped.
        coupled_signs: The same of the coupled tensors.
    """

    sources: tuple[Tensor | Deferred, ...]
    prepared: Callable[[Tensor], Tensor]
    coupled: tuple[Tensor, ...]
    inner_norms: Tensor
    inner_squares: Mapping[int, Tensor]
    signs: tuple[int, ...]
    coupled_signs: tuple[tuple[int, int], ...]

    @property
    def parts(self) -> Iterator[Tensor]:
        """The parts, a slice of their columns at a time, each ``(n_units, dim)``."""
        return (part for _, part in self._signed_parts)

    @property
    def _signed_parts(self) -> Iterator[tuple[int, Tensor]]:
        for sign, source in zip(self.signs, self.sources, strict=True):
            for part in _slices(source):
                yield sign, self.prepared(part)

    @property
    def vectors(self) -> Iterator[tuple[int, Tensor]]:
        """The joint vectors but for what is inner, each ``(n_units, dim)``, with the signs that flip them."""
        yield from self._signed_parts
        for tensor, signs in zip(self.coupled, self.coupled_signs, strict=True):
            for sign, view in zip(signs, (tensor, tensor.transpose(0, 1)), strict=True):
                yield sign, view.flatten(1)

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
        return sum(map(_width, self.sources)) + 2 * self.n_units * sum(tensor.shape[2] for tensor in self.coupled)

    @property
    def has_signs(self) -> bool:
        """Whether units may be flipped."""
        return bits_of((*self.inner_squares, *self.signs, *chain.from_iterable(self.coupled_signs))) > 0

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
            rows = torch.cat([vectors[start:stop] * weights[start:stop] for _, vectors in self.vectors], 1)
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
        if not len(i):
            return self.inner_norms[:0]
        costs: dict[int, Tensor] = {}
        for sign, vectors in self._signed_parts:
            costs[sign] = costs.get(sign, 0.0) + _apart(vectors, i, j, bool(sign))
        size = max(1, BLOCK_ELEMENTS // max([1, *(tensor[0].numel() for tensor in self.coupled)]))
        batches = [slice(start, start + size) for start in range(0, len(i), size)]
        return torch.cat(
            [
                self._exact_squares(i[batch], j[batch], {sign: (a[batch], b[batch]) for sign, (a, b) in costs.items()})
                for batch in batches
            ]
        )

    def _exact_squares(self, i: Tensor, j: Tensor, costs: dict[int, tuple[Tensor, Tensor]]) -> Tensor:
        """The same, from what the parts cost."""
        moved = self.squared_norms[i] + self.squared_norms[j]

        def add(sign: int, first: Tensor, second: Tensor, dim: int | tuple[int, ...]) -> None:
            same = _squared_norm(first - second, dim)
            opposite = _squared_norm(first + second, dim) if sign else same
            known = costs.get(sign, (0.0, 0.0))
            costs[sign] = (known[0] + same, known[1] + opposite)

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
    scale = 1.0

    def prepared(tensor: Tensor) -> Tensor:
        real = for_measuring(in_pairs(tensor), dtype)
        return real if scale == 1.0 else real / scale

    held = [prepared(tensor) for tensor in units.tensors[len(units.parts) :]]
    every = chain(held, (prepared(part) for source in units.parts for part in _slices(source)))
    extremes = [torch.linalg.vector_norm(tensor, math.inf) for tensor in every if tensor.numel()]
    magnitude = torch.stack(extremes).amax().item() if extremes else 0.0
    if not math.isfinite(magnitude):
        return None
    if magnitude > 1e6 or 0 < magnitude < 1e-6:  # elsewhere squares are in range, and no copy is needed
        scale = binary_scale(magnitude, dtype)
        held = [tensor / scale for tensor in held]
    rest = iter(held)
    coupled = tuple(next(rest) for _ in units.coupled)
    inner = [each.of(rest) if isinstance(each, Inner) else Inner((next(rest),)) for each in units.inner]
    nothing = prepared(units.tensors[0].new_zeros(0)).new_zeros(units.n_units)
    norms, squares = matched_squares(inner, nothing)
    signs = units.signs or (0,) * len(units.parts)
    coupled_signs = units.coupled_signs or ((0, 0),) * len(coupled)
    return PairGeometry(units.parts, prepared, coupled, norms, squares, signs, coupled_signs)


def _slices(source: Tensor | Deferred) -> Iterator[Tensor]:
    """A part by slices of its columns; those of one that is not held are copies, which do not keep it in memory."""
    columns = max(FEWEST_COLUMNS, BLOCK_ELEMENTS // 4 // max(1, source.shape[0]))  # differences take four at a time
    if isinstance(source, Tensor):
        yield from source.split(columns, 1)
    else:
        yield from (part.clone() for part in source.read().split(columns, 1))


def _width(source: Tensor | Deferred) -> int:
    """How many real numbers a part has for each unit."""
    like = source.like if isinstance(source, Deferred) else source
    return source.shape[1] * (1 + like.is_complex())


def _apart(vectors: Tensor, i: Tensor, j: Tensor, flipped: bool) -> Tensor:
    """|w_i - w_j|^2 of some pairs, and |w_i + w_j|^2 where a sign may flip one of them: ``(2, n_pairs)``."""
    size = max(1, BLOCK_ELEMENTS // max(1, vectors.shape[1]))
    squares = []
    for first, second in zip(i.split(size), j.split(size), strict=True):
        one, other = vectors[first], vectors[second]
        same = _squared_norm(one - other, 1)
        squares.append(torch.stack((same, _squared_norm(one + other, 1) if flipped else same)))
    return torch.cat(squares, 1)


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

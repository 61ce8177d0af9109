"""The scales at which a model is balanced: one convex problem for all axes together.

The squared entries of a model, with the scales e^l of its axes, sum to

    F(l) = sum_k n_k exp(2 d_k . l) - 2 c . l,

k over the parts that scale alike, n_k their squared norms, d_k the degrees of each part in each scale. It is convex in
l, and where it has a minimum it has one, up to what changes no part: the point of least norm of the orbit (Kempf and
Ness 1979). There the parts of a unit balance, sum_k d_k n_k = c: the two sides of a rescaled unit are of equal norm
(c = 0), and what a norm divides by its size has a size of its own (c > 0).

Two maps A and B that any matrix may be put between enter by the least norm that such matrices leave,
2 |A^T B| for d = 1, and in general by 2 |A^T B|_F, whose square is again a sum of exponentials: a *rooted* sum,
2 sqrt(sum_k n_k exp(2 d_k . l)) for each row.

Solved by Newton's method with conjugate gradients, of which each step costs no more than reading the n_k once. They
are read off the parameters anew each time, so that the model's size is never held again: as each exponential is a
product of one factor for each axis, all that is needed of them are products with vectors.
Balancing one axis after another takes thousands of such readings in a deep net.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import chain

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import OptimizeResult, minimize
from torch import Tensor

from lightning_symmetry.gauge.gauge import Acting

MOST_STEPS = 50
"""How many steps of Newton's method are taken at most."""

_PIECE = 2**15
"""Of how many numbers the squares are held at a time."""

Dims = tuple[int, ...]
Factor = tuple[Tensor, Dims]
"""Numbers along some dimensions of a tensor, in the order of these."""

Vector = NDArray[np.float64]
Logarithms = dict[str, Tensor]


@dataclass(frozen=True)
class Part:
    """Squared norms, and by what they are scaled; dimensions along which nothing is scaled are summed over.

    Attributes:
        values: The squared norms n_k, or numbers of which they are a power, on the CPU: in the memory of a model there.
        scaled: By what they are scaled.
        power: Which power.
    """

    values: Tensor
    scaled: tuple[Acting, ...]
    power: int = 1

    def sums(self, *asked: tuple[Sequence[Factor], Dims]) -> list[Tensor]:
        """For each pair of factors and dimensions n_k times the factors, summed over all dimensions but those.

        The squares are made of one piece of the values after another, and none is kept.
        """
        if not asked:
            return []
        shape = self.values.shape
        totals = [torch.zeros([shape[dim] for dim in kept], dtype=torch.float64) for _, kept in asked]
        step = max(1, _PIECE * len(self.values) // max(self.values.numel(), 1)) if shape else 0
        start = 0
        for piece in self.values.split(step) if shape else (self.values,):
            here = slice(start, start + len(piece) if shape else None)
            squares = (piece.abs() if piece.is_complex() else piece).double() ** self.power
            for (factors, kept), total in zip(asked, totals, strict=True):
                beside = [(_cut(values, dims, here), dims) for values, dims in factors]
                _cut(total, kept, here).add_(_contracted(squares, beside, kept))
            start += len(piece) if shape else 0
        return totals


def _cut(values: Tensor, dims: Dims, piece: slice) -> Tensor:
    """A piece along the first dimension of the tensor whose dimensions values have."""
    return values[(*[slice(None)] * dims.index(0), piece)] if 0 in dims else values


def _contracted(values: Tensor, factors: Sequence[Factor], kept: Dims) -> Tensor:
    """Values times factors, summed over all dimensions but some."""
    for equation, number in _plan(values.ndim, tuple(dims for _, dims in factors), kept):
        values = torch.einsum(equation, values, *(factors[k][0] for k in number))
    return values


@cache
def _plan(n_dims: int, factors: tuple[Dims, ...], kept: Dims) -> list[tuple[str, Dims]]:
    """Contractions with one factor after another, first those that are summed over, so that little is left."""
    plan: list[tuple[str, Dims]] = []
    dims = tuple(range(n_dims))
    rest = sorted(range(len(factors)), key=lambda number: set(factors[number]) <= set(kept))
    while rest:
        number = rest.pop(0)
        needed = set(kept).union(*(factors[other] for other in rest))
        left = tuple(dim for dim in dims if dim in needed)
        plan.append((f"{_letters(dims)},{_letters(factors[number])}->{_letters(left)}", (number,)))
        dims = left
    return plan if dims == kept else [*plan, (f"{_letters(dims)}->{_letters(kept)}", ())]


def _letters(dims: Dims) -> str:
    return "".join(chr(ord("a") + dim) for dim in dims)


@dataclass(frozen=True)
class Sum:
    """Parts that are summed; if rooted, by row: their first dimensions are rows, and twice the root is taken."""

    parts: tuple[Part, ...]
    rooted: bool = False
    row_dims: int = 0


def part_of(values: Tensor, scaled: Sequence[Acting], keep: int = 0, power: int = 1) -> Part:
    """A part with the dimensions along which nothing is scaled summed over, but for the first few."""
    values = values.cpu()
    kept = tuple(sorted({*range(keep), *(dim for each in scaled for dim in each.dims)}))
    place = {dim: number for number, dim in enumerate(kept)}
    again = tuple(Acting(each.by, each.degree, tuple(place[dim] for dim in each.dims)) for each in scaled)
    if len(kept) == values.ndim:
        return Part(values, again, power)
    return Part(Part(values, (), power).sums(((), kept))[0], again)


def alive(
    sums: Sequence[Sum], levels: Mapping[str, Tensor], among: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """Which units can be balanced at all: something on either side of them, or on one where a level is given.

    A dead unit takes all that it scales with it, which may leave others dead.

    Args:
        sums: What is balanced.
        levels: The level of each unit.
        among: Those units that are not known to be dead.
    """
    living = {name: torch.ones_like(level, dtype=torch.bool) for name, level in levels.items()}
    living |= among or {}
    parts = [part for each in sums for part in each.parts]
    while True:
        sides = {name: [torch.zeros_like(level), torch.zeros_like(level)] for name, level in levels.items()}
        for part in parts:
            factors = [(living[each.by].double(), each.dims) for each in part.scaled]
            for each, total in zip(part.scaled, part.sums(*((factors, one.dims) for one in part.scaled)), strict=True):
                sides[each.by][each.degree < 0] += total
        before = {name: int(values.sum()) for name, values in living.items()}
        for name, (above, below) in sides.items():
            living[name] = living[name] & ~(above <= 0) & (~(below <= 0) | (levels[name] > 0))
        if before == {name: int(values.sum()) for name, values in living.items()}:
            return living


def balance(
    sums: Sequence[Sum],
    levels: Mapping[str, Tensor],
    start: Mapping[str, Tensor],
    living: Mapping[str, Tensor] | None = None,
) -> tuple[Logarithms, int]:
    """The scales at which F is least.

    Args:
        sums: What F sums.
        levels: c, for each of the scales by name.
        start: Where to start from: l, for those whose scales are known from before.
        living: Which units are not dead: what the others scale is zero.

    Returns:
        l, and how many steps were taken; NaN where a square is not finite.
    """
    if not levels:
        return {}, 0
    if not all(math.isfinite(part.sums(((), ()))[0]) for each in sums for part in each.parts):
        return {name: torch.full_like(level, torch.nan) for name, level in levels.items()}, 0
    potential = _Potential(sums, levels, living or {})
    first = potential.flat({name: start.get(name, torch.zeros_like(level)) for name, level in levels.items()})
    for _ in range(0 if start else 3):
        first = potential.relaxed(potential.levelled(first))
    stiffness = potential.stiffness(first)
    sizes = np.where(stiffness > 0, 1 / np.sqrt(np.where(stiffness > 0, stiffness, 1.0)), 1.0)
    radius = math.sqrt(len(first))
    found: OptimizeResult = minimize(
        lambda z: potential.value(first + sizes * z),
        np.zeros_like(first),
        jac=lambda z: sizes * potential.gradient(first + sizes * z),
        hessp=lambda z, v: sizes * potential.curvature(first + sizes * z, sizes * v),
        method="trust-ncg",
        options={
            "initial_trust_radius": radius,
            "max_trust_radius": 100 * radius,
            "gtol": 1e-9 * radius,
            "maxiter": MOST_STEPS,
        },
    )
    return potential.named(first + sizes * found.x), int(found.nit)


def moments_at(sums: Sequence[Sum], at: Logarithms, living: Mapping[str, Tensor]) -> Logarithms:
    """sum_k d_k n_k exp(2 d_k . l), which is c where F is least."""
    potential = _Potential(sums, {name: torch.zeros_like(values) for name, values in at.items()}, living)
    return {name: values / 2 for name, values in potential.named(potential.gradient(potential.flat(at))).items()}


@dataclass(frozen=True)
class _Terms:
    """A sum at some scales: each part with its factors and its sums along each axis; the roots by row."""

    parts: list[tuple[Part, list[Factor], list[Tensor]]]
    rows: Dims
    roots: Tensor | None
    inverse: Tensor


class _Potential:
    """F and its derivatives, of a vector; what they share is computed once for each vector."""

    def __init__(self, sums: Sequence[Sum], levels: Mapping[str, Tensor], living: Mapping[str, Tensor]) -> None:
        self._sums = sums
        self._living = living
        self._levels = {name: level * living[name] if name in living else level for name, level in levels.items()}
        self._at: Vector | None = None
        self._terms: list[_Terms] = []

    def flat(self, named: Mapping[str, Tensor]) -> Vector:
        return np.concatenate([named[name].double().cpu().numpy().ravel() for name in self._levels])

    def named(self, vector: Vector) -> Logarithms:
        sizes = [level.numel() for level in self._levels.values()]
        pieces = torch.from_numpy(np.array(vector)).split(sizes)
        return {
            name: piece.view(level.shape) for (name, level), piece in zip(self._levels.items(), pieces, strict=True)
        }

    def value(self, vector: Vector) -> float:
        self._move(vector)
        roots = sum(float(2 * terms.roots.sum()) for terms in self._terms if terms.roots is not None)
        plain = (terms for terms in self._terms if terms.roots is None)
        total = sum(float(moments[0].sum()) for terms in plain for _, _, moments in terms.parts)
        return roots + total - 2 * float(vector @ self.flat(self._levels))

    def gradient(self, vector: Vector) -> Vector:
        self._move(vector)
        gradient = {name: -2 * level for name, level in self._levels.items()}
        for each, moment in self._moments():
            gradient[each.by] = gradient[each.by] + 2 * each.degree * moment
        return self.flat(gradient)

    def curvature(self, vector: Vector, direction: Vector) -> Vector:
        """The second derivative, applied to a direction."""
        self._move(vector)
        along = self.named(direction)
        product = {name: torch.zeros_like(level) for name, level in self._levels.items()}
        for terms in self._terms:
            changed = [_changed(part, factors, along) for part, factors, _ in terms.parts]
            pull = torch.zeros(())
            for (part, *_), some in zip(terms.parts if terms.roots is not None else (), changed, strict=False):
                pull = sum(part.sums(*((each, terms.rows) for each in some)), pull)
            for (part, factors, moments), some in zip(terms.parts, changed, strict=True):
                others = [[each for k, each in enumerate(some) if k != number] for number in range(len(some))]
                if terms.roots is not None:
                    pulled = [*factors, (-pull * terms.inverse / 2, terms.rows)]
                    others = [[*each, pulled] for each in others]
                asked = [(other, each.dims) for each, of in zip(part.scaled, others, strict=True) for other in of]
                answers = iter(part.sums(*asked))
                for each, moment, of in zip(part.scaled, moments, others, strict=True):
                    force = each.degree * along[each.by] * moment
                    product[each.by] += 4 * each.degree * sum((next(answers) for _ in of), force)
        return self.flat(product)

    def stiffness(self, vector: Vector) -> Vector:
        """The diagonal of the second derivative, but for what rooted sums take from it."""
        self._move(vector)
        diagonal = {name: torch.zeros_like(level) for name, level in self._levels.items()}
        for each, moment in self._moments():
            diagonal[each.by] += 4 * each.degree**2 * moment
        return self.flat(diagonal)

    def levelled(self, vector: Vector) -> Vector:
        """Scale axes as wholes so that all parts are as nearly of one norm as can be: a start from any imbalance."""
        self._move(vector)
        named = self.named(vector)
        columns = {name: number for number, name in enumerate(named)}
        rows, logarithms = [], []
        for part, _, moments in chain.from_iterable(terms.parts for terms in self._terms):
            total = float(moments[0].sum()) if moments else 0.0
            if total > 0:
                row = torch.zeros(len(named), dtype=torch.float64)
                for each in part.scaled:
                    row[columns[each.by]] += 2 * each.degree
                rows.append(row)
                logarithms.append(-math.log(total))
        if not rows:
            return vector
        right = torch.tensor(logarithms, dtype=torch.float64)[:, None]
        steps = torch.linalg.lstsq(torch.stack(rows), right, driver="gelsd").solution[:, 0]
        return self.flat({name: values + steps[columns[name]] for name, values in named.items()})

    def relaxed(self, vector: Vector) -> Vector:
        """Balance the axes one after another."""
        named = self.named(vector)
        for name in named:
            self._move(self.flat(named), only=name)
            sides = {True: torch.zeros_like(named[name]), False: self._levels[name].clone()}
            slopes = {True: torch.zeros_like(named[name]), False: torch.zeros_like(named[name])}
            for each, moment in self._moments():
                if each.by == name:
                    sides[each.degree > 0] += abs(each.degree) * moment
                    slopes[each.degree > 0] += each.degree**2 * moment
            rate = 2 * (slopes[True] / sides[True] + slopes[False] / sides[False])
            named[name] = named[name] + ((sides[False] / sides[True]).log() / rate).nan_to_num(0.0, 0.0, 0.0)
        return self.flat(named)

    def _moments(self) -> Iterator[tuple[Acting, Tensor]]:
        for part, _, moments in chain.from_iterable(terms.parts for terms in self._terms):
            yield from zip(part.scaled, moments, strict=True)

    def _move(self, vector: Vector, only: str | None = None) -> None:
        """Compute the terms at a vector: all, or those that one of the scales moves."""
        if only is None and self._at is not None and np.array_equal(vector, self._at):
            return
        self._at = np.array(vector) if only is None else None
        named = self.named(vector)
        self._terms = [
            self._terms_of(each, named)
            for each in self._sums
            if only is None or any(scaled.by == only for part in each.parts for scaled in part.scaled)
        ]

    def _terms_of(self, each: Sum, named: Mapping[str, Tensor]) -> _Terms:
        rows = tuple(range(each.row_dims))
        factors = [[self._factor(scaled, named) for scaled in part.scaled] for part in each.parts]
        roots, inverse = None, torch.ones(())
        if each.rooted:
            totals = (part.sums((some, rows))[0] for part, some in zip(each.parts, factors, strict=True))
            roots = sum(totals, torch.zeros(())).sqrt()
            inverse = torch.where(roots > 0, 1 / roots, 0.0)
            factors = [[*some, (inverse, rows)] for some in factors]
        parts = [
            (part, some, part.sums(*((some, scaled.dims) for scaled in part.scaled)))
            for part, some in zip(each.parts, factors, strict=True)
        ]
        return _Terms(parts, rows, roots, inverse)

    def _factor(self, each: Acting, named: Mapping[str, Tensor]) -> Factor:
        factor = (2 * each.degree * named[each.by]).exp()
        return (factor * self._living[each.by] if each.by in self._living else factor), each.dims


def _changed(part: Part, factors: Sequence[Factor], along: Mapping[str, Tensor]) -> list[list[Factor]]:
    """The factors of a part, each in turn replaced by its change."""
    changes = [
        (each.degree * along[each.by] * values, dims)
        for each, (values, dims) in zip(part.scaled, factors, strict=False)
    ]
    return [[*factors[:k], change, *factors[k + 1 :]] for k, change in enumerate(changes)]

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

Solved by Newton's method with conjugate gradients, of which each step costs no more than reading the n_k once.
Balancing one axis after another takes thousands of such readings in a deep net.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import OptimizeResult, minimize
from torch import Tensor

from lightning_symmetry.gauge.gauge import Acting, gather, spread

MOST_STEPS = 50
"""How many steps of Newton's method are taken at most."""

Vector = NDArray[np.float64]
Logarithms = dict[str, Tensor]


@dataclass(frozen=True)
class Part:
    """Squared norms, and how they are scaled; dimensions along which nothing is scaled are summed over.

    Attributes:
        squares: The squared norms n_k.
        scaled: By what they are scaled.
    """

    squares: Tensor
    scaled: tuple[Acting, ...]


@dataclass(frozen=True)
class Sum:
    """Parts that are summed; if rooted, by row: their first dimensions are rows, and twice the root is taken."""

    parts: tuple[Part, ...]
    rooted: bool = False
    row_dims: int = 0


def part_of(squares: Tensor, scaled: Sequence[Acting], keep: int = 0) -> Part:
    """A part with the dimensions along which nothing is scaled summed over, but for the first few."""
    kept = sorted({*range(keep), *(dim for each in scaled for dim in each.dims)})
    place = {dim: number for number, dim in enumerate(kept)}
    again = tuple(Acting(each.by, each.degree, tuple(place[dim] for dim in each.dims)) for each in scaled)
    return Part(gather(squares.double(), kept).cpu(), again)


def alive(sums: Sequence[Sum], levels: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Which units can be balanced at all: something on either side of them, or on one where a level is given.

    A dead unit takes all that it scales with it, which may leave others dead.
    """
    living = {name: torch.ones_like(level, dtype=torch.bool) for name, level in levels.items()}
    parts = [part for each in sums for part in each.parts]
    while True:
        sides = {name: [torch.zeros_like(level), torch.zeros_like(level)] for name, level in levels.items()}
        for part in parts:
            squares = part.squares
            for each in part.scaled:
                squares = squares * spread(living[each.by].double(), each.dims, squares.ndim)
            for each in part.scaled:
                sides[each.by][each.degree < 0] += gather(squares, each.dims)
        before = {name: int(values.sum()) for name, values in living.items()}
        for name, (above, below) in sides.items():
            living[name] &= ~(above <= 0) & (~(below <= 0) | (levels[name] > 0))
        if before == {name: int(values.sum()) for name, values in living.items()}:
            return living


def balance(sums: Sequence[Sum], levels: Mapping[str, Tensor], start: Mapping[str, Tensor]) -> tuple[Logarithms, int]:
    """The scales at which F is least.

    Args:
        sums: What F sums.
        levels: c, for each of the scales by name; of dead units 0, as are all squares that they scale.
        start: Where to start from: l, for those whose scales are known from before.

    Returns:
        l, and how many steps were taken; NaN where a square is not finite.
    """
    if not levels:
        return {}, 0
    if not all(bool(part.squares.isfinite().all()) for each in sums for part in each.parts):
        return {name: torch.full_like(level, torch.nan) for name, level in levels.items()}, 0
    potential = _Potential(sums, levels)
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


class _Potential:
    """F and its derivatives, of a vector; what they share is computed once for each vector."""

    def __init__(self, sums: Sequence[Sum], levels: Mapping[str, Tensor]) -> None:
        self._sums = sums
        self._levels = levels
        self._at: Vector | None = None
        self._terms: list[tuple[list[Tensor], Tensor]] = []

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
        total = sum(
            float(2 * roots.sum()) if each.rooted else sum(float(term.sum()) for term in terms)
            for each, (terms, roots) in zip(self._sums, self._terms, strict=True)
        )
        return total - 2 * float(vector @ self.flat(self._levels))

    def gradient(self, vector: Vector) -> Vector:
        self._move(vector)
        gradient = {name: -2 * level for name, level in self._levels.items()}
        for part, term in self._parts():
            for each in part.scaled:
                gradient[each.by] = gradient[each.by] + 2 * each.degree * gather(term, each.dims)
        return self.flat(gradient)

    def curvature(self, vector: Vector, direction: Vector) -> Vector:
        """The second derivative, applied to a direction."""
        self._move(vector)
        along = self.named(direction)
        product = {name: torch.zeros_like(level) for name, level in self._levels.items()}
        for sum_of, (terms, roots) in zip(self._sums, self._terms, strict=True):
            changes = [term * _change(part, along, term.ndim) for part, term in zip(sum_of.parts, terms, strict=True)]
            pull = None
            if sum_of.rooted:
                rows = range(sum_of.row_dims)
                pull = sum(gather(change, rows) for change in changes) * torch.where(roots > 0, 1 / roots, 0.0)
            for part, term, change in zip(sum_of.parts, terms, changes, strict=True):
                force = 4 * change
                if pull is not None:
                    force = force - 2 * term * spread(pull, range(sum_of.row_dims), term.ndim)
                for each in part.scaled:
                    product[each.by] += each.degree * gather(force, each.dims)
        return self.flat(product)

    def stiffness(self, vector: Vector) -> Vector:
        """The diagonal of the second derivative, but for what rooted sums take from it."""
        self._move(vector)
        diagonal = {name: torch.zeros_like(level) for name, level in self._levels.items()}
        for part, term in self._parts():
            for each in part.scaled:
                diagonal[each.by] += 4 * each.degree**2 * gather(term, each.dims)
        return self.flat(diagonal)

    def levelled(self, vector: Vector) -> Vector:
        """Scale axes as wholes so that all parts are as nearly of one norm as can be: a start from any imbalance."""
        self._move(vector)
        named = self.named(vector)
        columns = {name: number for number, name in enumerate(named)}
        rows, logarithms = [], []
        for part, term in self._parts():
            if float(term.sum()) > 0:
                row = torch.zeros(len(named), dtype=torch.float64)
                for each in part.scaled:
                    row[columns[each.by]] += 2 * each.degree
                rows.append(row)
                logarithms.append(-float(term.sum().log()))
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
            for part, term in self._parts():
                for each in part.scaled:
                    if each.by == name:
                        share = abs(each.degree) * gather(term, each.dims)
                        sides[each.degree > 0] += share
                        slopes[each.degree > 0] += abs(each.degree) * share
            rate = 2 * (slopes[True] / sides[True] + slopes[False] / sides[False])
            named[name] = named[name] + ((sides[False] / sides[True]).log() / rate).nan_to_num(0.0, 0.0, 0.0)
        return self.flat(named)

    def _parts(self) -> Iterator[tuple[Part, Tensor]]:
        for each, (terms, _) in zip(self._sums, self._terms, strict=True):
            yield from zip(each.parts, terms, strict=True)

    def _move(self, vector: Vector, only: str | None = None) -> None:
        """Compute the terms at a vector: all, or those that one of the scales moves."""
        if only is None and self._at is not None and np.array_equal(vector, self._at):
            return
        self._at = np.array(vector) if only is None else None
        named = self.named(vector)
        self._terms = []
        for each in self._sums:
            if only is not None and not any(scaled.by == only for part in each.parts for scaled in part.scaled):
                self._terms.append(([torch.zeros(()) for _ in each.parts], torch.zeros(())))
                continue
            terms = [part.squares * (2 * _change(part, named, part.squares.ndim)).exp() for part in each.parts]
            roots = torch.zeros(())
            if each.rooted:
                rows = range(each.row_dims)
                roots = sum(gather(term, rows) for term in terms).sqrt()  # type: ignore[union-attr]
                inverse = torch.where(roots > 0, 1 / roots, 0.0)
                terms = [term * spread(inverse, rows, term.ndim) for term in terms]
            self._terms.append((terms, roots))


def _change(part: Part, along: Mapping[str, Tensor], ndim: int) -> Tensor:
    """D . l for each entry of a part."""
    change = torch.zeros((), dtype=torch.float64)
    for each in part.scaled:
        change = change + each.degree * spread(along[each.by], each.dims, ndim)
    return change

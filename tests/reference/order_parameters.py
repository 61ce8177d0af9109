"""Order parameters of a permutation group by applying the group elements themselves."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class State:
    """The parameters theta that the group moves, as in `lightning_symmetry.functional.Units`."""

    parts: tuple[Array, ...] = ()
    coupled: tuple[Array, ...] = ()
    inner: tuple[Array, ...] = ()

    @property
    def n_units(self) -> int:
        return len((*self.parts, *self.coupled, *self.inner)[0])

    def vector(self) -> Array:
        """Theta."""
        return np.concatenate([a.ravel() for a in (*self.parts, *self.coupled, *self.inner)])

    def permuted(self, order: tuple[int, ...]) -> State:
        """G theta: unit order[i] is put in place i, on every axis of the units."""
        at = list(order)
        return State(
            tuple(a[at] for a in self.parts),
            tuple(a[at][:, at] for a in self.coupled),
            tuple(a[at] for a in self.inner),
        )


def transposition(n_units: int, i: int, j: int) -> tuple[int, ...]:
    order = list(range(n_units))
    order[i], order[j] = j, i
    return tuple(order)


def mirror_square(state: State, i: int, j: int) -> float:
    """m_ij^2: the least 1/2 |theta - g theta|^2 over the transposition (i j) composed with inner permutations.

    The inner permutation pi carries unit j onto unit i, its inverse carries i onto j, so that g is a mirror: g g = 1.
    """
    tau = transposition(state.n_units, i, j)
    outer = State(state.parts, state.coupled)
    square = 0.5 * np.sum((outer.vector() - outer.permuted(tau).vector()) ** 2) if outer.parts or outer.coupled else 0.0
    for inner in state.inner:
        candidates = []
        for pi in itertools.permutations(range(inner.shape[1])):
            mirror = inner.copy()
            mirror[i] = inner[j][list(pi)]
            mirror[j] = inner[i][np.argsort(pi)]
            candidates.append(0.5 * np.sum((inner - mirror) ** 2))
        square += min(candidates)
    return float(square)


def moved_square(state: State, i: int, j: int) -> float:
    """|theta_M|^2, theta_M the entries that the transposition (i j) carries to another place."""
    tau = transposition(state.n_units, i, j)
    arrays = (*state.parts, *state.coupled, *state.inner)
    places = State(*(tuple(np.arange(a.size).reshape(a.shape) for a in layout) for layout in fields(state)))
    moved = (*places.permuted(tau).parts, *places.permuted(tau).coupled, *places.permuted(tau).inner)
    here = (*places.parts, *places.coupled, *places.inner)
    return float(sum(np.sum(a[there != at] ** 2) for a, there, at in zip(arrays, moved, here, strict=True)))


def fields(state: State) -> tuple[tuple[Array, ...], tuple[Array, ...], tuple[Array, ...]]:
    return state.parts, state.coupled, state.inner


def pair_distances(state: State) -> Array:
    distances = np.zeros((state.n_units, state.n_units))
    for i, j in itertools.combinations(range(state.n_units), 2):
        moved = moved_square(state, i, j)
        if moved > 0:
            distances[i, j] = distances[j, i] = math.sqrt(mirror_square(state, i, j) / (2 * moved))
    return distances


def cluster_sizes(distances: Array, tolerance: float) -> list[int]:
    unseen, sizes = set(range(len(distances))), []
    while unseen:
        frontier, size = [unseen.pop()], 0
        while frontier:
            i = frontier.pop()
            size += 1
            reached = {j for j in unseen if distances[i, j] <= tolerance}
            unseen -= reached
            frontier += reached
        sizes.append(size)
    return sizes


def broken_fraction(sizes: list[int]) -> float:
    n_units = sum(sizes)
    if n_units == 1:
        return 1.0
    return 1 - math.log(math.prod(math.factorial(size) for size in sizes)) / math.log(math.factorial(n_units))


def relative_distance(state: State) -> float:
    """|theta - P theta| / |theta|, P the mean over all n! permutations; for inner arrays by the formula in m_ij."""
    n_units = state.n_units
    outer = State(state.parts, state.coupled)
    square = 0.0
    if outer.parts or outer.coupled:
        orders = itertools.permutations(range(n_units))
        mean = np.mean([outer.permuted(order).vector() for order in orders], axis=0)
        square += np.sum((outer.vector() - mean) ** 2)
    if state.inner:
        pairs = itertools.combinations(range(n_units), 2)
        square += sum(mirror_square(State(inner=state.inner), i, j) for i, j in pairs) / n_units
    total = np.sum(state.vector() ** 2)
    return math.sqrt(square / total) if total > 0 else 0.0


def effective_units(state: State) -> float:
    """The Vendi score, from matched inner products (|w_i|^2 + |w_j|^2 - m_ij^2) / 2 of naive joint vectors."""
    n_units = state.n_units
    rows = [a.reshape(n_units, -1) for a in state.parts]
    rows += [view.reshape(n_units, -1) for a in state.coupled for view in (a, a.swapaxes(0, 1))]
    joint = State(parts=tuple(rows), inner=state.inner)
    norms = np.array([sum(np.sum(a[i] ** 2) for a in (*joint.parts, *joint.inner)) for i in range(n_units)])
    alive = [i for i in range(n_units) if norms[i] > 0]
    if not alive:
        return 0.0
    similarity = np.eye(len(alive))
    for (a, i), (b, j) in itertools.combinations(enumerate(alive), 2):
        product = (norms[i] + norms[j] - mirror_square(joint, i, j)) / 2
        similarity[a, b] = similarity[b, a] = product / math.sqrt(norms[i] * norms[j])
    eigenvalues = np.linalg.eigvalsh(similarity / len(alive)).clip(min=0)
    p = eigenvalues[eigenvalues > 0] / eigenvalues.sum()
    return float(np.exp(-np.sum(p * np.log(p))))

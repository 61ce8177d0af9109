"""Order parameters of a permutation group by applying the group elements themselves."""

from __future__ import annotations

import functools
import itertools
import math
import operator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Place = tuple[int, int]


Inner = tuple[Array, ...]
"""Arrays ``(n_units, n_inner, dim)`` of which the rows within a unit are permuted alike."""


@dataclass(frozen=True)
class State:
    """The parameters theta that the group moves, as in `lightning_symmetry.functional.Units`.

    Signs are bits: a unit has one sign for each bit, and flips what has that bit, as often as such bits are set. Those
    of what is inner are of the unit and of the row.
    """

    parts: tuple[Array, ...] = ()
    coupled: tuple[Array, ...] = ()
    inner: tuple[Inner, ...] = ()
    signs: tuple[int, ...] = ()
    coupled_signs: tuple[tuple[int, int], ...] = ()
    inner_signs: tuple[tuple[tuple[int, int], ...], ...] = ()

    @property
    def arrays(self) -> tuple[Array, ...]:
        return (*self.parts, *self.coupled, *(a for arrays in self.inner for a in arrays))

    @property
    def n_units(self) -> int:
        return len(self.arrays[0])

    @property
    def unit_signs(self) -> int:
        """The bits of the signs that a unit has."""
        bits = [
            *self.signs,
            *itertools.chain(*self.coupled_signs),
            *(unit for each in self.inner_signs for unit, _ in each),
        ]
        return functools.reduce(operator.or_, bits, 0)

    def vector(self) -> Array:
        """Theta."""
        return np.concatenate([a.ravel() for a in self.arrays])

    def permuted(self, order: tuple[int, ...]) -> State:
        """G theta: unit order[i] is put in place i, on every axis of the units."""
        at = list(order)
        return replace(
            self,
            parts=tuple(a[at] for a in self.parts),
            coupled=tuple(a[at][:, at] for a in self.coupled),
            inner=tuple(tuple(a[at] for a in arrays) for arrays in self.inner),
        )


def transposition(n_units: int, i: int, j: int) -> tuple[int, ...]:
    order = list(range(n_units))
    order[i], order[j] = j, i
    return tuple(order)


def flip(signs: int, choice: int) -> int:
    """The sign of what is flipped by some signs, of which those of a choice are -1."""
    return -1 if (signs & choice).bit_count() % 2 else 1


def choices(signs: int) -> list[int]:
    """All ways to choose some of the signs."""
    return [choice for choice in range(signs + 1) if choice & ~signs == 0]


def mirror_square(state: State, i: int, j: int) -> float:
    """m_ij^2: the least 1/2 |theta - g theta|^2 over the transposition (i j) composed with signs and inner elements.

    Both units are flipped by the same signs. The inner element h carries unit j onto unit i, its inverse carries i onto
    j, so that g is a mirror: g g = 1; both halves of it move by the same distance.
    """
    return min(_mirror_square(state, i, j, choice) for choice in choices(state.unit_signs))


def _mirror_square(state: State, i: int, j: int, choice: int) -> float:
    mirror = state.permuted(transposition(state.n_units, i, j))
    square = 0.0
    for a, b, sign in zip(state.parts, mirror.parts, state.signs, strict=True):
        b[[i, j]] *= flip(sign, choice)
        square += 0.5 * np.sum((a - b) ** 2)
    for a, b, (row, column) in zip(state.coupled, mirror.coupled, state.coupled_signs, strict=True):
        b[[i, j]] *= flip(row, choice)
        b[:, [i, j]] *= flip(column, choice)
        square += 0.5 * np.sum((a - b) ** 2)
    for arrays, signs in zip(state.inner, state.inner_signs, strict=True):
        n_inner = arrays[0].shape[1]
        costs = np.array(
            [[_row_square(arrays, signs, (i, r), (j, s), choice) for s in range(n_inner)] for r in range(n_inner)]
        )
        square += min(costs[range(n_inner), pi].sum() for pi in map(list, itertools.permutations(range(n_inner))))
    return float(square)


def _row_square(arrays: Inner, signs: tuple[tuple[int, int], ...], first: Place, second: Place, choice: int) -> float:
    """The least squared distance of two rows over the signs that a row has by itself."""
    bits = functools.reduce(operator.or_, (row for _, row in signs), 0)
    return min(
        sum(
            np.sum((a[first] - flip(unit, choice) * flip(row, own) * a[second]) ** 2)
            for a, (unit, row) in zip(arrays, signs, strict=True)
        )
        for own in choices(bits)
    )


def moved_square(state: State, i: int, j: int) -> float:
    """|theta_M|^2, theta_M the entries that the transposition (i j) carries to another place."""
    tau = transposition(state.n_units, i, j)
    places = replace(
        state,
        parts=tuple(map(_places, state.parts)),
        coupled=tuple(map(_places, state.coupled)),
        inner=tuple(tuple(map(_places, arrays)) for arrays in state.inner),
    )
    moved = zip(state.arrays, places.arrays, places.permuted(tau).arrays, strict=True)
    return float(sum(np.sum(a[there != at] ** 2) for a, at, there in moved))


def _places(array: Array) -> Array:
    return np.arange(float(array.size)).reshape(array.shape)


def pair_distances(state: State) -> Array:
    distances = np.zeros((state.n_units, state.n_units))
    for i, j in itertools.combinations(range(state.n_units), 2):
        moved = moved_square(state, i, j)
        if moved > 0:
            distances[i, j] = distances[j, i] = math.sqrt(mirror_square(state, i, j) / (2 * moved))
    return distances


def clusters(distances: Array, tolerance: float) -> list[set[int]]:
    unseen, found = set(range(len(distances))), []
    while unseen:
        frontier, cluster = [unseen.pop()], set()
        while frontier:
            i = frontier.pop()
            cluster.add(i)
            reached = {j for j in unseen if distances[i, j] <= tolerance}
            unseen -= reached
            frontier += reached
        found.append(cluster)
    return found


def cluster_sizes(distances: Array, tolerance: float) -> list[int]:
    return [len(cluster) for cluster in clusters(distances, tolerance)]


def living(incoming: Array, outgoing: Array | None = None, tolerance: float = 1e-2) -> list[bool]:
    """Which units are alive: sqrt(|a_i| |b_i|), or |a_i|, above the tolerance times its root mean square over units."""
    strengths = [
        np.linalg.norm(a) if outgoing is None else math.sqrt(np.linalg.norm(a) * np.linalg.norm(b))
        for a, b in zip(incoming, incoming if outgoing is None else outgoing, strict=True)
    ]
    root_mean_square = math.sqrt(sum(strength**2 for strength in strengths) / len(strengths))
    return [bool(strength > tolerance * root_mean_square) for strength in strengths]


def distinct_alive_units(state: State, tolerance: float, alive: list[bool]) -> int:
    return sum(any(alive[i] for i in cluster) for cluster in clusters(pair_distances(state), tolerance))


def broken_fraction(sizes: list[int]) -> float:
    n_units = sum(sizes)
    if n_units == 1:
        return 1.0
    return 1 - math.log(math.prod(math.factorial(size) for size in sizes)) / math.log(math.factorial(n_units))


def relative_distance(state: State) -> float:
    """|theta - P theta| / |theta|, P the mean over all n! permutations; for inner arrays, and signs, by m_ij."""
    n_units = state.n_units
    if state.unit_signs:
        total = np.sum(joint_norms(state))
        return math.sqrt(sum_of_mirrors(state) / n_units / total) if total > 0 else 0.0
    square = (
        sum_of_mirrors(replace(state, parts=(), coupled=(), signs=(), coupled_signs=())) / n_units
        if state.inner
        else 0.0
    )
    outer = State(state.parts, state.coupled, signs=state.signs, coupled_signs=state.coupled_signs)
    if outer.arrays:
        orders = itertools.permutations(range(n_units))
        mean = np.mean([outer.permuted(order).vector() for order in orders], axis=0)
        square += np.sum((outer.vector() - mean) ** 2)
    total = np.sum(state.vector() ** 2)
    return math.sqrt(square / total) if total > 0 else 0.0


def sum_of_mirrors(state: State) -> float:
    return sum(mirror_square(state, i, j) for i, j in itertools.combinations(range(state.n_units), 2))


def as_joint_vectors(state: State) -> State:
    """Each unit by its rows and columns side by side, so that all that two units share is there twice."""
    views = [
        (view, sign)
        for a, both in zip(state.coupled, state.coupled_signs, strict=True)
        for view, sign in zip((a, a.swapaxes(0, 1)), both, strict=True)
    ]
    rows = tuple(view.reshape(state.n_units, -1) for view, _ in views)
    return replace(
        state,
        parts=(*state.parts, *rows),
        signs=(*state.signs, *(sign for _, sign in views)),
        coupled=(),
        coupled_signs=(),
    )


def joint_norms(state: State) -> Array:
    """|w_i|^2."""
    return np.array([sum(np.sum(a[i] ** 2) for a in as_joint_vectors(state).arrays) for i in range(state.n_units)])


def effective_units(state: State) -> float:
    """The Vendi score, from matched inner products (|w_i|^2 + |w_j|^2 - m_ij^2) / 2 of naive joint vectors."""
    joint, norms = as_joint_vectors(state), joint_norms(state)
    alive = [i for i in range(state.n_units) if norms[i] > 0]
    if not alive:
        return 0.0
    similarity = np.eye(len(alive))
    for (a, i), (b, j) in itertools.combinations(enumerate(alive), 2):
        product = (norms[i] + norms[j] - mirror_square(joint, i, j)) / 2
        similarity[a, b] = similarity[b, a] = product / math.sqrt(norms[i] * norms[j])
    eigenvalues = np.linalg.eigvalsh(similarity / len(alive)).clip(min=0)
    p = eigenvalues[eigenvalues > 0] / eigenvalues.sum()
    return float(np.exp(-np.sum(p * np.log(p))))

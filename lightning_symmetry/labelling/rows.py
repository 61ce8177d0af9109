"""The rows of an axis: the other axes at whose every position a group on it may act by itself.

A unit within a head may be permuted differently in each head, since every tensor that holds it also tells which head it
is in. So axis a is a row of axis b exactly when a is there in every tensor that holds b, those within operations
included: the mean that a norm takes, the sum that a softmax takes. It is to be there once, in the dimension of b or
else in the others: of a matrix of units by units, one for each head, the heads may be permuted, but not in each unit by
itself, as it is not told which of the two.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from itertools import chain

from lightning_symmetry.labelling.axes import Atom, Axis, Concatenation, atoms, resolve


def rows_of(tensors: Iterable[list[Axis]], leaves: Iterable[list[Axis]]) -> dict[Atom, list[Atom]]:
    """The rows of each atom: those that are there in every tensor that holds it, so that it may be permuted by row."""
    rows: dict[Atom, dict[Atom, None]] = {}
    for axes in chain(tensors, leaves):
        per_dim = [list(_alternatives(axis)) for axis in axes]
        always = [set.intersection(*map(set, alternatives)) for alternatives in per_dim]
        for dim, alternatives in enumerate(per_dim):
            elsewhere = Counter(chain(*always[:dim], *always[dim + 1 :]))
            for together in alternatives:
                counts = {**elsewhere, **Counter(together)}
                for atom in together:
                    beside = {other for other, count in counts.items() if count == 1} - {atom}
                    known = rows.get(atom, chain.from_iterable(map(atoms, axes)))
                    rows[atom] = {other: None for other in known if other in beside}
    return {atom: list(found) for atom, found in rows.items()}


def _alternatives(axis: Axis) -> Iterable[tuple[Atom, ...]]:
    """The atoms of an axis, once for each choice of segments of its concatenations."""
    axis = resolve(axis)
    place = next((place for place, factor in enumerate(axis) if isinstance(factor, Concatenation)), None)
    if place is None:
        yield tuple(atoms(axis))
        return
    for segment in axis[place].segments:  # type: ignore[union-attr]
        yield from _alternatives(axis[:place] + segment + axis[place + 1 :])

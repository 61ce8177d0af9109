"""Shifts that cancel: what may be added to some parameters along an axis, and to others to make up for it.

Each axis has linear equations between the shifts of its leaves. What comes from other axes, through parameters that map
them to this one, is in them too, as an `Image`. Solved for as many leaves as possible, every equation says what a leaf
must take up for others: a bias after a linear map takes up ``-W t`` for the bias t before it. Where no leaf is there to
take it up, there is no shift.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from graphlib import CycleError, TopologicalSorter
from itertools import chain

from lightning_symmetry.symmetry.charges import Echelon, Image, Key, Unknown

Map = tuple[Key, Key]
"""A linear map, by its unknowns along the axis that it reads, and along that which it writes."""

Path = tuple[Map, ...]
"""The linear maps that a shift goes through, the first first."""

Form = dict[Unknown, Fraction]


def shifts(
    equations: Iterable[Mapping[Unknown, Fraction]], leaves: Sequence[Key], hidden: Iterable[Mapping[Unknown, Fraction]]
) -> dict[Key, dict[Key, list[tuple[Fraction, Path]]]]:
    """Every way to shift leaves so that nothing changes.

    Args:
        equations: Forms in shifts, each of which is to vanish.
        leaves: The unknowns of leaves; the first possible are those that others make up for.
        hidden: More forms, that were of an axis as a whole: where it was split later, each part of them is to vanish.

    Returns:
        For each leaf that may be shifted by any vector, the leaves that are shifted with it, itself first: how often,
        and through which linear maps.
    """
    system = _System(leaves)
    for equation in chain(equations, *map(system.by_part, hidden)):
        system.add(dict(equation))
    return system.solutions()


class _System:
    def __init__(self, leaves: Sequence[Key]) -> None:
        self._rank = {leaf: number for number, leaf in enumerate(leaves)}
        self._parts: defaultdict[Unknown, list[Key]] = defaultdict(list)
        for leaf in leaves:
            for whole in wholes(leaf):
                self._parts[whole].append(leaf)
        self._echelon: Echelon[Unknown] = Echelon()
        self._rows = self._echelon.rows
        self._unmatched: list[Form] = []
        self._taken: dict[Unknown, dict[tuple[Key, Path], Fraction]] = {}

    def add(self, form: Form) -> None:
        """Take an equation up, solved for the last of its leaves."""
        form = self._echelon.rest(self._in_leaves(form))
        matched = [key for key in form if key in self._rank]
        if matched:
            round_about = self._needed({key: value for key, value in form.items() if isinstance(key, Image)})
            pivot = max(matched, key=lambda key: (key not in round_about, self._rank[key]))
            self._echelon.add(form, lambda keys: pivot)
        elif form:
            self._unmatched.append(form)

    def by_part(self, form: Mapping[Unknown, Fraction]) -> list[Mapping[Unknown, Fraction]]:
        """A form once for each part of the axis of its leaves, where all of them were split alike."""
        parts = [self._final(key) for key in form]
        alike = len(set(map(len, parts))) == 1
        return [dict(zip(some, form.values(), strict=True)) for some in zip(*parts, strict=True)] if alike else [form]

    def solutions(self) -> dict[Key, dict[Key, list[tuple[Fraction, Path]]]]:
        """What is left free, with all that follows it."""
        for pivot in self._in_order():
            rest = {key: -value for key, value in self._rows[pivot].items() if key != pivot}
            self._taken[pivot] = self._expanded(rest)
        none = {leaf for form in self._unmatched for leaf, _ in self._expanded(self._in_leaves(form))}
        free = [leaf for leaf in self._rank if leaf not in self._rows and leaf not in none]
        solutions: dict[Key, dict[Key, list[tuple[Fraction, Path]]]] = {
            leaf: {leaf: [(Fraction(1), ())]} for leaf in free
        }
        for pivot, shares in self._taken.items():
            for (leaf, path), value in shares.items():
                if leaf in solutions:
                    solutions[leaf].setdefault(pivot, []).append((value, path))  # type: ignore[arg-type]
        return solutions

    def _in_order(self) -> list[Unknown]:
        """The leaves that take shifts up, each after those that it takes up through maps.

        Where a leaf takes up what goes round to itself, as in a recurrent net, nothing may be shifted.
        """
        while True:
            rest = {pivot: {k: v for k, v in row.items() if k != pivot} for pivot, row in self._rows.items()}
            graph = {pivot: self._needed(row) & self._rows.keys() for pivot, row in rest.items()}
            try:
                return list(TopologicalSorter(graph).static_order())
            except CycleError as error:
                for pivot in dict.fromkeys(error.args[1]):
                    self._unmatched += [{leaf: Fraction(1)} for leaf in self._needed(self._rows[pivot])]
                    self._rows[pivot] = {pivot: Fraction(1)}

    def _needed(self, form: Mapping[Unknown, Fraction]) -> set[Unknown]:
        """The leaves in a form, also those of which it has images."""
        needed: set[Unknown] = set()
        for key in form:
            while isinstance(key, Image):
                key = key.of
            needed.update(self._final(key))
        return needed

    def _expanded(self, form: Mapping[Unknown, Fraction]) -> dict[tuple[Key, Path], Fraction]:
        """A form in the free leaves, each with the maps that it goes through."""
        total: dict[tuple[Key, Path], Fraction] = {}
        for key, value in form.items():
            path: Path = ()
            while isinstance(key, Image):
                path = ((key.read, key.write), *path)
                key = key.of
            for leaf in self._parts.get(key, []):
                parts = self._taken.get(leaf, {(leaf, ()): Fraction(1)})
                for (free, before), share in parts.items():
                    through = (free, (*before, *path))
                    total[through] = total.get(through, Fraction(0)) + value * share
        return {part: share for part, share in total.items() if share}

    def _in_leaves(self, form: Mapping[Unknown, Fraction]) -> Form:
        """A form with what was split later in its parts."""
        return {part: value for key, value in form.items() for part in self._final(key)}

    def _final(self, key: Unknown) -> Sequence[Unknown]:
        return [key] if isinstance(key, Image) else self._parts.get(key, [])


def wholes(key: Key) -> Iterator[Key]:
    """An unknown, and those of the axes that its own is a part of."""
    yield key
    while isinstance(key, tuple):
        key = key[0]
        yield key


def root(key: Key) -> Key:
    """The unknown of the dimension of a leaf that an axis is a part of."""
    return list(wholes(key))[-1]

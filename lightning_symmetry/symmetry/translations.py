"""The translations of a model: shifts of its leaves that cancel, as they act on blocks of parameters.

Each axis has linear equations between the shifts of its leaves: what may be added to some along it, and to others to
make up for it. What comes from other axes, through parameters that map them to this one, is in them too, as an `Image`.
Solved for as many leaves as possible, every equation says what a leaf must take up for others: a bias after a linear
map takes up ``-W t`` for the bias t before it. Where no leaf is there to take it up, there is no shift.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from graphlib import CycleError, TopologicalSorter
from itertools import chain

from lightning_symmetry.labelling.axes import Atom, Place
from lightning_symmetry.labelling.charges import Charge, Echelon, Hidden, Image, Key, Unknown
from lightning_symmetry.symmetry.actions import Block, Blocks, Carried, Map, Places

Passage = tuple[Key, Key]
"""A linear map, by its unknowns along the axis that it reads, and along that which it writes."""

Path = tuple[Passage, ...]
"""The linear maps that a shift goes through, the first first."""

Form = dict[Unknown, Fraction]

_LARGEST = 64
"""The largest common denominator of degrees that are given in whole numbers."""


@dataclass(frozen=True)
class Shift:
    """A vector added along an axis: how often by each unknown there, and what it becomes along others."""

    degrees: Mapping[Unknown, float]
    carried: tuple[Carried, ...] = ()


def shifts_along(blocks: Blocks, atoms: Iterable[Atom], more: Iterable[Charge]) -> dict[Atom, list[Shift]]:
    """The shifts that cancel, by the axis along which they start: those of biases before those of matrices.

    Args:
        blocks: The blocks of all leaves.
        atoms: The axes of all tensors.
        more: Forms that must vanish beside those of axes.
    """
    vectors_first = sorted(blocks, key=lambda block: len(block[0].axes) > 1)
    axes = {place.key: place.atom for _, places in vectors_first for place in places if place is not None}
    atoms = dict.fromkeys((*axes.values(), *atoms))
    outer = _outer(blocks)
    forms = [*(form for atom in atoms for form in atom.vanishing), *more]
    equations = [_without_images_along(outer, form.shift.items()) for form in forms]
    means = (key for form in forms for key in form.mean)
    hidden = [_without_images_along(outer, key.shift) for key in means if isinstance(key, Hidden)]
    dimensions = _by_dimension(blocks)
    found: dict[Atom, list[Shift]] = {}
    system = _System(list(axes))
    for equation in chain(equations, *map(system.by_part, hidden)):
        system.add(equation)
    for leaf, followers in system.solutions().items():
        degree = _degrees(share for shares in followers.values() for share, _ in shares)
        degrees: dict[Unknown, float] = {
            key: degree(share) for key, shares in followers.items() for share, path in shares if not path
        }
        carried = _carried(dimensions, followers, degree)
        if carried is not None:
            found.setdefault(axes[leaf], []).append(Shift(degrees, carried))
    return found


def _outer(blocks: Blocks) -> set[Key]:
    """The unknowns of all factors of a product of axes but the last: of an image the last stands for all of them."""
    outer: set[Key] = set()
    for _, places in blocks:
        last: dict[Key, Key] = {}
        for key in (place.key for place in places if place is not None):
            dimension = root(key)
            outer.update([last[dimension]] if dimension in last else [])
            last[dimension] = key
    return outer


def _without_images_along(outer: set[Key], form: Iterable[tuple[Unknown, Fraction]]) -> dict[Unknown, Fraction]:
    return {key: value for key, value in form if not _is_along(key, outer)}


def _is_along(key: Unknown, outer: set[Key]) -> bool:
    """Whether a shift is an image along one of these axes."""
    return isinstance(key, Image) and (key.write in outer or _is_along(key.of, outer))


def _degrees(shares: Iterable[Fraction]) -> Callable[[Fraction], float]:
    """Shares in whole numbers where there are such, as none are of a factor like the root of two."""
    common = math.lcm(*(share.denominator for share in shares))
    return float if common > _LARGEST else lambda share: int(share * common)


def _by_dimension(blocks: Blocks) -> dict[Key, Blocks]:
    """The blocks of each dimension of a leaf, by its unknown as a whole."""
    found: defaultdict[Key, list[tuple[Block, Places]]] = defaultdict(list)
    for block, places in blocks:
        for whole in dict.fromkeys(root(place.key) for place in places if place is not None):
            found[whole].append((block, places))
    return dict(found)


def _carried(
    dimensions: Mapping[Key, Blocks],
    followers: dict[Key, list[tuple[Fraction, Path]]],
    degree: Callable[[Fraction], float],
) -> tuple[Carried, ...] | None:
    """What becomes of a shift along other axes; None where that is no linear map of blocks."""
    taken = {key: through for key, shares in followers.items() if (through := [each for each in shares if each[1]])}
    carried = []
    for block, places in dict(chain.from_iterable(dimensions[root(key)] for key in taken)).items():
        keys = [place.key for place in places if place is not None and place.key in taken]
        for share, path in taken[keys[-1]] if keys else ():  # the other dimensions of the block follow
            maps = tuple(each for each in (_map(dimensions, *each) for each in path) if each is not None)
            written = {maps[-1].block.axes[dim] for dim in maps[-1].writes} if len(maps) == len(path) else None
            if written is None or not written <= set(block.axes) or not _is_followed(block, places):
                return None
            carried.append(Carried(block, degree(share), maps))
    return tuple(carried)


def _is_followed(block: Block, places: Iterable[Place | None]) -> bool:
    """Whether every dimension has a place; not where positions were singled out, as of the two of a rotary pair."""
    return block.numel == math.prod(place.size for place in places if place is not None)


def _map(dimensions: Mapping[Key, Blocks], read: Key, write: Key) -> Map | None:
    """The one block that maps an axis to another; None where more do, or where it is not followed to every position."""
    found = []
    sides = (root(read), root(write))
    for block, places in dimensions[sides[0]]:
        keys = {dim: list(wholes(place.key)) for dim, place in enumerate(places) if place is not None}
        reads, writes = (tuple(dim for dim, parts in keys.items() if parts[-1] == side) for side in sides)
        if any(read in parts for parts in keys.values()):
            here = any(write in parts for parts in keys.values())
            found.append((here and _is_followed(block, places), Map(block, reads, writes)))
    mapping = [each for here, each in found if here]
    whole = {len(each.writes) for _, each in found}
    return mapping[0] if len(mapping) == 1 and len(whole) == 1 else None


class _System:
    """Forms in the shifts of leaves, each of which is to vanish; leaves that come late make up for those before."""

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

    def add(self, equation: Mapping[Unknown, Fraction]) -> None:
        """Take an equation up, solved for the last of its leaves."""
        form = self._echelon.rest(self._in_leaves(equation))
        matched = [key for key in form if key in self._rank]
        if matched:
            round_about = self._needed({key: value for key, value in form.items() if isinstance(key, Image)})
            pivot = max(matched, key=lambda key: (key not in round_about, self._rank[key]))
            self._echelon.add(form, lambda keys: pivot)
        elif form:
            self._unmatched.append(form)

    def by_part(self, form: Mapping[Unknown, Fraction]) -> list[Mapping[Unknown, Fraction]]:
        """A form of an axis as a whole, once for each part of it, where all of its leaves were split alike later."""
        parts = [self._final(key) for key in form]
        alike = len(set(map(len, parts))) == 1
        return [dict(zip(some, form.values(), strict=True)) for some in zip(*parts, strict=True)] if alike else [form]

    def solutions(self) -> dict[Key, dict[Key, list[tuple[Fraction, Path]]]]:
        """For each leaf that may be shifted by any vector, the leaves that are shifted with it, itself first.

        How often they are, and through which linear maps.
        """
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

"""Axes as terms, and the unification of two of them.

A dimension of a tensor is an *axis*: a row-major product of factors, the slowest first. A factor is either the *place*
of an atom, an axis that nothing has split yet, or a *concatenation* of axes laid end to end. An axis of one position is
the empty product. So the rows of a fused query-key-value map are ``(Concatenation(heads * dim, heads * dim, heads *
dim),)``.

Each operation of a model says which axes are one; `unify` makes them so by first-order unification:

* two atoms become one;
* atoms of unequal size split: ``12 = 3 * 4`` makes the atom of 12 a product;
* an atom that meets a concatenation becomes it; two concatenations refine each other's boundaries.

What does not line up cannot be permuted freely, and is *pinned*: its positions are told apart. A pinned atom is still
an axis, but no permutation acts on it.

One atom has places in many tensors, and in each its own charge: see `charges`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate, count

from lightning_symmetry.labelling.charges import NEUTRAL, Charge, Key


@dataclass(eq=False)
class Atom:
    """An axis that is not split.

    Attributes:
        size: The number of its positions.
        pinned: Why its positions are told apart.
        rigid: Why its positions cannot be mixed linearly.
        keeps: What linear mixtures of its positions must keep.
        vanishing: The charges that must vanish.
        nearly: Those that must vanish but for the small constant that a norm adds.
        alone: Those that must vanish where it turns out to be several axes.
        bound: What it turned out to be.
    """

    size: int
    pinned: str | None = None
    rigid: str | None = None
    keeps: set[str] = field(default_factory=set)
    vanishing: list[Charge] = field(default_factory=list)
    nearly: list[Charge] = field(default_factory=list)
    alone: list[Charge] = field(default_factory=list)
    bound: Axis | None = None

    def vanishing_apart(self, several: bool) -> list[Charge]:
        """Where charges go that must vanish where an axis is several, of which this is one, or turns out to be."""
        return self.vanishing if several else self.alone


@dataclass(frozen=True)
class Place:
    """An atom in one tensor, with its charge there."""

    atom: Atom
    charge: Charge = NEUTRAL

    @property
    def size(self) -> int:
        """The number of positions."""
        return self.atom.size

    @property
    def key(self) -> Key:
        """The unknown of the charge of a leaf."""
        (key,) = self.charge.shift
        return key  # type: ignore[return-value]


@dataclass(eq=False)
class Concatenation:
    """Axes laid end to end."""

    segments: list[Axis]

    @cached_property
    def size(self) -> int:
        """The number of positions of all segments together."""
        return sum(size(segment) for segment in self.segments)


Factor = Place | Concatenation
Axis = tuple[Factor, ...]


def size(axis: Axis) -> int:
    """The number of positions along an axis."""
    return math.prod(factor.size for factor in axis)


def fresh(positions: int, pinned: str | None = None, charge: Charge = NEUTRAL) -> Axis:
    """A new axis that is tied to no other."""
    return () if positions == 1 else (Place(Atom(positions, pinned), charge),)


def resolve(axis: Axis) -> Axis:
    """The axis with every binding followed, nested concatenations flattened and factors of one position dropped."""
    if all(isinstance(factor, Place) and factor.atom.bound is None and factor.size != 1 for factor in axis):
        return axis
    factors: list[Factor] = []
    for factor in axis:
        if isinstance(factor, Concatenation):
            factors.extend(_concatenate(factor.segments))
            continue
        atom = _representative(factor.atom)
        if atom.bound is None:
            factors.append(Place(atom, factor.charge))
        else:
            factors.extend(resolve(_divided(atom.bound, factor.charge)))
    return tuple(factor for factor in factors if factor.size != 1)


def _representative(atom: Atom) -> Atom:
    """The atom that an atom became one with."""
    passed = []
    while atom.bound is not None and len(atom.bound) == 1 and isinstance(atom.bound[0], Place):
        passed.append(atom)
        atom = atom.bound[0].atom
    for each in passed:
        each.bound = (Place(atom),)
    return atom


def _divided(axis: Axis, charge: Charge) -> Axis:
    """The parts of an axis that had a charge as a whole: each part has its own."""
    return _rewritten(axis, map(charge.part, count()))


def _concatenate(segments: Iterable[Axis]) -> Axis:
    flat: list[Axis] = []
    for segment in map(resolve, segments):
        if len(segment) == 1 and isinstance(segment[0], Concatenation):
            flat.extend(segment[0].segments)
        else:
            flat.append(segment)
    return flat[0] if len(flat) == 1 else (Concatenation(flat),)


def places(axis: Axis) -> list[Place]:
    """Every place on an axis, those within concatenations included, in order."""
    return _listed(resolve(axis))


def _listed(axis: Axis) -> list[Place]:
    """The places on an axis as it is written, no binding followed."""
    found: list[Place] = []
    for factor in axis:
        if isinstance(factor, Place):
            found.append(factor)
        else:
            for segment in factor.segments:
                found.extend(_listed(segment))
    return found


def atoms(axis: Axis) -> list[Atom]:
    """Every atom of an axis, those within concatenations included, in order."""
    return [place.atom for place in places(axis)]


def taken_apart(axis: Axis) -> list[Atom]:
    """The atoms of an axis, as it once was, all of whose positions turned out to stand alone."""
    found: list[Atom] = []
    for place in _listed(axis):
        atom = _representative(place.atom)
        if atom.bound is not None:
            found += taken_apart(atom.bound) if _listed(atom.bound) else [atom]
    return found


def is_one(axis: Axis) -> bool:
    """Whether one atom is all that there is to an axis: positions that stand alone have none."""
    return [atom.size for atom in atoms(axis)] == [size(axis)]


def recharged(axis: Axis, charges: Iterable[Charge]) -> Axis:
    """The axis with other charges at its places, in order."""
    return _rewritten(resolve(axis), iter(charges))


def _rewritten(axis: Axis, charges: Iterator[Charge]) -> Axis:
    return tuple(
        Place(factor.atom, next(charges))
        if isinstance(factor, Place)
        else Concatenation([_rewritten(segment, charges) for segment in factor.segments])
        for factor in axis
    )


def pin(axis: Axis, why: str) -> None:
    """Tell the positions of an axis apart, and forbid to scale or to mix them."""
    forbid(axis, why)
    for atom in atoms(axis):
        atom.pinned = atom.pinned or why


def forbid(axis: Axis, why: str = "scaled otherwise") -> None:
    """Forbid to scale or to mix the positions of an axis."""
    for place in places(axis):
        place.atom.vanishing.append(place.charge)
        place.atom.rigid = place.atom.rigid or why


def _bind(atom: Atom, axis: Axis) -> None:
    """Let an atom be an axis, which takes over what is known of the atom."""
    atom.bound = axis
    several = not is_one(axis)
    for part in atoms(axis):
        part.pinned = part.pinned or atom.pinned
        part.rigid = part.rigid or atom.rigid
        part.keeps |= atom.keeps
    _hand_on(atom, atom.vanishing, lambda part: part.vanishing)
    _hand_on(atom, atom.nearly, lambda part: part.nearly)
    _hand_on(atom, atom.alone, lambda part: part.vanishing_apart(several))


def _hand_on(atom: Atom, forms: Iterable[Charge], to: Callable[[Atom], list[Charge]]) -> None:
    """Write the forms of an atom that turned out to be an axis to the atoms of that axis, as they are of each."""
    for form in forms:
        for place in places((Place(atom, form),)):
            to(place.atom).append(place.charge)


def unify(left: Axis, right: Axis) -> None:
    """Make two axes of equal size one.

    Raises:
        ValueError: The sizes differ, which means that an axis rule is wrong.
    """
    left, right = resolve(left), resolve(right)
    if size(left) != size(right):
        raise ValueError(f"an axis of {size(left)} positions cannot be one of {size(right)}")
    while left and right:
        if left[0].size < right[0].size:
            left, right = right, left
        larger, smaller = left[0], right[0]
        if larger.size == smaller.size:
            _merge(larger, smaller)
            left, right = resolve(left[1:]), resolve(right[1:])
        elif smaller.size and larger.size % smaller.size == 0:
            outer, inner = _split_factor(larger, smaller.size)
            left, right = resolve(outer + inner + left[1:]), resolve(right)
        else:
            pin(left, "unaligned product")
            pin(right, "unaligned product")
            return


def equate(left: Axis, right: Axis) -> None:
    """Make two axes of equal size one, with the same charges."""
    unify(left, right)
    ones, others = places(left), places(right)
    if [place.atom for place in ones] != [place.atom for place in others]:
        forbid(left)
        forbid(right)
        return
    for one, other in zip(ones, others, strict=True):
        one.atom.vanishing.append(one.charge - other.charge)


def _merge(left: Factor, right: Factor) -> None:
    if isinstance(left, Place) and isinstance(right, Place):
        if left.atom is right.atom:
            return
        left, right = sorted((left, right), key=lambda place: len(place.atom.vanishing))  # little is carried over
    if isinstance(left, Place):
        _bind(left.atom, (right,))
    elif isinstance(right, Place):
        _bind(right.atom, (left,))
    else:
        _merge_segments(list(left.segments), list(right.segments))


def _merge_segments(left: list[Axis], right: list[Axis]) -> None:
    while left:
        boundary = min(size(left[0]), size(right[0]))
        for segments in (left, right):
            if size(segments[0]) > boundary:
                segments[0:1] = cut(segments[0], boundary)
        unify(left.pop(0), right.pop(0))


def _split_factor(factor: Factor, outer_size: int) -> tuple[Axis, Axis]:
    inner_size = factor.size // outer_size
    if isinstance(factor, Place):
        parts = (Place(Atom(outer_size)), Place(Atom(inner_size)))
        _bind(factor.atom, parts)
        outer, inner = _divided(parts, factor.charge)
        return (outer,), (inner,)
    if all(size(segment) % inner_size == 0 for segment in factor.segments):
        pairs = [split(segment, size(segment) // inner_size) for segment in factor.segments]
        for _, inner_axis in pairs[1:]:
            equate(pairs[0][1], inner_axis)
        outers = [outer_axis for outer_axis, _ in pairs]
        return (Concatenation(outers),) if any(outers) else fresh(outer_size, "laid end to end"), pairs[0][1]
    if set(range(inner_size, factor.size, inner_size)) <= set(accumulate(map(size, factor.segments))):
        piece, rest = cut((factor,), inner_size)
        for _ in range(outer_size - 1):
            other, rest = cut(rest, inner_size)
            equate(piece, other)
        return fresh(outer_size, "laid end to end"), piece
    return _told_apart((factor,), "unaligned split", outer_size, inner_size)


def _told_apart(axis: Axis, why: str, first: int, second: int) -> tuple[Axis, Axis]:
    pin(axis, why)
    return fresh(first, why), fresh(second, why)


def split(axis: Axis, outer_size: int) -> tuple[Axis, Axis]:
    """An axis as outer times inner, the outer of the given size: what a view does that splits a dimension."""
    axis = resolve(axis)
    outer: Axis = ()
    rest = outer_size
    for position, factor in enumerate(axis):
        if rest == 1:
            return outer, axis[position:]
        if rest == factor.size == 0:  # no entries, as of an expert that no token is sent to
            return (*outer, factor), axis[position + 1 :]
        if factor.size and rest % factor.size == 0:
            outer += (factor,)
            rest //= factor.size
        elif factor.size % rest == 0:
            left, right = _split_factor(factor, rest)
            return outer + left, right + axis[position + 1 :]
        else:
            return _told_apart(axis, "unaligned split", outer_size, size(axis) // outer_size)
    return outer + fresh(rest), ()


def cut(axis: Axis, position: int) -> tuple[Axis, Axis]:
    """The first `position` positions of an axis and the others: what a slice does."""
    axis = resolve(axis)
    if position == 0:
        return fresh(0), axis
    if position == size(axis):
        return axis, fresh(0)
    first, rest = axis[0], axis[1:]
    if position % size(rest):
        return _told_apart(axis, "unaligned slice", position, size(axis) - position)
    position //= size(rest)
    if isinstance(first, Place):
        _bind(first.atom, (Concatenation([fresh(position), fresh(first.size - position)]),))
        return cut((first, *rest), position * size(rest))
    before: list[Axis] = []
    after: list[Axis] = []
    for segment in first.segments:
        length = size(segment)
        if 0 < position < length:
            head, tail = cut(segment, position)
            before.append(head)
            after.append(tail)
        else:
            (before if position > 0 else after).append(segment)
        position -= length
    return _concatenate(before) + rest, _concatenate(after) + rest


def narrow(axis: Axis, start: int, stop: int) -> Axis:
    """The positions from `start` up to `stop` of an axis.

    What is added to a position by itself is not followed: nothing may be added all along the axis.
    """
    if stop - start == 1 < size(axis):
        for place in places(axis):
            place.atom.vanishing.append(place.charge.of_mean)
    if stop < size(axis):
        axis, _ = cut(axis, stop)
    if start > 0:
        _, axis = cut(axis, start)
    return axis


def every(axis: Axis, start: int, stop: int, step: int) -> Axis:
    """One position of every so many of an axis, as the first coordinate of each pair."""
    length = len(range(start, stop, step))
    if length * step != size(axis) or start >= step:
        return _told_apart(axis, "strided slice", length, 1)[0]
    outer, inner = split(axis, length)
    narrow(inner, start, start + 1)
    return outer

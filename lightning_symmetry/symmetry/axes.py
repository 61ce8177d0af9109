"""Axes as terms, and the unification of two of them.

A dimension of a tensor is an *axis*: a row-major product of factors, the slowest first. A factor is either an *atom*,
an axis that nothing has split yet, or a *concatenation* of axes laid end to end. An axis of one position is the empty
product. So the rows of a fused query-key-value map are ``(Concatenation(heads * dim, heads * dim, heads * dim),)``.

Each operation of a model says which axes are one; `unify` makes them so by first-order unification:

* two atoms become one;
* atoms of unequal size split: ``12 = 3 * 4`` makes the atom of 12 a product;
* an atom that meets a concatenation becomes it; two concatenations refine each other's boundaries.

What does not line up cannot be permuted freely, and is *pinned*: its positions are told apart. A pinned atom is still
an axis, but no group acts on it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(eq=False)
class Atom:
    """An axis not split: `pinned` says why its positions are told apart, `bound` what it turned out to be."""

    size: int
    pinned: str | None = None
    bound: Axis | None = None


@dataclass(eq=False)
class Concatenation:
    """Axes laid end to end."""

    segments: list[Axis]

    @property
    def size(self) -> int:
        """The number of positions of all segments together."""
        return sum(size(segment) for segment in self.segments)


Factor = Atom | Concatenation
Axis = tuple[Factor, ...]


def size(axis: Axis) -> int:
    """The number of positions along an axis."""
    return math.prod(factor.size for factor in axis)


def fresh(positions: int, pinned: str | None = None) -> Axis:
    """A new axis that is tied to no other."""
    return () if positions == 1 else (Atom(positions, pinned),)


def resolve(axis: Axis) -> Axis:
    """The axis with every binding followed, nested concatenations flattened and factors of one position dropped."""
    factors: list[Factor] = []
    for factor in axis:
        if isinstance(factor, Atom):
            if factor.bound is None:
                factors.append(factor)
            else:
                factor.bound = resolve(factor.bound)
                factors.extend(factor.bound)
        else:
            factors.extend(_concatenate(factor.segments))
    return tuple(factor for factor in factors if factor.size != 1)


def _concatenate(segments: Iterable[Axis]) -> Axis:
    flat: list[Axis] = []
    for segment in map(resolve, segments):
        if len(segment) == 1 and isinstance(segment[0], Concatenation):
            flat.extend(segment[0].segments)
        else:
            flat.append(segment)
    return flat[0] if len(flat) == 1 else (Concatenation(flat),)


def atoms(axis: Axis) -> Iterable[Atom]:
    """Every atom of an axis, those within concatenations included."""
    for factor in resolve(axis):
        if isinstance(factor, Atom):
            yield factor
        else:
            for segment in factor.segments:
                yield from atoms(segment)


def pin(axis: Axis, why: str) -> None:
    """Tell the positions of an axis apart."""
    for atom in atoms(axis):
        atom.pinned = atom.pinned or why


def _bind(atom: Atom, axis: Axis) -> None:
    atom.bound = axis
    if atom.pinned:
        pin(axis, atom.pinned)


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


def _merge(left: Factor, right: Factor) -> None:
    if left is right:
        return
    if isinstance(left, Atom):
        _bind(left, (right,))
    elif isinstance(right, Atom):
        _bind(right, (left,))
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
    if isinstance(factor, Atom):
        outer, inner = Atom(outer_size), Atom(inner_size)
        _bind(factor, (outer, inner))
        return (outer,), (inner,)
    if all(size(segment) % inner_size == 0 for segment in factor.segments):
        pairs = [split(segment, size(segment) // inner_size) for segment in factor.segments]
        for _, inner_axis in pairs[1:]:
            unify(pairs[0][1], inner_axis)
        return (Concatenation([outer_axis for outer_axis, _ in pairs]),), pairs[0][1]
    return _told_apart((factor,), "unaligned split", outer_size, inner_size)


def _told_apart(axis: Axis, why: str, *sizes: int) -> tuple[Axis, Axis]:
    pin(axis, why)
    first, second = sizes
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
    if isinstance(first, Atom):
        left, right = fresh(position), fresh(first.size - position)
        _bind(first, (Concatenation([left, right]),))
        return left + rest, right + rest
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
    """The positions from `start` up to `stop` of an axis."""
    if stop < size(axis):
        axis, _ = cut(axis, stop)
    if start > 0:
        _, axis = cut(axis, start)
    return axis

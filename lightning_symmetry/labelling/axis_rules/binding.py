"""A rule applied to one call of an operation: what its letters stand for, and what becomes of their charges.

The axes of the inputs are unified with what the rule says they are, the axes of the outputs written from them, with the
charges that the operation's law gives them. What an axis that is summed over does to others goes on along these: a
shift through a parameter that maps the one to the other as its image, one through other factors hidden.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise

from lightning_symmetry.labelling.axes import (
    Axis,
    Concatenation,
    atoms,
    forbid,
    fresh,
    is_one,
    narrow,
    pin,
    places,
    recharged,
    resolve,
    size,
    split,
    unify,
)
from lightning_symmetry.labelling.axis_rules.language import ELLIPSIS, TOLD_APART, Pattern, Term
from lightning_symmetry.labelling.charges import NEUTRAL, UNIFORM, Charge, Hidden, Image, Unknown
from lightning_symmetry.labelling.laws import LENGTH, Law, joint, length, neutral, ranking


def _charges(axis: Axis, law: Law) -> list[Charge | None]:
    """The charges at the places of an axis; None for those of an axis that is no better than broadcast.

    What others are laid beside has to be scaled as they are, though it is the same all along the axis.
    """
    counts = law is joint or any(isinstance(factor, Concatenation) for factor in resolve(axis))
    return [place.charge if place.charge is not UNIFORM or counts else None for place in places(axis)]


@dataclass(frozen=True)
class Contraction:
    """What is known of the factors of a product that sums over axes.

    Attributes:
        letters: The letters of the axes summed over.
        maps: The numbers of the inputs that are parameters, laid out anew: linear maps of the others.
        picked: Those of the inputs that are parameters of which positions may have been picked, as of some experts.
        centred: Those of the inputs whose sum along these axes is zero.
    """

    letters: frozenset[str] = frozenset()
    maps: frozenset[int] = frozenset()
    picked: frozenset[int] = frozenset()
    centred: frozenset[int] = frozenset()


def _hidden(forms: Sequence[Charge]) -> frozenset[Unknown]:
    """What is added all along a dimension, of however many axes it is made."""
    return frozenset(key for form in forms for key in form.mean if isinstance(key, Hidden))


def _images(read: Charge, written: Charge, shifted: Charge) -> dict[Unknown, Fraction]:
    """What a map makes of the shifts of what it reads."""
    (along_read,), along_written = read.shift, next(iter(written.shift))
    return {Image(along_read, along_written, key): value for key, value in shifted.shift.items()}  # type: ignore[arg-type]


class Binding:
    """What the letters of a rule stand for in one call, and what its law makes of their charges."""

    def __init__(self, sizes: Mapping[str, int], law: Law = neutral, contraction: Contraction | None = None) -> None:
        self.read_by_maps: list[Unknown] = []
        self.read_centred: list[tuple[Unknown, int]] = []
        self._sizes = dict(sizes)
        self._law = law
        self._contraction = contraction or Contraction()
        self._carried: set[int] = set()
        self._n_inputs = 0
        self._held: dict[str | int, list[tuple[int, Axis]]] = {}
        self._output: dict[str | int, Axis] = {}
        self._pointed_at: dict[str | int, Axis] = {}

    def read(self, pattern: Pattern, axes: Sequence[Axis]) -> None:
        """Unify the axes of an input with what its pattern says they are."""
        for term, axis in zip(self._spread(pattern, len(axes)), axes, strict=True):
            if isinstance(term, int):
                self._read_letter(term, axis)
            elif term == TOLD_APART:
                pin(axis, "positions told apart")
            elif size(axis) == 1:
                continue
            elif len(term.letters) == 1:
                self._read_letter(term.letters[0], axis)
            elif term.laid_end_to_end:
                lengths = self._lengths(term, size(axis))
                bounds = [sum(lengths[:k]) for k in range(len(lengths) + 1)]
                for letter, (start, stop) in zip(term.letters, pairwise(bounds), strict=True):
                    self._read_letter(letter, narrow(axis, start, stop))
            else:
                for letter, length in zip(term.letters, self._lengths(term, size(axis)), strict=True):
                    outer, axis = split(axis, length)
                    self._read_letter(letter, outer)
        self._n_inputs += 1

    def point(self, letter: str, axis: Axis | None) -> None:
        """Unify a letter with the axis along which the entries of an input are indices.

        Numbers that are no indices along a known axis tell positions apart. An axis may go on where no index reaches.
        """
        if letter not in self._held and letter not in self._sizes:
            self._pointed_at.setdefault(letter, axis or ())
        known = self.axis(letter)
        beyond = size(known) - size(axis) if axis is not None else -1
        if axis is None or beyond < 0:
            pin(known + (axis or ()), "looked up by number")
        else:
            unify(known, (Concatenation([axis, fresh(beyond, "never looked up")]),) if beyond else axis)

    def axis(self, letter: str) -> Axis:
        """The axis that a letter stands for."""
        if letter in self._held:
            return self._held[letter][0][1]
        return self._pointed_at.setdefault(letter, fresh(self._sizes.get(letter, 1)))

    def write(self, pattern: Pattern, shape: Sequence[int]) -> list[Axis]:
        """The axes of an output."""
        terms = self._spread(pattern, len(shape))
        return [self._write(term, length) for term, length in zip(terms, shape, strict=True)]

    def together(self) -> list[Axis]:
        """The axes of all letters of the inputs: those of the products that a contraction sums up."""
        return [held[0][1] for held in self._held.values()]

    def finish(self) -> None:
        """Forbid what does not cancel in the axes that no output has."""
        for letter in self._held.keys() - self._output.keys():
            columns, axes = self._columns(letter)
            for place, charges in zip(places(axes[0]), columns, strict=True):
                held = {number: charge for number, charge in enumerate(charges) if charge is not None}
                if letter in self._contraction.letters and len(held) == 2:
                    left, right = held
                    place.atom.vanishing.append((held[left] + held[right]).unshifted)
                    for number, other in ((left, right), (right, left)):
                        place.atom.vanishing.append(self._not_free(number, other, held[number]))
                        if self._is_centred(number, other):  # along the whole of the letter, and no part of it
                            place.atom.vanishing_apart(not is_one(axes[0])).append(held[number].of_mean)
                elif self._law is length:
                    place.atom.vanishing.extend(
                        charge.of_scale + charge.of_shift + charge.of_mean for charge in held.values()
                    )
                    place.atom.keeps.add(LENGTH)
                elif self._law is ranking:
                    for charge in held.values():
                        place.atom.vanishing += [charge.unshifted, charge.of_shift]
                        place.atom.vanishing_apart(not is_one(axes[0])).append(charge.of_mean)
                    place.atom.rigid = place.atom.rigid or "order"
                else:
                    place.atom.vanishing.extend(held.values())
                    place.atom.rigid = place.atom.rigid or "reduced"

    def _not_free(self, number: int, other: int, charge: Charge) -> Charge:
        """What must not be added to one factor of a product along an axis that is summed over."""
        self.read_by_maps.extend(charge.shift if number in self._contraction.picked else ())
        shift = NEUTRAL if number in self._carried else charge.of_shift
        if self._is_centred(number, other):
            self.read_centred.extend((key, other) for key in charge.mean)
            return shift
        return shift + charge.of_mean

    def _is_centred(self, number: int, other: int) -> bool:
        """Whether one factor maps another whose sum is zero."""
        return number in self._contraction.maps and other in self._contraction.centred

    def _goes_on(self, letter: str | int, place: int) -> Charge:
        """What the shifts along the axes summed over add along an axis that one of two factors alone has."""
        summed = self._contraction.letters & self._held.keys()
        factors = dict.fromkeys(number for other in summed for number, _ in self._held[other])
        having = [number for number, _ in self._held[letter] if number in factors]
        if len(having) != 1 or len(factors) != 2:
            return NEUTRAL
        (one,), (other,) = having, factors.keys() - having
        maps = self._contraction.maps
        written = self._columns(letter)[0][place][one] or NEUTRAL
        added = NEUTRAL
        for charges in (column for name in summed for column in self._columns(name)[0]):
            own, others = charges[one], charges[other]
            if own is None or others is None or other in maps:
                continue
            if one in maps and written.shift:
                added += Charge(shift=_images(own, written, others))
                self._carried.add(other)
            added += Charge(mean=frozenset([Hidden(tuple(own.shift.items()))] if own.shift else []))
            self._carried.add(one)
        return added

    def _write(self, term: Term | int, length: int) -> Axis:
        if isinstance(term, int):
            return self._written(term, 1)
        if term == TOLD_APART:
            return fresh(length, "positions told apart")
        parts = [
            self._written(letter, positions)
            for letter, positions in zip(term.letters, self._lengths(term, length), strict=True)
        ]
        if term.laid_end_to_end:
            return (Concatenation(parts),)
        return sum(parts, ())

    def _written(self, letter: str | int, length: int) -> Axis:
        """The axis of a letter in an output: that of the inputs, with the charges that the law gives it."""
        if letter not in self._output:
            if letter in self._held:
                columns, axes = self._columns(letter)
                name = letter if isinstance(letter, str) else "..."
                answers = [self._law(charges, name) for charges in columns]
                several, everywhere = not is_one(axes[0]), frozenset[Unknown]()
                if answers and len(set(atoms(axes[0]))) == len(answers):  # not of one axis at several positions
                    everywhere = frozenset.intersection(*(_hidden(answer.alone) for answer in answers))
                for place, answer in zip(places(axes[0]), answers, strict=True):
                    place.atom.vanishing.extend(answer.vanishing)
                    place.atom.nearly.extend(answer.nearly)
                    place.atom.vanishing_apart(several).extend(
                        Charge(mean=form.mean - everywhere) for form in answer.alone
                    )
                    place.atom.rigid = place.atom.rigid or answer.rigid
                    place.atom.keeps |= answer.keeps
                self._output[letter] = recharged(
                    axes[0],
                    [answer.output + self._goes_on(letter, k) for k, answer in enumerate(answers)],
                )
            else:
                self._output[letter] = self._pointed_at.get(letter, fresh(length))
        return self._output[letter]

    def _columns(self, letter: str | int) -> tuple[list[list[Charge | None]], list[Axis]]:
        """For each place on the axis of a letter its charge in every input, None where the input does not have it."""
        holding = dict(self._held[letter])
        first = atoms(next(iter(holding.values())))
        if any(atoms(other) != first for other in holding.values()):
            for _, axis in self._held[letter]:  # laid out in ways that cannot be compared place by place
                forbid(axis)
            holding = {}
        charges = {number: _charges(axis, self._law) for number, axis in holding.items()}
        none: list[Charge | None] = [None] * len(first)
        columns = zip(*(charges.get(number, none) for number in range(self._n_inputs)), strict=True)
        return [list(column) for column in columns], [axis for _, axis in self._held[letter]]

    def _read_letter(self, letter: str | int, axis: Axis) -> None:
        self._sizes.setdefault(letter, size(axis)) if isinstance(letter, str) else None
        if size(axis) == 1:
            return
        held = self._held.setdefault(letter, [])
        if held:
            unify(held[0][1], axis)
        held.append((self._n_inputs, axis))

    def _lengths(self, term: Term, total: int) -> list[int]:
        lengths = [self._sizes.get(letter) for letter in term.letters]
        known = [length for length in lengths if length is not None]
        rest = total - sum(known) if term.laid_end_to_end else total // max(math.prod(known), 1)
        return [rest if length is None else length for length in lengths]

    @staticmethod
    def _spread(pattern: Pattern, n_dims: int) -> list[Term | int]:
        """The pattern with its ellipsis replaced by the numbers of the broadcast dimensions, counted from the right."""
        n_broadcast = n_dims - sum(term != ELLIPSIS for term in pattern)
        if n_broadcast < 0 or (n_broadcast and ELLIPSIS not in pattern):
            raise ValueError(f"axis rule part of {len(pattern)} dimensions met a tensor of {n_dims}")
        spread: list[Term | int] = []
        for term in pattern:
            spread.extend(range(n_broadcast, 0, -1) if term == ELLIPSIS else [term])
        return spread

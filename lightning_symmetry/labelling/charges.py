"""Charges: by which power of a unit's scale each tensor that holds the unit is multiplied.

Multiply hidden unit i by lambda_i: its incoming weights take lambda_i, its outgoing ones 1 / lambda_i, and where only
positively homogeneous maps lie between, nothing changes. The exponents are the *charges* of the axis in each tensor:
+1, -1, and 0 in tensors that do not notice. They are unknowns of one small linear system for each axis: an operation
says how the charges of what comes out follow from those of what goes in.

==========================================  ===================  =====================
operation                                   over the rationals   over GF(2), for signs
==========================================  ===================  =====================
sums and concatenations                     equal                equal
products                                    added                added
contraction over the axis                   sum to zero          sum to zero
positively homogeneous (ReLU)               kept                 zero
odd (tanh)                                  zero                 kept
power p                                     times p              times p, where whole
any other map, and constants                zero                 zero
==========================================  ===================  =====================

The nullspace over the rationals is the rescalings of the axis, that over GF(2) its signs.

*Shifts* go the same way: add a vector along the axis to a tensor, the same at all positions of its other axes, times a
number for each tensor. Sums add the numbers, linear maps of one tensor keep them, a norm takes its input's away, and of
everything else they must be zero. A parameter that maps the axis to another one makes of a shift its `Image`, which
that axis goes on with. And anything may be added that is the same all along an axis whose *mean* a norm or a softmax
takes away; to shift one factor of a product adds something to the other's scores, `Hidden` but for that sameness.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import count
from typing import Generic, TypeVar

Key = int | tuple["Key", int]
"""An unknown of a leaf's axis, or of a part of it: what it was called as a whole, and the number of the part."""

K = TypeVar("K")

_NEW = count()


@dataclass(frozen=True)
class Image:
    """What a shift becomes under a linear map: the map by its unknowns along the axes it reads and writes."""

    read: Key
    write: Key
    of: Unknown


@dataclass(frozen=True)
class Hidden:
    """What a shift, a linear form, adds to the products of a tensor with others: of its size nothing is known."""

    shift: tuple[tuple[Unknown, Fraction], ...]


Unknown = Key | Image | Hidden


def _part(key: Unknown, number: int) -> Unknown:
    """The unknown of a part of an axis."""
    match key:
        case Image():
            return Image(key.read, (key.write, number), key.of)
        case Hidden():
            return key
    return (key, number)


@dataclass(frozen=True)
class Charge:
    """What may happen to a tensor along an axis.

    Attributes:
        scale: The exponent of a rescaling, a linear form in unknowns.
        sign: That of a sign, over GF(2).
        shift: The multiple of a vector along the axis that is added at all positions of the others.
        mean: The tensors to which anything is added that is the same all along the axis: it changes nothing but means.
    """

    scale: Mapping[Unknown, Fraction] = field(default_factory=dict)
    sign: frozenset[Unknown] = frozenset()
    shift: Mapping[Unknown, Fraction] = field(default_factory=dict)
    mean: frozenset[Unknown] = frozenset()

    def __add__(self, other: Charge) -> Charge:
        """The sum of forms: of scale and sign, the charge of a product; of shift, that of a sum."""
        return Charge(
            _sum(self.scale, other.scale),
            self.sign ^ other.sign,
            _sum(self.shift, other.shift),
            self.mean | other.mean,
        )

    def __mul__(self, factor: Fraction | int) -> Charge:
        """A multiple of the forms: of scale and sign, the charge of a power, which signs survive if it is odd."""
        whole = Fraction(factor).denominator == 1
        return Charge(
            {key: value * factor for key, value in self.scale.items() if factor},
            self.sign if whole and factor % 2 else frozenset(),
            {key: value * factor for key, value in self.shift.items() if factor},
            self.mean if factor else frozenset(),
        )

    def __sub__(self, other: Charge) -> Charge:
        """The difference of forms."""
        return self + other * -1

    @property
    def of_scale(self) -> Charge:
        """The form of the scale alone."""
        return Charge(scale=self.scale)

    @property
    def of_sign(self) -> Charge:
        """The form of the sign alone."""
        return Charge(sign=self.sign)

    @property
    def of_shift(self) -> Charge:
        """The form of the shift alone."""
        return Charge(shift=self.shift)

    @property
    def of_mean(self) -> Charge:
        """What changes means alone."""
        return Charge(mean=self.mean)

    @property
    def unshifted(self) -> Charge:
        """The forms of scale and sign."""
        return Charge(self.scale, self.sign)

    def part(self, number: int) -> Charge:
        """The charge of one part of an axis that had this charge as a whole: the same forms in unknowns of its own."""
        if self is UNIFORM:
            return self
        return Charge(
            {_part(key, number): value for key, value in self.scale.items()},
            frozenset(_part(key, number) for key in self.sign),
            {_part(key, number): value for key, value in self.shift.items()},
            frozenset(_part(key, number) for key in self.mean),
        )


def _sum(left: Mapping[Unknown, Fraction], right: Mapping[Unknown, Fraction]) -> Mapping[Unknown, Fraction]:
    total = {key: left.get(key, Fraction(0)) + right.get(key, Fraction(0)) for key in (*left, *right)}
    return {key: value for key, value in total.items() if value}


NEUTRAL = Charge()
UNIFORM = Charge()
"""The charge of a constant that is the same all along an axis, as good as broadcast along it: known by identity."""


def unknown() -> Charge:
    """A charge of which nothing is known yet: one new unknown."""
    variable = next(_NEW)
    return Charge({variable: Fraction(1)}, frozenset({variable}), {variable: Fraction(1)}, frozenset({variable}))


def scalings(
    equations: Iterable[Mapping[Unknown, Fraction]], unknowns: Sequence[Unknown]
) -> list[dict[Unknown, Fraction]]:
    """A basis of the exponents that solve the equations, each form of which is to be zero.

    Args:
        equations: Linear forms over the rationals.
        unknowns: The unknowns of interest; each solution has one of them that no other has, the first possible.

    Returns:
        Solutions, restricted to the unknowns of interest, as a basis in echelon form; zeros are left out.
    """
    return _nullspace(equations, unknowns)


def signs(equations: Iterable[frozenset[Unknown]], unknowns: Sequence[Unknown]) -> list[frozenset[Unknown]]:
    """A basis of the signs that solve the equations over GF(2): the sets of unknowns that are one."""
    forms = [{key: Fraction(1) for key in form} for form in equations]
    return [frozenset(solution) for solution in _nullspace(forms, unknowns, modulus=2)]


def _nullspace(
    forms: Iterable[Mapping[Unknown, Fraction]], unknowns: Sequence[Unknown], modulus: int | None = None
) -> list[dict[Unknown, Fraction]]:
    """Unknowns of no interest are eliminated first, of the others the last first."""
    rank = {unknown: number for number, unknown in enumerate(unknowns)}
    echelon: Echelon[Unknown] = Echelon(modulus=modulus)
    for form in forms:
        echelon.add(form, lambda keys: max(keys, key=lambda key: rank.get(key, len(rank))))
    rows = {pivot: row for pivot, row in echelon.rows.items() if pivot in rank}
    return [
        {free: Fraction(1), **{pivot: echelon.reduced(-row[free]) for pivot, row in rows.items() if free in row}}
        for free in unknowns
        if free not in rows
    ]


class Echelon(Generic[K]):
    """Linear forms in reduced echelon form: each row is one at a pivot of its own, which no other row has.

    Args:
        forms: Forms to begin with.
        modulus: A prime to count by, as 2 for GF(2); None for the rationals.
    """

    def __init__(self, forms: Iterable[Mapping[K, float | Fraction]] = (), modulus: int | None = None) -> None:
        self.rows: dict[K, dict[K, Fraction]] = {}
        self._modulus = modulus
        for form in forms:
            self.add(form)

    def add(
        self,
        form: Mapping[K, float | Fraction],
        choose: Callable[[Iterable[K]], K] = lambda keys: next(iter(keys)),
    ) -> bool:
        """Take a form up, with the pivot that is chosen among its keys; False if it is a combination of the rows."""
        rest = self.rest(form)
        if not rest:
            return False
        pivot = choose(rest)
        row = {key: self.reduced(value / rest[pivot]) for key, value in rest.items()}
        for other in self.rows.values():
            self._eliminate(other, pivot, row)
        self.rows[pivot] = row
        return True

    def rest(self, form: Mapping[K, float | Fraction]) -> dict[K, Fraction]:
        """What is left of a form when the rows have taken all pivots out of it."""
        rest = {key: number for key, value in form.items() if (number := self.reduced(Fraction(value)))}
        for pivot in [key for key in rest if key in self.rows]:
            self._eliminate(rest, pivot, self.rows[pivot])
        return rest

    def reduced(self, number: Fraction) -> Fraction:
        """The number that stands for it."""
        return number if self._modulus is None else number % self._modulus

    def _eliminate(self, form: dict[K, Fraction], pivot: K, row: Mapping[K, Fraction]) -> None:
        factor = form.get(pivot)
        if factor:
            for key, value in row.items():
                form[key] = self.reduced(form.get(key, Fraction(0)) - factor * value)
                if not form[key]:
                    del form[key]

"""The law that each operation keeps: how the charges of what comes out follow from those of what goes in.

A law is asked for one axis at a time. It is given the charge of the axis in each input, None where the input does not
have the axis or is broadcast along it, and answers with the charge of the output, with the forms that must vanish, and
whether linear mixtures of the positions along the axis pass through it.

Every law can be put to the test: scale or flip the inputs by what it says, run the operation, and compare.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Literal

from lightning_symmetry.labelling.charges import NEUTRAL, Charge
from lightning_symmetry.tracing.precision import ROUNDING

Charges = Sequence[Charge | None]


@dataclass(frozen=True)
class Answer:
    """What a law says of one axis.

    Attributes:
        output: The charge of the output.
        vanishing: The forms that must vanish.
        rigid: Why positions cannot be mixed; None where linear mixtures pass.
        keeps: What mixtures must keep: `LENGTH`, and `MEAN`.
        nearly: Forms that must vanish but for the small constant that a norm adds.
        alone: Forms that must vanish unless the axis is all that the operation looks at along its dimension.
    """

    output: Charge = NEUTRAL
    vanishing: tuple[Charge, ...] = ()
    rigid: str | None = None
    keeps: frozenset[str] = frozenset()
    nearly: tuple[Charge, ...] = ()
    alone: tuple[Charge, ...] = ()


LENGTH, MEAN = "length", "mean"
"""What a norm looks at, so that mixtures of the positions along its axis must keep it."""

WHOLE = "*"
"""The letter for a tensor as a whole: an axis of one position that every tensor has."""

Law = Callable[[Charges, str], Answer]
"""From the charges of one axis in the inputs, and its letter in the axis rule, to what becomes of it."""


def neutral(charges: Charges, letter: str) -> Answer:
    """Nothing passes: no input may be scaled or shifted."""
    return Answer(vanishing=_held(charges), rigid="nonlinear")


def indifferent(charges: Charges, letter: str) -> Answer:
    """Nothing finite makes a difference: what is infinite stays so."""
    return Answer(rigid="nonlinear")


def linear(charges: Charges, letter: str) -> Answer:
    """A linear map of one input that keeps constants: everything passes."""
    held = _held(charges)
    return Answer(held[0], held[1:]) if held else Answer()


def product(charges: Charges, letter: str) -> Answer:
    """Multilinear in its inputs: charges add up, nothing may be shifted; what has an axis alone is mixed along it."""
    held = _held(charges)
    output = sum((charge.unshifted for charge in held), NEUTRAL)
    if len(held) == 1:
        return Answer(output + held[0].of_mean, (held[0].of_shift,))
    return Answer(output, _shifts(held), "elementwise product" if held else None)


def multiple(number: float) -> Law:
    """A multiple of one input: of its shift by that number."""

    def law(charges: Charges, letter: str) -> Answer:
        charge = sum(_held(charges), NEUTRAL)
        return Answer(charge.unshifted + (charge * Fraction(number)).of_shift + charge.of_mean)

    return law


def length(charges: Charges, letter: str) -> Answer:
    """The length of a vector, homogeneous and even."""
    return power(1, "even")(charges, letter)


def average(charges: Charges, letter: str) -> Answer:
    """A product with weights that sum to one: what the other factor has alone passes, shifts and means too."""
    held = _held(charges)
    return linear(charges, letter) if len(held) == 1 else product(charges, letter)


def quotient(charges: Charges, letter: str) -> Answer:
    """The first input times the reciprocal of the second."""
    above, below = charges
    return product(charges if below is None else [above or NEUTRAL, below * -1], letter)


def total(charges: Charges, letter: str) -> Answer:
    """A sum: scales are equal, and none where an input is constant along the axis; shifts add up."""
    held = _held(charges)
    if not held:
        return Answer()
    added = sum((charge.of_shift + charge.of_mean for charge in held), NEUTRAL)
    equal = tuple((charge - held[0]).unshifted for charge in held[1:])
    if len(held) < len(charges):
        return Answer(added, (*equal, held[0].unshifted), "constant added")
    return Answer(held[0].unshifted + added, equal)


def difference(charges: Charges, letter: str) -> Answer:
    """The second input taken from the first."""
    first, second = charges
    return total([first, None if second is None else multiple(-1)([second], letter).output], letter)


def joint(charges: Charges, letter: str) -> Answer:
    """Inputs laid side by side: equal along the axes that they share."""
    held = _held(charges)
    if not held:
        return Answer()
    means = sum((charge.of_mean for charge in held[1:]), NEUTRAL)
    equal = tuple((charge - held[0]).unshifted + (charge - held[0]).of_shift for charge in held[1:])
    return Answer(held[0] + means, equal)


def power(exponent: Fraction | int, signs: Literal["odd", "even", "neither"]) -> Law:
    """Homogeneous of this degree for positive scales; for signs odd, even, or neither."""

    def law(charges: Charges, letter: str) -> Answer:
        (charge,) = _held(charges) or (NEUTRAL,)
        scale = (charge.of_scale * exponent).of_scale
        if signs == "odd":
            return Answer(scale + charge.of_sign, _shifts([charge]), "power")
        return Answer(scale, (*_shifts([charge]), *([charge.of_sign] if signs == "neither" else [])), "power")

    return law


def odd(charges: Charges, letter: str) -> Answer:
    """Odd, and not homogeneous: signs pass, scales do not."""
    (charge,) = _held(charges) or (NEUTRAL,)
    return Answer(charge.of_sign, (charge.of_scale, *_shifts([charge])), "nonlinear")


def even(charges: Charges, letter: str) -> Answer:
    """Even, and not homogeneous: signs are lost, scales do not pass."""
    return replace(odd(charges, letter), output=NEUTRAL)


def largest(charges: Charges, letter: str) -> Answer:
    """The larger of two: scales are equal and pass, and what is added to both; signs do not."""
    answer = total(charges, letter)
    held = _held(charges)
    signs = tuple(charge.of_sign for charge in held)
    if len(held) < len(charges):
        return Answer(answer.output.of_scale, (*answer.vanishing, *signs, *_shifts(held)), "order")
    added = tuple((charge - held[0]).of_shift for charge in held[1:])
    means = tuple(charge.of_mean for charge in held)
    return Answer(held[0].of_scale + held[0].of_shift, (*answer.vanishing, *signs, *added, *means), "order")


def extreme(charges: Charges, letter: str) -> Answer:
    """The largest or the smallest along other axes: what is added to all of them passes, signs do not."""
    answer = power(1, "neither")([charge.of_scale + charge.of_sign for charge in _held(charges)], letter)
    charge = sum(_held(charges), NEUTRAL)
    return Answer(answer.output + charge.of_shift, (*answer.vanishing, charge.of_mean), "order")


def chosen(charges: Charges, letter: str) -> Answer:
    """A choice between two inputs by a mask, which comes first: one of them written into the other."""
    mask, one, other = charges
    return written([one, mask, other], letter)


def masked(charges: Charges, letter: str) -> Answer:
    """What a softmax is not to see is set to minus infinity, to which nothing can be added."""
    charge = sum(_held(charges), NEUTRAL)
    return Answer(charge.of_mean, (charge.unshifted, charge.of_shift), "choice")


def nearly_unchanged(charges: Charges, letter: str) -> Answer:
    """A small number is added, as norms do, which is no more than rounding to what it is added to."""
    charge = sum(_held(charges), NEUTRAL)
    return Answer(charge, rigid="constant added", nearly=(charge.unshifted,))


def affine(bias: int, product: Law = product) -> Law:
    """A product of the other inputs, to which the input at one place is added."""

    def law(charges: Charges, letter: str) -> Answer:
        multiplied = product([charge for place, charge in enumerate(charges) if place != bias], letter)
        added = total([multiplied.output, charges[bias]], letter)
        return replace(added, vanishing=multiplied.vanishing + added.vanishing, rigid=multiplied.rigid or added.rigid)

    return law


def norm(
    weight: bool, bias: bool, eps: float, through: Collection[str], statistics: bool = False, centred: bool = False
) -> Law:
    """A norm that looks at the axes of some letters each position by itself, and at all others together.

    Along the former the input's scale is normalised away, but for the small constant, its shift is taken away, and its
    sign passes; along the latter it may be neither scaled nor shifted, but where it is the only one, `centred`, its
    mean is taken away. Gain and bias follow; running statistics move with the input.
    """

    def law(charges: Charges, letter: str) -> Answer:
        rest = iter(charges)
        given = next(rest) or NEUTRAL
        gain = (next(rest) if weight else None) or NEUTRAL
        added = (next(rest) if bias else None) or NEUTRAL
        vanishing = [*_shifts([gain])]
        nearly: tuple[Charge, ...] = ()
        alone: tuple[Charge, ...] = ()
        if letter in through or letter == WHOLE:
            normed = given.of_sign
            nearly = (given.of_scale,) if eps > ROUNDING else ()
            vanishing.append(given.of_mean)
        else:
            normed = NEUTRAL
            vanishing += [given.unshifted, given.of_shift, *([] if centred else [given.of_mean])]
            alone = (given.of_mean,)
        output = normed + gain.unshifted
        if bias:
            vanishing.append(output - added.unshifted)
        if statistics:
            mean, variance = (charge or NEUTRAL for charge in rest)
            vanishing += [mean.unshifted - given.unshifted, mean.of_shift - given.of_shift, mean.of_mean]
            vanishing += [variance.unshifted - given.unshifted * 2, *_shifts([variance])]
        kept = frozenset({LENGTH, MEAN}) if centred and not weight and letter not in through else None
        rigid = "norm" if kept is None else None
        output += added.of_shift + added.of_mean
        return Answer(output, tuple(vanishing), rigid, kept or frozenset(), nearly, alone)

    return law


def centring(dims: Sequence[int]) -> Law:
    """Along its own axes the mean is taken away; along the others what is added to all of it, and scales pass."""

    def law(charges: Charges, letter: str) -> Answer:
        (charge,) = _held(charges) or (NEUTRAL,)
        if letter not in {f"a{dim}" for dim in dims}:
            return Answer(charge.unshifted + charge.of_mean)
        free, held = ((charge.of_mean,), ()) if len(dims) == 1 else ((), (charge.of_mean,))
        return Answer(NEUTRAL, (charge.unshifted, charge.of_shift, *held), keeps=frozenset({MEAN}), alone=free)

    return law


def softmax(over: str) -> Law:
    """Along its own axis the mean is taken away; along the others what is added to all of it."""

    def law(charges: Charges, letter: str) -> Answer:
        (charge,) = _held(charges) or (NEUTRAL,)
        if letter == over:
            return Answer(vanishing=(charge.unshifted, charge.of_shift), rigid="softmax", alone=(charge.of_mean,))
        return Answer(vanishing=(charge.unshifted, charge.of_mean), rigid="softmax")

    return law


def ranking(charges: Charges, letter: str) -> Answer:
    """Where the largest are along another axis: positive scales pass, and what is added to all of them there."""
    charge = sum(_held(charges), NEUTRAL)
    return Answer(vanishing=(charge.of_sign, charge.of_mean), rigid="order")


def overwritten(charges: Charges, letter: str) -> Answer:
    """The second input, whatever the first was."""
    return linear(charges[1:], letter)


def written(charges: Charges, letter: str) -> Answer:
    """The last input written into the first, or added to it, at places that those between tell."""
    between = _held(charges[1:-1])
    ends = [charges[0], charges[-1]]
    answer = total(ends, letter)
    vanishing = (*answer.vanishing, *between, *_shifts(_held(ends)))
    return Answer(answer.output.unshifted, vanishing, answer.rigid or ("lookup" if between else None))


def _held(charges: Charges) -> tuple[Charge, ...]:
    return tuple(charge for charge in charges if charge is not None)


def _shifts(held: Sequence[Charge]) -> tuple[Charge, ...]:
    """What adds to tensors, which nonlinear maps do not let pass."""
    return tuple(charge.of_shift + charge.of_mean for charge in held)

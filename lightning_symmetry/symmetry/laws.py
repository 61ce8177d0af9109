"""The law that each operation keeps: how the charges of what comes out follow from those of what goes in.

A law is asked for one axis at a time. It is given the charge of the axis in each input, None where the input does not
have the axis or is broadcast along it, and answers with the charge of the output, with the forms that must vanish, and
whether linear mixtures of the positions along the axis pass through it.

Every law can be put to the test: scale or flip the inputs by what it says, run the operation, and compare.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, Literal

import torch
from torch._ops import OpOverload

from lightning_symmetry.symmetry.charges import NEUTRAL, Charge

aten = torch.ops.aten

Charges = Sequence[Charge | None]


@dataclass(frozen=True)
class Answer:
    """What a law says of one axis.

    Attributes:
        output: The charge of the output.
        vanishing: The forms that must vanish.
        rigid: Why positions cannot be mixed; None where linear mixtures pass.
        nearly: Forms that must vanish but for the small constant that a norm adds.
    """

    output: Charge = NEUTRAL
    vanishing: tuple[Charge, ...] = ()
    rigid: str | None = None
    nearly: tuple[Charge, ...] = ()


SMALL, ROUNDING = 1e-3, 1e-20
"""Constants between these are taken for those that norms add; below, for zero."""

WHOLE = "*"
"""The letter for a tensor as a whole: an axis of one position that every tensor has."""

Law = Callable[[Charges, str], Answer]
"""From the charges of one axis in the inputs, and its letter in the axis rule, to what becomes of it."""


def neutral(charges: Charges, letter: str) -> Answer:
    """Nothing passes: no input may be scaled."""
    return Answer(vanishing=_held(charges), rigid="nonlinear")


def product(charges: Charges, letter: str) -> Answer:
    """Multilinear in its inputs: charges add up. One input alone along an axis passes as it is."""
    held = _held(charges)
    return Answer(sum(held, NEUTRAL), rigid="elementwise product" if len(held) > 1 else None)


def quotient(charges: Charges, letter: str) -> Answer:
    """The first input divided by the second."""
    above, below = (charge or NEUTRAL for charge in charges)
    return Answer(above - below, rigid="elementwise quotient" if charges[1] is not None else None)


def total(charges: Charges, letter: str) -> Answer:
    """A sum: charges are equal, and zero where an input is constant along the axis."""
    held = _held(charges)
    if not held:
        return Answer()
    equal = tuple(charge - held[0] for charge in held[1:])
    if len(held) < len(charges):
        return Answer(vanishing=(*equal, held[0]), rigid="constant added")
    return Answer(held[0], equal)


def joint(charges: Charges, letter: str) -> Answer:
    """Inputs laid side by side: equal along the axes that they share."""
    return total(_held(charges), letter)


def written(charges: Charges, letter: str) -> Answer:
    """The last input written into the first, or added to it, at places that those between tell."""
    between = _held(charges[1:-1])
    answer = total([charges[0], charges[-1]], letter)
    return replace(answer, vanishing=answer.vanishing + between, rigid=answer.rigid or ("lookup" if between else None))


def power(exponent: Fraction | int, signs: Literal["odd", "even", "neither"]) -> Law:
    """Homogeneous of this degree for positive scales; for signs odd, even, or neither."""

    def law(charges: Charges, letter: str) -> Answer:
        (charge,) = _held(charges) or (NEUTRAL,)
        output = Charge((charge * exponent).scale, charge.sign if signs == "odd" else frozenset())
        return Answer(output, (_sign_of(charge),) if signs == "neither" else (), "power")

    return law


def odd(charges: Charges, letter: str) -> Answer:
    """Odd, and not homogeneous: signs pass, scales do not."""
    (charge,) = _held(charges) or (NEUTRAL,)
    return Answer(_sign_of(charge), (_scale_of(charge),), "nonlinear")


def largest(charges: Charges, letter: str) -> Answer:
    """The larger of two: scales are equal and pass, signs do not."""
    answer = total(charges, letter)
    signs = tuple(map(_sign_of, _held(charges)))
    return Answer(_scale_of(answer.output), answer.vanishing + signs, "order")


def chosen(charges: Charges, letter: str) -> Answer:
    """A choice between two inputs by a mask, which comes first."""
    answer = total(charges[1:], letter)
    mask = _held(charges[:1])
    return replace(answer, vanishing=answer.vanishing + mask, rigid="choice" if mask else answer.rigid)


def nearly_unchanged(charges: Charges, letter: str) -> Answer:
    """A small number is added, as norms do, which is no more than rounding to what it is added to."""
    (charge,) = _held(charges) or (NEUTRAL,)
    return Answer(charge, rigid="constant added", nearly=(charge,))


def affine(bias: int) -> Law:
    """A product of the other inputs, to which the input at one place is added."""

    def law(charges: Charges, letter: str) -> Answer:
        multiplied = product([charge for place, charge in enumerate(charges) if place != bias], letter)
        added = total([multiplied.output, charges[bias]], letter)
        return replace(added, rigid=multiplied.rigid or added.rigid)

    return law


def norm(weight: bool, bias: bool, eps: float, through: Collection[str], statistics: bool = False) -> Law:
    """A norm that looks at the axes of some letters each position by itself, and at all others together.

    Along the former the input's scale is normalised away, but for the small constant, and its sign passes; along the
    latter it may not be scaled. Gain and bias follow; running statistics move with the input.
    """

    def law(charges: Charges, letter: str) -> Answer:
        rest = iter(charges)
        given = next(rest) or NEUTRAL
        gain = next(rest) if weight else NEUTRAL
        shift = next(rest) if bias else None
        vanishing: list[Charge] = []
        nearly: tuple[Charge, ...] = ()
        if letter in through or letter == WHOLE:
            normed = _sign_of(given)
            nearly = (_scale_of(given),) if eps > ROUNDING else ()
        else:
            normed = NEUTRAL
            vanishing.append(given)
        output = normed + (gain or NEUTRAL)
        if bias:
            vanishing.append(output - (shift or NEUTRAL))
        if statistics:
            mean, variance = (charge or NEUTRAL for charge in rest)
            vanishing += [mean - given, variance - given * 2]
        return Answer(output, tuple(vanishing), "norm", nearly)

    return law


LINEAR = {
    aten._adaptive_avg_pool2d,
    aten.avg_pool1d,
    aten.avg_pool2d,
    aten.bmm,
    aten.copy,
    aten.dot,
    aten.embedding,
    aten.gather,
    aten.index,
    aten.index_select,
    aten.mean,
    aten.mm,
    aten.mul,
    aten.mv,
    aten.neg,
    aten.sum,
    aten.upsample_bilinear2d,
    aten.upsample_nearest2d,
}
NORMS = {
    aten._native_batch_norm_legit,
    aten._native_batch_norm_legit_functional,
    aten._native_batch_norm_legit_no_training,
    aten.native_batch_norm,
    aten.native_group_norm,
    aten.native_layer_norm,
}
CONTRACTIONS = {aten.addmm, aten.bmm, aten.convolution, aten.dot, aten.mm, aten.mv}
WRITTEN = {
    aten.index_add,
    aten.index_put,
    aten.scatter_add,
}
HOMOGENEOUS = {aten.amax, aten.amin, aten.leaky_relu, aten.max, aten.max_pool2d_with_indices, aten.min, aten.relu}
ODD = {aten.asinh, aten.atan, aten.erf, aten.erfinv, aten.sin, aten.sinh, aten.tan, aten.tanh}
POWERS: Mapping[Any, Law] = {
    aten.abs: power(1, "even"),
    aten.linalg_vector_norm: power(1, "even"),
    aten.reciprocal: power(-1, "odd"),
    aten.rsqrt: power(Fraction(-1, 2), "neither"),
    aten.sqrt: power(Fraction(1, 2), "neither"),
    aten.var: power(2, "even"),
}


def law_of(
    operation: OpOverload, args: Sequence[Any], kwargs: Mapping[str, Any], n_tensors: int, one_output: bool = True
) -> Law:
    """The law of one call, `neutral` where none is known.

    Args:
        operation: The operation.
        args: Its arguments.
        kwargs: Its arguments by name.
        n_tensors: How many tensors are among them.
        one_output: Whether nothing but the first output is used: of the statistics of a norm no law is told.
    """
    packet = operation.overloadpacket
    if kwargs.get("rounding_mode") or (packet in NORMS and not one_output):
        return neutral
    match packet:
        case aten.add | aten.sub if n_tensors == 2:
            return total
        case aten.add if isinstance(args[1], (int, float)):
            return product if abs(args[1]) <= ROUNDING else nearly_unchanged if 0 < args[1] <= SMALL else neutral
        case aten.div if n_tensors == 2:
            return quotient
        case aten.div if isinstance(args[1], (int, float)):
            return product
        case aten.pow if isinstance(args[1], (int, float)):
            exponent = Fraction(args[1]).limit_denominator(64)
            whole = exponent.denominator == 1
            return power(exponent, ("even", "odd")[exponent.numerator % 2] if whole else "neither")
        case aten.clamp if n_tensors == 1 and args[1] == 0 and (len(args) < 3 or args[2] is None):
            return power(1, "neither")
        case aten.cat | aten.select_scatter | aten.slice_scatter:
            return joint
        case aten.maximum | aten.minimum if n_tensors == 2:
            return largest
        case aten.where:
            return chosen
        case aten.addmm:
            return affine(bias=0)
        case aten.convolution:
            return product if args[2] is None else affine(bias=2)
        case aten.constant_pad_nd if len(args) < 3 or args[2] == 0:
            return product
        case aten.native_layer_norm:
            return norm(args[2] is not None, args[3] is not None, args[4], ("...",))
        case aten.native_group_norm:
            return norm(args[1] is not None, args[2] is not None, args[7], ("n", "g"))
    if packet in NORMS:
        statistics = operation is not aten._native_batch_norm_legit.no_stats and args[3] is not None
        return norm(args[1] is not None, args[2] is not None, args[-1], ("c",), statistics)
    if packet in LINEAR:
        return product
    if packet in WRITTEN or operation is aten.scatter.src:
        return written
    if packet in HOMOGENEOUS and n_tensors == 1:
        return power(1, "neither")
    if packet in ODD:
        return odd
    return POWERS.get(packet, neutral)


def _held(charges: Charges) -> tuple[Charge, ...]:
    return tuple(charge for charge in charges if charge is not None)


def _scale_of(charge: Charge) -> Charge:
    return Charge(charge.scale, frozenset())


def _sign_of(charge: Charge) -> Charge:
    return Charge({}, charge.sign)

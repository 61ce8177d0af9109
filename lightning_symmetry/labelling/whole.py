"""Scales, signs and shifts of whole tensors: all that is written to a stream, against the norms that read it.

The same laws that say how an axis is scaled, and what may be added along it, say so of a tensor as a whole, with one
number: it is an axis of one position that every tensor has. Whatever a norm divides by its size may be scaled; what is
added to it must be scaled alike. To what a softmax reads a number may be added, as by the bias of one output.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction

from lightning_symmetry.labelling.charges import NEUTRAL, Charge, Unknown, scalings, signs, unknown
from lightning_symmetry.labelling.laws import WHOLE
from lightning_symmetry.labelling.operation_laws import is_zero, law_of_call
from lightning_symmetry.tracing.layout import LAYOUT
from lightning_symmetry.tracing.tape import Tape, Value

Degrees = Mapping[str, Fraction]
Form = Mapping[Unknown, Fraction]


@dataclass(frozen=True)
class Wholes:
    """What may happen to leaves as wholes: bases, each of the degrees of leaves by name, zeros left out.

    Attributes:
        scales: The exponents by which they may be scaled.
        nearly_scales: Those that hold but for the small constants of norms.
        signs: Which of them may be flipped together.
        shifts: How often a number may be added to all of their entries.
    """

    scales: list[Degrees]
    nearly_scales: list[Degrees]
    signs: list[Degrees]
    shifts: list[Degrees]


def of_whole_tensors(tape: Tape) -> Wholes:
    """The degrees to which leaves may be scaled, flipped and shifted as wholes."""
    charges: dict[Value, Charge] = {}
    moved = (value for value in tape.leaves.values() if value.depends and value in tape.readers)
    names = {value: value.name for value in moved if value.name and math.prod(value.shape) > 0}
    leaves = {value: unknown() for value in names}

    def charge_of(value: Value) -> Charge:
        if value in leaves:
            return leaves[value]
        if value.constant is not None:
            return charges.setdefault(value, unknown()) if is_zero(value.constant) else NEUTRAL
        return charges.get(value, NEUTRAL)

    used = tape.used
    vanishing: list[Charge] = []
    nearly: list[Charge] = []
    for operation in tape.operations:
        outputs = [output for output in operation.outputs if output is not None and output.depends]
        if not outputs:
            continue
        if operation.name in LAYOUT:
            charges.update(dict.fromkeys(outputs, charge_of(operation.inputs[0])))
            continue
        answer = law_of_call(operation, used)([charge_of(value) for value in operation.inputs], WHOLE)
        vanishing += answer.vanishing
        nearly += answer.nearly
        charges.update(dict.fromkeys(outputs, answer.output))
    vanishing += map(charge_of, tape.outputs)
    unknowns = {next(iter(charge.scale)): names[value] for value, charge in leaves.items()}

    def solved(forms: Iterable[Form]) -> list[Degrees]:
        return [
            {unknowns[key]: degree for key, degree in solution.items()} for solution in scalings(forms, list(unknowns))
        ]

    flips = _of_few(signs((form.sign for form in vanishing), list(unknowns)))
    return Wholes(
        scales=solved(form.scale for form in vanishing + nearly),
        nearly_scales=solved(form.scale for form in vanishing),
        signs=[{name: Fraction(1) for key, name in unknowns.items() if key in flip} for flip in flips],
        shifts=solved(form.shift for form in vanishing),
    )


def _of_few(flips: Iterable[frozenset[Unknown]]) -> list[frozenset[Unknown]]:
    """A basis of the same signs, each of as few tensors as shorter ones leave of it; the shortest first."""
    basis: list[frozenset[Unknown]] = []
    for flip in sorted(flips, key=len):
        for shorter in basis:
            flip = min(flip, flip ^ shorter, key=len)
        basis.append(flip)
    return sorted(basis, key=len)

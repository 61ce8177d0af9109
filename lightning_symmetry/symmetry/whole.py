"""Scales of whole tensors: all that is written to a stream, against the norms that read it.

The same laws that say how an axis is scaled say how a tensor is scaled as a whole, by one number: it is an axis of one
position that every tensor has. Whatever a norm divides by its size may be scaled; what is added to it must be scaled
alike.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction

from lightning_symmetry.symmetry.charges import NEUTRAL, Charge, scalings, unknown
from lightning_symmetry.symmetry.factors import is_zero, law_of_call
from lightning_symmetry.symmetry.laws import WHOLE
from lightning_symmetry.symmetry.layout import LAYOUT
from lightning_symmetry.symmetry.tape import Tape, Value

Degrees = Mapping[str, Fraction]


def scales_of_whole_tensors(tape: Tape) -> tuple[list[Degrees], list[Degrees]]:
    """The exponents by which leaves may be scaled as wholes.

    Returns:
        A basis of what holds exactly, and one of what holds but for the small constants of norms: the exponents of
        leaves by name, zeros left out.
    """
    charges: dict[Value, Charge] = {}
    used = {value for operation in tape.operations for value in operation.inputs}
    moved = (
        name for name, value in tape.leaves.items() if value.depends and value in used and math.prod(value.shape) > 0
    )
    names = {tape.leaves[name]: name for name in moved if tape.leaves[name].shape}
    leaves = {value: unknown() for value in names}

    def charge_of(value: Value) -> Charge:
        if value in leaves:
            return leaves[value]
        if value.constant is not None:
            return charges.setdefault(value, unknown()) if is_zero(value.constant) else NEUTRAL
        return charges.get(value, NEUTRAL)

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

    def solved(forms: list[Charge]) -> list[Degrees]:
        solutions = scalings([form.scale for form in forms], list(unknowns))
        return [{unknowns[key]: degree for key, degree in solution.items()} for solution in solutions]

    return solved(vanishing + nearly), solved(vanishing)

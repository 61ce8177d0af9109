"""Each law is tested by asking the operation: scale or flip the inputs by what the law says, run it, and compare."""

import pytest
import torch

from lightning_symmetry.symmetry.actions import KINDS, Action, blocks_of, transform
from lightning_symmetry.symmetry.axes import atoms, fresh
from lightning_symmetry.symmetry.axis_rules import Binding
from lightning_symmetry.symmetry.charges import scalings, signs, unknown
from lightning_symmetry.symmetry.laws import CONTRACTIONS, NORMS, law_of
from tests.symmetry.sample_calls import SAMPLES

of_each_sample = pytest.mark.parametrize("sample", SAMPLES, ids=str)


def labelled(sample):
    """The axes of the inputs, each with a charge to be found, and those of the outputs as rule and law have them."""
    rule, sizes = sample.rule
    law = law_of(sample.operation, sample.args, sample.kwargs, len(sample.inputs))
    inputs = [[fresh(length, charge=unknown()) for length in tensor.shape] for tensor in sample.inputs]
    binding = Binding(sizes, law, contracts=sample.operation.overloadpacket in CONTRACTIONS)
    for pattern, axes in zip(rule.inputs, inputs, strict=True):
        binding.read(pattern, axes)
    outputs = [
        binding.write(pattern, tensor.shape) for pattern, tensor in zip(rule.outputs, sample.result[0], strict=True)
    ]
    binding.finish()
    return inputs, outputs


def solutions_of(atom, unknowns):
    """Every way in which the law says that the positions along an axis may be scaled, and flipped."""
    for solution in scalings([form.scale for form in atom.vanishing + atom.nearly], unknowns):
        yield "rescaling", {key: float(value) for key, value in solution.items()}
    for solution in scalings([form.shift for form in atom.vanishing], unknowns):
        yield "translation", {key: float(value) for key, value in solution.items()}
    for solution in signs([form.sign for form in atom.vanishing], unknowns):
        yield "sign", dict.fromkeys(solution, 1.0)


def degree(kind, place, atom, solution):
    if place is None or place.atom is not atom:
        return 0
    if kind == "translation":
        return sum(float(value) * solution.get(key, 0) for key, value in place.charge.shift.items())
    if kind == "sign":
        return sum(solution.get(key, 0) for key in place.charge.sign) % 2
    return sum(float(value) * solution.get(key, 0) for key, value in place.charge.scale.items())


def moved(tensor, axes, atom, kind, solution, element):
    """A tensor after the element acted on it with the degrees that the solution gives it."""
    tensor = tensor.clone()
    for block, places in blocks_of("tensor", axes, {}):
        degrees = tuple(degree(kind, place, atom, solution) for place in places)
        if any(degrees):
            transform(tensor, Action(block, degrees), [], KINDS[kind], element)
    return tensor


@of_each_sample
def test_a_law_says_what_the_operation_does(sample):
    inputs, outputs = labelled(sample)
    floating = [tensor.is_floating_point() for tensor in sample.inputs]
    found = dict.fromkeys(
        atom
        for axes, real in zip(inputs, floating, strict=True)
        for axis in axes
        for atom in atoms(axis)
        if real and len(axes)
    )
    for atom in found:
        unknowns = list(
            dict.fromkeys(
                key
                for number, axes in enumerate(inputs)
                if floating[number]
                for _, places in blocks_of("tensor", axes, {})
                for place in places
                if place is not None and place.atom is atom
                for key in place.charge.scale
            )
        )
        for kind, solution in solutions_of(atom, unknowns):
            element = KINDS[kind].element(1, atom.size, torch.Generator().manual_seed(0))
            given = [
                moved(tensor, axes, atom, kind, solution, element) if real else tensor
                for tensor, axes, real in zip(sample.inputs, inputs, floating, strict=True)
            ]
            results, _ = sample.run(given)
            told = 1 if sample.operation.overloadpacket in NORMS else len(results)
            for result, before, axes in list(zip(results, sample.result[0], outputs, strict=True))[:told]:
                if result.is_floating_point() and result.numel() and result.shape == before.shape:
                    expected = moved(before, axes, atom, kind, solution, element)
                    torch.testing.assert_close(
                        result, expected, rtol=1e-9, atol=1e-9, equal_nan=True, msg=f"{kind} {solution}"
                    )

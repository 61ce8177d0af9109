"""Each law is tested by asking the operation: scale or flip the inputs by what the law says, run it, and compare."""

import pytest
import torch

from lightning_symmetry.labelling.axes import atoms, fresh
from lightning_symmetry.labelling.axes import places as places_of
from lightning_symmetry.labelling.axis_rules import Binding, Contraction, rule_of
from lightning_symmetry.labelling.charges import Hidden, Image, scalings, signs, unknown
from lightning_symmetry.labelling.operation_laws import CONTRACTIONS, NORMS, law_of
from lightning_symmetry.symmetry.actions import Action, blocks_of, transform
from lightning_symmetry.symmetry.kinds import KINDS
from tests.labelling.sample_calls import SAMPLES

of_each_sample = pytest.mark.parametrize("sample", SAMPLES, ids=str)


def labelled(sample):
    """The axes of the inputs, each with a charge to be found, and those of the outputs as rule and law have them."""
    rule, sizes = sample.rule
    law = law_of(sample.operation, sample.args, sample.kwargs, len(sample.inputs))
    inputs = [[fresh(length, charge=unknown()) for length in tensor.shape] for tensor in sample.inputs]
    contracts = sample.operation.overloadpacket in CONTRACTIONS
    binding = Binding(sizes, law, Contraction(rule.contracted) if contracts else None)
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


def dims_alike(axes, solution):
    """The dimensions of a product all along which a shift of one factor adds the same; None where it adds to none."""
    adds = [
        [
            any(isinstance(key, Hidden) and solution.keys() & dict(key.shift) for key in place.charge.mean)
            for place in found
        ]
        for found in map(places_of, axes)
    ]
    return [dim for dim, found in enumerate(adds) if found and all(found)] if any(map(any, adds)) else None


def moved(tensor, axes, atom, kind, solution, element):
    """A tensor after the element acted on it with the degrees that the solution gives it."""
    tensor = tensor.clone()
    for block, places in blocks_of({"tensor": axes}, {}, {}):
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
                for _, places in blocks_of({"tensor": axes}, {}, {})
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
                    alike = dims_alike(axes, solution) if kind == "translation" else None
                    if alike is not None:
                        change = result - before
                        for dim in alike:
                            torch.testing.assert_close(change, change.narrow(dim, 0, 1).expand_as(change))
                        continue
                    expected = moved(before, axes, atom, kind, solution, element)
                    torch.testing.assert_close(
                        result, expected, rtol=1e-9, atol=1e-9, equal_nan=True, msg=f"{kind} {solution}"
                    )


MAPS = [
    (torch.ops.aten.mm.default, (5, 7), (7, 3), ()),
    (torch.ops.aten.addmm.default, (5, 7), (7, 3), (3,)),
    (torch.ops.aten.convolution.default, (2, 7, 6, 5), (3, 7, 2, 3), ()),
]


@pytest.mark.parametrize(("operation", "data", "weights", "bias"), MAPS, ids=str)
def test_a_map_makes_of_a_shift_its_image(operation, data, weights, bias):
    """What is added along the axis that a map reads adds its image along the axis that it writes, and nothing else."""
    generator = torch.Generator().manual_seed(0)
    given, matrix, shift = (
        torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in (data, weights, (7,))
    )
    convolves = operation is torch.ops.aten.convolution.default
    along, rest = (1, (None, [1, 1], [0, 0], [1, 1], False, [0, 0], 1)) if convolves else (-1, ())
    added = shift.reshape([7 if dim == along % given.ndim else 1 for dim in range(given.ndim)])
    before = [torch.zeros(bias, dtype=torch.float64)] if bias else []
    change = operation(*before, given + added, matrix, *rest) - operation(*before, given, matrix, *rest)

    rule, sizes = rule_of(operation, (*before, given, matrix, *rest), {})
    axes = {
        "bias": [fresh(length, charge=unknown()) for length in bias],
        "data": [fresh(length, charge=unknown()) for length in data],
        "map": [fresh(length, charge=unknown()) for length in weights],
    }
    inputs = [axes[name] for name in (("bias",) if bias else ()) + ("data", "map")]
    law = law_of(operation, (*before, given, matrix, *rest), {}, len(inputs))
    binding = Binding(sizes, law, Contraction(rule.contracted, maps=frozenset([len(inputs) - 1])))
    for pattern, held in zip(rule.inputs, inputs, strict=True):
        binding.read(pattern, held)
    (written,) = [binding.write(pattern, change.shape) for pattern in rule.outputs]
    binding.finish()

    images = [
        (dim, key)
        for dim, axis in enumerate(written)
        for place in places_of(axis)
        for key in place.charge.shift
        if isinstance(key, Image)
    ]
    ((dim, image),) = images
    assert image.of in dict(axes["data"][along % given.ndim][0].charge.shift)
    read = next(k for k, axis in enumerate(axes["map"]) if image.read in axis[0].charge.shift)
    write = next(k for k, axis in enumerate(axes["map"]) if image.write in axis[0].charge.shift)
    taps = [k for k in range(matrix.ndim) if k not in (read, write)]
    summed = matrix.sum(taps) if taps else matrix
    vector = shift @ (summed if read < write else summed.T)
    expected = vector.reshape([-1 if k == dim else 1 for k in range(change.ndim)]).expand_as(change)
    torch.testing.assert_close(change, expected)

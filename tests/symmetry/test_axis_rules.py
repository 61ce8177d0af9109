"""Each axis rule is put to its operation: permute a letter in the inputs, run, compare.

The rules are read twice: as they are written, by a plain reading of the language below, and by the package's `Binding`.
"""

import math
import random
from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property
from itertools import combinations, product

import pytest
import torch
from torch.utils._pytree import tree_leaves, tree_map

from lightning_symmetry.symmetry.axes import Atom, Concatenation, atoms, fresh, size
from lightning_symmetry.symmetry.axis_rules import Binding, axis_rule, axis_table, parse, registered, rule_of
from lightning_symmetry.symmetry.axis_rules.language import ELLIPSIS, TOLD_APART
from lightning_symmetry.symmetry.axis_rules.pointwise import POINTWISE
from tests.reference.positions import SEGMENT, positions

aten = torch.ops.aten
DRAW = torch.Generator().manual_seed(0)  # for samples alone, which are drawn in their order


# ---------------------------------------------------------------------------------------------- what a rule claims


@dataclass(eq=False)
class Sample:
    """One call of an operation."""

    operation: object
    args: tuple
    kwargs: dict = field(default_factory=dict)

    def __str__(self):
        def text(leaf):
            return "x".join(map(str, leaf.shape)) or "number" if isinstance(leaf, torch.Tensor) else str(leaf)

        arguments = [*map(str, tree_map(text, self.args)), *(f"{k}={text(v)}" for k, v in self.kwargs.items())]
        name = str(self.operation).removeprefix("aten.").removesuffix(".default")
        return f"{name}({', '.join(arguments)})".replace("'", "")

    @cached_property
    def inputs(self):
        return [leaf for leaf in tree_leaves((self.args, self.kwargs)) if isinstance(leaf, torch.Tensor)]

    def run(self, inputs):
        """The tensors that come out, and the inputs as they are afterwards: batch norm moves its statistics.

        An index comes out as the entry that it points at, for that is what a permutation leaves in place.
        """
        inputs = [tensor.clone() for tensor in inputs]
        rest = iter(inputs)
        args, kwargs = tree_map(
            lambda leaf: next(rest) if isinstance(leaf, torch.Tensor) else leaf, (self.args, self.kwargs)
        )
        result = self.operation(*args, **kwargs)
        outputs = list(result) if isinstance(result, (tuple, list)) else [result]
        if self.operation in POINTING:
            place, default = POINTING[self.operation]
            outputs[-1] = pointed_at(args[0], outputs[-1], args[place] if len(args) > place else default)
        return outputs, inputs

    @cached_property
    def result(self):
        return self.run(self.inputs)

    @cached_property
    def rule(self):
        rule, sizes = rule_of(self.operation, self.args, self.kwargs)
        return rule.for_call(len(self.inputs), len(self.result[0])), sizes


# the operations whose last output points at entries of the first input: which argument is the dimension, and its default
POINTING = {
    aten.argmax.default: (1, None),
    aten.argmin.default: (1, None),
    aten.max.dim: (1, None),
    aten.min.dim: (1, None),
    aten.sort.default: (1, -1),
    aten.topk.default: (2, -1),
}


def pointed_at(values, indices, dim):
    """The entries that indices along a dimension point at; with no dimension they count all entries."""
    if dim is None:
        return values.flatten()[indices]
    if values.dim() == 0:
        return values
    if indices.dim() == values.dim():
        return values.take_along_dim(indices, dim)
    return values.take_along_dim(indices.unsqueeze(dim), dim).squeeze(dim)


def as_written(sample):
    """The axes of the inputs, the outputs and the tensors within, each letter an atom: the language read literally."""
    rule, given = sample.rule
    patterns = [*rule.inputs, *rule.outputs]
    tensors = [*sample.inputs, *sample.result[0]]
    spread = [list(zip(numbered(*pair), pair[1].shape, strict=True)) for pair in zip(patterns, tensors, strict=True)]
    sizes = dict(given)
    for terms in spread:
        for term, length in terms:
            if len(term.letters) == 1 and term != TOLD_APART and length > 1:
                assert sizes.setdefault(term.letters[0], length) == length
    for terms in spread:
        for term, length in terms:
            unknown = [letter for letter in term.letters if letter not in sizes]
            if len(unknown) == 1 and term != TOLD_APART:
                known = [sizes[letter] for letter in term.letters if letter in sizes]
                sizes[unknown[0]] = length - sum(known) if term.laid_end_to_end else length // math.prod(known)
    letters = {letter: fresh(length) for letter, length in sizes.items()}

    def axis(term, length):
        if length == 1:
            return ()
        if term == TOLD_APART:
            return fresh(length, "positions told apart")
        parts = [letters.get(letter, ()) for letter in term.letters]
        return (Concatenation(parts),) if term.laid_end_to_end else sum(parts, ())

    axes = [[axis(*pair) for pair in terms] if all(n for _, n in terms) else None for terms in spread]
    within = [[axis(term, None) for term in pattern] for pattern in rule.within]
    n_inputs = len(sample.inputs)
    return axes[:n_inputs], axes[n_inputs:], within


def numbered(pattern, tensor):
    """The pattern with its '...' replaced by letters for the dimensions, numbered from the right."""
    n_broadcast = tensor.dim() - len([term for term in pattern if term != ELLIPSIS])
    letter = type(ELLIPSIS)
    spread = []
    for term in pattern:
        spread += [letter((f"...{k}",)) for k in range(n_broadcast, 0, -1)] if term == ELLIPSIS else [term]
    return spread


def as_bound(sample):
    """The axes of the inputs and the outputs by the package's own reading."""
    rule, sizes = sample.rule
    binding = Binding(sizes)
    inputs = [[fresh(length) for length in tensor.shape] for tensor in sample.inputs]
    for pattern, axes in zip(rule.inputs, inputs, strict=True):
        binding.read(pattern, axes)
    outputs = [
        binding.write(pattern, output.shape) if output.numel() else None
        for pattern, output in zip(rule.outputs, sample.result[0], strict=True)
    ]
    return inputs, outputs, [binding.write(pattern, [1] * len(pattern)) for pattern in rule.within]


def labels(axes):
    """The positions of all entries of a tensor; None stands for one without entries."""
    return [()] if axes is None else positions(sum(axes, ()))


def holders(atom, labelled):
    return {number for number, tensor in enumerate(labelled) if any((atom, 0) in label for label in tensor)}


def permutations_of(atom, n_rows, seed):
    """For each row a permutation, none like the one before; the first moves something."""
    rng = random.Random(seed)
    drawn = [list(range(atom.size))]
    while len(drawn) <= n_rows:
        permutation = rng.sample(range(atom.size), atom.size)
        if permutation != drawn[-1]:
            drawn.append(permutation)
    return drawn[1:]


def moved(tensor, labelled, atom, permutations, row=None):
    """A tensor with the positions of an atom permuted, by a permutation for each position of the row."""
    if tensor.numel() == 0:
        return tensor
    place = {label: number for number, label in enumerate(labelled)}
    index = []
    for label in labelled:
        permutation = permutations[dict(label).get(row, 0)]
        index.append(place[tuple((what, permutation[n] if what is atom else n) for what, n in label)])
    return tensor.flatten()[index].view(tensor.shape)


def same(left, right):
    return left.shape == right.shape and torch.allclose(left, right, rtol=1e-12, atol=1e-12, equal_nan=True)


def keeps(sample, labelled, atom, row=None, among=None, seed=0):
    """Whether the operation agrees: it takes inputs permuted along an atom to outputs permuted along it.

    Only the tensors among those named are permuted, all where none are.
    """
    permutations = permutations_of(atom, 1 if row is None else row.size, seed)
    n_inputs = len(sample.inputs)
    outputs, after = sample.result

    def move(number, tensor):
        if among is not None and number not in among:
            return tensor
        return moved(tensor, labelled[number], atom, permutations, row)

    got_outputs, got_after = sample.run([move(k, tensor) for k, tensor in enumerate(sample.inputs)])
    expected = [move(n_inputs + k, tensor) for k, tensor in enumerate(outputs)]
    expected_after = [move(k, tensor) for k, tensor in enumerate(after)]
    return all(map(same, [*got_outputs, *got_after], [*expected, *expected_after]))


def free_atoms(labelled):
    found = dict.fromkeys(what for tensor in labelled for label in tensor for what, _ in label if what != SEGMENT)
    return [atom for atom in found if not atom.pinned]


# ----------------------------------------------------------------------------------------------------- the samples


def real(*shape):
    """Different numbers, of either sign wherever there is more than one."""
    count = math.prod(shape)
    sign = 1 - 2 * (torch.randperm(count, generator=DRAW) % 2)
    return (sign * (torch.randn(count, dtype=torch.float64, generator=DRAW).abs() * 2 + 0.1)).view(shape)


def between_zero_and_one(*shape):
    return torch.rand(shape, dtype=torch.float64, generator=DRAW) * 0.9 + 0.05


def above_one(*shape):
    return between_zero_and_one(*shape) + 1


def whole(*shape):
    """Whole numbers from -2 to 2, each about as often."""
    return (torch.randperm(math.prod(shape), generator=DRAW) % 5 - 2).double().view(shape)


def integers(*shape, low=0, high=8):
    return torch.randint(low, high, shape, generator=DRAW)


def mask(*shape):
    return torch.rand(shape, generator=DRAW) > 0.5


def one_true(*shape):
    return torch.arange(math.prod(shape)).view(shape) == 0


def not_finite(*shape):
    return torch.where(one_true(*shape), torch.nan, torch.inf).double()


NOT_REAL = {
    **dict.fromkeys(
        "acos asin atanh digamma erfinv lgamma log log10 log1p log2 pow rsqrt sqrt".split(), between_zero_and_one
    ),
    **dict.fromkeys("eq ge gt le lt ne logical_and logical_not logical_or logical_xor".split(), whole),
    **dict.fromkeys("bitwise_and bitwise_not bitwise_or bitwise_xor".split(), integers),
    "acosh": above_one,
    "isinf": not_finite,
    "isnan": not_finite,
}
BROADCAST = [
    [(2, 3, 5), (3, 1), (5,)],
    [(2, 1, 5), (2, 3, 1), ()],
    [(7,), (7,), (7,)],
]


def pointwise_samples(operation):
    DRAW.manual_seed(0)
    name = operation._schema.name.split("::")[1]
    draw = NOT_REAL.get(name, real)
    n_tensors = sum("Tensor" in str(argument.type) for argument in operation._schema.arguments)
    for shapes in BROADCAST if n_tensors > 1 else BROADCAST[:1]:
        rest = iter(shapes)
        args, kwargs = [], {}
        for argument in operation._schema.arguments:
            kind = str(argument.type)
            if "Tensor" in kind:
                value = mask(*next(rest)) if argument.name == "condition" else draw(*next(rest))
            elif argument.name == "decimals":
                value = 1
            elif argument.name == "rounding_mode":
                value = "floor"
            elif argument.has_default_value() and name != "clamp":
                continue
            else:
                value = {"min": -0.5, "max": 0.5}.get(
                    argument.name, 3 if draw is integers else 1 if draw is whole else 0.7
                )
            if argument.kwarg_only:
                kwargs[argument.name] = value
            else:
                args.append(value)
        yield Sample(operation, tuple(args), kwargs)


def pointwise():
    for name in POINTWISE.split():
        packet = getattr(aten, name)
        for overload in packet.overloads():
            if getattr(packet, overload) in registered():
                yield from pointwise_samples(getattr(packet, overload))


def contractions():
    yield Sample(aten.dot.default, (real(7), real(7)))
    yield Sample(aten.mv.default, (real(5, 7), real(7)))
    yield Sample(aten.mm.default, (real(5, 7), real(7, 3)))
    yield Sample(aten.bmm.default, (real(2, 5, 7), real(2, 7, 3)))
    for bias in (real(3), real(5, 3), real(1, 3), real(5, 1), real(1), real()):
        yield Sample(aten.addmm.default, (bias, real(5, 7), real(7, 3)), {"beta": 0.5, "alpha": 2})


def convolutions():
    def call(input, weight, bias, groups, transposed=False, stride=1, padding=0, dilation=1):
        n = weight.dim() - 2
        settings = ([stride] * n, [padding] * n, [dilation] * n, transposed, [0] * n, groups)
        return Sample(aten.convolution.default, (input, weight, bias, *settings))

    yield call(real(2, 5, 7), real(3, 5, 4), real(3), 1)
    yield call(real(2, 5, 7), real(3, 5, 1), real(3), 1)
    yield call(real(2, 5, 7), real(3, 5, 1), real(3), 1, stride=2)
    yield call(real(2, 5, 7), real(3, 5, 1), None, 1, padding=1)
    yield call(real(4, 5, 7), real(5, 3, 1), None, 1, transposed=True)
    yield call(real(7, 5, 6, 4), real(3, 5, 2, 1), None, 1)
    yield call(real(3, 5, 8, 6), real(7, 5, 4, 2), None, 1, stride=2, padding=1)
    yield call(real(1, 10, 8, 9), real(14, 5, 3, 4), real(14), 2, dilation=2)
    yield call(real(3, 5, 8, 6), real(10, 1, 4, 2), real(10), 5)  # depthwise, two maps for each channel
    yield call(real(3, 1, 8, 6), real(5, 1, 4, 2), real(5), 1)
    yield call(real(2, 3, 7, 6, 5), real(11, 3, 3, 2, 1), real(11), 1)
    yield call(real(2, 5, 8, 6), real(5, 3, 4, 2), real(3), 1, transposed=True, stride=2)
    yield call(real(3, 10, 8, 6), real(10, 7, 4, 2), real(14), 2, transposed=True)
    yield call(real(3, 5, 8, 6), real(5, 1, 4, 2), None, 5, transposed=True)


def norms():
    yield Sample(aten._softmax.default, (real(2, 3, 5), 1, False))
    yield Sample(aten._softmax.default, (real(5), -1, False))
    yield Sample(aten._log_softmax.default, (real(3, 5), -1, False))
    yield Sample(aten._log_softmax.default, (real(3, 5), 0, False))
    yield Sample(aten.native_layer_norm.default, (real(2, 3, 5), [5], real(5), real(5), 1e-5))
    yield Sample(aten.native_layer_norm.default, (real(2, 3, 5), [3, 5], real(3, 5), real(3, 5), 1e-5))
    yield Sample(aten.native_layer_norm.default, (real(3, 5), [5], real(5), None, 1e-5))
    yield Sample(aten.native_layer_norm.default, (real(3, 5), [5], None, real(5), 1e-5))
    yield Sample(aten.native_layer_norm.default, (real(5), [5], None, None, 1e-5))
    yield Sample(aten.native_group_norm.default, (real(7, 6, 5, 4), real(6), real(6), 7, 6, 20, 2, 1e-5))
    yield Sample(aten.native_group_norm.default, (real(7, 6, 5), None, None, 7, 6, 5, 3, 1e-5))
    yield Sample(aten.native_group_norm.default, (real(5, 6), real(6), None, 5, 6, 1, 2, 1e-5))
    yield Sample(aten.native_group_norm.default, (real(2, 5, 7), real(5), real(5), 2, 5, 7, 1, 1e-5))
    yield Sample(aten.native_group_norm.default, (real(2, 5, 7), real(5), real(5), 2, 5, 7, 5, 1e-5))
    for input, training in product((real(7, 3), real(2, 3, 5), real(2, 3, 5, 7)), (True, False)):
        statistics = (real(3), between_zero_and_one(3))
        how = (training, 0.1, 1e-5)
        yield Sample(aten.native_batch_norm.default, (input, real(3), real(3), *statistics, *how))
        yield Sample(aten.native_batch_norm.default, (input, None, real(3), *statistics, *how))
        yield Sample(aten._native_batch_norm_legit.default, (input, real(3), real(3), *statistics, *how))
        yield Sample(aten._native_batch_norm_legit_functional.default, (input, real(3), real(3), *statistics, *how))
    yield Sample(aten.native_batch_norm.default, (real(2, 3, 5), real(3), real(3), None, None, True, 0.1, 1e-5))
    yield Sample(aten._native_batch_norm_legit.no_stats, (real(2, 3, 5), real(3), None, True, 0.1, 1e-5))
    yield Sample(
        aten._native_batch_norm_legit_no_training.default,
        (real(2, 3, 5), None, None, real(3), between_zero_and_one(3), 0.1, 1e-5),
    )


def reductions():
    several = [
        aten.sum.dim_IntList,
        aten.mean.dim,
        aten.amax.default,
        aten.amin.default,
        aten.any.dims,
        aten.all.dims,
        aten.var.correction,
    ]
    by_truth = {aten.any.dims: one_true, aten.all.dims: lambda *shape: ~one_true(*shape)}
    for operation, dims in product(several, ([1], [-1, 0], [0, 1, 2], [])):
        draw = by_truth.get(operation, real)
        yield Sample(operation, (draw(2, 3, 5), dims))
        yield Sample(operation, (draw(2, 3, 5), dims), {"keepdim": True})
        yield Sample(
            operation, (draw(2, 3, 5), dims, True) if operation != aten.var.correction else (draw(2, 3, 5), dims)
        )
    for operation in (aten.sum.dim_IntList, aten.mean.dim, aten.any.dims, aten.all.dims):
        yield Sample(operation, (by_truth.get(operation, real)(2, 3, 5), None))
    yield Sample(aten.sum.dim_IntList, (real(), [0]))
    yield Sample(aten.var.correction, (real(2, 3, 5),), {"correction": 0})
    for order, dims in product((2, 1, math.inf), ([1], [0, -1], [], None)):
        yield Sample(aten.linalg_vector_norm.default, (real(2, 3, 5), order, dims, dims == [1]))
    for dim, keepdim in product((0, -2), (False, True)):
        yield Sample(aten.any.dim, (by_truth[aten.any.dims](2, 3, 5), dim, keepdim))
        yield Sample(aten.all.dim, (by_truth[aten.all.dims](2, 3, 5), dim, keepdim))
        yield Sample(aten.prod.dim_int, (real(2, 3, 5), dim, keepdim))
        yield Sample(aten.max.dim, (real(2, 3, 5), dim, keepdim))
        yield Sample(aten.min.dim, (real(2, 3, 5), dim, keepdim))
        yield Sample(aten.argmax.default, (real(2, 3, 5), dim, keepdim))
        yield Sample(aten.argmin.default, (real(2, 3, 5), dim, keepdim))
    yield Sample(aten.argmax.default, (real(2, 3, 5),))
    yield Sample(aten.argmin.default, (real(2, 3, 5), None, True))
    yield Sample(aten.max.dim, (real(), 0))
    for whole_of in (aten.sum, aten.mean, aten.prod, aten.max, aten.min):
        yield Sample(whole_of.default, (real(2, 3, 5),))
    yield Sample(aten.any.default, (torch.eye(3, 5, dtype=torch.bool),))
    yield Sample(aten.all.default, (torch.ones(3, 5, dtype=torch.bool),))
    for dim in (0, -1):
        yield Sample(aten.cumsum.default, (real(2, 3, 5), dim))
        yield Sample(aten.cumprod.default, (real(2, 3, 5), dim))
        yield Sample(aten.sort.default, (real(2, 3, 5), dim))
        yield Sample(aten.topk.default, (real(3, 7, 5), 2, dim))
    yield Sample(aten.cumsum.default, (real(), 0))
    yield Sample(aten.sort.default, (real(2, 3, 5),))
    yield Sample(aten.sort.default, (real(), 0))
    yield Sample(aten.topk.default, (real(3, 5), 5))
    yield Sample(aten.flip.default, (real(2, 3, 5), [1]))
    yield Sample(aten.flip.default, (real(3, 2, 5), [-1, 0]))


def lookups():
    yield Sample(aten.embedding.default, (real(7, 5), integers(2, 3, high=7)))
    yield Sample(aten.embedding.default, (real(7, 5), integers(high=7), 0))
    for dim in (0, 1, -1):
        yield Sample(aten.index_select.default, (real(5, 3, 7), dim, integers(4, high=3)))
    for dim, shape in ((1, (5, 2, 7)), (1, (3, 2, 7)), (-1, (5, 3, 4)), (0, (2, 3, 7))):
        yield Sample(aten.gather.default, (real(5, 3, 7), dim, integers(*shape, high=3)))
    yield Sample(aten.gather.default, (real(7), 0, integers(4, high=7)))
    yield Sample(aten.nll_loss_forward.default, (real(7, 5), integers(7, high=5), None, 0, -100))
    yield Sample(aten.nll_loss_forward.default, (real(7, 5), integers(7, high=5), real(5), 1, -100))
    yield Sample(aten.nll_loss_forward.default, (real(7, 5), integers(7, high=5), real(5), 2, 3))
    yield Sample(aten.nll_loss_forward.default, (real(5), integers(high=5), None, 1, -100))
    yield Sample(aten.nll_loss2d_forward.default, (real(3, 5, 2, 4), integers(3, 2, 4, high=5), real(5), 0, -100))
    yield Sample(aten.nll_loss2d_forward.default, (real(3, 5, 2, 4), integers(3, 2, 4, high=5), None, 1, -100))


def indexings():
    x, few = real(5, 3, 7, 2), {"high": 2}

    def index(*indices):
        return Sample(aten.index.Tensor, (x, list(indices)))

    yield index(integers(4, **few))
    yield index(integers(11, 4, **few))
    yield index(None, integers(4, **few))
    yield index(None, integers(11, 1, **few), integers(4, **few))
    yield index(integers(4, **few), None, integers(4, **few))
    yield index(None, integers(4, **few), None, integers(11, 1, **few))
    yield index(torch.tensor([1, 0, 1, 1, 0]) > 0)
    yield index(None, None, torch.tensor([1, 0, 1, 1, 0, 0, 1]) > 0)
    yield index(None, mask(3, 7))
    yield index(torch.tensor([1, 0, 1, 1, 1]) > 0, integers(4, **few))
    yield index(torch.tensor([1, 0, 1, 1, 1]) > 0, None, integers(11, 1, **few))
    y = real(5, 3, 7)
    for accumulate in (False, True):
        rows = torch.tensor([4, 0, 3, 1])
        yield Sample(aten.index_put.default, (y, [rows], real(4, 3, 7), accumulate))
        yield Sample(aten.index_put.default, (y, [rows], real(4, 1, 7), accumulate))
        yield Sample(aten.index_put.default, (y, [rows], real(7), accumulate))
        yield Sample(aten.index_put.default, (y, [rows], real(), accumulate))
        yield Sample(aten.index_put.default, (y, [rows, torch.tensor([2, 0, 1, 2])], real(4, 7), accumulate))
        yield Sample(aten.index_put.default, (y, [rows[:, None], torch.tensor([[2, 0]])], real(4, 2, 7), accumulate))
        yield Sample(aten.index_put.default, (y, [None, torch.tensor([2, 0])], real(5, 2, 7), accumulate))
        yield Sample(aten.index_put.default, (y, [None, torch.tensor([2, 0])], real(), accumulate))
        yield Sample(aten.index_put.default, (y, [rows, None, torch.tensor([2, 0, 1, 2])], real(4, 3), accumulate))
        yield Sample(aten.index_put.default, (y, [torch.tensor([1, 0, 1, 1, 0]) > 0], real(), accumulate))
        yield Sample(aten.index_put.default, (y, [torch.tensor([1, 0, 1, 1, 0]) > 0], real(3, 7), accumulate))
        yield Sample(aten.index_put.default, (real(5, 3, 7), [mask(5, 3)], real(1), accumulate))
        few = torch.tensor([[1, 0, 0, 1, 0, 0, 0], [0, 0, 0, 0, 0, 0, 0], [0, 1, 0, 0, 1, 1, 0]]) > 0
        yield Sample(aten.index_put.default, (y, [None, few], real(5, 5), accumulate))


def joins():
    yield Sample(aten.cat.default, ([real(3, 5)],), {"dim": 1})
    yield Sample(aten.cat.default, ([real(3, 5), real(2, 5)],))
    yield Sample(aten.cat.default, ([real(3, 5), real(3, 2), real(3, 7)], -1))
    yield Sample(aten.cat.default, ([real(3, 5), real(3, 1), real(3, 1)], 1))
    yield Sample(aten.cat.default, ([real(0), real(3, 5), real(3, 2)], -1))
    yield Sample(aten.cat.default, ([real(3, 0), real(3, 5)], 1))
    yield Sample(aten.cat.default, ([real(0), real(0)],))
    yield Sample(aten.cat.default, ([real(0), real(5)],))


def writes():
    x = real(5, 3, 7)
    for dim, shape in ((1, (5, 2, 7)), (1, (3, 2, 7)), (2, (5, 3, 4))):
        index = torch.rand(*shape[:dim], x.shape[dim], *shape[dim:][1:], generator=DRAW).argsort(dim)
        index = index.narrow(dim, 0, shape[dim])  # no two write to one place
        yield Sample(aten.scatter.src, (x, dim, index, real(*shape)))
        yield Sample(aten.scatter.src, (x, dim, index, real(5, 4, 8)))
        yield Sample(aten.scatter.value, (x, dim, index, 2.5))
        yield Sample(aten.scatter_add.default, (x, dim, index, real(*shape)))
    yield Sample(aten.slice_scatter.default, (x, real(5, 3, 4), -1, 2, 6))
    yield Sample(aten.slice_scatter.default, (x, real(5, 3, 4), 2, None, 4))
    yield Sample(aten.slice_scatter.default, (x, real(5, 3, 4), 2, -4, 100))
    yield Sample(aten.slice_scatter.default, (x, real(5, 3, 7), 2, 0))
    yield Sample(aten.slice_scatter.default, (x, real(2, 3, 7)), {"start": 1, "end": 3})
    yield Sample(aten.slice_scatter.default, (x, real(5, 3, 3), 2, 1, 7, 2))
    yield Sample(aten.select_scatter.default, (x, real(5, 7), 1, 1))
    yield Sample(aten.select_scatter.default, (x, real(5, 3), -1, -1))
    yield Sample(aten.copy.default, (x, real(5, 3, 7)))
    yield Sample(aten.copy.default, (x, real(3, 1)))
    yield Sample(aten.copy.default, (x, real()))
    yield Sample(aten.tril.default, (real(5, 3, 7),))
    yield Sample(aten.triu.default, (real(5, 5), 1))


def spaces():
    yield Sample(aten.max_pool2d_with_indices.default, (real(2, 3, 8, 10), [2, 3]))
    yield Sample(aten.max_pool2d_with_indices.default, (real(3, 8, 10), [2, 2], [1, 1], [1, 1]))
    yield Sample(aten.avg_pool2d.default, (real(2, 3, 8, 10), [2, 3], [1, 2]))
    yield Sample(aten.avg_pool1d.default, (real(2, 3, 8), [2]))
    yield Sample(aten.avg_pool1d.default, (real(3, 8), [3], [1]))
    yield Sample(aten._adaptive_avg_pool2d.default, (real(2, 3, 8, 10), [5, 4]))
    yield Sample(aten._adaptive_avg_pool2d.default, (real(3, 8, 10), [2, 4]))
    yield Sample(aten.upsample_bilinear2d.default, (real(2, 3, 4, 5), [8, 9], False))
    yield Sample(aten.upsample_nearest2d.default, (real(2, 3, 4, 5), [8, 9]))
    for pad in ([1, 2], [2, 0, 0, 3], [0, 0, 4, 0], [-1, 2], [2, -1], [-2, -1, 3, 1], [0, -3], [-1, 0, 0, 0]):
        yield Sample(aten.constant_pad_nd.default, (real(2, 3, 7), pad, 0.5))


FAMILIES = (pointwise, contractions, convolutions, norms, reductions, lookups, indexings, joins, writes, spaces)
SAMPLES = [sample for family in FAMILIES for sample in family()]
of_each_sample = pytest.mark.parametrize("sample", SAMPLES, ids=str)


# ------------------------------------------------------------------------------------------------------- the tests


def test_every_operation_with_a_rule_has_a_sample():
    assert registered() == {sample.operation for sample in SAMPLES}


@of_each_sample
@pytest.mark.parametrize("reading", [as_written, as_bound])
def test_permuting_a_letter_in_the_inputs_permutes_it_in_the_outputs(sample, reading):
    inputs, outputs, _ = reading(sample)
    labelled = [labels(axes) for axes in [*inputs, *outputs]]
    for atom in free_atoms(labelled):
        assert keeps(sample, labelled, atom)


@of_each_sample
def test_rows_that_are_in_every_tensor_may_be_permuted_each_by_itself(sample):
    inputs, outputs, within = as_written(sample)
    labelled = [labels(axes) for axes in [*inputs, *outputs]]
    everywhere = [label for tensor in [*labelled, *map(labels, within)] for label in map(dict, tensor)]
    for atom in free_atoms(labelled):
        beside = set.intersection(*(set(label) for label in everywhere if atom in label)) - {atom, SEGMENT}
        for row in beside:
            assert keeps(sample, labelled, atom, row)


@of_each_sample
def test_binding_reads_a_rule_as_it_is_written(sample):
    inputs, outputs, within = as_written(sample)
    letters = free_atoms([labels(axes) for axes in [*inputs, *outputs]])
    bound_inputs, bound_outputs, bound_within = as_bound(sample)
    for axes, tensor in zip([*bound_inputs, *bound_outputs], [*sample.inputs, *sample.result[0]], strict=True):
        assert axes is None or [size(axis) for axis in axes] == list(tensor.shape)
    met = dict.fromkeys(atom for axes in [*bound_inputs, *bound_outputs] for axis in axes or () for atom in atoms(axis))
    assert Counter(atom.size for atom in met if not atom.pinned) == Counter(atom.size for atom in letters)
    assert [[size(axis) for axis in axes] for axes in bound_within] == [
        [size(axis) for axis in axes] for axes in within
    ]


@of_each_sample
def test_no_letter_ties_what_could_be_permuted_apart(sample):
    inputs, outputs, _ = as_written(sample)
    labelled = [labels(axes) for axes in [*inputs, *outputs]]
    for atom in free_atoms(labelled):
        tied = holders(atom, labelled)
        if min(tied) >= len(inputs):
            continue  # new in the outputs, all the same
        for count in range(1, len(tied)):
            for among in combinations(tied, count):
                assert not all(keeps(sample, labelled, atom, among=among, seed=seed) for seed in range(3)), among


@of_each_sample
def test_what_a_rule_tells_apart_is_told_apart(sample):
    inputs, outputs, _ = as_written(sample)
    tensors = [*inputs, *outputs]
    places = {
        (number, dim): axis[0].size
        for number, axes in enumerate(tensors)
        for dim, axis in enumerate(axes or ())
        if len(axis) == 1 and isinstance(axis[0], Atom) and axis[0].pinned
    }
    for length in set(places.values()):
        told_apart = [place for place, found in places.items() if found == length]
        for count in range(1, len(told_apart) + 1):
            for among in combinations(told_apart, count):
                if min(among)[0] >= len(inputs):
                    continue
                atom = Atom(length)
                labelled = [
                    labels(axes and [(atom,) if (number, dim) in among else axis for dim, axis in enumerate(axes)])
                    for number, axes in enumerate(tensors)
                ]
                assert not all(keeps(sample, labelled, atom, seed=seed) for seed in range(3)), among

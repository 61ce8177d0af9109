"""Sample calls of every operation that has an axis rule, with sizes that differ wherever letters do."""

import math
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product

import torch
from torch.utils._pytree import tree_leaves, tree_map

from lightning_symmetry.labelling.axis_rules import registered, rule_of
from lightning_symmetry.labelling.axis_rules.pointwise import POINTWISE
from lightning_symmetry.tracing.centred import CENTRED
from lightning_symmetry.tracing.precision import by_expert

torch.set_num_threads(1)
aten = torch.ops.aten
DRAW = torch.Generator().manual_seed(0)


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
        """The tensors that come out, and the inputs as they are afterwards: batch norm moves its statistics."""
        inputs = [tensor.clone() for tensor in inputs]
        rest = iter(inputs)
        args, kwargs = tree_map(
            lambda leaf: next(rest) if isinstance(leaf, torch.Tensor) else leaf, (self.args, self.kwargs)
        )
        operation = by_expert if self.operation is aten._grouped_mm.default else self.operation
        result = operation(*args, **kwargs)
        outputs = result if isinstance(result, (tuple, list)) else [result]
        return [output for output in outputs if output is not None], inputs

    @cached_property
    def result(self):
        return self.run(self.inputs)

    @cached_property
    def rule(self):
        rule, sizes = rule_of(self.operation, self.args, self.kwargs)
        return rule.for_call(len(self.inputs), len(self.result[0])), sizes


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


def zeros_and_ones(*shape):
    return mask(*shape).double()


def integers(*shape, low=0, high=8):
    return torch.randint(low, high, shape, generator=DRAW)


def mask(*shape):
    return torch.rand(shape, generator=DRAW) > 0.5


def one_true(*shape):
    return torch.arange(math.prod(shape)).view(shape) == 0


def not_finite(*shape):
    return torch.where(one_true(*shape), torch.nan, torch.inf).double()


NOT_REAL = {
    between_zero_and_one: "acos asin atanh digamma erfinv lgamma log log10 log1p log2 pow rsqrt sqrt",
    above_one: "acosh",
    whole: "eq ge gt le lt ne",
    zeros_and_ones: "logical_and logical_not logical_or logical_xor",
    integers: "bitwise_and bitwise_not bitwise_or bitwise_xor",
    not_finite: "isinf isnan",
}
DRAWN_AS = {name: draw for draw, names in NOT_REAL.items() for name in names.split()}
BROADCAST = [
    [(2, 3, 5), (3, 1), (5,)],
    [(2, 1, 5), (2, 3, 1), ()],
    [(7,), (7,), (7,)],
]


def pointwise_samples(operation):
    DRAW.manual_seed(0)  # each is drawn alone: by chance numbers may be so alike that a permutation does not show
    name = operation._schema.name.split("::")[1]
    draw = DRAWN_AS.get(name, real)
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
    yield Sample(aten.linalg_vecdot.default, (real(3, 7), real(3, 7)))
    yield Sample(aten.mm.default, (real(5, 7), real(7, 3)))
    yield Sample(aten.bmm.default, (real(2, 5, 7), real(2, 7, 3)))
    ends = torch.tensor([2, 2, 5], dtype=torch.int32)
    yield Sample(aten._grouped_mm.default, (real(5, 8), real(3, 8, 4), ends))
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
    one_for_all = ([1], [0], [1], False, [0], 1)
    yield Sample(aten.convolution.default, (real(3, 5, 8, 6), real(7, 5, 4, 1), None, *one_for_all))


def norms():
    yield Sample(aten._softmax.default, (real(2, 3, 5), 1, False))
    yield Sample(aten._softmax.default, (real(5), -1, False))
    yield Sample(aten._log_softmax.default, (real(3, 5), -1, False))
    yield Sample(aten._log_softmax.default, (real(3, 5), 0, False))
    yield Sample(CENTRED, (real(2, 3, 5), [2]))
    yield Sample(CENTRED, (real(2, 3, 5), [0]))
    yield Sample(CENTRED, (real(2, 3, 5), [0, 2]))
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
    several = [aten.sum.dim_IntList, aten.mean.dim, aten.amax.default, aten.amin.default, aten.any.dims]
    by_truth = {aten.any.dims: one_true}
    for operation, dims in product(several, ([1], [-1, 0], [0, 1, 2], [])):
        draw = by_truth.get(operation, real)
        yield Sample(operation, (draw(2, 3, 5), dims))
        yield Sample(operation, (draw(2, 3, 5), dims), {"keepdim": True})
        yield Sample(operation, (draw(2, 3, 5), dims, True))
    for operation in (aten.sum.dim_IntList, aten.mean.dim, aten.any.dims):
        yield Sample(operation, (by_truth.get(operation, real)(2, 3, 5), None))
    yield Sample(aten.sum.dim_IntList, (real(), [0]))
    for order, dims in product((2, 1, math.inf), ([1], [0, -1], [], None)):
        yield Sample(aten.linalg_vector_norm.default, (real(2, 3, 5), order, dims, dims == [1]))
    for dim, keepdim in product((0, -2), (False, True)):
        yield Sample(aten.any.dim, (one_true(2, 3, 5), dim, keepdim))
        yield Sample(aten.prod.dim_int, (real(2, 3, 5), dim, keepdim))
        yield Sample(aten.max.dim, (real(2, 3, 5), dim, keepdim))
        yield Sample(aten.min.dim, (real(2, 3, 5), dim, keepdim))
        yield Sample(aten.argmax.default, (real(2, 3, 5), dim, keepdim))
        yield Sample(aten.argmin.default, (real(2, 3, 5), dim, keepdim))
    yield Sample(aten.argmax.default, (real(2, 3, 5),))
    yield Sample(aten.argmin.default, (real(2, 3, 5), None, True))
    yield Sample(aten.max.dim, (real(), 0))
    for whole_of in (aten.mean, aten.prod, aten.max, aten.min):
        yield Sample(whole_of.default, (real(2, 3, 5),))
    yield Sample(aten.any.default, (torch.eye(3, 5, dtype=torch.bool),))
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
    yield Sample(aten.nll_loss_forward.default, (real(7, 5), torch.tensor([0, 3, 1, 3, 4, 2, 0]), None, 1, 3))
    yield Sample(aten.nll_loss2d_forward.default, (real(3, 5, 2, 4), integers(3, 2, 4, high=5), real(5), 0, -100))
    yield Sample(aten.nll_loss2d_forward.default, (real(3, 5, 2, 4), integers(3, 2, 4, high=5), None, 1, -100))


def bags():
    for mode, scores in ((0, None), (1, None), (2, None), (0, between_zero_and_one(6))):
        settings = (torch.tensor([0, 2, 3]), False, mode, False, scores)
        for operation in (aten._embedding_bag.default, aten._embedding_bag_forward_only.default):
            yield Sample(operation, (real(7, 5), integers(6, high=7), *settings))
    yield Sample(aten.histc.default, (integers(9, high=5).double(),), {"bins": 5, "min": 0, "max": 4})
    yield Sample(aten.histc.default, (integers(9, high=5).double(), 5, 0, 5))
    yield Sample(aten.histc.default, (real(9), 3, -1, 1))


def one_hots():
    yield Sample(aten.eq.Tensor, (integers(2, 3, 1, high=5), torch.arange(5)))
    yield Sample(aten.eq.Tensor, (integers(1, high=5), torch.arange(5)))
    yield Sample(aten.eq.Tensor, (integers(2, 5, high=5), torch.arange(5)))
    yield Sample(aten.eq.Tensor, (integers(2, 5, 1, high=3), torch.tensor([0, 2, 1])))
    yield Sample(aten.nonzero.default, (mask(5),))
    yield Sample(aten.nonzero.default, (mask(3, 7),))


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
        for reduce in ("sum", "amax", "mean"):
            yield Sample(aten.scatter_reduce.two, (x, dim, index, real(*shape), reduce))
    yield Sample(aten.slice_scatter.default, (x, real(5, 3, 4), -1, 2, 6))
    yield Sample(aten.slice_scatter.default, (x, real(5, 3, 4), 2, None, 4))
    yield Sample(aten.slice_scatter.default, (x, real(5, 3, 4), 2, -4, 100))
    yield Sample(aten.slice_scatter.default, (x, real(5, 3, 7), 2, 0))
    yield Sample(aten.slice_scatter.default, (x, real(2, 3, 7)), {"start": 1, "end": 3})
    yield Sample(aten.slice_scatter.default, (x, real(5, 3, 3), 2, 1, 7, 2))
    yield Sample(aten.copy.default, (x, real(5, 3, 7)))
    yield Sample(aten.copy.default, (x, real(3, 1)))
    yield Sample(aten.copy.default, (x, real()))


def spaces():
    yield Sample(aten.max_pool2d_with_indices.default, (real(2, 3, 8, 10), [2, 3]))
    yield Sample(aten.max_pool2d_with_indices.default, (real(3, 8, 10), [2, 2], [1, 1], [1, 1]))
    yield Sample(aten.avg_pool2d.default, (real(2, 3, 8, 10), [2, 3], [1, 2]))
    yield Sample(aten.avg_pool1d.default, (real(2, 3, 8), [2]))
    yield Sample(aten.avg_pool2d.default, (real(2, 3, 8, 10), [2, 1], [2, 1]))
    yield Sample(aten.avg_pool1d.default, (real(3, 8), [3], [1]))
    yield Sample(aten._adaptive_avg_pool2d.default, (real(2, 3, 8, 10), [5, 4]))
    yield Sample(aten._adaptive_avg_pool2d.default, (real(3, 8, 10), [2, 4]))
    yield Sample(aten.upsample_bilinear2d.default, (real(2, 3, 4, 5), [8, 9], False))
    yield Sample(aten.upsample_nearest2d.default, (real(2, 3, 4, 5), [8, 9]))
    yield Sample(aten.upsample_bicubic2d.default, (real(2, 3, 4, 5), [8, 9], False))
    yield Sample(aten._upsample_bilinear2d_aa.default, (real(2, 3, 8, 9), [4, 5], False))
    yield Sample(aten._upsample_bicubic2d_aa.default, (real(2, 3, 8, 9), [4, 5], False))
    yield Sample(aten.upsample_trilinear3d.default, (real(2, 3, 4, 5, 6), [8, 9, 7], False))
    yield Sample(aten.adaptive_max_pool2d.default, (real(2, 3, 8, 10), [5, 4]))
    yield Sample(aten.adaptive_max_pool3d.default, (real(2, 3, 8, 10, 9), [5, 4, 6]))
    yield Sample(aten.max_pool3d_with_indices.default, (real(2, 3, 8, 10, 9), [2, 3, 2]))
    yield Sample(aten.avg_pool3d.default, (real(2, 3, 8, 10, 9), [2, 3, 2]))
    yield Sample(aten._adaptive_avg_pool3d.default, (real(2, 3, 8, 10, 9), [5, 4, 6]))
    yield Sample(aten.grid_sampler_2d.default, (real(2, 3, 7, 8), real(2, 5, 4, 2) / 4, 0, 0, False))
    for pad in ([1, 2], [2, 0, 0, 3], [0, 0, 4, 0], [-1, 2], [2, -1], [-2, -1, 3, 1], [0, -3], [-1, 0, 0, 0]):
        yield Sample(aten.constant_pad_nd.default, (real(2, 3, 7), pad, 0.5))


def windows():
    x = real(2, 3, 8, 5)
    for size, stride in (
        ((2, 3, 3, 4, 5), (120, 40, 10, 5, 1)),
        ((2, 3, 8, 5), (120, 40, 5, 1)),
        ((2, 5, 4, 5), (120, 20, 5, 1)),
        ((2, 3, 8, 3, 2), (120, 40, 5, 1, 1)),
    ):
        yield Sample(aten.as_strided_copy.default, (x, size, stride))
    yield Sample(aten.as_strided_copy.default, (x, (2, 3, 4, 5), (120, 40, 5, 1), 20))
    yield Sample(aten.unfold.default, (real(3, 8, 5), 1, 4, 2))
    yield Sample(aten.unfold.default, (real(3, 5), -1, 2, 1))


def losses():
    scores, targets = real(8, 3, 6).log_softmax(-1), integers(3, 2, low=1, high=6)
    yield Sample(aten._ctc_loss.default, (scores, targets, [8, 7, 6], [2, 1, 2]))
    # Targets one after the other: those in a table move with their scores and lengths, and some of the output is memory
    # that nobody has written to, which would tell them apart now and then.
    joined = integers(5, low=1, high=6)
    yield Sample(aten._ctc_loss.Tensor, (scores, joined, torch.tensor([8, 7, 6]), torch.tensor([2, 1, 2])))
    yield Sample(aten._ctc_loss.default, (scores, joined, [8, 7, 6], [2, 1, 2]))


def transforms():
    yield Sample(aten.view_as_complex_copy.default, (real(3, 5, 2),))
    yield Sample(aten._fft_r2c.default, (real(3, 2, 5), [1], 0, True))
    yield Sample(aten._fft_c2c.default, (torch.complex(real(3, 2, 5), real(3, 2, 5)), [1, 2], 0, True))
    yield Sample(aten._fft_c2r.default, (torch.complex(real(3, 2, 5), real(3, 2, 5)), [2], 0, 9))
    yield Sample(aten.view_as_real_copy.default, (torch.complex(real(3, 5), real(3, 5)),))


def convolution_gradients():
    for sample in convolutions():
        (made,), (input, weight, *_) = sample.result
        settings = (*sample.args[3:], [True, True, made.dim() < 5])
        yield Sample(aten.convolution_backward.default, (real(*made.shape), input, weight, [made.size(1)], *settings))


def space_gradients():
    made, indices = aten.max_pool2d_with_indices(image := real(2, 3, 8, 10), [2, 3])
    window = ([2, 3], [2, 3], [0, 0], [1, 1], False)
    yield Sample(aten.max_pool2d_with_indices_backward.default, (real(*made.shape), image, *window, indices))
    yield Sample(aten.avg_pool2d_backward.default, (real(*made.shape), image, *window[:3], False, True, None))
    yield Sample(aten._adaptive_avg_pool2d_backward.default, (real(2, 3, 5, 4), image))
    yield Sample(aten.upsample_bilinear2d_backward.default, (real(2, 3, 8, 9), [8, 9], [2, 3, 4, 5], False))
    yield Sample(aten.upsample_nearest2d_backward.default, (real(2, 3, 8, 9), [8, 9], [2, 3, 4, 5]))


FAMILIES = (
    pointwise,
    contractions,
    convolutions,
    norms,
    reductions,
    lookups,
    one_hots,
    indexings,
    joins,
    writes,
    spaces,
    transforms,
    convolution_gradients,
    space_gradients,
    bags,
    windows,
    losses,
)


def samples():
    for number, family in enumerate(FAMILIES):
        DRAW.manual_seed(5 + number)  # each is drawn alone, so that a new sample changes no other family's
        yield from family()


SAMPLES = list(samples())

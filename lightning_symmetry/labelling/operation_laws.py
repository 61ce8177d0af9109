"""Which law each operation keeps, as its arguments decide, and the constants among them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence, Set
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload

from lightning_symmetry.labelling.factors import is_average, multiplier_of
from lightning_symmetry.labelling.laws import (
    Law,
    affine,
    average,
    centring,
    chosen,
    difference,
    even,
    extreme,
    indifferent,
    joint,
    largest,
    length,
    linear,
    masked,
    multiple,
    nearly_unchanged,
    neutral,
    norm,
    odd,
    overwritten,
    power,
    product,
    quotient,
    ranking,
    softmax,
    total,
    written,
)
from lightning_symmetry.tracing.centred import CENTRED
from lightning_symmetry.tracing.precision import ROUNDING, SMALL
from lightning_symmetry.tracing.tape import Operation, Value, packets

aten = torch.ops.aten

LINEAR = packets("""
    _adaptive_avg_pool2d _adaptive_avg_pool3d as_strided_copy embedding flip gather index index_select mean unfold
    upsample_bilinear2d upsample_nearest2d upsample_trilinear3d view_as_complex_copy view_as_real_copy
""")
_MATRIX_PRODUCTS = packets("_grouped_mm bmm linalg_vecdot mm")
_OF_ONE = packets("_fft_c2c _fft_c2r _fft_r2c avg_pool1d avg_pool2d avg_pool3d cumsum")
PRODUCTS = _MATRIX_PRODUCTS | _OF_ONE | {aten.mul}
CONTRACTIONS = _MATRIX_PRODUCTS | {aten.addmm, aten.convolution}
NORMS = packets("""
    _native_batch_norm_legit _native_batch_norm_legit_functional _native_batch_norm_legit_no_training native_batch_norm
    native_group_norm native_layer_norm
""")
WRITTEN = packets("index_put scatter_add")
HOMOGENEOUS = packets("leaky_relu relu")
EXTREMES = packets("""
    adaptive_max_pool2d adaptive_max_pool3d amax amin max max_pool2d_with_indices max_pool3d_with_indices min
""")
ODD = packets("asinh atan erf erfinv sin sinh tan tanh")
POWERS: Mapping[Any, Law] = {
    aten.abs: power(1, "even"),
    aten.reciprocal: power(-1, "odd"),
    aten.sign: power(0, "odd"),
    aten.rsqrt: power(Fraction(-1, 2), "neither"),
    aten.sqrt: power(Fraction(1, 2), "neither"),
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
        case aten.add if n_tensors == 2 and kwargs.get("alpha", 1) == 1:
            return total
        case aten.sub if n_tensors == 2 and kwargs.get("alpha", 1) == 1:
            return difference
        case aten.neg:
            return multiple(-1)
        case aten.sum:
            return multiple(_summed(args[0].shape, args[1] if len(args) > 1 else None))
        case aten.add if isinstance(args[1], (int, float)):
            if abs(args[1]) <= ROUNDING:
                return product if args[1] else linear
            return nearly_unchanged if 0 < args[1] <= SMALL else neutral
        case aten.ge | aten.gt | aten.le | aten.lt if n_tensors == 1 and args[1] == 0:
            return power(0, "neither")
        case aten._embedding_bag | aten._embedding_bag_forward_only if args[4] < 2:  # no maxima
            return product
        case aten.cos | aten.cosh:
            return even
        case aten.eq | aten.ne if n_tensors == 1 and math.isinf(args[1]):
            return indifferent
        case aten.div if n_tensors == 2:
            return quotient
        case aten.mul if isinstance(args[1], (int, float)) and args[1] and math.isfinite(args[1]):
            return multiple(args[1])
        case aten.div if isinstance(args[1], (int, float)):
            return multiple(1 / args[1]) if args[1] and math.isfinite(args[1]) else product
        case aten.pow if isinstance(args[1], (int, float)):
            exponent = Fraction(args[1]).limit_denominator(64)
            whole = exponent.denominator == 1
            return power(exponent, ("even", "odd")[exponent.numerator % 2] if whole else "neither")
        case aten.clamp if n_tensors == 1 and args[1] == 0 and (len(args) < 3 or args[2] is None):
            return power(1, "neither")
        case aten.copy:
            return overwritten
        case aten.cat | aten.slice_scatter:
            return joint
        case aten.maximum | aten.minimum if n_tensors == 2:
            return largest
        case aten.linalg_vector_norm:
            return length if len(args) < 2 or args[1] == 2 else power(1, "even")
        case aten.avg_pool1d | aten.avg_pool2d if len(args) < 4 or not any(args[3]):
            return linear
        case aten.where:
            return chosen
        case aten.addmm if kwargs.get("beta", 1) == 1:
            return affine(bias=0)
        case aten.convolution:
            return product if args[2] is None else affine(bias=2)
        case aten.clamp if n_tensors == 1 and 0 < (args[1] or 0) <= SMALL and (len(args) < 3 or args[2] is None):
            return nearly_unchanged
        case aten.constant_pad_nd if len(args) < 3 or args[2] == 0:
            return product
        case aten.native_layer_norm:
            return norm(args[2] is not None, args[3] is not None, args[4], ("...",), centred=len(args[1]) == 1)
        case CENTRED.overloadpacket:
            return centring(args[1])
        case aten._softmax | aten._log_softmax:
            return softmax(f"a{args[1] % max(len(args[0].shape), 1)}")
        case aten.native_group_norm:
            return norm(args[1] is not None, args[2] is not None, args[7], ("n", "g"))
    if packet in NORMS:
        statistics = operation is not aten._native_batch_norm_legit.no_stats and args[3] is not None
        return norm(args[1] is not None, args[2] is not None, args[-1], ("c",), statistics)
    if packet in LINEAR:
        return linear
    if packet in PRODUCTS:
        return product
    if packet in WRITTEN or operation is aten.scatter.src:
        return written
    if packet in EXTREMES and n_tensors == 1:
        return extreme
    if packet in HOMOGENEOUS:
        return power(1, "neither")
    if packet in ODD:
        return odd
    return POWERS.get(packet, neutral)


def _is_infinitely_low(value: Value) -> bool:
    """Whether a constant is so low that a softmax gives no weight to it."""
    return value.constant is not None and value.constant.numel() > 0 and bool((value.constant < -1e4).all())


def law_of_call(operation: Operation, used: Set[Value]) -> Law:
    """The law of an operation on a tape, of which some values are used: those that are read, or are outputs."""
    if operation.operation.overloadpacket in CONTRACTIONS and is_average(operation):
        return average if len(operation.inputs) == 2 else affine(0, average)
    number = multiplier_of(operation)
    if number is not None:
        return multiple(number)
    if operation.operation == aten.where.self and _is_infinitely_low(operation.args[1]):
        return masked
    if operation.operation == aten.topk.default and used.isdisjoint(operation.outputs[:1]):
        return ranking
    if operation.operation == aten.where.self:
        for number, value in enumerate(operation.args[1:], 1):
            if value.constant is not None and is_zero(value.constant):  # a product with a mask
                return lambda charges, letter: product([*charges[:number], *charges[number + 1 :]], letter)
    if operation.operation == aten.clamp.Tensor and len(operation.args) == 2 and operation.args[1].constant is not None:
        floor = operation.args[1].constant
        if floor.numel() == 1:  # as cosine similarities keep from dividing by zero
            return law_of(aten.clamp.default, (operation.args[0], float(floor)), {}, 1)
    one_output = used.isdisjoint(operation.outputs[1:])
    return law_of(operation.operation, operation.args, operation.kwargs, len(operation.inputs), one_output)


def is_zero(tensor: Tensor) -> bool:
    """Whether a constant is zero, and so stays what it is however it is scaled."""
    return tensor.is_floating_point() and tensor.layout == torch.strided and bool(tensor.numel()) and not tensor.any()


def _summed(shape: Sequence[int], dims: Sequence[int] | None) -> int:
    """The number of positions that a sum is over: along some dimensions, all where none is named."""
    return math.prod(shape[dim] for dim in dims) if dims and shape else math.prod(shape)

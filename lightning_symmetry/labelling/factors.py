"""What the tensors that an operation reads tell of it: which are constant, and which operations the others are from."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection

import torch

from lightning_symmetry.labelling.axis_rules import Contraction
from lightning_symmetry.labelling.rearranging import rearranged
from lightning_symmetry.tracing.layout import LAYOUT, REARRANGED, SLICED, sliced
from lightning_symmetry.tracing.tape import Operation, Tape, Value

aten = torch.ops.aten
PICKED = {"index", "index_select"}


def contraction_of(operation: Operation, letters: frozenset[str]) -> Contraction:
    """What is known of the factors of a product."""
    maps, picked = (
        frozenset(number for number, value in enumerate(operation.inputs) if value.depends and leaf_of(value, also))
        for also in (False, True)
    )
    if operation.operation == aten.convolution.default:
        _, kernel, _, _, padding, _, transposed, *_ = operation.args
        sees_border = math.prod(kernel.shape[2:]) > 1 and (transposed or any(padding))
        return Contraction(letters, frozenset() if sees_border else maps, picked)
    left = _left(operation)
    centred = _is_layer_norm(kept_last(operation.inputs[left]))
    return Contraction(letters, maps, picked, frozenset([left] if centred else []))


def _left(operation: Operation) -> int:
    """The number of the factor of a matrix product whose last dimension is summed over."""
    return 1 if operation.operation.overloadpacket == aten.addmm else 0


def leaf_of(value: Value | None, picked: bool = False) -> str | None:
    """The name of the parameter that a tensor is, laid out anew, or also with positions picked along some dimension."""
    while value is not None and value.source is not None:
        if not (value.source.name in LAYOUT or (picked and value.source.name in PICKED)):
            break
        value = value.source.args[0]
    return None if value is None or value.source is not None else value.name


def readers_of_leaves(tape: Tape, picked: bool = False) -> defaultdict[str, set[Operation]]:
    """The operations that read each leaf, laid out anew, or also with positions picked."""
    readers: defaultdict[str, set[Operation]] = defaultdict(set)
    for operation in tape.operations:
        if operation.name not in (LAYOUT | PICKED if picked else LAYOUT):
            for name in filter(None, (leaf_of(value, picked) for value in operation.inputs)):
                readers[name].add(operation)
    return readers


def with_gains_of_one(operation: Operation, names: Collection[str]) -> Operation:
    """The operation as it would be if the gains of these names were one."""
    args = operation.args
    gone = [isinstance(arg, Value) and leaf_of(arg) in names for arg in args]
    if not any(gone):
        return operation
    if operation.operation == aten.mul.Tensor:
        args = (args[gone.index(False)], 1.0)
    else:
        args = tuple(None if is_gone else arg for arg, is_gone in zip(args, gone, strict=True))
    return Operation(operation.operation, args, operation.kwargs, operation.outputs)


def kept_last(value: Value) -> Operation | None:
    """The operation that computed a tensor, laid out anew but for its last dimension."""
    source = value.source
    if source is None or not (source.name in LAYOUT or looks_at_others(source)):
        return source
    given: Value = source.args[0]
    kept = bool(value.shape and given.shape) and value.shape[-1] == given.shape[-1]
    if source.name in SLICED:
        kept = kept and sliced(source, value)[0] != len(given.shape) - 1
    if source.name in REARRANGED:
        kept = kept and rearranged(source, list(range(len(given.shape))), value.shape)[-1] == len(given.shape) - 1
    return kept_last(given) if kept else None


def looks_at_others(operation: Operation) -> bool:
    """Whether an operation picks positions along other dimensions than the last, or takes multiples and means there."""
    n_dims = len(operation.args[0].shape) if operation.args and isinstance(operation.args[0], Value) else 0
    match operation.operation:
        case aten.mul.Tensor:
            return (
                multiplier_of(operation) is not None
                and isinstance(operation.args[0], Value)
                and operation.args[0].depends
            )
        case aten.mean.dim if operation.args[1]:
            return all(dim % n_dims != n_dims - 1 for dim in operation.args[1])
        case aten.index.Tensor:
            return len(operation.args[1]) < n_dims
        case aten.index_select.default:
            return bool(operation.args[1] % n_dims != n_dims - 1)
    return False


def multiplier_of(operation: Operation) -> float | None:
    """The number by which a product multiplies one tensor at all its positions, as dropout does."""
    constants = [value.constant for value in operation.inputs if value.constant is not None]
    if operation.operation != aten.mul.Tensor or len(constants) != 1 or len(operation.inputs) != 2:
        return None
    (tensor,) = constants
    is_number = tensor.is_floating_point() and tensor.numel() > 0 and bool((tensor == tensor.flatten()[0]).all())
    return float(tensor.flatten()[0]) if is_number and bool(tensor.flatten()[0] != 0) else None


def _is_layer_norm(operation: Operation | None) -> bool:
    """Whether an operation takes the mean along the last dimension away, before it applies a gain and a bias."""
    return (
        operation is not None and operation.operation == aten.native_layer_norm.default and len(operation.args[1]) == 1
    )


def is_average(operation: Operation) -> bool:
    """Whether a product with what a softmax gives takes averages of the other factor."""
    source = kept_last(operation.inputs[_left(operation)])
    if source is not None and source.operation == aten.where.self:  # no weights where all is masked
        source = kept_last(source.args[2])
    if operation.operation == aten.convolution.default or source is None or source.operation != aten._softmax.default:
        return False
    return bool(source.args[1] % len(source.args[0].shape) == len(source.args[0].shape) - 1)

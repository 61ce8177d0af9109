"""Centring: what is left of a tensor once its mean along some dimensions is taken away, as one operation.

By itself the mean tells nothing of what it is taken from. Norms that a model computes step by step are in torch's
operations a mean, a difference and a variance; on the tape they are a centring, and the length of what it leaves.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch._ops import OpOverload

from lightning_symmetry.tracing.tape import Operation, Value, made

aten = torch.ops.aten

_LIBRARY = torch.library.Library("lightning_symmetry", "DEF")
_LIBRARY.define("centred(Tensor input, int[] dims) -> Tensor")


@torch.library.impl(_LIBRARY, "centred", "CompositeExplicitAutograd")
def _centred(input: Tensor, dims: list[int]) -> Tensor:
    return input - input.mean(dims, keepdim=True)


CENTRED: OpOverload = torch.ops.lightning_symmetry.centred.default

_MEANS = {aten.mean.default, aten.mean.dim}
_VARIANCES = {aten.var.correction, aten.var_mean.correction}


def with_centring(operations: list[Operation]) -> list[Operation]:
    """Differences from a mean as centrings, and variances as the squared lengths of centred tensors.

    A variance is a multiple of that; no axis, and no power by which anything is scaled, depends on the number.
    """
    written: list[Operation] = []
    for operation in operations:
        if operation.operation in _VARIANCES:
            written += _squared_length(operation)
        elif operation.operation == aten.sub.Tensor and len(operation.inputs) == 2 and not operation.kwargs:
            written += _centring(operation) or [operation]
        else:
            written.append(operation)
    return written


def _centring(difference: Operation) -> list[Operation]:
    """A tensor less its mean as a centring, also with another one added before; empty where it is neither."""
    first, mean = difference.args
    given, dims = _averaged(mean)
    (output,) = difference.outputs
    if given is None or output is None:
        return []
    if first is given:
        return [made(output, CENTRED, given, dims)]
    added = first.source if first.source is not None and first.source.operation == aten.add.Tensor else None
    if added is None or added.kwargs or given not in added.inputs or len(added.inputs) != 2:
        return []
    other = next(value for value in added.inputs if value is not given)
    centred = Value(given.shape, given.dtype)
    return [made(centred, CENTRED, given, dims), made(output, aten.add.Tensor, other, centred)]


def _averaged(mean: Value) -> tuple[Value | None, list[int]]:
    """The tensor that another is the mean of, one that meets it along all of its dimensions, and along which it is."""
    source = mean.source
    while source is not None and source.name == "unsqueeze":
        source = source.args[0].source
    if source is None or source.operation not in _MEANS:
        return None, []
    given: Value = source.args[0]
    dims = _all_named(given, source.args[1] if len(source.args) > 1 else None)
    met = [1] * (len(given.shape) - len(mean.shape)) + list(mean.shape)
    meets = met == [1 if dim in dims else length for dim, length in enumerate(given.shape)]
    return (given, dims) if meets and given.depends else (None, [])


def _squared_length(variance: Operation) -> list[Operation]:
    """A variance, and the mean beside it."""
    given, named = (*variance.args, None)[:2]
    dims, keepdim = _all_named(given, named), variance.kwargs.get("keepdim", False)
    output, *means = variance.outputs
    written = []
    if output is not None:
        centred, length = Value(given.shape, given.dtype), Value(output.shape, output.dtype)
        written.append(made(centred, CENTRED, given, dims))
        written.append(made(length, aten.linalg_vector_norm.default, centred, 2, dims, keepdim))
        written.append(made(output, aten.pow.Tensor_Scalar, length, 2))
    return [*written, *(made(mean, aten.mean.dim, given, dims, keepdim) for mean in means if mean is not None)]


def _all_named(given: Value, dims: Sequence[int] | None) -> list[int]:
    """Dimensions counted from the first; all of a tensor's where none is named."""
    n_dims = len(given.shape)
    return sorted(dim % n_dims for dim in dims or range(n_dims)) if n_dims else []

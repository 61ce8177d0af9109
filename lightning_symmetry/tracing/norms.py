"""Norms of which more is read than what they give: their statistics, by who differentiates, or runs one twice.

A norm is one operation on the tape, with rules of its own. Where its mean or deviation is read, as the derivative of a
norm does, it is written out instead: then it is known how these scale too. A batch norm that runs twice in a step is
given the running statistics that it gave the first time, and makes no use of them while it trains.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch._decomp import decomposition_table

from lightning_symmetry.tracing.tape import Operation, Value

aten = torch.ops.aten


def _group_norm(
    input: Tensor, weight: Tensor | None, bias: Tensor | None, n: int, c: int, space: int, groups: int, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    grouped = input.unflatten(1, (groups, -1))
    dims = list(range(2, grouped.dim()))
    normed, mean, deviation = aten.native_layer_norm(grouped, grouped.shape[2:], None, None, eps)
    per_channel = [1, c, *[1] * (input.dim() - 2)]
    normed = normed.flatten(1, 2)
    normed = normed if weight is None else normed * weight.view(per_channel)
    normed = normed if bias is None else normed + bias.view(per_channel)
    return normed, mean.squeeze(dims), deviation.squeeze(dims)


_TRAINED = aten._native_batch_norm_legit_functional.default
_WHOLE = (aten.native_layer_norm.default, _TRAINED, aten._native_batch_norm_legit.no_stats)
WRITTEN_OUT = {aten.native_group_norm.default: _group_norm, **{norm: decomposition_table[norm] for norm in _WHOLE}}
"""What norms do, operation by operation."""


def statistics_are_read(operations: Sequence[Operation]) -> bool:
    """Whether the mean or the deviation of some norm is read by another operation."""
    norms = (operation for operation in operations if operation.operation in WRITTEN_OUT)
    statistics = {output for norm in norms for output in norm.outputs[1:3]}
    return any(not statistics.isdisjoint(operation.inputs) for operation in operations)


def without_running_statistics(operations: Sequence[Operation], outputs: Iterable[Value]) -> list[Operation]:
    """Batch norms that train without the running statistics that an earlier run has given them."""
    read = set(outputs)
    written: list[Operation] = []
    for operation in reversed(operations):
        if operation.operation == _TRAINED and read.isdisjoint(operation.outputs[3:]):
            operation = _without_those_of_an_earlier_run(operation)
        read.update(operation.inputs)
        written.append(operation)
    return written[::-1]


def _without_those_of_an_earlier_run(norm: Operation) -> Operation:
    input, weight, bias, running_mean, _, training, *settings = norm.args
    if not training or running_mean.source is None:
        return norm
    args = (input, weight, bias, training, *settings)
    instead = Operation(aten._native_batch_norm_legit.no_stats, args, {}, norm.outputs[:3])
    for output in instead.outputs:
        if output is not None:
            output.source = instead
    return instead

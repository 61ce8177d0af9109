"""The largest entries of a tensor, on their way to a softmax, as all its entries with the others hidden.

A router that keeps the k largest scores of each token writes them back over minus infinity, or takes the softmax of
them alone. Both come to ``softmax(where(others, -inf, scores))``, which says along which axis the softmax sums, and
that what is added to all scores of a token makes no difference; the shares of the largest are then looked up.
"""

from __future__ import annotations

import torch

from lightning_symmetry.tracing.layout import original
from lightning_symmetry.tracing.tape import Operation, Value, made

aten = torch.ops.aten


def with_largest_kept(operations: list[Operation]) -> list[Operation]:
    """The largest entries, written back or under a softmax, as all entries with the others hidden."""
    written: list[Operation] = []
    for operation in operations:
        written += _written_back(operation) or _softmax_of_largest(operation) or [operation]
    return written


def _written_back(writing: Operation) -> list[Operation]:
    """A choice by a mask that is the same as to write the largest entries of a tensor over a constant."""
    output = writing.outputs[0] if writing.operation == aten.scatter.src else None
    if output is None or writing.inputs[0].constant is None:
        return []
    rest, dim, places, entries = writing.args
    largest = _largest(entries, dim)
    if largest is None or largest.outputs[1] is not places or largest.args[0].shape != rest.shape:
        return []
    return _hidden(output, rest, largest, dim)


def _softmax_of_largest(softmax: Operation) -> list[Operation]:
    """The softmax of all entries but those that are hidden, looked up where the largest are."""
    output = softmax.outputs[0] if softmax.operation == aten._softmax.default else None
    largest = _largest(softmax.args[0], softmax.args[1]) if output is not None else None
    if output is None or largest is None:
        return []
    given, places = largest.args[0], largest.outputs[1]
    lowest = Value(given.shape, given.dtype, constant=torch.full(given.shape, -torch.inf))
    seen, shares = Value(given.shape, given.dtype), Value(given.shape, output.dtype)
    return [
        *_hidden(seen, lowest, largest, softmax.args[1]),
        made(shares, softmax.operation, seen, *softmax.args[1:]),
        made(output, aten.gather.default, shares, softmax.args[1], places),
    ]


def _largest(entries: Value, dim: int) -> Operation | None:
    """The operation that took the largest entries of a tensor along a dimension, in whatever type since."""
    entries = original(entries)
    largest = entries.source
    if largest is None or largest.operation != aten.topk.default or largest.outputs[0] is not entries:
        return None
    along = (*largest.args, -1)[2]
    return largest if entries.shape and (dim - along) % len(entries.shape) == 0 else None


def _hidden(output: Value, rest: Value, largest: Operation, dim: int) -> list[Operation]:
    """A tensor with all but its largest entries hidden by those of another."""
    assert rest.constant is not None
    everywhere = Value(rest.shape, torch.bool, constant=torch.ones_like(rest.constant, dtype=torch.bool))
    mask = Value(rest.shape, torch.bool)
    return [
        made(mask, aten.scatter.value, everywhere, dim, largest.outputs[1], False),
        made(output, aten.where.self, mask, rest, largest.args[0]),
    ]

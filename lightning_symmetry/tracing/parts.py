"""All parts of a tensor, laid end to end along another dimension, as heads are split off and joined again.

``cat(x.split(s, a), b)`` is a view of ``x``: its dimension a is n times s, and n is moved before the dimension b. So is
``stack(x.chunk(n, a), b)``, and ``cat(x.unbind(a), b)``. Followed as slices, each part would have an axis of its own,
which joining them would make one; followed as a view, they are one axis, with the parts beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from lightning_symmetry.tracing.layout import SLICED, original, sliced
from lightning_symmetry.tracing.tape import Operation, Value, made

aten = torch.ops.aten


def with_parts_viewed(operations: list[Operation]) -> list[Operation]:
    """What is laid end to end of all parts of a tensor as views of that tensor."""
    written: list[Operation] = []
    for operation in operations:
        parts = list(map(_part, operation.inputs)) if operation.operation == aten.cat.default else []
        written += _viewed(parts, operation) or [operation]
    return written


@dataclass(frozen=True)
class _Part:
    """A stretch of a tensor along a dimension, which it keeps or not, and the dimension of one position it gets."""

    whole: Value
    dim: int
    start: int
    stop: int
    kept: bool
    new: int | None


def _part(value: Value) -> _Part | None:
    """What a tensor is a part of; None where it is no stretch of another."""
    value, new = _without("unsqueeze", value)
    value, squeezed = _without("squeeze", value)
    source = value.source
    if source is None or source.name not in SLICED or not source.args[0].depends:
        return None
    dim, start, stop, step, kept = sliced(source, value)
    if step != 1 or squeezed not in (None, dim):
        return None
    return _Part(source.args[0], dim, start, stop, kept and squeezed is None, new)


def _without(name: str, value: Value) -> tuple[Value, int | None]:
    """A tensor before it got, or lost, a dimension of one position, and that dimension; itself where it did not."""
    value = original(value)
    if value.source is None or value.source.name != name:
        return value, None
    given, *dims = value.source.args
    (dim,) = dims[0] if dims and isinstance(dims[0], (list, tuple)) and len(dims[0]) == 1 else (*dims, None)[:1]
    n_dims = max(len(value.shape), len(given.shape))
    return (original(given), dim % n_dims) if isinstance(dim, int) else (value, None)


def _viewed(parts: Sequence[_Part | None], joining: Operation) -> list[Operation]:
    """Views that come to the same as to lay parts end to end; empty where they are not all of a tensor in order."""
    (output,) = joining.outputs if len(parts) > 1 else (None,)
    first = parts[0] if parts else None
    if output is None or first is None:
        return []
    size = first.stop - first.start
    if any(part != replace(first, start=k * size, stop=(k + 1) * size) for k, part in enumerate(parts)):
        return []
    whole, dim = first.whole, first.dim
    if len(parts) * size != whole.shape[dim] or not (first.kept or size == 1):
        return []
    n_dims = len(whole.shape) - (not first.kept) + (first.new is not None)
    joined = (*joining.args[1:], 0)[0] % n_dims
    shape = list(whole.shape)
    if first.kept:
        shape[dim : dim + 1] = [len(parts), size]
    order = [k for k in range(len(shape)) if k != dim]
    if first.new is not None:
        order.insert(first.new, len(shape))
        shape.append(1)
    order.insert(joined, dim)
    apart = Value(tuple(shape), whole.dtype)
    moved = Value(tuple(shape[k] for k in order), whole.dtype)
    return [
        made(apart, aten.view.default, whole, shape),
        made(moved, aten.permute_copy.default, apart, order),
        made(output, aten.view.default, moved, list(output.shape)),
    ]

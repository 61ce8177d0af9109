"""What operations that only lay a tensor out anew make of the list of its axes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightning_symmetry.labelling.axes import Axis, fresh, split
from lightning_symmetry.labelling.charges import UNIFORM
from lightning_symmetry.tracing.layout import SAME, VIEWED
from lightning_symmetry.tracing.tape import Operation, Value


def viewed(axes: Sequence[Axis], shape: Sequence[int]) -> list[Axis]:
    """Read all axes as one row-major product, and split it into dimensions of the shape."""
    rest: Axis = sum(axes, ())
    split_off = []
    for length in shape:
        axis, rest = split(rest, length)
        split_off.append(axis)
    return split_off


def rearranged(operation: Operation, axes: list[Any], shape: Sequence[int]) -> list[Any]:
    """What an operation without slicing makes of a list of one entry a dimension; new dimensions are ()."""
    arguments = operation.args[1:]
    n_dims = len(axes)
    match operation.name:
        case name if name in SAME:
            return list(axes)
        case name if name in VIEWED:
            return viewed(axes, shape)
        case "permute":
            return [axes[dim] for dim in arguments[0]]
        case "unsqueeze":
            dim = arguments[0] % (n_dims + 1)
            return [*axes[:dim], (), *axes[dim:]]
        case "squeeze":
            given: Value = operation.args[0]
            dims = arguments[0] if arguments else range(n_dims)
            gone = {dim % n_dims for dim in ([dims] if isinstance(dims, int) else dims)} if n_dims else set()
            return [axis for dim, axis in enumerate(axes) if dim not in gone or given.shape[dim] != 1]
        case "expand":
            given = operation.args[0]
            new = len(shape) - n_dims
            return [
                fresh(length, charge=UNIFORM) if dim < new or given.shape[dim - new] != length else axes[dim - new]
                for dim, length in enumerate(shape)
            ]
        case "repeat":
            repeats = arguments[0]
            entries = [()] * (len(repeats) - n_dims) + axes
            return [
                entry if times == 1 else (*fresh(times, charge=UNIFORM), *(entry if isinstance(entry, tuple) else ()))
                for times, entry in zip(repeats, entries, strict=True)
            ]
    raise AssertionError(f"{operation.name} is no layout")

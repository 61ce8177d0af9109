"""Operations that only lay a tensor out anew, and what they make of the list of its axes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightning_symmetry.symmetry.axes import Axis, fresh, split
from lightning_symmetry.symmetry.charges import UNIFORM
from lightning_symmetry.symmetry.tape import Operation, Value

SAME = {"_to_copy", "alias", "clone", "detach", "lift_fresh"}
VIEWED = {"view", "_reshape"}
REPEATED = {"expand", "repeat"}
REARRANGED = {"permute", "unsqueeze", "squeeze", *REPEATED}
SLICED = {"select", "slice", "split", "split_with_sizes", "unbind"}
LAYOUT = SAME | VIEWED | REARRANGED | SLICED


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


def sliced(operation: Operation, value: Value) -> tuple[int, int, int, int, bool]:
    """The dimension, start, stop and step of one output of a slicing operation, and whether it keeps the dimension."""
    given: Value = operation.args[0]
    arguments = list(operation.args[1:])
    match operation.name:
        case "select":
            dim = arguments[0] % len(given.shape)
            start = arguments[1] % given.shape[dim]
            return dim, start, start + 1, 1, False
        case "slice":
            defaults: list[Any] = [0, None, None, 1]
            dim, start, stop, step = arguments + defaults[len(arguments) :]
            dim %= len(given.shape)
            start, stop, step = slice(start, stop, step).indices(given.shape[dim])
            return dim, start, stop, step, True
    position = next(k for k, output in enumerate(operation.outputs) if output is value)
    dim = operation.kwargs.get("dim", arguments[-1] if len(arguments) > (operation.name != "unbind") else 0)
    dim %= len(given.shape)
    if operation.name == "unbind":
        return dim, position, position + 1, 1, False
    start = sum(output.shape[dim] for output in operation.outputs[:position] if output is not None)
    return dim, start, start + value.shape[dim], 1, True


def dimension_viewed(below: Sequence[int], above: Sequence[int], dim: int) -> tuple[int, int, int] | None:
    """The dimension below that a view splits into dimensions `first` to `last` above, `dim` among them."""
    if 0 in below:
        return None
    i = j = 0
    while i < len(below) and j < len(above):
        first_below, first = i, j
        left, right = below[i], above[j]
        i, j = i + 1, j + 1
        while left != right:
            if left < right:
                left *= below[i]
                i += 1
            else:
                right *= above[j]
                j += 1
        if first <= dim < j:
            return (first_below, first, j) if i - first_below == 1 else None
    return None

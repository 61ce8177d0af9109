"""Operations that only lay a tensor out anew."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightning_symmetry.tracing.tape import Operation, Value

SAME = {"_to_copy", "alias", "clone", "detach", "lift_fresh"}
VIEWED = {"view", "_reshape"}
REPEATED = {"expand", "repeat"}
REARRANGED = {"permute", "unsqueeze", "squeeze", *REPEATED}
SLICED = {"select", "slice", "split", "split_with_sizes", "unbind"}
LAYOUT = SAME | VIEWED | REARRANGED | SLICED


def original(value: Value) -> Value:
    """The tensor that one is a copy of, in whatever type."""
    while value.source is not None and value.source.name in SAME:
        value = value.source.args[0]
    return value


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
            dim, positions = stretch(given, arguments)
            return dim, positions.start, positions.stop, positions.step, True
    position = next(k for k, output in enumerate(operation.outputs) if output is value)
    dim = operation.kwargs.get("dim", arguments[-1] if len(arguments) > (operation.name != "unbind") else 0)
    dim %= len(given.shape)
    if operation.name == "unbind":
        return dim, position, position + 1, 1, False
    start = sum(output.shape[dim] for output in operation.outputs[:position] if output is not None)
    return dim, start, start + value.shape[dim], 1, True


def stretch(given: Value, arguments: Sequence[Any]) -> tuple[int, range]:
    """The dimension and the positions along it that are meant by what follows a tensor in the arguments of a slice."""
    defaults: list[Any] = [0, None, None, 1]
    dim, start, stop, step = [*arguments, *defaults[len(arguments) :]]
    dim %= len(given.shape)
    return dim, range(*slice(start, stop, step).indices(given.shape[dim]))


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

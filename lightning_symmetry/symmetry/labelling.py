"""The axes of every tensor on a tape.

Rules tie the axes of an operation's inputs and outputs. Operations that only lay a tensor out anew (views,
permutations, slices) need no rule: their axes follow from those of their input, and are worked out when something else
asks for them. A slice is carried below the layouts it is taken from, down to the axis that it cuts: the view of a fused
query-key-value map as three equal parts would else tie the parts to one another.

A tensor that no parameter reaches tells positions apart only along the axes on which its entries differ.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from lightning_symmetry.symmetry.axes import Axis, fresh, narrow, pin, size, split
from lightning_symmetry.symmetry.axis_rules import Binding, rule_of
from lightning_symmetry.symmetry.charges import NEUTRAL, unknown
from lightning_symmetry.symmetry.laws import CONTRACTIONS, law_of
from lightning_symmetry.symmetry.tracing import Operation, Tape, Value

Axes = list[Axis]

_SAME = {"_to_copy", "alias", "clone", "contiguous", "detach", "lift_fresh", "view_of"}
_VIEW = {"view", "_unsafe_view", "reshape", "_reshape"}
_REARRANGED = {"permute", "transpose", "t", "unsqueeze", "squeeze", "expand"}
_SLICED = {"select", "slice", "split", "split_with_sizes", "unbind"}
_LAYOUT = _SAME | _VIEW | _REARRANGED | _SLICED


class Labelling:
    """The axes of the tensors on a tape, tied by its operations.

    Attributes:
        without_rule: How often each operation without a rule was met; it tells the positions of all its axes apart.
        within: The axes of tensors that exist only within an operation.
    """

    def __init__(self, tape: Tape) -> None:
        self.without_rule: Counter[str] = Counter()
        self.within: list[Axes] = []
        self._axes: dict[Value, Axes] = {}
        self._used = {value for operation in tape.operations for value in operation.inputs}
        self._operations = [operation for operation in tape.operations if _depends(operation)]
        for operation in self._operations:
            if operation.name not in _LAYOUT:
                self._apply(operation)
        for output in tape.outputs:
            for axis in self.axes(output):
                pin(axis, "output")

    def tensors(self) -> list[Axes]:
        """The axes of every tensor that an operation met, those within operations included."""
        return [*self._axes.values(), *self.within]

    def leaf(self, value: Value) -> Axes:
        """The axes of a parameter or buffer; nothing is said of the positions of one that no operation met."""
        return self._axes.get(value) or [fresh(length, "unused") for length in value.shape]  # kept from every group

    def axes(self, value: Value) -> Axes:
        """The axes of a tensor, one a dimension."""
        if not value.depends:
            return _axes_of_constant(value)
        if value not in self._axes:
            source = value.source
            self._axes[value] = self._laid_out(source, value) if source else _axes_of_leaf(value)
        return self._axes[value]

    def _apply(self, operation: Operation) -> None:
        outputs = [output for output in operation.outputs if output is not None]
        found = rule_of(operation.operation, operation.args, operation.kwargs)
        if found is None:
            self.without_rule[str(operation.operation)] += 1
            why = f"no rule for {operation.operation}"
            for value in operation.inputs:
                for axis in self.axes(value):
                    pin(axis, why)
            for output in outputs:
                self._axes[output] = [fresh(length, why) for length in output.shape]
            return
        rule, sizes = found
        rule = rule.for_call(len(operation.inputs), len(outputs))
        law = law_of(
            operation.operation,
            operation.args,
            operation.kwargs,
            len(operation.inputs),
            one_output=not any(output in self._used for output in outputs[1:]),
        )
        binding = Binding(sizes, law, contracts=operation.operation.overloadpacket in CONTRACTIONS)
        for pattern, value in zip(rule.inputs, operation.inputs, strict=True):
            binding.read(pattern, self.axes(value))
        for pattern, output in zip(rule.outputs, outputs, strict=True):
            axes = binding.write(pattern, output.shape)
            if [size(axis) for axis in axes] != list(output.shape):
                assert not math.prod(output.shape), f"{rule.text!r} gives {operation.operation} the wrong shape"
                axes = [fresh(length) for length in output.shape]  # a norm returns no statistics in inference
            self._axes[output] = axes
        binding.finish()
        self.within += [binding.write(pattern, [1] * len(pattern)) for pattern in rule.within]

    def _laid_out(self, operation: Operation, value: Value) -> Axes:
        """The axes of a tensor that an operation lays out anew."""
        given: Value = operation.args[0]
        if operation.name in _SLICED:
            dim, start, stop, step, kept = _slice(operation, value)
            if step == 1:
                axes = self._narrowed(given, dim, start, stop)
            else:
                axes = list(self.axes(given))
                pin(axes[dim], "strided slice")
                axes[dim] = fresh(len(range(start, stop, step)), "strided slice")
            return axes if kept else axes[:dim] + axes[dim + 1 :]
        return _rearranged(operation, self.axes(given), value.shape)

    def _narrowed(self, value: Value, dim: int, start: int, stop: int) -> Axes:
        """The axes of ``value[start:stop]`` along a dimension, the slice carried below the layouts above it."""
        shape = value.shape
        if (start, stop) == (0, shape[dim]):
            return list(self.axes(value))
        source = value.source
        if value.depends and value not in self._axes and source is not None:
            given: Value = source.args[0]
            if source.name in _SAME:
                return self._narrowed(given, dim, start, stop)
            if source.name in _REARRANGED - {"expand"}:
                places = _rearranged(source, list(range(len(given.shape))), shape)
                if isinstance(places[dim], int):
                    below = self._narrowed(given, places[dim], start, stop)
                    return [below[place] if isinstance(place, int) else () for place in places]
            if source.name in _VIEW:
                group = _dimension_viewed(given.shape, shape, dim)
                if group is not None:
                    return self._narrowed_view(given, shape, dim, start, stop, *group)
        axes = list(self.axes(value))
        axes[dim] = narrow(axes[dim], start, stop)
        return axes

    def _narrowed_view(
        self, given: Value, shape: Sequence[int], dim: int, start: int, stop: int, below: int, first: int, last: int
    ) -> Axes:
        """The slice of a view, of which dimensions `first` to `last` came from the one dimension `below`."""
        axes = self.axes(given)
        before = math.prod(shape[first:dim])
        after = math.prod(shape[dim + 1 : last])
        outer, rest = split(axes[below], before)
        middle, inner = split(narrow(rest, start * after, stop * after), stop - start)
        return [
            *_view(axes[:below], shape[:first]),
            *_view([outer], shape[first:dim]),
            middle,
            *_view([inner], shape[dim + 1 : last]),
            *_view(axes[below + 1 :], shape[last:]),
        ]


def _depends(operation: Operation) -> bool:
    return any(output is not None and output.depends for output in operation.outputs)


def _axes_of_leaf(value: Value) -> Axes:
    """New axes for a parameter or a running statistic, each with a charge to be found."""
    return [fresh(length, charge=unknown()) for length in value.shape]


def _axes_of_constant(value: Value) -> Axes:
    tensor = value.constant
    assert tensor is not None
    zero = tensor.numel() > 0 and not bool(tensor.any())  # zeros stay zeros however they are scaled
    return [
        fresh(
            length,
            pinned=None if tensor.numel() and bool((tensor == tensor.narrow(dim, 0, 1)).all()) else "data",
            charge=unknown() if zero else NEUTRAL,
        )
        for dim, length in enumerate(value.shape)
    ]


def _view(axes: Sequence[Axis], shape: Sequence[int]) -> Axes:
    """Read all axes as one row-major product, and split it into dimensions of the shape."""
    rest: Axis = sum(axes, ())
    viewed = []
    for length in shape:
        axis, rest = split(rest, length)
        viewed.append(axis)
    return viewed


def _rearranged(operation: Operation, axes: list[Any], shape: Sequence[int]) -> list[Any]:
    """What an operation without slicing makes of a list of one entry a dimension; new dimensions are ()."""
    arguments = operation.args[1:]
    n_dims = len(axes)
    match operation.name:
        case name if name in _SAME:
            return list(axes)
        case name if name in _VIEW:
            return _view(axes, shape)
        case "permute":
            return [axes[dim] for dim in arguments[0]]
        case "t":
            return axes[::-1]
        case "transpose":
            swapped = list(axes)
            first, second = arguments
            swapped[first], swapped[second] = axes[second], axes[first]
            return swapped
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
                fresh(length) if dim < new or given.shape[dim - new] != length else axes[dim - new]
                for dim, length in enumerate(shape)
            ]
    raise AssertionError(f"{operation.name} is no layout")


def _slice(operation: Operation, value: Value) -> tuple[int, int, int, int, bool]:
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


def _dimension_viewed(below: Sequence[int], above: Sequence[int], dim: int) -> tuple[int, int, int] | None:
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

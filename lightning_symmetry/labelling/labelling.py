"""The axes of every tensor on a tape.

Rules tie the axes of an operation's inputs and outputs. Operations that only lay a tensor out anew (views,
permutations, slices) need no rule: their axes follow from those of their input, and are worked out when something else
asks for them. A slice is carried below the layouts it is taken from, down to the axis that it cuts: the view of a fused
query-key-value map as three equal parts would else tie the parts to one another.

A tensor that no parameter reaches tells positions apart only where its entries differ from one to the next.

The entries of some tensors are *indices* along an axis: where the largest entries are, as of an expert by its router.
To look up by them ties that axis to the one looked up; to read them as numbers tells its positions apart.

A loop that selects the positions of an axis one by one is seen only when all is followed; so where there is one, all is
followed a second time.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import repeat

import torch

from lightning_symmetry.labelling.axes import (
    Axis,
    atoms,
    equate,
    every,
    forbid,
    fresh,
    narrow,
    pin,
    places,
    recharged,
    size,
    split,
    taken_apart,
)
from lightning_symmetry.labelling.axis_rules import Binding, Rule, parse, rule_of
from lightning_symmetry.labelling.charges import NEUTRAL, Charge, Unknown, unknown
from lightning_symmetry.labelling.constants import axes_of_constant
from lightning_symmetry.labelling.experiment import rule_by_experiment
from lightning_symmetry.labelling.factors import contraction_of, kept_last, leaf_of, with_gains_of_one
from lightning_symmetry.labelling.loops import Loop, Loops, Positions, laid_side_by_side, walked_beside
from lightning_symmetry.labelling.operation_laws import CONTRACTIONS, law_of_call
from lightning_symmetry.labelling.rearranging import rearranged, viewed
from lightning_symmetry.stacks import n_stacked
from lightning_symmetry.tracing.layout import (
    LAYOUT,
    REARRANGED,
    REPEATED,
    SAME,
    SLICED,
    VIEWED,
    dimension_viewed,
    sliced,
)
from lightning_symmetry.tracing.tape import Operation, Tape, Value

aten = torch.ops.aten
Axes = list[Axis]
Dimension = tuple[Value, int | None]
"""A dimension of a tensor, or the axis of which its entries are indices."""


@dataclass(eq=False)
class Indices:
    """The entries of a tensor as positions along an axis: `axis`, and the axes of the tensor itself."""

    axis: Axis
    places: Axes


IN_ANY_ORDER = {"add", "index", "index_put", "maximum", "minimum", "mul", "scatter_add", "where"}


class Labelling:
    """The axes of the tensors on a tape, tied by its operations.

    Args:
        tape: The tape.
        folded: The names of gains that are taken to be one, as they are once they are folded into what reads them.

    Attributes:
        without_rule: The operations without a rule that leave axes out, and how many: the dimensions of their tensors
            that they tell apart, of which no experiment found out what becomes.
        within: The axes of tensors that exist only within an operation.
        read_by_maps: The unknowns of maps along the axes that they read.
        singled_out: What must vanish of axes whose positions are taken by themselves: what is added all along them.
        read_centred: The unknowns of maps along an axis along which what they read has mean zero before its gain and
            bias, with the norms that it comes from.
    """

    def __init__(self, tape: Tape, folded: Collection[str] = ()) -> None:
        self._folded = folded
        self._selected: defaultdict[Dimension, set[int]] = defaultdict(set)
        self._lengths: dict[Dimension, int] = {}
        self._found_out: dict[Operation, str] = {}
        self._label(tape, {})
        walked = self._walked_dimensions()
        if walked:
            self._label(tape, walked)

    def _label(self, tape: Tape, walked: Mapping[Dimension, int]) -> None:
        """Follow the operations; along the dimensions named the first so many positions are walked by a loop."""
        self.without_rule: Counter[str] = Counter()
        self._within: list[tuple[Axes, Positions]] = []
        self.read_by_maps: set[Unknown] = set()
        self.singled_out: list[Charge] = []
        self.read_centred: defaultdict[Unknown, list[Operation | None]] = defaultdict(list)
        self._axes: dict[Value, Axes] = {}
        self._used = tape.used
        self._indices: dict[Value, Indices | None] = {}
        self._read: list[Axes] = []
        self._positions: dict[Value, Positions] = {}
        self._loops = Loops()
        self._walked = walked
        self._loop_over: dict[Dimension, Loop] = {}
        for operation in tape.operations:
            if operation.name not in LAYOUT and _depends(operation):
                self._apply(with_gains_of_one(operation, self._folded))
        self._loops.join()
        for output in tape.outputs:
            self._pin(output, "output")
        known = (*self._axes.values(), *(axes for axes, _ in self._within))
        apart = dict.fromkeys(atom for axes in known for axis in axes for atom in taken_apart(axis))
        self.singled_out += [form for atom in apart for form in atom.vanishing]
        used = {atom for axes in self._read for axis in axes for atom in atoms(axis)}
        held = (axis for leaf in tape.leaves.values() for axis in self._axes.get(leaf, ()))
        for place in (place for axis in held for place in places(axis)):
            if place.atom not in used:
                pin((place,), "unused")

    def _walked_dimensions(self) -> dict[Dimension, int]:
        """The dimensions that loops walk, each with how many of its first positions, which were selected one by one.

        Or else with all of them, where the model chooses some, and these are selected of its parameters too: as of
        experts of which some are sent no token.
        """
        several = {place: frozenset(found) for place, found in self._selected.items() if len(found) > 1}
        walked = {place: len(found) for place, found in several.items() if found == set(range(len(found)))}
        alike: defaultdict[tuple[frozenset[int], int], list[Dimension]] = defaultdict(list)
        for place, found in several.items():
            alike[found, self._lengths[place]].append(place)
        for (_, length), together in alike.items():
            names = {place: leaf_of(place[0]) for place in together}
            chosen = None in names.values()
            of_leaves = {name or "" for (value, dim), name in names.items() if dim == 0 and len(value.shape) > 2}
            if chosen and (len(of_leaves - {""}) > 1 or any(n_stacked(name or "") for name in names.values())):
                walked |= dict.fromkeys(together, length)
        return walked

    def tensors(self) -> list[Axes]:
        """The axes of every tensor that an operation met, those within operations included.

        A tensor that goes along with indices, each of its positions with one of them, has the axis that they index too;
        and one that a loop made at one position of an axis has that axis.
        """
        known = dict.fromkeys(indices for indices in self._indices.values() if indices is not None)
        standing = [(axes, self._standing(value)) for value, axes in self._axes.items()]
        tensors = [[*axes, *walked_beside(positions)] for axes, positions in (*standing, *self._within)]
        return [[*axes, *_indexed_beside(axes, known)] for axes in tensors]

    def leaf(self, value: Value) -> Axes:
        """The axes of a parameter or buffer; those that no operation read are told apart."""
        if value not in self._axes:
            self._axes[value] = _axes_of_leaf(value)
            self._pin(value, "unused")
        return self._axes[value]

    def indices(self, value: Value) -> Indices | None:
        """Of what the entries of a tensor are indices, if they are."""
        source = value.source
        if value not in self._indices and source is not None and source.name in LAYOUT:
            given = self.indices(source.args[0])
            in_part = given is not None and source.name in SLICED
            self._indices[value] = Indices(given.axis, self.axes(value)) if given is not None and in_part else given
        return self._indices.get(value)

    def axes(self, value: Value) -> Axes:
        """The axes of a tensor, one a dimension."""
        if not value.depends:
            return axes_of_constant(value)
        if value not in self._axes:
            source = value.source
            self._axes[value] = self._laid_out(source, value) if source else _axes_of_leaf(value)
        return self._axes[value]

    def _apply(self, operation: Operation) -> None:
        outputs = [output for output in operation.outputs if output is not None]
        self._read += [self.axes(value) for value in operation.inputs if value.depends]
        rule, sizes = rule_of(operation.operation, operation.args, operation.kwargs) or self._asked(operation)
        rule = rule.for_call(len(operation.inputs), len(outputs))
        contracts = operation.operation.overloadpacket in CONTRACTIONS
        contraction = contraction_of(operation, rule.contracted) if contracts else None
        binding = Binding(sizes, law_of_call(operation, self._used), contraction)
        for pattern, value in zip(rule.inputs, operation.inputs, strict=True):
            binding.read(pattern, self.axes(value))
        at: Positions = {}
        for letter, value in zip(rule.input_indices, operation.inputs, strict=True):
            indices = self.indices(value)
            if letter:
                binding.point(letter, indices.axis if indices is not None else None)
            elif indices is not None and not self._chooses(operation, value, indices, at):
                pin(indices.axis, "indices read as numbers")
        for pattern, letter, output in zip(rule.outputs, rule.output_indices, outputs, strict=True):
            axes = binding.write(pattern, output.shape)
            if [size(axis) for axis in axes] != list(output.shape):
                assert not math.prod(output.shape), f"{rule.text!r} gives {operation.operation} the wrong shape"
                axes = [fresh(length) for length in output.shape]  # a norm returns no statistics in inference
            self._axes[output] = axes
            if letter:
                self._indices[output] = Indices(recharged(binding.axis(letter), repeat(NEUTRAL)), axes)
        binding.finish()
        self.read_by_maps.update(binding.read_by_maps)
        for key, number in binding.read_centred:
            self.read_centred[key].append(kept_last(operation.inputs[number]))
        stood = list(map(self._standing, operation.inputs))
        in_any_order = operation.name in IN_ANY_ORDER or self._laid_along(operation, stood)
        standing = self._loops.meet([at, *stood], in_any_order)
        self._positions.update(dict.fromkeys(outputs, standing))
        within = [binding.write(pattern, [1] * len(pattern)) for pattern in rule.within]
        within += [binding.together()] if contracts else []
        self._within += [(axes, standing) for axes in within]

    def _laid_along(self, operation: Operation, stood: Sequence[Positions]) -> bool:
        """Whether what a loop gives at its positions is laid side by side: then that is along its axis."""
        alike = operation.name == "cat" and len({each.shape for each in operation.inputs}) == 1
        loop = laid_side_by_side(stood) if alike else None
        if loop is None:
            return False
        first, *others = (self.axes(value) for value in operation.inputs)
        (output,) = operation.outputs
        dim = (*operation.args[1:], 0)[0] % len(first)
        for axes in others:
            equate(first[dim], axes[dim])
        self._axes[output][dim] = loop.axis + first[dim]  # type: ignore[index]
        return True

    def _asked(self, operation: Operation) -> tuple[Rule, dict[str, int]]:
        """The rule of a call of an operation that has none registered: what an experiment tells, or all told apart."""
        if operation not in self._found_out:
            tensors = [*operation.inputs, *(output for output in operation.outputs if output is not None)]
            patterns = [" ".join("1" if length == 1 else "_" for length in value.shape) for value in tensors]
            n_inputs = len(operation.inputs)
            pinned = f"{', '.join(patterns[:n_inputs])} -> {', '.join(patterns[n_inputs:])}"
            self._found_out[operation] = rule_by_experiment(operation) or pinned
        text = self._found_out[operation]
        if "_" in text:
            self.without_rule[str(operation.operation)] += text.count("_")
        return parse(text), {}

    def _chooses(self, operation: Operation, value: Value, indices: Indices, at: Positions) -> bool:
        """Whether an operation asks which indices are those of the position at which a loop stands."""
        if operation.operation != aten.eq.Scalar or operation.args[1] not in range(size(indices.axis)):
            return False
        return self._steps((value, None), indices.axis, int(operation.args[1]), at)

    def _standing(self, value: Value) -> Positions:
        """The positions of loops at which a tensor was made."""
        if value in self._positions or value.source is None or value.source.name not in LAYOUT:
            return self._positions.get(value, {})
        return self._standing(value.source.args[0])

    def _pin(self, value: Value, why: str) -> None:
        indices = self.indices(value)
        for axis in [*self.axes(value), *([indices.axis] if indices is not None else [])]:
            pin(axis, why)

    def _laid_out(self, operation: Operation, value: Value) -> Axes:
        """The axes of a tensor that an operation lays out anew."""
        given: Value = operation.args[0]
        if operation.name in SLICED:
            dim, start, stop, step, kept = sliced(operation, value)
            if step == 1:
                at: Positions = {}
                axes = self._narrowed(given, dim, start, stop, at)
                self._positions[value] = {**self._standing(given), **at}
            else:
                axes = list(self.axes(given))
                axes[dim] = every(axes[dim], start, stop, step)
            return axes if kept else axes[:dim] + axes[dim + 1 :]
        return rearranged(operation, self.axes(given), value.shape)

    def _narrowed(self, value: Value, dim: int, start: int, stop: int, at: Positions) -> Axes:
        """The axes of ``value[start:stop]`` along a dimension, the slice carried below the layouts above it.

        The position of a loop at which they stand is added to those given.
        """
        shape = value.shape
        if (start, stop) == (0, shape[dim]):
            return list(self.axes(value))
        source = value.source
        if value.depends and value not in self._axes and source is not None:
            given: Value = source.args[0]
            if source.name in SAME:
                return self._narrowed(given, dim, start, stop, at)
            if source.name in REARRANGED - REPEATED:
                dims = rearranged(source, list(range(len(given.shape))), shape)
                if isinstance(dims[dim], int):
                    below = self._narrowed(given, dims[dim], start, stop, at)
                    return [below[each] if isinstance(each, int) else () for each in dims]
            if source.name in VIEWED:
                group = dimension_viewed(given.shape, shape, dim)
                if group is not None:
                    return self._narrowed_view(given, shape, dim, start, stop, *group, at)
        axes = list(self.axes(value))
        if value.depends and stop - start == 1 and self._steps((value, dim), axes[dim], start, at):
            axes[dim] = ()
        else:
            axes[dim] = self._part(axes[dim], start, stop)
        return axes

    def _part(self, axis: Axis, start: int, stop: int) -> Axis:
        """A stretch of an axis; where it is one position, what is added all along the axis changes it."""
        if stop - start == 1:
            self.singled_out += [place.charge.of_mean for place in places(axis)]
        return narrow(axis, start, stop)

    def _steps(self, place: Dimension, axis: Axis, position: int, at: Positions) -> bool:
        """Whether to take one position by itself is a step of a loop; if so, it is added to those given."""
        self._selected[place].add(position)
        self._lengths[place] = size(axis)
        if place not in self._walked:
            return False
        if place not in self._loop_over:
            self._loop_over[place] = self._loops.over(narrow(axis, 0, self._walked[place]), alone=_is_stack(place[0]))
            self._read.append([self._loop_over[place].axis])
        self._loop_over[place].walked.add(position)
        at[self._loop_over[place]] = position
        forbid(axis, "walked in a loop")
        return True

    def _narrowed_view(
        self,
        given: Value,
        shape: Sequence[int],
        dim: int,
        start: int,
        stop: int,
        below: int,
        first: int,
        last: int,
        at: Positions,
    ) -> Axes:
        """The slice of a view, of which dimensions `first` to `last` came from the one dimension `below`."""
        if last - first == 1:
            axes = self._narrowed(given, below, start, stop, at)
            parts = [axes[below]]
        else:
            axes = self.axes(given)
            after = math.prod(shape[dim + 1 : last])
            outer, rest = split(axes[below], math.prod(shape[first:dim]))
            middle, inner = split(self._part(rest, start * after, stop * after), stop - start)
            parts = [*viewed([outer], shape[first:dim]), middle, *viewed([inner], shape[dim + 1 : last])]
        return [*viewed(axes[:below], shape[:first]), *parts, *viewed(axes[below + 1 :], shape[last:])]


def _indexed_beside(axes: Axes, known: Iterable[Indices]) -> Axes:
    """The axes that indices at every position of a tensor pick a position of, once for each of these indices."""
    present = {atom for axis in axes for atom in atoms(axis)}
    return [
        indices.axis
        for indices in known
        if present.issuperset(atom for axis in indices.places for atom in atoms(axis))
        and present.isdisjoint(atoms(indices.axis))
    ]


def _is_stack(value: Value) -> bool:
    """Whether a tensor is of modules of a list, one upon another."""
    return n_stacked(leaf_of(value) or "") > 0


def _depends(operation: Operation) -> bool:
    return any(output is not None and output.depends for output in operation.outputs)


def _axes_of_leaf(value: Value) -> Axes:
    """New axes for a parameter or a running statistic, each with a charge to be found; noise has none."""
    return [fresh(length, charge=unknown() if value.name else NEUTRAL) for length in value.shape]

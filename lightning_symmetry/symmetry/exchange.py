"""Modules of a list that may be exchanged as wholes: heads, experts, members of an ensemble, each a module of its own.

What a step computes of each of them must be joined in any order, by a sum, or side by side before something reads it;
layers, one after the other, are no such modules. Their parameters are then seen as one, a stack, of which each module
selects a position: what that axis and those within it allow is found as of any other tensor. What may be added to one
module and taken away from another is along no axis of a stack; it is found without stacks, and acts on parts of them.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import combinations

import torch
from torch import Tensor
from torch._subclasses import FakeTensor

from lightning_symmetry.labelling.labelling import IN_ANY_ORDER
from lightning_symmetry.stacks import STAR, first_of
from lightning_symmetry.symmetry.actions import Action, Block
from lightning_symmetry.symmetry.groups import SymmetryGroup
from lightning_symmetry.symmetry.proposals import Proposals, propose
from lightning_symmetry.tracing.tape import Operation, Tape, Value, made

_NUMBER = re.compile(r"(?:^|(?<=\.))\d+(?=\.|$)")

Modules = list[dict[str, str]]
"""The names of the tensors of each of several modules, by the names of their stacks."""

Lists = Mapping[str, Modules]
"""Lists of modules by their names, those within others first: what these have are stacks already."""


def propose_with_exchanges(
    tape: Tape, parameters: Collection[str], kinds: Collection[str], apart: Proposals, lists: Lists
) -> tuple[Proposals, Lists]:
    """Propose groups with the modules of lists stacked, so that they may be exchanged.

    None of the lists hides another group: where modules differ in what is within them, they are left as they are.

    Args:
        tape: The tape.
        parameters: The names of its leaves that are parameters.
        kinds: The kinds of symmetry.
        apart: What was proposed without stacks.
        lists: The lists of modules that may be exchanged.

    Returns:
        The proposals, and the lists that are exchanged as far as the tape tells.
    """
    while lists:
        places = _places(lists)
        names = {_stack_of(name, places): None for name in parameters}
        proposals = propose(_with_stacks(tape, lists), names, kinds)
        between = [_on_stacks(group, places) for group in apart.groups if _is_between(group, places)]
        each = [_each_by_itself(group, apart.groups, proposals.blocks, places) for group in proposals.groups]
        groups = [*each, *between]
        hiding = _hiding(lists, apart.groups, groups)
        if not hiding:
            return replace(proposals, groups=groups), lists
        lists = without(lists, hiding)
    return apart, lists


def _hiding(lists: Lists, apart: Sequence[SymmetryGroup], stacked: Sequence[SymmetryGroup]) -> Collection[str]:
    """The lists of which nothing is exchanged, or that hide what moves them apart; all where others are hidden."""
    places = _places(lists)
    hiding = [*unexchanged(stacked, lists), *_crossed(stacked, lists)]
    for name, modules in lists.items():
        stacks = {_stack_of(stack, places) for stack in modules[0]}
        own = {leaf for leaf in places if _stack_of(leaf, places) in stacks}
        if not _extent(apart, own) <= _extent(stacked, stacks):
            hiding.append(name)
    return hiding or ([] if _extent(apart) <= _extent(stacked) else lists.keys())


def unexchanged(groups: Iterable[SymmetryGroup], lists: Lists) -> list[str]:
    """The lists of modules that none of these groups exchanges."""
    exchanged = {
        (action.block.tensor, dim)
        for group in groups
        for action in group.actions
        for dim in range(action.block.tensor.count(STAR))
        if group.kind == "permutation" and action.degrees[dim]
    }
    places = _places(lists)
    along = {
        name: {(whole := _stack_of(stack, places), whole.count(STAR) - stack.count(STAR)) for stack in modules[0]}
        for name, modules in lists.items()
    }
    return [name for name, dims in along.items() if dims.isdisjoint(exchanged)]


def without(lists: Lists, names: Collection[str]) -> dict[str, Modules]:
    """The lists but for some, and for those of what these stack."""
    kept: dict[str, Modules] = {}
    for name, modules in lists.items():
        stacks = {stack for others in kept.values() for stack in others[0]}
        if name not in names and all(STAR not in leaf or leaf in stacks for leaf in modules[0].values()):
            kept[name] = modules
    return kept


def _crossed(groups: Iterable[SymmetryGroup], lists: Lists) -> list[str]:
    """The lists whose modules are exchanged by units, which may be permuted by modules: all of them are then alike."""
    permuting = [group for group in groups if group.kind == "permutation"]
    rows = {group.axis: dict(group.rows) for group in permuting}
    crossing = {axis for axis, beside in rows.items() if any(axis in rows.get(row, {}) for row in beside)}
    others = unexchanged([group for group in permuting if group.axis in crossing], lists)
    return [name for name in lists if name not in others]


def joined_lists(tape: Tape) -> dict[str, Modules]:
    """The lists of modules that are alike, and of which what comes is joined in any order."""
    lists: dict[str, Modules] = {}
    depths = {leaf[: number.start()].count(".") for leaf in tape.leaves for number in _NUMBER.finditer(leaf)}
    for depth in sorted(depths, reverse=True):
        stacked = _with_stacks(tape, lists)
        for name, modules in _alike(stacked, depth).items():
            if _joined_in_any_order(stacked, modules):
                lists[name] = modules
    return lists


def _alike(tape: Tape, depth: int) -> dict[str, Modules]:
    """The lists at a depth of modules, numbered from 0, with tensors of the same names and shapes."""
    found: defaultdict[str, defaultdict[int, dict[str, str]]] = defaultdict(lambda: defaultdict(dict))
    for leaf, value in tape.leaves.items():
        for number in _NUMBER.finditer(leaf) if value.depends else ():
            before, after = leaf[: number.start()], leaf[number.end() :]
            if before.count(".") == depth:
                found[before][int(number.group())][f"{before}{STAR}{after}"] = leaf
    alike: dict[str, Modules] = {}
    for before, numbered in found.items():
        modules = [numbered.get(number, {}) for number in range(len(numbered))]
        first, *others = (
            {
                stack: (tape.leaves[leaf].shape, tape.leaves[leaf].dtype, tape.offsets.get(leaf))
                for stack, leaf in module.items()
            }
            for module in modules
        )
        numbers_alone = any(not shape for shape, *_ in first.values())
        if others and first and not numbers_alone and all(other == first for other in others):
            alike[before] = modules
    return alike


def _joined_in_any_order(tape: Tape, modules: Modules) -> bool:
    """Whether what comes of each module meets that of others, and only where they may be exchanged.

    What they read beside must be the same, as far as it is constant: not columns of a table, each by one of them.
    """
    at: dict[Value, int | None] = {
        tape.leaves[leaf]: number for number, module in enumerate(modules) for leaf in module.values()
    }
    beside: list[list[Tensor]] = [[] for _ in modules]
    joined = False
    for operation in tape.operations:
        met = {at[value] for value in operation.inputs if value in at}
        if len(met) > 1 and operation.name not in (*IN_ANY_ORDER, "cat"):
            return False
        joined |= len(met) > 1
        if met:
            position = met.pop() if len(met) == 1 else None
            at.update((output, position) for output in operation.outputs if output is not None)
            if position is not None:
                beside[position] += [value.constant for value in operation.inputs if value.constant is not None]
    alike = all(all(map(_may_be_same, one, other)) for one, other in combinations(filter(None, beside), 2))
    return alike and joined and all(at.get(output) is None for output in tape.outputs)


def _may_be_same(one: Tensor, other: Tensor) -> bool:
    """Whether two constants may be the same, or of what is different in number, as tokens are that experts are sent."""
    if one is other or one.shape != other.shape or one.layout != torch.strided or other.layout != torch.strided:
        return True
    return isinstance(one, FakeTensor) or isinstance(other, FakeTensor) or torch.equal(one, other)


def _with_stacks(tape: Tape, lists: Lists) -> Tape:
    """The tape with the tensors of modules in lists stacked, and with no others."""
    leaves = dict(tape.leaves)
    selected: list[Operation] = []
    for value in leaves.values():
        value.source = None
    for modules in lists.values():
        for name in modules[0]:
            values = [leaves[module[name]] for module in modules]
            stack = leaves[name] = Value((len(values), *values[0].shape), values[0].dtype, name=name)
            selected[:0] = [made(each, torch.ops.aten.select_copy.int, stack, 0, k) for k, each in enumerate(values)]
    places = _places(lists)
    in_place = {_stack_of(name, places): None for name in tape.leaves}
    return replace(
        tape,
        operations=selected + tape.operations,
        leaves={name: leaves[name] for name in in_place},
        offsets={name: tape.offsets[first_of(name)] for name in in_place if first_of(name) in tape.offsets},
    )


def _places(lists: Lists) -> dict[str, tuple[str, int]]:
    """The stack that a tensor is in, and where."""
    return {
        leaf: (stack, number)
        for modules in lists.values()
        for number, module in enumerate(modules)
        for stack, leaf in module.items()
    }


def _stack_of(name: str, places: Mapping[str, tuple[str, int]]) -> str:
    """The name of the outermost stack that a tensor is in, or its own."""
    while name in places:
        name, _ = places[name]
    return name


def _is_between(group: SymmetryGroup, places: Mapping[str, tuple[str, int]]) -> bool:
    """Whether a group is a translation of several of the modules that are stacked."""
    tensors = {block.tensor for block in group.blocks if block.tensor in places}
    several = len({_stack_of(tensor, places) for tensor in tensors}) < len(tensors)
    return several and group.kind == "translation" and not group.carried and not group.folds


def _on_stacks(group: SymmetryGroup, places: Mapping[str, tuple[str, int]]) -> SymmetryGroup:
    """A group of single modules, as it acts on parts of their stacks, along axes of its own."""
    axes = {axis: f"{group.name}[{k}]" for k, axis in enumerate((group.axis, *dict(group.rows)))}
    actions = []
    for block, degrees in ((action.block, action.degrees) for action in group.actions):
        own = replace(block, axes=tuple(axes.get(axis, "") for axis in block.axes))
        while own.tensor in places:
            own, degrees = _of_stack(own, *places[own.tensor]), (0, *degrees)
        actions.append(Action(own, degrees))
    rows = tuple((axes[row], length) for row, length in group.rows)
    return replace(group, axis=axes[group.axis], rows=rows, actions=tuple(actions))


def _of_stack(block: Block, stack: str, number: int) -> Block:
    """A block of a module's tensor, as a part of the stack."""
    views = tuple((dim + 1, *rest) for dim, *rest in block.views)
    return replace(block, tensor=stack, views=((0, number, 1), *views), axes=("", *block.axes))


def _each_by_itself(
    group: SymmetryGroup,
    apart: Iterable[SymmetryGroup],
    blocks: Sequence[Block],
    places: Mapping[str, tuple[str, int]],
) -> SymmetryGroup:
    """A scale or sign of whole stacks as one of each of their modules, where each has one; other groups as they are.

    The stacks are of the same lists, so that the first axes of all their blocks are the same.
    """
    modules = {_numbers(leaf, places) for leaf in group.parameters}
    depth = min(map(len, modules))
    if group.kind not in ("scale", "sign") or group.size > 1 or not depth or not _is_of_each(group, apart, places):
        return group
    degrees = {action.block.tensor: max(action.degrees, key=abs) for action in group.actions}
    parts = [block for block in blocks if block.tensor in degrees]
    actions = tuple(
        Action(part, tuple(degrees[part.tensor] * (dim == depth - 1) for dim in range(len(part.axes))))
        for part in parts
    )
    lengths = [1 + max(numbers) for numbers in zip(*modules, strict=True)]
    *rows, axis = parts[0].axes[:depth]
    return replace(group, axis=axis, size=lengths[-1], rows=tuple(zip(rows, lengths, strict=False)), actions=actions)


def _is_of_each(group: SymmetryGroup, apart: Iterable[SymmetryGroup], places: Mapping[str, tuple[str, int]]) -> bool:
    """Whether every module that groups move has one of its own of what a group of whole stacks does to all."""
    moved: set[tuple[int, ...]] = set()
    own: set[tuple[int, ...]] = set()
    for other in apart:
        modules = {_numbers(name, places) for name in other.tensors if _stack_of(name, places) in group.tensors}
        stacks = {_stack_of(name, places) for name in other.tensors}
        moved |= modules  # those that the step uses
        if other.kind == group.kind and len(modules) == 1 and stacks == set(group.tensors):
            own |= modules
    return bool(own) and own == moved


def _numbers(name: str, places: Mapping[str, tuple[str, int]]) -> tuple[int, ...]:
    """Where in its lists the module is that has a tensor, the outermost list first."""
    return (*_numbers(places[name][0], places), places[name][1]) if name in places else ()


def _extent(groups: Iterable[SymmetryGroup], tensors: Collection[str] | None = None) -> Counter[str]:
    """How many degrees of freedom groups of each kind have, discrete ones counted likewise: all, or of some tensors."""
    extent: Counter[str] = Counter()
    for group in groups:
        if tensors is None or not set(tensors).isdisjoint(group.tensors):
            discrete = group.size if group.kind == "sign" else group.size - 1
            extent[group.kind] += max(group.dimension, group.n_rows * discrete)
    return extent

"""Modules of a list that may be exchanged as wholes: heads, experts, members of an ensemble, each a module of its own.

What a step computes of each of them must be joined in any order, by a sum, or side by side before something reads it;
layers, one after the other, are no such modules. Their parameters are then seen as one, a stack, of which each module
selects a position: what that axis and those within it allow is found as of any other tensor. What may be added to one
module and taken away from another is along no axis of a stack; it is found without stacks, and acts on parts of them.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import replace

import torch

from lightning_symmetry.symmetry.actions import Action, Block
from lightning_symmetry.symmetry.groups import SymmetryGroup
from lightning_symmetry.symmetry.kinds import KINDS
from lightning_symmetry.symmetry.labelling import IN_ANY_ORDER
from lightning_symmetry.symmetry.proposals import Proposals, propose
from lightning_symmetry.symmetry.stacks import STAR
from lightning_symmetry.symmetry.tape import Operation, Tape, Value, made

_NUMBER = re.compile(r"(?:^|(?<=\.))\d+(?=\.|$)")

Modules = list[dict[str, str]]
"""The names of the tensors of each of several modules, by the names of their stacks."""


def propose_with_exchanges(
    tape: Tape, parameters: Collection[str], lists: Mapping[str, Modules], kinds: Collection[str] = tuple(KINDS)
) -> Proposals:
    """Propose groups with the modules of some lists stacked, so that they may be exchanged.

    Args:
        tape: The tape.
        parameters: The names of its leaves that are parameters.
        lists: Of those that `exchangeable` found.
        kinds: The kinds of symmetry.
    """
    places = {
        leaf: (stack, number)
        for modules in lists.values()
        for number, module in enumerate(modules)
        for stack, leaf in module.items()
    }
    stacked = dict.fromkeys(places[name][0] if name in places else name for name in parameters)
    proposals = propose(_with_stacks(tape, lists), stacked, kinds)
    if lists and "translation" in kinds:
        apart = propose(_with_stacks(tape, {}), parameters, ["translation"]).groups
        between = [_on_stacks(group, places) for group in apart if _is_between(group, places)]
        proposals = replace(proposals, groups=[*proposals.groups, *between])
    return proposals


def exchangeable(tape: Tape, parameters: Collection[str]) -> dict[str, Modules]:
    """The lists of modules that may be exchanged as far as the tape tells, by their names.

    None of them hides another group: where modules differ in what is within them, they are left as they are.
    """
    lists = {name: modules for name, modules in _alike(tape).items() if _joined_in_any_order(tape, modules)}
    if not lists:
        return {}
    apart = _extent(propose(tape, parameters).groups)

    def hides_none(some: Mapping[str, Modules]) -> bool:
        groups = propose_with_exchanges(tape, parameters, some).groups
        extent = _extent(groups)
        return not unexchanged(groups, some) and all(extent[kind] >= size for kind, size in apart.items())

    if hides_none(lists):
        return lists
    return {name: modules for name, modules in lists.items() if hides_none({name: modules})}


def unexchanged(groups: Iterable[SymmetryGroup], lists: Mapping[str, Modules]) -> list[str]:
    """The lists of modules that none of these groups exchanges."""
    exchanged = {
        action.block.tensor
        for group in groups
        for action in group.actions
        if group.kind == "permutation" and STAR in action.block.tensor and action.degrees[0]
    }
    return [name for name, modules in lists.items() if exchanged.isdisjoint(modules[0])]


def _alike(tape: Tape) -> dict[str, Modules]:
    """The lists of modules, numbered from 0, with tensors of the same names and shapes; of nested lists the inner."""
    found: defaultdict[str, defaultdict[int, dict[str, str]]] = defaultdict(lambda: defaultdict(dict))
    for leaf, value in tape.leaves.items():
        for number in _NUMBER.finditer(leaf) if value.depends else ():
            before, after = leaf[: number.start()], leaf[number.end() :]
            found[before][int(number.group())][f"{before}{STAR}{after}"] = leaf
    alike: dict[str, Modules] = {}
    taken: set[str] = set()
    for before in sorted(found, key=len, reverse=True):
        modules = [found[before].get(number, {}) for number in range(len(found[before]))]
        alone = taken.isdisjoint(leaf for module in modules for leaf in module.values())
        if len(modules) > 1 and modules[0] and alone and len(set(_shapes(tape, modules))) == 1:
            alike[before] = modules
            taken.update(leaf for module in modules for leaf in module.values())
    return alike


def _shapes(tape: Tape, modules: Modules) -> Iterator[frozenset[object]]:
    for module in modules:
        leaves = [(stack, leaf, tape.leaves[leaf]) for stack, leaf in module.items()]
        yield frozenset((stack, value.shape, value.dtype, tape.offsets.get(leaf)) for stack, leaf, value in leaves)


def _joined_in_any_order(tape: Tape, modules: Modules) -> bool:
    """Whether what comes of each module meets that of others, and only where they may be exchanged."""
    at: dict[Value, int | None] = {
        tape.leaves[leaf]: number for number, module in enumerate(modules) for leaf in module.values()
    }
    used: set[int | None] = set()
    joined = False
    for operation in tape.operations:
        met = {at[value] for value in operation.inputs if value in at}
        if len(met) > 1 and operation.name not in (*IN_ANY_ORDER, "cat"):
            return False
        used |= met
        joined |= len(met) > 1
        if met:
            position = met.pop() if len(met) == 1 else None
            at.update((output, position) for output in operation.outputs if output is not None)
    return joined and used >= set(range(len(modules))) and all(at.get(output) is None for output in tape.outputs)


def _with_stacks(tape: Tape, lists: Mapping[str, Modules]) -> Tape:
    """The tape with the tensors of modules in lists stacked, and with no others."""
    selected: list[Operation] = []
    stack_of: dict[str, str] = {}
    for value in tape.leaves.values():
        value.source = None
    for modules in lists.values():
        for name in modules[0]:
            values = [tape.leaves[module[name]] for module in modules]
            stack = Value((len(values), *values[0].shape), values[0].dtype, name=name)
            selected += [made(each, torch.ops.aten.select_copy.int, stack, 0, k) for k, each in enumerate(values)]
            stack_of.update((module[name], name) for module in modules)
    leaves: dict[str, Value] = {}
    for leaf, value in tape.leaves.items():
        leaves.setdefault(stack_of.get(leaf, leaf), value if value.source is None else value.source.args[0])
    offsets = {stack_of.get(leaf, leaf): number for leaf, number in tape.offsets.items()}
    return replace(tape, operations=selected + tape.operations, leaves=leaves, offsets=offsets)


def _is_between(group: SymmetryGroup, places: Mapping[str, tuple[str, int]]) -> bool:
    """Whether a translation moves several of the modules that are stacked."""
    stacks = [places[block.tensor][0] for block in group.blocks if block.tensor in places]
    return len(set(stacks)) < len(stacks) and not group.carried and not group.folds


def _on_stacks(group: SymmetryGroup, places: Mapping[str, tuple[str, int]]) -> SymmetryGroup:
    """A group of single modules, as it acts on parts of their stacks, along axes of its own."""
    axes = {axis: f"{group.name}[{k}]" for k, axis in enumerate((group.axis, *dict(group.rows)))}
    actions = []
    for block, degrees in ((action.block, action.degrees) for action in group.actions):
        own = replace(block, axes=tuple(axes.get(axis, "") for axis in block.axes))
        if block.tensor in places:
            stack, number = places[block.tensor]
            own, degrees = _of_stack(own, stack, number), (0, *degrees)
        actions.append(Action(own, degrees))
    rows = tuple((axes[row], length) for row, length in group.rows)
    return replace(group, axis=axes[group.axis], rows=rows, actions=tuple(actions))


def _of_stack(block: Block, stack: str, number: int) -> Block:
    """A block of a module's tensor, as a part of the stack."""
    views = tuple((dim + 1, *rest) for dim, *rest in block.views)
    return replace(block, tensor=stack, views=((0, number, 1), *views), axes=("", *block.axes))


def _extent(groups: Iterable[SymmetryGroup]) -> Counter[str]:
    """How many degrees of freedom groups of each kind have, discrete ones counted likewise."""
    extent: Counter[str] = Counter()
    for group in groups:
        extent[group.kind] += max(group.dimension, group.n_rows * (group.size - 1))
    return extent

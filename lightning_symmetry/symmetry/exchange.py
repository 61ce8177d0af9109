"""Modules that may be exchanged as wholes: heads, experts, members of an ensemble, two critics.

The parameters of modules that are alike are seen as one, a stack, of which each module selects a position: what that
axis and those within it allow is found as of any other tensor. What may be added to one module and taken away from
another is along no axis of a stack; it is found without stacks, and acts on parts of them.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import chain

import torch

from lightning_symmetry.labelling.alike import Lists, in_stacks, joined_lists, outermost_stack, with_stacks
from lightning_symmetry.stacks import list_of, n_stacked
from lightning_symmetry.symmetry.actions import Action, Block
from lightning_symmetry.symmetry.groups import SymmetryGroup
from lightning_symmetry.symmetry.proposals import Proposals, propose
from lightning_symmetry.tracing.tape import Tape


def propose_with_exchanges(
    tape: Tape, parameters: Collection[str], kinds: Collection[str], apart: Proposals, left: Collection[str]
) -> tuple[Proposals, Lists]:
    """Propose groups with the modules of lists stacked, so that they may be exchanged.

    None of the lists hides another group: where modules differ in what is within them, they are left as they are, the
    innermost first.

    Args:
        tape: The tape.
        parameters: The names of its leaves that are parameters.
        kinds: The kinds of symmetry.
        apart: What was proposed without stacks.
        left: The names of lists that are left as they are.

    Returns:
        The proposals, and the lists that are exchanged as far as the tape tells.
    """
    left = set(left)
    while lists := joined_lists(tape, left) if "permutation" in kinds else {}:
        places = in_stacks(lists)
        names = {outermost_stack(name, places): None for name in parameters}
        proposals = propose(with_stacks(tape, lists), names, kinds)
        between = [group for group in apart.groups if _is_between(group, places)]
        each = [_each_by_itself(group, apart.groups, proposals.blocks, places) for group in proposals.groups]
        groups = [group for group in each if not _is_sum_of(group, between, places)]
        groups += [_on_stacks(group, places) for group in between]
        hiding = _hiding(lists, apart.groups, groups)
        if not hiding:
            return replace(proposals, groups=groups), lists
        left.update(innermost(hiding, lists))
    return apart, lists


def _hiding(lists: Lists, apart: Sequence[SymmetryGroup], stacked: Sequence[SymmetryGroup]) -> Collection[str]:
    """The lists of which nothing is exchanged, or that hide what moves them apart; all where others are hidden."""
    places = in_stacks(lists)
    hiding = [*unexchanged(stacked, lists), *_crossed(stacked, lists)]
    for name, modules in lists.items():
        stacks = {outermost_stack(stack, places) for stack in modules[0]}
        own = {leaf for leaf in places if outermost_stack(leaf, places) in stacks}
        if not _extent(apart, own) <= _extent(stacked, stacks):
            hiding.append(name)
    return hiding or ([] if _extent(apart) <= _extent(stacked) else lists.keys())


def unexchanged(groups: Iterable[SymmetryGroup], lists: Lists) -> list[str]:
    """The lists of modules that none of these groups exchanges."""
    exchanged = {
        (action.block.tensor, dim)
        for group in groups
        for action in group.actions
        for dim in range(n_stacked(action.block.tensor))
        if group.kind == "permutation" and action.degrees[dim]
    }
    places = in_stacks(lists)
    along = {
        name: {(whole := outermost_stack(stack, places), n_stacked(whole) - n_stacked(stack)) for stack in modules[0]}
        for name, modules in lists.items()
    }
    return [name for name, dims in along.items() if dims.isdisjoint(exchanged)]


def innermost(names: Collection[str], lists: Lists) -> list[str]:
    """Those of some lists in whose modules no other of them is."""
    list_of_stack = {stack: name for name, modules in lists.items() for stack in modules[0]}
    within: dict[str, set[str]] = {}
    for name, modules in lists.items():  # those within others come first
        own = {list_of_stack[leaf] for module in modules for leaf in module.values() if leaf in list_of_stack}
        within[name] = own.union(*(within[inner] for inner in own))
    return [name for name in names if within[name].isdisjoint(names)]


def _crossed(groups: Iterable[SymmetryGroup], lists: Lists) -> list[str]:
    """The lists whose modules are exchanged by units, which may be permuted by modules: all of them are then alike."""
    permuting = [group for group in groups if group.kind == "permutation"]
    rows = {group.axis: dict(group.rows) for group in permuting}
    crossing = {axis for axis, beside in rows.items() if any(axis in rows.get(row, {}) for row in beside)}
    others = unexchanged([group for group in permuting if group.axis in crossing], lists)
    return [name for name in lists if name not in others]


def _is_between(group: SymmetryGroup, places: Mapping[str, tuple[str, int]]) -> bool:
    """Whether a group is a translation of several of the modules that are stacked, not of all of them alike."""
    if group.kind != "translation" or group.carried or group.folds:
        return False
    stacks: defaultdict[str, defaultdict[str, set[object]]] = defaultdict(lambda: defaultdict(set))
    for action in group.actions:
        if (leaf := action.block.tensor) in places:
            stacks[outermost_stack(leaf, places)][leaf].add((action.block.views, action.degrees))
    outermost = {(list_of(stack, 0), _numbers(leaf, places)[0]) for stack, moved in stacks.items() for leaf in moved}
    several = len(outermost) > 1 or any(len(moved) > 1 for moved in stacks.values())
    modules = Counter(outermost_stack(leaf, places) for leaf in places if not n_stacked(leaf))
    alike = all(
        len(moved) == modules[stack] and all(each == next(iter(moved.values())) for each in moved.values())
        for stack, moved in stacks.items()
    )
    return several and not alike


def _is_sum_of(group: SymmetryGroup, between: Iterable[SymmetryGroup], places: Mapping[str, tuple[str, int]]) -> bool:
    """Whether a translation of stacks adds what several between modules do together."""
    if group.kind != "translation" or group.rows or group.carried or group.folds:
        return False
    others = [_added_to(other, places) for other in between if other.size == group.size]
    if not others:
        return False
    added = _added_to(group, places)
    parts = list(dict.fromkeys(chain(added, *others)))
    vectors = torch.tensor([[each.get(part, 0.0) for part in parts] for each in (*others, added)], dtype=torch.float64)
    return int(torch.linalg.matrix_rank(vectors)) == int(torch.linalg.matrix_rank(vectors[:-1]))


def _added_to(group: SymmetryGroup, places: Mapping[str, tuple[str, int]]) -> dict[tuple[str, int], float]:
    """How often a translation adds its vector to the parts of each tensor, in order, those of stacks one by one."""
    added: dict[tuple[str, int], float] = {}
    parts: Counter[str] = Counter()
    for action in group.actions:
        tensor = action.block.tensor
        leaves = [leaf for leaf in places if not n_stacked(leaf) and outermost_stack(leaf, places) == tensor]
        added.update(((leaf, parts[tensor]), max(action.degrees, key=abs)) for leaf in leaves or [tensor])
        parts[tensor] += 1
    return added


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
        modules = {_numbers(name, places) for name in other.tensors if outermost_stack(name, places) in group.tensors}
        stacks = {outermost_stack(name, places) for name in other.tensors}
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

"""Modules that are alike, and of which what a step computes is joined in any order: they may be exchanged.

They are side by side in a list, or under names of their own. What comes of them is added up, or laid beside each other
before something reads it; layers, one after the other, are no such modules. Their parameters can be seen as one, a
stack, of which each module selects a position.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping
from dataclasses import replace
from itertools import chain, combinations, islice

import torch
from torch import Tensor
from torch._subclasses import FakeTensor

from lightning_symmetry.labelling.labelling import IN_ANY_ORDER
from lightning_symmetry.stacks import STAR, first_of, listed, may_be_listed
from lightning_symmetry.tracing.layout import LAYOUT
from lightning_symmetry.tracing.tape import Operation, Tape, Value, made

Modules = list[dict[str, str]]
"""The names of the tensors of each of several modules, by the names of their stacks."""

Beside = dict[str, dict[str, str]]
"""The names of the tensors of modules side by side, by the name of the module, and by what follows that."""

Lists = Mapping[str, Modules]
"""Lists of modules by their names, those within others first: what these have are stacks already."""

_JOINING = IN_ANY_ORDER | {"cat"}
_LAID_OR_JOINED = IN_ANY_ORDER | LAYOUT

_FEW = 8
"""The largest number of modules that are alike of which some are looked for that are joined, where not all are."""


def joined_lists(tape: Tape, left: Collection[str] = ()) -> dict[str, Modules]:
    """The modules that are alike, side by side, and of which what comes is joined in any order, but for some."""
    lists: dict[str, Modules] = {}
    for depth in range(max(leaf.count(".") for leaf in tape.leaves), -1, -1):
        stacked = with_stacks(tape, lists)
        for before, beside in _side_by_side(stacked, depth).items():
            for joined in chain.from_iterable(_joined(stacked, beside, names) for names in _alike(stacked, beside)):
                all_numbered = joined == [str(number) for number in range(len(beside))]
                name = f"{before}{STAR if all_numbered else listed(joined)}"
                if name not in left:
                    lists[name] = [{f"{name}{after}": leaf for after, leaf in beside[each].items()} for each in joined]
    return lists


def _side_by_side(tape: Tape, depth: int) -> dict[str, Beside]:
    """The modules that are within so many others, by the names of these."""
    found: defaultdict[str, defaultdict[str, dict[str, str]]] = defaultdict(lambda: defaultdict(dict))
    for leaf, value in tape.leaves.items():
        outer, (module, *inner) = (parts := leaf.split("."))[:depth], parts[depth:] or [""]
        of_module = inner or module.isdecimal()  # not a parameter with a name of its own
        if value.depends and of_module and may_be_listed(module):
            found["".join(f"{each}." for each in outer)][module]["".join(f".{each}" for each in inner)] = leaf
    return dict(found)


def _alike(tape: Tape, beside: Beside) -> list[list[str]]:
    """Those whose tensors have the same names and shapes, none of them a single number.

    Modules of lists are apart from those with names of their own, of which only those count that the step uses.
    """
    alike: defaultdict[tuple[bool, frozenset[tuple[object, ...]]], list[str]] = defaultdict(list)
    for name, leaves in beside.items():
        values = {after: tape.leaves[leaf] for after, leaf in leaves.items()}
        used = name.isdecimal() or not tape.readers.keys().isdisjoint(values.values())
        if used and all(value.shape for value in values.values()):
            kept = ((k, value.shape, value.dtype, tape.offsets.get(leaves[k])) for k, value in values.items())
            alike[name.isdecimal(), frozenset(kept)].append(name)
    return [sorted(names, key=int) if numbered else names for (numbered, _), names in alike.items() if len(names) > 1]


def _joined(tape: Tape, beside: Beside, names: list[str]) -> list[list[str]]:
    """Those of which what comes is joined in any order: all, or, where they are few, some with each other."""
    if _joined_in_any_order(tape, [beside[name] for name in names]):
        return [names]
    sets: list[list[str]] = []
    for name in names if len(names) <= _FEW else ():
        for others in sets:
            if _joined_in_any_order(tape, [beside[each] for each in (*others, name)]):
                others.append(name)
                break
        else:
            sets.append([name])
    return [some for some in sets if len(some) > 1]


def _joined_in_any_order(tape: Tape, modules: Modules) -> bool:
    """Whether what comes of each module meets that of others, and only where they may be exchanged.

    What is done to each must be the same, but for how it is laid out and joined, and what they read beside, as far as
    it is constant: not columns of a table, each by one of them.
    """
    at: dict[Value, int | None] = {
        tape.leaves[leaf]: number for number, module in enumerate(modules) for leaf in module.values()
    }
    beside: list[list[Tensor]] = [[] for _ in modules]
    done: list[Counter[str]] = [Counter() for _ in modules]
    joined = False
    first = min((tape.places[tape.readers[value][0]] for value in at if value in tape.readers), default=0)
    for operation in islice(tape.operations, first, None):
        met = {at[value] for value in operation.inputs if value in at}
        if len(met) > 1 and operation.name not in _JOINING:
            return False
        joined |= len(met) > 1
        if met:
            position = met.pop() if len(met) == 1 else None
            at.update((output, position) for output in operation.outputs if output is not None)
            if position is not None:
                done[position][operation.name] += operation.name not in _LAID_OR_JOINED
                beside[position] += [value.constant for value in operation.inputs if value.constant is not None]
    ways = list(filter(None, done))  # not of experts that no token is sent to
    alike = all(all(map(_may_be_same, one, other)) for one, other in combinations(filter(None, beside), 2))
    alike &= all(way == ways[0] for way in ways)
    return alike and joined and all(at.get(output) is None for output in tape.outputs)


def _may_be_same(one: Tensor, other: Tensor) -> bool:
    """Whether two constants may be the same, or of what is different in number, as tokens are that experts are sent."""
    if one is other or one.shape != other.shape or one.layout != torch.strided or other.layout != torch.strided:
        return True
    return isinstance(one, FakeTensor) or isinstance(other, FakeTensor) or torch.equal(one, other)


def with_stacks(tape: Tape, lists: Lists) -> Tape:
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
    places = in_stacks(lists)
    in_place = {outermost_stack(name, places): None for name in tape.leaves}
    return replace(
        tape,
        operations=selected + tape.operations,
        leaves={name: leaves[name] for name in in_place},
        offsets={name: tape.offsets[first_of(name)] for name in in_place if first_of(name) in tape.offsets},
    )


def in_stacks(lists: Lists) -> dict[str, tuple[str, int]]:
    """The stack that a tensor is in, and where."""
    return {
        leaf: (stack, number)
        for modules in lists.values()
        for number, module in enumerate(modules)
        for stack, leaf in module.items()
    }


def outermost_stack(name: str, places: Mapping[str, tuple[str, int]]) -> str:
    """The name of the outermost stack that a tensor is in, or its own."""
    while name in places:
        name, _ = places[name]
    return name

"""The joint vectors of the units that a group acts on, read off the blocks of a model's parameters.

Each block gives a part of every unit. Running statistics move with the units, but are no part of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from lightning_symmetry.functional.units import Units
from lightning_symmetry.symmetry.actions import Block
from lightning_symmetry.symmetry.groups import SymmetryGroup

MOST_MATCHING = 1e9
"""The largest n_units^2 x n_inner^3 at which the inner parts of two units are matched to one another."""


def units_of(
    group: SymmetryGroup, symmetries: Iterable[SymmetryGroup], tensors: Mapping[str, Tensor]
) -> Iterator[Units]:
    """The units that a permutation group exchanges, for each row in which it acts by itself.

    An axis that groups permute or rotate within each unit, as the coordinates within a head, is compared under the
    permutations of its positions.
    """
    inner_axes = dict.fromkeys(
        other.axis
        for other in symmetries
        if group.axis in dict(other.rows) and other.kind in ("permutation", "rotation")
    )
    parts: list[Tensor] = []
    coupled: list[Tensor] = []
    inner: dict[str, list[Tensor]] = {}
    for block in group.blocks:
        if block.tensor not in group.parameters:
            continue
        units = block.dims(group.axis)[:2]
        within = [axis for axis in inner_axes if len(block.dims(axis)) == 1]
        if len(units) == 2:
            coupled.append(_in_front(block, tensors, group, units))
        elif len(within) == 1:
            inner.setdefault(within[0], []).append(_in_front(block, tensors, group, [*units, *block.dims(within[0])]))
        else:
            parts.append(_in_front(block, tensors, group, units))
    joined = [torch.cat(several, dim=-1) for several in inner.values()]
    for row in range(group.n_rows):
        yield Units(
            parts=tuple(part[row] for part in parts),
            coupled=tuple(part[row] for part in coupled),
            inner=tuple(part[row] for part in joined),
        )


def sides_of(group: SymmetryGroup, tensors: Mapping[str, Tensor], row: int, sign: int) -> Tensor:
    """The parts of all units in which their axis has degrees of one sign: ``(n_units, dim)``."""
    parts = [
        _in_front(action.block, tensors, group, [dim])[row]
        for action in group.actions
        for dim, degree in enumerate(action.degrees)
        if degree * sign > 0 and action.block.tensor in group.parameters
    ]
    some = tensors[group.parameters[0]]
    return torch.cat(parts, dim=1) if parts else some.new_zeros(group.size, 0)


def too_large_to_match(group: SymmetryGroup, symmetries: Iterable[SymmetryGroup]) -> bool:
    """Whether comparing the units under the permutations within each would take too long."""
    inner = [
        other.size
        for other in symmetries
        if group.axis in dict(other.rows) and other.kind in ("permutation", "rotation")
    ]
    return group.kind == "permutation" and any(group.size**2 * size**3 > MOST_MATCHING for size in inner)


def _in_front(block: Block, tensors: Mapping[str, Tensor], group: SymmetryGroup, own: Sequence[int]) -> Tensor:
    """A block with its rows as one dimension in front, then dimensions of its own, then all others as one."""
    rows = [block.dims(row)[0] for row, _ in group.rows]
    part = block.of(tensors[block.tensor]).movedim([*rows, *own], list(range(len(rows) + len(own))))
    return part.reshape(group.n_rows, *part.shape[len(rows) : len(rows) + len(own)], -1)

"""The levels to which scales are balanced: c in F(l) = sum_k n_k exp(2 d_k . l) - 2 c . l.

A rescaling has level zero: its two sides become of one norm. What a norm divides by its size is to have a size of its
own, one for each unit. But F has a minimum only where c is a sum of the d_k with weights of which none is zero, and
scales that are tied to others can leave no size to choose freely: where an RMSNorm follows a gated layer, to scale the
gate and to divide the gain before it shrinks what the gate is multiplied with. Then the levels are those of a model
whose n_k are all one.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from scipy.optimize import linprog
from torch import Tensor

from lightning_symmetry.gauge.balancing import Sum, balance, moments_at
from lightning_symmetry.gauge.gauge import Tensors
from lightning_symmetry.symmetry.groups import Symmetries, SymmetryGroup


def is_whole(group: SymmetryGroup) -> bool:
    """Whether a group scales tensors as wholes."""
    return group.kind == "scale" and group.size == 1 and not group.rows


def shape_of_scales(group: SymmetryGroup) -> tuple[int, ...]:
    """``(*rows, n)``; none for tensors as wholes."""
    return () if is_whole(group) else (*(length for _, length in group.rows), group.size)


def level_of(group: SymmetryGroup, symmetries: Symmetries, tensors: Tensors) -> Tensor:
    """The squared norm that balancing gives to what a norm divides by its size: one for each unit that it holds."""
    level = torch.zeros(shape_of_scales(group), dtype=torch.float64)
    if group.kind != "scale":
        return level
    if not is_whole(group):
        return level + 1
    grown = {action.block.tensor for action in group.actions_on_parameters if max(action.degrees, key=abs) > 0}
    sizes: list[dict[str, int]] = []
    for name in grown:
        blocks = [block for block in symmetries.blocks if block.tensor == name]
        shapes = [zip(block.axes, block.shape(tensors[name].shape), strict=True) for block in blocks]
        sizes.append({axis: size for shape in shapes for axis, size in shape if axis})
    common = set.intersection(*map(set, sizes)) if sizes else set()
    return level + max((sizes[0][axis] for axis in common), default=1)


def within_reach(
    sums: Sequence[Sum], levels: Mapping[str, Tensor], living: Mapping[str, Tensor], known: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The levels where F has a minimum at them, and else those of a model whose squares are all one.

    Args:
        sums: What F sums.
        levels: The levels that are wanted; those that are zero stay.
        living: Which units are not dead.
        known: Those of squares that are all one, from before.
    """
    if not any(level.any() for level in levels.values()):
        return dict(levels)
    filled = [each for each in sums if any(part.sums(((), ()))[0] > 0 for part in each.parts)]
    if _can_be_balanced(filled, levels):
        return dict(levels)
    if known.keys() == levels.keys() and not all(torch.equal(known[name], levels[name]) for name in levels):
        return dict(known)
    ones = [replace(each, parts=tuple(replace(part, power=0) for part in each.parts)) for each in filled]
    zero = {name: level for name, level in levels.items() if not level.any()}
    found, _ = balance([each for one in ones for each in _scaled_by(zero, one)], zero, {}, living)
    at = {name: found.get(name, torch.zeros_like(level)) for name, level in levels.items()}
    moments = moments_at(ones, at, living)
    return {name: level if name in zero else moments[name] for name, level in levels.items()}


def _can_be_balanced(sums: Sequence[Sum], levels: Mapping[str, Tensor]) -> bool:
    """Whether c is a sum of the d_k with positive weights, where units of an axis have the same."""
    parts = [part for each in sums for part in each.parts]
    if not parts:
        return True
    names = {name: number for number, name in enumerate(levels)}
    degrees = np.zeros((len(names), len(parts) + 1))
    for column, part in enumerate(parts):
        for acting in part.scaled:
            degrees[names[acting.by], column] += acting.degree
    # weights w_k = v_k + t, with v_k >= 0: the largest t at which they give c
    degrees[:, -1] = degrees[:, :-1].sum(1)
    least = np.append(np.zeros(len(parts)), -1.0)
    totals = [float(level.sum()) for level in levels.values()]
    found = linprog(least, A_eq=degrees, b_eq=totals, bounds=[*[(0, None)] * len(parts), (None, 1)])
    return bool(found.status == 0 and -found.fun > 1e-6)


def _scaled_by(names: Container[str], each: Sum) -> Iterator[Sum]:
    """A sum with the scales of some names alone, where it has any."""
    parts = tuple(
        replace(one, scaled=tuple(acting for acting in one.scaled if acting.by in names)) for one in each.parts
    )
    if any(part.scaled for part in parts):
        yield replace(each, parts=parts)

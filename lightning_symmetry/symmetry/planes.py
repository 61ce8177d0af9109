"""Rotations of planes: what a rotary embedding leaves of the rotations between queries and keys.

It turns each plane of two coordinates by an angle of its own at every position, and so tells planes apart, but commutes
with the rotations within each. A rescaling of planes that moves two equal halves of an axis alike, the first
coordinates and the second ones, shows them; or one that moves pairs of coordinates, where they stand side by side.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace

from lightning_symmetry.symmetry.actions import Action, Block
from lightning_symmetry.symmetry.groups import SymmetryGroup


def rotation_of_planes(rescaling: SymmetryGroup) -> SymmetryGroup | None:
    """The rotations within the planes that a group rescales, yet without a name; None where it moves no pairs."""
    component = _component(rescaling.axis)
    pairs = [_side_by_side(action, component) for action in rescaling.actions]
    if not all(pairs):
        halves: defaultdict[tuple[object, ...], list[Action]] = defaultdict(list)
        for action in rescaling.actions:
            block = action.block
            halves[block.tensor, block.views[:-1], block.axes, action.degrees].append(action)
        pairs = [_pair(both[0], both[1], component) if len(both) == 2 else None for both in halves.values()]
    sides = [[each for each in rescaling.actions if (max(each.degrees, key=abs) > 0) is side] for side in (True, False)]
    if not all(pairs) or any(all(map(_is_of_vector, side)) for side in sides):
        return None  # gains multiply each coordinate by itself; biases stand beside a matrix
    return replace(
        rescaling,
        kind="rotation",
        name="",
        axis=component,
        size=2,
        rows=(*rescaling.rows, (rescaling.axis, rescaling.size)),
        actions=tuple(pair for pair in pairs if pair is not None),
        form="orthogonal",
    )


def _component(axis: str) -> str:
    return f"{axis}.plane"


def turns_planes(group: SymmetryGroup) -> bool:
    """Whether a group is such a rotation within planes."""
    return group.kind == "rotation" and bool(group.rows) and group.axis == _component(group.rows[-1][0])


def coordinates(action: Action, blocks: Iterable[Block]) -> list[Block]:
    """Those blocks that hold coordinates of the planes that an action turns: the first, the second, or one with both.

    Beside them a dimension may have parts that are in no plane.
    """
    beside = [block for block in blocks if block.tensor == action.block.tensor]
    both = [block for block in beside if block.views == action.block.views]
    views = action.block.views
    if both or len(views) < 2 or len(views[-2]) != 3:
        return both
    dim, start, length = views[-2]
    halves = [(*views[:-2], (dim, at, length // 2)) for at in (start, start + length // 2)]
    return sorted((block for block in beside if block.views in halves), key=lambda block: halves.index(block.views))


def _is_of_vector(action: Action) -> bool:
    """Whether what is moved is a parameter of one dimension."""
    split = sum(len(view[1]) - 1 for view in action.block.views if len(view) == 2)
    return len(action.block.axes) - split == 1


def _side_by_side(action: Action, component: str) -> Action | None:
    """Pairs of coordinates, each of which is moved by a number of its own; None where what is moved is no pair."""
    axes, degrees = list(action.block.axes), list(action.degrees)
    for view in action.block.views:
        dim = view[0] + len(view[1]) - 2 if len(view) == 2 else -1
        if dim >= 0 and degrees[dim] and view[1][-1] == 2:  # type: ignore[index]
            axes[dim + 1], degrees[dim + 1], degrees[dim] = component, degrees[dim], 0
            return Action(replace(action.block, axes=tuple(axes)), tuple(degrees))
    return None


def _pair(first: Action, second: Action, component: str) -> Action | None:
    """Two halves of a dimension as one of two components; None where they do not follow one another."""
    if not first.block.views or len(first.block.views[-1]) != 3 or len(second.block.views[-1]) != 3:
        return None
    (dim, start, length), (_, after, _) = first.block.views[-1], second.block.views[-1]
    if after != start + length or not first.degrees[dim]:
        return None
    views = (*first.block.views[:-1], (dim, start, 2 * length), (dim, (2, length)))
    axes = (*first.block.axes[:dim], component, *first.block.axes[dim:])
    degrees = tuple(first.degrees[dim] if place == dim else 0 for place in range(len(axes)))
    return Action(Block(first.block.tensor, views, axes, 2 * first.block.numel, first.block.offset), degrees)

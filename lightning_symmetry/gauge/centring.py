"""The shifts at which a model is least: what translations add to bring it to the point of least norm.

All that translations reach from theta is theta + V t, V linear; the point of least norm is at right angles to every
direction of V: t = -(V^T V)^+ V^T theta. Translations that move no tensor in common are solved for by themselves, a
single one in closed form. Where a translation is carried on to other axes through linear maps, only what it starts from
is made least, and the rest takes up what it must: the bias of a LayerNorm becomes zero, and the next bias takes W b up.
Where the bias of a norm is among several that a translation moves, it is the one that becomes zero.
Scales, rotations and permutations map the directions of V onto such directions, so the shifts are found first.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse.linalg import LinearOperator, minres
from torch import Tensor

from lightning_symmetry.stacks import first_of
from lightning_symmetry.symmetry.actions import Action, Block, along, carry, derive, transform
from lightning_symmetry.symmetry.groups import SymmetryGroup
from lightning_symmetry.symmetry.kinds import KINDS

Tensors = Mapping[str, Tensor]


def shifts_of(
    groups: Sequence[SymmetryGroup], pivots: Collection[Block], tensors: Tensors
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What each translation adds at the point of least norm of the parameters.

    Args:
        groups: Translations that nothing is folded for.
        pivots: The biases of norms that others are to be folded for.
        tensors: The model's parameters and buffers by name.

    Returns:
        ``(n_rows, n)`` by group; and those tensors that others are carried to, as they are after all shifts.
    """
    shifts: dict[str, Tensor] = {}
    received: dict[str, Tensor] = {}
    lessened = {group.name: lessened_by(group, pivots) for group in groups}
    for together in _joined(groups, {group.name: set(group.parameters) for group in groups}):
        if any(group.carried or len(lessened[group.name]) < len(group.actions_on_parameters) for group in together):
            shifts |= _carried_on(together, lessened, tensors, received)
        else:
            shifts |= _least(together, lessened, tensors)
    return shifts, received


def lessened_by(group: SymmetryGroup, pivots: Collection[Block]) -> Sequence[Action]:
    """The actions on what a translation makes least: biases of norms, else what it is not carried on to as well."""
    actions = group.actions_on_parameters
    targets = {each.block.tensor for each in group.carried}
    starts = [action for action in actions if action.block.tensor not in targets]
    return [action for action in actions if action.block in pivots] or starts or actions


def absorbed_by(group: SymmetryGroup, pivots: Collection[Block]) -> tuple[Block, ...]:
    """The block of a bias that a translation makes zero, if there is one."""
    lessened = lessened_by(group, pivots)
    if group.kind != "translation" or group.folds or len(lessened) != 1:
        return ()
    (block,) = (action.block for action in lessened)
    return (block,) if set(block.axes) == {group.axis, *(row for row, _ in group.rows)} else ()


def _carried_on(
    groups: Sequence[SymmetryGroup],
    lessened: Mapping[str, Sequence[Action]],
    tensors: Tensors,
    received: dict[str, Tensor],
) -> dict[str, Tensor]:
    """Shifts of which one changes where the next one starts: one after another, until nothing changes."""
    after = {
        name: tensors[name].double().clone()
        for group in groups
        for name in group.tensors
        if first_of(name) not in group.buffers
    }
    tensors_of = {name: {action.block.tensor for action in actions} for name, actions in lessened.items()}
    total: dict[str, Tensor] = {}
    for _ in range(len(groups) + 1):
        change = 0.0
        for together in _joined(groups, tensors_of):
            for name, shift in _least(together, lessened, {**tensors, **after}).items():
                (group,) = (group for group in together if group.name == name)
                _shift(group, shift, after, tensors)
                total[name] = total.get(name, 0.0) + shift
                change = max(change, float(shift.abs().max()) / max(float(total[name].abs().max()), 1e-300))
        if change < 1e-14:
            break
    targets = {each.block.tensor for group in groups for each in group.carried}
    received.update({name: after[name] for name in targets if name in after})
    return total


def _shift(group: SymmetryGroup, shift: Tensor, after: dict[str, Tensor], tensors: Tensors) -> None:
    """Let a translation act, in place."""
    for action in group.actions_on_parameters:
        transform(after[action.block.tensor], action, [row for row, _ in group.rows], KINDS["translation"], shift)
    vector = shift.reshape(*(length for _, length in group.rows), group.size)
    for each in group.carried:
        if each.block.tensor in after:
            axes = [*(row for row, _ in group.rows), group.axis]
            carry(after[each.block.tensor], each, tensors, axes, vector)


def _joined(groups: Sequence[SymmetryGroup], moved: Mapping[str, set[str]]) -> list[list[SymmetryGroup]]:
    """Translations in sets that have no tensor in common."""
    sets: list[list[SymmetryGroup]] = []
    for group in groups:
        touching = [each for each in sets if any(moved[other.name] & moved[group.name] for other in each)]
        sets = [each for each in sets if each not in touching]
        sets.append([*(other for each in touching for other in each), group])
    return sets


def _least(
    groups: Sequence[SymmetryGroup], lessened: Mapping[str, Sequence[Action]], tensors: Tensors
) -> dict[str, Tensor]:
    if len(groups) == 1:
        (group,) = groups
        return {group.name: _least_of_one(group, lessened[group.name], tensors)}
    right = _flat([-_adjoint(group, lessened[group.name], tensors) for group in groups])
    sizes = [group.n_rows * group.size for group in groups]

    def named(vector: NDArray[np.float64]) -> dict[str, Tensor]:
        pieces = torch.from_numpy(np.array(vector, dtype=np.float64)).split(sizes)
        return {group.name: piece.view(group.n_rows, group.size) for group, piece in zip(groups, pieces, strict=True)}

    def normal(vector: NDArray[np.float64]) -> NDArray[np.float64]:
        moved = _moved(groups, lessened, named(vector), tensors)
        return _flat([_adjoint(group, lessened[group.name], moved) for group in groups])

    if not np.isfinite(right).all():
        return named(np.full_like(right, np.nan))
    operator = LinearOperator((len(right), len(right)), matvec=normal, dtype=np.float64)
    return named(minres(operator, right, rtol=1e-15, maxiter=1000)[0])  # translations may be sums of others


def _least_of_one(group: SymmetryGroup, actions: Sequence[Action], tensors: Tensors) -> Tensor:
    """Minus the mean over all entries that one number moves, each times its degree."""
    moved, total = 0.0, torch.zeros(group.n_rows, group.size, dtype=torch.float64)
    for action in actions:
        for part, degree in along(tensors[action.block.tensor], action, [row for row, _ in group.rows]):
            contents = part.contents
            moved += degree**2 * contents.shape[-1]
            total -= degree * contents.double().sum(-1).cpu()
    return total / moved


def _flat(values: Sequence[Tensor]) -> NDArray[np.float64]:
    return np.concatenate([value.double().cpu().numpy().ravel() for value in values])


def _moved(
    groups: Sequence[SymmetryGroup],
    lessened: Mapping[str, Sequence[Action]],
    shifts: Mapping[str, Tensor],
    tensors: Tensors,
) -> dict[str, Tensor]:
    """V t."""
    moved: dict[str, Tensor] = {}
    for group in groups:
        for action in lessened[group.name]:
            name = action.block.tensor
            change = moved.setdefault(name, torch.zeros_like(tensors[name], dtype=torch.float64))
            rows = [row for row, _ in group.rows]
            derive(change, change, action, rows, KINDS["translation"], shifts[group.name])
    return moved


def _adjoint(group: SymmetryGroup, actions: Sequence[Action], tensors: Tensors) -> Tensor:
    """V^T theta, of one group."""
    total = torch.zeros(group.n_rows, group.size, dtype=torch.float64)
    for action in actions:
        for part, degree in along(tensors[action.block.tensor], action, [row for row, _ in group.rows]):
            total += degree * part.contents.double().sum(-1).cpu()
    return total


def _of_parameters(group: SymmetryGroup) -> list[Action]:
    return [action for action in group.actions if action.block.tensor in group.parameters]

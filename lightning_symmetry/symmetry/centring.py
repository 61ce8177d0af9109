"""The shifts at which a model is least: what translations add to bring it to the point of least norm.

All that translations reach from theta is theta + V t, V linear; the point of least norm is at right angles to every
direction of V: t = -(V^T V)^+ V^T theta. Translations that move no tensor in common are solved for by themselves, a
single one in closed form. Scales, rotations and permutations map the directions of V onto such directions, so the
shifts are found first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse.linalg import LinearOperator, cg
from torch import Tensor

from lightning_symmetry.symmetry.actions import KINDS, Action, along, derive
from lightning_symmetry.symmetry.groups import SymmetryGroup

Tensors = Mapping[str, Tensor]


def shifts_of(groups: Sequence[SymmetryGroup], tensors: Tensors) -> dict[str, Tensor]:
    """What each translation adds at the point of least norm of the parameters: ``(n_rows, n)`` by group.

    Args:
        groups: Translations.
        tensors: The model's parameters and buffers by name.
    """
    shifts: dict[str, Tensor] = {}
    for together in _joined(groups):
        shifts |= _least(together, tensors)
    return shifts


def _joined(groups: Sequence[SymmetryGroup]) -> list[list[SymmetryGroup]]:
    """Translations in sets that share no parameter."""
    sets: list[list[SymmetryGroup]] = []
    for group in groups:
        touching = [each for each in sets if any(set(other.parameters) & set(group.parameters) for other in each)]
        sets = [each for each in sets if each not in touching]
        sets.append([*(other for each in touching for other in each), group])
    return sets


def _least(groups: Sequence[SymmetryGroup], tensors: Tensors) -> dict[str, Tensor]:
    right = _flat([-_adjoint(group, tensors) for group in groups])
    sizes = [group.n_rows * group.size for group in groups]

    def named(vector: NDArray[np.float64]) -> dict[str, Tensor]:
        pieces = torch.from_numpy(np.array(vector, dtype=np.float64)).split(sizes)
        return {group.name: piece.view(group.n_rows, group.size) for group, piece in zip(groups, pieces, strict=True)}

    def normal(vector: NDArray[np.float64]) -> NDArray[np.float64]:
        moved = _moved(groups, named(vector), tensors)
        return _flat([_adjoint(group, moved) for group in groups])

    if not np.isfinite(right).all():
        return named(np.full_like(right, np.nan))
    if len(groups) == 1:
        (group,) = groups
        ones = torch.ones(group.n_rows, group.size, dtype=torch.float64)
        return named(right / normal(_flat([ones])))
    operator = LinearOperator((len(right), len(right)), matvec=normal, dtype=np.float64)
    return named(cg(operator, right, rtol=1e-13, maxiter=1000)[0])


def _flat(values: Sequence[Tensor]) -> NDArray[np.float64]:
    return np.concatenate([value.double().cpu().numpy().ravel() for value in values])


def _moved(groups: Sequence[SymmetryGroup], shifts: Mapping[str, Tensor], tensors: Tensors) -> dict[str, Tensor]:
    """V t."""
    moved: dict[str, Tensor] = {}
    for group in groups:
        for action in _of_parameters(group):
            name = action.block.tensor
            change = moved.setdefault(name, torch.zeros_like(tensors[name], dtype=torch.float64))
            rows = [row for row, _ in group.rows]
            derive(change, change, action, rows, KINDS["translation"], shifts[group.name])
    return moved


def _adjoint(group: SymmetryGroup, tensors: Tensors) -> Tensor:
    """V^T theta, of one group."""
    total = torch.zeros(group.n_rows, group.size, dtype=torch.float64)
    for action in _of_parameters(group):
        for part, degree in along(tensors[action.block.tensor], action, [row for row, _ in group.rows]):
            total += degree * part.contents.double().sum(-1).cpu()
    return total


def _of_parameters(group: SymmetryGroup) -> list[Action]:
    return [action for action in group.actions if action.block.tensor in group.parameters]

"""What gradient flow conserves, measured for each group; where on its orbit the model is, and how fast it turns.

These indicators depend on the gauge, by their nature: they are of the parameters as they are. A sum of squares over
what a group moves is all that most of them take.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from lightning_symmetry.functional.charges import (
    angles_of,
    effective_learning_rate,
    imbalance_of,
    mean_component,
    rotation_imbalance,
)
from lightning_symmetry.functional.precision import for_measuring, in_pairs
from lightning_symmetry.keys import key_names
from lightning_symmetry.measurement.indicators import NONE_YET, Piece
from lightning_symmetry.stacks import first_of
from lightning_symmetry.symmetry.actions import along
from lightning_symmetry.symmetry.groups import Symmetries, SymmetryGroup

CHARGE_INDICATORS = ("imbalance", "mean_component", "effective_lr", "angular_speed")
"""What can be measured: of rescalings and rotations, of translations that shift all alike, and two of scales."""

Tensors = Mapping[str, Tensor]
LearningRate = Callable[[str], tuple[float, bool]]
"""From the name of a parameter to the learning rate that it has now, and whether its optimizer is adaptive."""


def charge_pieces(
    symmetries: Symmetries, indicators: Sequence[str], learning_rate: LearningRate, steps_done: Callable[[], int]
) -> list[Piece]:
    """One piece for each indicator of each group that has it.

    Args:
        symmetries: The groups to measure.
        indicators: Some of `CHARGE_INDICATORS`.
        learning_rate: Tells the learning rate of a parameter.
        steps_done: Tells how many optimizer steps were made.
    """
    keys = key_names(group.name for group in symmetries)
    pieces = []
    for group in symmetries:
        measures: dict[str, Callable[[Tensors], Tensor]] = {}
        if group.kind == "rescaling":
            measures = {"imbalance": partial(_rescaling_imbalance, group)}
        elif group.kind == "rotation" and not group.form:  # one that keeps lengths is balanced everywhere
            measures = {"imbalance": partial(_rotation_imbalance, group)}
        elif _is_mean(group):
            measures = {"mean_component": partial(_mean_component, group)}
        elif group.kind == "scale":
            measures = {
                "effective_lr": partial(_effective_lr, group, learning_rate),
                "angular_speed": _AngularSpeed(group, steps_done),
            }
        pieces += [
            Piece(
                keys=(f"symmetry/{name}/{keys[group.name]}",),
                measure=partial(_alone, measure),
                reads=group.parameters if name in ("imbalance", "mean_component") else (),
                remembers=name == "angular_speed",
            )
            for name, measure in measures.items()
            if name in indicators
        ]
    return pieces


def _is_mean(group: SymmetryGroup) -> bool:
    """Whether it adds one number to many entries: to all logits, or to all that a LayerNorm takes the mean from."""
    alone = group.kind == "translation" and not group.carried and not group.folds
    return alone and all(action.block.numel > group.n_rows * group.size for action in group.actions)


def _alone(measure: Callable[[Tensors], Tensor], tensors: Tensors) -> Sequence[Tensor]:
    return [measure(tensors)]


def squares_of_sides(group: SymmetryGroup, tensors: Tensors, names: Collection[str] | None = None) -> Tensor:
    """The sums of |degree| |entry|^2 over what a rescaling of each unit multiplies, and over what it divides.

    Args:
        group: The rescaling.
        tensors: The parameters, or as many tensors of their shapes, by name.
        names: Of which parameters; None for all that it moves.

    Returns:
        ``(2, n_units)``, the units of all rows one after another.
    """
    moved = group.parameters if names is None else names
    sides = tensors[next(iter(moved))].new_zeros(2, group.n_rows * group.size, dtype=torch.float64)
    for part, degree in _parts(group, tensors, moved):
        sides[int(degree < 0)] += abs(degree) * _squares(part).flatten().to(sides.device)
    return sides


def _rescaling_imbalance(group: SymmetryGroup, tensors: Tensors) -> Tensor:
    return imbalance_of(*squares_of_sides(group, tensors))


def _rotation_imbalance(group: SymmetryGroup, tensors: Tensors) -> Tensor:
    """The mean over the rows in which it acts by itself; a side that nothing is on has no columns."""
    parts = [(in_pairs(part), degree) for part, degree in _parts(group, tensors)]  # which real numbers mix
    nothing = parts[0][0][..., :0]
    above, below = (torch.cat([nothing, *(p for p, degree in parts if degree * sign > 0)], -1) for sign in (1, -1))
    return rotation_imbalance(above, below).mean()


def _mean_component(group: SymmetryGroup, tensors: Tensors) -> Tensor:
    moved = [part.flatten(0, 1) * (1 if degree > 0 else -1) for part, degree in _parts(group, tensors)]
    return mean_component(torch.cat(moved, 1).mT)


def _effective_lr(group: SymmetryGroup, learning_rate: LearningRate, tensors: Tensors) -> Tensor:
    """The median over units, those left out that are zero."""
    squares = torch.stack([_squares(part).flatten() for part in _scaled(group, tensors)]).sum(0)
    rates = effective_learning_rate(squares.sqrt()[:, None], *learning_rate(_scaled_first(group)))
    return torch.where(squares > 0, rates, torch.nan).nanmedian()


class _AngularSpeed:
    """The mean over units of the angle by which each has turned since it was measured here last, per step.

    The copy of the weights that it was measured at is in no checkpoint, so that a resumed run begins without one.
    """

    def __init__(self, group: SymmetryGroup, steps_done: Callable[[], int]) -> None:
        self._group = group
        self._steps_done = steps_done
        self._last: tuple[int, list[Tensor]] | None = None

    def __call__(self, tensors: Tensors) -> Tensor:
        parts = [part.detach() for part in _scaled(self._group, tensors)]
        now, last = self._steps_done(), self._last
        self._last = now, [part.clone() for part in parts]
        if last is None:
            return torch.tensor(NONE_YET, dtype=torch.float64)
        step, before = last
        sums = [
            torch.stack([_squares(part).flatten() for part in several]).sum(0)
            for several in (
                before,
                parts,
                [for_measuring(part, torch.float64) - old for part, old in zip(parts, before, strict=True)],
            )
        ]
        return angles_of(*sums).mean() / max(1, now - step)


def _scaled(group: SymmetryGroup, tensors: Tensors) -> Iterator[Tensor]:
    return (part for part, degree in _parts(group, tensors) if degree > 0)


def _scaled_first(group: SymmetryGroup) -> str:
    """The first parameter that a norm divides by its size."""
    scaled = (each.block.tensor for each in group.actions_on_parameters if max(each.degrees) > 0)
    return first_of(next(scaled))


def _parts(
    group: SymmetryGroup, tensors: Tensors, names: Collection[str] | None = None
) -> Iterator[tuple[Tensor, float]]:
    """The blocks of parameters, all or some, that a group moves, as ``(n_rows, n, rest)``, with their degrees."""
    for action in group.actions_on_parameters:
        if names is None or first_of(action.block.tensor) in names:
            for part, degree in along(tensors[action.block.tensor], action, [row for row, _ in group.rows]):
                yield part.contents, degree


def _squares(part: Tensor) -> Tensor:
    dtype = torch.promote_types(part.dtype, torch.float64)
    norms: Tensor = torch.linalg.vector_norm(part, dim=-1, dtype=dtype)
    return norms.square()

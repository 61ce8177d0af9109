"""The share of an optimizer's step that goes along the orbits, taken at the step before a measurement.

A copy of the parameters is made when an optimizer is about to step, and dropped once the share is told. Half-precision
parameters round a step, and its share with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lightning_symmetry.gauge.orbits import orbit_fraction
from lightning_symmetry.measurement.indicators import Piece
from lightning_symmetry.symmetry.groups import Symmetries

KEY = "symmetry/orbit_fraction"
_GATHERED = "share of the step along the orbits"


class OrbitSteps:
    """Listens to the steps of optimizers.

    Args:
        symmetries: All groups of the model.
        model: The model.
        rank: Which of the ranks this is: the first tells for all, since all make the same step.
    """

    def __init__(self, symmetries: Symmetries, model: nn.Module, rank: int = 0) -> None:
        self._symmetries = symmetries
        self._model = model
        self._rank = rank
        self._listening = False
        self._before: dict[str, Tensor] = {}
        self._found: float | None = None

    def listen(self, steps_left: float) -> None:
        """Say how many steps come before the measurement, with the next one; the last of them is listened to."""
        self._listening = steps_left == 1 and self._rank == 0
        self._before.clear()

    def before(self, optimizer: Any, scaler: Any = None) -> None:
        """An optimizer is about to step: one of several, that each step for parameters of their own."""
        if self._listening:
            owned = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
            for name, parameter in self._model.named_parameters():
                if id(parameter) in owned and name not in self._before:
                    self._before[name] = parameter.detach().clone()

    def after(self) -> None:
        """The optimizers' steps are over; one that was passed over, as a gradient was not finite, tells nothing."""
        before, self._before = self._before, {}
        if not before:
            return
        parameters = {name: parameter.detach() for name, parameter in self._model.named_parameters()}
        step = {name: parameters[name] - copy for name, copy in before.items()}
        if any(bool(change.any()) for change in step.values()):
            tensors = {**parameters, **dict(self._model.named_buffers()), **before}
            self._found = float(orbit_fraction(self._symmetries, tensors, step))

    @property
    def sums(self) -> dict[str, tuple[int, ...]]:
        """The shape of what is taken."""
        return {_GATHERED: (2,)}

    def take(self) -> dict[str, Tensor]:
        """What was found since it was taken last: its value, and 1 where there is one."""
        found, self._found = self._found, None
        return {_GATHERED: torch.tensor([0.0, 0.0] if found is None else [found, 1.0], dtype=torch.float64)}

    def pieces(self) -> list[Piece]:
        """One piece, of what was taken."""
        return [Piece(keys=(KEY,), measure=lambda tensors: [tensors[_GATHERED][0]])]

    def unknown(self, gathered: Mapping[str, Tensor]) -> set[str]:
        """The key, where nothing was found, as before the first step."""
        return set() if float(gathered[_GATHERED][1]) else {KEY}

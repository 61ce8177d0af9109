"""Where the noise of mini-batches pushes the units of each rescaling, told from the gradients of the last steps.

A step of SGD of size eta changes the charge of a unit, the sum of degree x |entry|^2 over what a rescaling of it moves,
by eta^2 times the same sum over its gradient, of which only the noise has a side to prefer (arXiv:2402.07193). So the
covariance of the gradient is summed up over steps, each entry weighted by its degree. Of each parameter only the sum of
its gradients is kept, and of each unit that of their squared sizes.

The gradient is the one that the optimizer is about to use: unscaled, accumulated over batches, and under DDP averaged
over ranks, so that its noise is that of all that a step learns from.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lightning_symmetry.functional.noise import noise_imbalance_of
from lightning_symmetry.functional.precision import for_measuring
from lightning_symmetry.keys import key_names
from lightning_symmetry.measurement.charges import squares_of_sides
from lightning_symmetry.measurement.indicators import Piece
from lightning_symmetry.stacks import Stacked
from lightning_symmetry.symmetry.groups import Symmetries, SymmetryGroup

WINDOW = 16
"""Over how many steps before a measurement the covariance is taken: few enough for the mean gradient to stay."""


class NoiseSteps:
    """Listens to the steps of optimizers: to the last `window` before a measurement.

    Where a measurement comes sooner, it goes on until it has heard so many, and tells at the first one after that. What
    it heard is forgotten once more steps than a window went by unheard.

    Args:
        symmetries: The groups to measure, of which the rescalings are.
        model: The model.
        rank: Which of the ranks this is; they share out the groups, since all see the same gradients.
        world_size: How many ranks there are.
        window: The number of steps.
    """

    def __init__(
        self, symmetries: Symmetries, model: nn.Module, rank: int = 0, world_size: int = 1, window: int = WINDOW
    ) -> None:
        keys = key_names(group.name for group in symmetries)
        self._keys = {
            group.name: f"symmetry/noise_imbalance/{keys[group.name]}"
            for group in symmetries
            if group.kind == "rescaling"
        }
        self._own = [group for group in symmetries if group.name in self._keys][rank::world_size]
        self._names = {name for group in self._own for name in group.parameters}
        self._stacked = self._names.difference(name for group in self._own for name in group.tensors)
        self._model = model
        self._window = window
        self._listening = self._stepped = self._counted = False
        self._heard = self._unheard = 0
        self._steps: dict[str, int] = {}
        self._sums: dict[str, Tensor] = {}
        self._squares: dict[str, Tensor] = {}

    def listen(self, steps_left: float) -> None:
        """Say how many steps come before the measurement, with the next one; a whole window before it, begin anew."""
        if steps_left == self._window and self._unheard:
            self._forget()
        self._listening = 1 <= steps_left <= self._window - self._heard

    def before(self, optimizer: Any, scaler: Any = None) -> None:
        """An optimizer is about to step: one of several, that each step for parameters of their own.

        Args:
            optimizer: The optimizer.
            scaler: The `torch.amp.GradScaler` in use: it passes over a step of which a gradient is not finite, and
                some optimizers leave it to their step to undo its scale.
        """
        self._stepped = True
        if not self._listening:
            return
        owned = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        stepping = {name: each for name, each in self._model.named_parameters() if id(each) in owned}
        gradients = {
            name: _dense(each.grad) for name, each in stepping.items() if name in self._names and each.grad is not None
        }
        if gradients:  # a stack is whole, though what was sent to none of its experts gives these no gradient
            missing = self._stacked - gradients.keys()
            gradients |= {name: torch.zeros_like(self._model.get_parameter(name)) for name in missing}
        if scaler is not None and not all(bool(gradient.isfinite().all()) for gradient in gradients.values()):
            return
        scaled = scaler is not None and getattr(optimizer, "_step_supports_amp_scaling", False)
        scale = float(scaler.get_scale()) if scaled else 1.0
        for name, gradient in gradients.items():
            if name not in self._sums:
                self._sums[name] = torch.zeros_like(gradient, dtype=torch.promote_types(gradient.dtype, torch.float64))
            self._sums[name].add_(gradient, alpha=1 / scale)
        for group in self._own:
            if some := gradients.keys() & set(group.parameters):
                squares = squares_of_sides(group, Stacked(gradients), some) / scale**2
                self._squares[group.name] = squares + self._squares.get(group.name, torch.zeros_like(squares))
        for name in self._names & stepping.keys():
            self._steps[name] = self._steps.get(name, 0) + 1
            self._counted = True

    def after(self) -> None:
        """The optimizers' steps are over."""
        self._heard += self._counted
        self._unheard = 0 if self._counted else self._unheard + self._stepped
        self._stepped = self._counted = False
        if self._unheard > self._window > self._heard:
            self._forget()

    @property
    def sums(self) -> dict[str, tuple[int, ...]]:
        """The shapes of what is taken."""
        return {_gathered(name): (2,) for name in self._keys}

    def take(self) -> dict[str, Tensor]:
        """What this rank has found, once its window is full: of each group its value, and 1 where there is one."""
        taken = {_gathered(name): torch.zeros(2, dtype=torch.float64) for name in self._keys}
        if self._heard >= self._window:
            for group in self._own:
                if (steps := self._steps_of(group)) > 1:
                    value = self._imbalance(group, steps)
                    taken[_gathered(group.name)] = torch.tensor([float(value), 1.0], dtype=torch.float64)
            self._forget()
        return taken

    def pieces(self) -> list[Piece]:
        """One piece for each group, of what was taken."""
        return [
            Piece(keys=(key,), measure=lambda tensors, name=name: [tensors[_gathered(name)][0]])  # type: ignore[misc]
            for name, key in self._keys.items()
        ]

    def unknown(self, gathered: Mapping[str, Tensor]) -> set[str]:
        """The keys of what no rank has found, as before the first window is full."""
        return {key for name, key in self._keys.items() if not float(gathered[_gathered(name)][1])}

    def _steps_of(self, group: SymmetryGroup) -> int:
        """How many steps all that steps of a group has made; 0 where some made more than others, or none has any."""
        steps = {self._steps[name] for name in group.parameters if name in self._steps}
        return steps.pop() if len(steps) == 1 and group.name in self._squares else 0

    def _imbalance(self, group: SymmetryGroup, steps: int) -> Tensor:
        """From the lengths of the sums, as one entry for each side of each unit: nothing else of them is needed."""
        names = self._sums.keys() & set(group.parameters)
        incoming, outgoing = squares_of_sides(group, Stacked(self._sums), names).cpu().sqrt()
        squares = self._squares[group.name].cpu()
        made = squares.new_tensor(steps)
        return noise_imbalance_of(incoming[:, None], outgoing[:, None], squares[0], squares[1], made)

    def _forget(self) -> None:
        self._heard = self._unheard = 0
        for kept in (self._steps, self._sums, self._squares):
            kept.clear()


def _dense(gradient: Tensor) -> Tensor:
    dense = gradient.to_dense() if gradient.is_sparse else gradient
    return for_measuring(dense, dense.dtype)


def _gathered(name: str) -> str:
    return f"noise imbalance of {name}"

"""Spectra of gradients and of updates, taken at the steps before a measurement, a few layers at each.

A gradient is read when an optimizer is about to step. So is a copy of the layer's weights, from which the update is
told after the step: dW = W' - W. Nothing of either is kept but its indicators, and at any time no more layers are
copied than have their turn at that step.

Half-precision weights hide updates: bfloat16 keeps 8 bits, and a change below 2^-9 of a weight is rounded away. Where
the optimizer's state holds master weights, a wider tensor that rounds to the weights, these are taken instead.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_symmetry.functional.spectrum import spectral_indicators
from lightning_symmetry.functional.updates import update_ratio, update_stable_rank
from lightning_symmetry.keys import key_names
from lightning_symmetry.measurement.indicators import Piece

UPDATE_INDICATORS = ("update_ratio", "update_stable_rank")
"""What is measured of an update."""


class OptimizerSteps:
    """Listens to the steps of optimizers.

    Args:
        layers: The layers' weights by name, the same on every rank.
        indicators: What is measured of the spectrum of their gradients; none for nothing.
        updates: Whether `UPDATE_INDICATORS` are measured.
        rank: Which of the ranks this is; they share out the layers.
        world_size: How many ranks there are.
        at_once: Whether all layers have their turn at the last step before a measurement, as on a fixed grid.

    Attributes:
        without_master_weights: The layers in half precision whose updates were told from the weights themselves.
    """

    def __init__(
        self,
        layers: Mapping[str, nn.Parameter],
        indicators: Sequence[str],
        updates: bool,
        rank: int = 0,
        world_size: int = 1,
        at_once: bool = False,
    ) -> None:
        self.layers = dict(layers)
        self.indicators = tuple(indicators)
        self.without_master_weights: set[str] = set()
        self._updates = updates
        self._own = list(self.layers)[rank::world_size]
        self._rounds = 1 if at_once else -(-len(self.layers) // world_size)
        self._listening = False
        self._turn: list[str] = []
        self._copies: dict[str, tuple[Tensor, Callable[[], Tensor]]] = {}
        self._found: dict[str, dict[str, Tensor]] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """What is measured of each layer, as its keys name it."""
        updates = UPDATE_INDICATORS if self._updates else ()
        return (*(f"gradient_{indicator}" for indicator in self.indicators), *updates)

    def listen(self, steps_left: float) -> None:
        """Say whose turn it is at the next step: of the layers left, an even share for each of the steps that are left.

        Args:
            steps_left: How many steps come before the measurement, with the next one. Layers have their turn when these
                are no more than the layers of this rank.
        """
        listening = 1 <= steps_left <= self._rounds
        if listening and not self._listening:
            self._found = {}  # what was found earlier, and never taken
        self._listening = listening
        waiting = [name for name in self._own if name not in self._found]
        self._turn = waiting[: -(-len(waiting) // int(steps_left))] if listening else []
        self._copies.clear()

    def before(self, optimizer: Any, scaler: Any = None) -> None:
        """An optimizer is about to step.

        Args:
            optimizer: The optimizer.
            scaler: The `torch.amp.GradScaler` in use: it passes over a step of which a gradient is not finite, and
                some optimizers leave it to their step to undo its scale.
        """
        self.after()  # of another optimizer
        if not self._turn:
            return
        scaled = scaler is not None and getattr(optimizer, "_step_supports_amp_scaling", False)
        scale = scaler.get_scale() if scaled else 1.0
        owned = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        for name in self._turn:
            parameter = self.layers[name]
            if name in self._found or id(parameter) not in owned or parameter.grad is None:
                continue
            gradient = parameter.grad.detach()
            gradient = gradient.to_dense() if gradient.is_sparse else gradient
            if scaler is not None and not bool(gradient.isfinite().all()):
                continue
            if self.indicators:
                values = spectral_indicators(gradient if scale == 1.0 else gradient / scale, self.indicators)
                self._find(name, {f"gradient_{indicator}": value for indicator, value in values.items()})
            if self._updates:
                read = self._weights(name, optimizer.state)
                self._copies[name] = (read().clone(), read)

    def after(self) -> None:
        """The optimizer's step is over."""
        for name in list(self._copies):
            before, read = self._copies.pop(name)
            ratio, rank = update_ratio(before, read()), update_stable_rank(before, read())
            self._find(name, {"update_ratio": ratio, "update_stable_rank": rank})

    @property
    def sums(self) -> dict[str, tuple[int, ...]]:
        """The shapes of what is taken."""
        return {_gathered(name): (2, len(self.names)) for name in self.layers}

    def take(self) -> dict[str, Tensor]:
        """What this rank has found since it was taken last; zeros for the others' layers, and for unknown values.

        Returns:
            For each layer, as ``gradient or update of LAYER``: its values, and 1 for each that is known. Of a frozen
            layer, which has no gradient and is not changed, they are known to be 0.
        """
        taken = {}
        for name, parameter in self.layers.items():
            values = torch.zeros(2, len(self.names), dtype=torch.float64)
            if name in self._own and not parameter.requires_grad:
                values[1] = 1.0
            for place, key in enumerate(self.names):
                if key in self._found.get(name, {}):
                    values[:, place] = torch.tensor([float(self._found[name][key]), 1.0], dtype=torch.float64)
            taken[_gathered(name)] = values
        self._found = {}
        return taken

    def pieces(self) -> list[Piece]:
        """One piece for each layer, of what was taken."""
        return [
            Piece(keys=keys, measure=lambda tensors, name=name: list(tensors[name][0]))  # type: ignore[misc]
            for name, keys in self._keys.items()
        ]

    def unknown(self, gathered: Mapping[str, Tensor]) -> set[str]:
        """The keys of what no rank has found, as before the first step."""
        return {
            key
            for name, keys in self._keys.items()
            for key, known in zip(keys, gathered[name][1].tolist(), strict=True)
            if not known
        }

    @property
    def _keys(self) -> dict[str, tuple[str, ...]]:
        """The keys of each layer, by the name under which its values are gathered."""
        return {
            _gathered(name): tuple(f"spectrum/{indicator}/{key}" for indicator in self.names)
            for name, key in key_names(self.layers).items()
        }

    def _find(self, name: str, values: Mapping[str, Tensor]) -> None:
        self._found.setdefault(name, {}).update(values)

    def _weights(self, name: str, state: Mapping[Any, Any]) -> Callable[[], Tensor]:
        """Reads the master weights of a layer, or else the weights."""
        parameter = self.layers[name]
        if parameter.dtype.itemsize < 4:
            for key, value in state.get(parameter, {}).items():
                if _rounds_to(value, parameter):
                    return lambda: state[parameter][key].detach()
            self.without_master_weights.add(name)
        return parameter.detach


def _gathered(name: str) -> str:
    return f"gradient or update of {name}"


def _rounds_to(value: Any, parameter: Tensor) -> bool:
    return (
        isinstance(value, Tensor)
        and value.shape == parameter.shape
        and value.is_floating_point()
        and value.dtype.itemsize > parameter.dtype.itemsize
        and torch.equal(value.detach().to(parameter.dtype), parameter.detach())
    )

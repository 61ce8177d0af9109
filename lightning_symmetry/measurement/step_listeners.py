"""What is told of optimizers' steps, and tells at a measurement what it has found; several as one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor

from lightning_symmetry.measurement.indicators import Piece


class StepListener(Protocol):
    """Listens to the steps of optimizers; what it finds becomes a part of a `Plan`."""

    def listen(self, steps_left: float) -> None:
        """Say how many steps come before the measurement, with the next one."""

    def before(self, optimizer: Any, scaler: Any = None) -> None:
        """An optimizer is about to step."""

    def after(self) -> None:
        """The optimizers' steps are over."""

    @property
    def sums(self) -> Mapping[str, tuple[int, ...]]:
        """The shapes of what is taken."""

    def take(self) -> Mapping[str, Tensor]:
        """What this rank has found since it was taken last."""

    def pieces(self) -> Sequence[Piece]:
        """The pieces that measure the sum over ranks of what was taken."""

    def unknown(self, gathered: Mapping[str, Tensor]) -> set[str]:
        """The keys of what no rank has found."""


class StepListeners:
    """Several listeners as one; or none.

    Args:
        listeners: Each finds what has names and keys of its own.
    """

    def __init__(self, listeners: Iterable[StepListener]) -> None:
        self._listeners = tuple(listeners)

    def __len__(self) -> int:
        return len(self._listeners)

    def listen(self, steps_left: float) -> None:
        """Say how many steps come before the measurement, with the next one."""
        for each in self._listeners:
            each.listen(steps_left)

    def before(self, optimizer: Any, scaler: Any = None) -> None:
        """An optimizer is about to step."""
        for each in self._listeners:
            each.before(optimizer, scaler)

    def after(self) -> None:
        """The optimizers' steps are over."""
        for each in self._listeners:
            each.after()

    @property
    def sums(self) -> dict[str, tuple[int, ...]]:
        """The shapes of what is taken."""
        return {name: shape for each in self._listeners for name, shape in each.sums.items()}

    def take(self) -> dict[str, Tensor]:
        """What this rank has found since it was taken last."""
        return {name: found for each in self._listeners for name, found in each.take().items()}

    def pieces(self) -> list[Piece]:
        """The pieces of all."""
        return [piece for each in self._listeners for piece in each.pieces()]

    def unknown(self, gathered: Mapping[str, Tensor]) -> set[str]:
        """The keys of what no rank has found."""
        return {key for each in self._listeners for key in each.unknown(gathered)}

"""Trainings with W&B, each in a process of its own, since wandb keeps state in its process."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from lightning.pytorch import Callback

from tests.callbacks.test_transitions_in_training import Twins

EPOCHS, STEPS = 6, 36
TROUBLE, RELIEF = 6, 30
"""The steps at which trouble begins and, where it is for a while, ends."""


class Trouble(Callback):
    """Does something at the step at which trouble begins, and something at that at which it ends."""

    def __init__(self, begin: Callable[[], None], end: Callable[[], None] = lambda: None) -> None:
        self.at = {TROUBLE: begin, RELIEF: end}

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.at.get(trainer.global_step, lambda: None)()


class Stopwatch(Callback):
    """One before and one after the monitors: how long each step spends in their hooks."""

    def __init__(self, before: Stopwatch | None = None) -> None:
        self.before = before
        self.times: list[float] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.times.append(time.perf_counter())

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.times.append(time.perf_counter())

    @property
    def steps(self) -> list[float]:
        """The seconds that each step spent between the two."""
        assert self.before is not None
        hooks = [after - before for before, after in zip(self.before.times, self.times, strict=True)]
        return [start + end for start, end in zip(hooks[::2], hooks[1::2], strict=True)]


class Silent(Twins):
    """Logs nothing by itself: W&B's failures would end the training without us."""

    def log(self, *args: Any, **kwargs: Any) -> None:
        """Log nothing."""

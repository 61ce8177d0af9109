"""What the monitors share that measure optimizers' steps too, beside the parameters."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lightning_symmetry.callbacks.fence import fenced
from lightning_symmetry.callbacks.hooks import OF_MEASURED_STEPS, attend, wakeful
from lightning_symmetry.callbacks.monitor import Monitor
from lightning_symmetry.callbacks.run import steps_done
from lightning_symmetry.measurement.step_listeners import StepListener


class StepMonitor(Monitor):
    """A monitor that may measure optimizers' steps: its `make_plan` sets who listens to them, if anyone does."""

    _steps: StepListener | None = None
    _last_step: float = math.inf

    @property
    def listens(self) -> bool:
        """Whether optimizers' steps are asked for."""
        raise NotImplementedError

    @fenced
    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Repeat no measurement, and find out at which step training ends."""
        super().on_train_start(trainer, pl_module)
        self._steps = None
        self._last_step = trainer.estimated_stepping_batches if self.listens else math.inf

    @property
    def wakes_at(self) -> float:
        """The step before which there is nothing to do when a step begins."""
        return super().wakes_at if self._steps is None else 0

    @wakeful
    @fenced
    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Measure, if the step is due; say how far the next measurement is."""
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        if self._steps is None:
            return
        attend(self, OF_MEASURED_STEPS)
        with self._listening(trainer) as steps:
            if steps is not None and self._session is not None:
                steps.listen(min(self._session.gathered_at, self._last_step) - steps_done(trainer))

    @fenced
    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        """Read what the step will change."""
        super().on_before_optimizer_step(trainer, pl_module, optimizer)
        with self._listening(trainer) as steps:
            if steps is not None:
                steps.before(optimizer, getattr(trainer.precision_plugin, "scaler", None))

    @fenced
    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Tell what the optimizer's step has changed, and record what was measured."""
        with self._listening(trainer) as steps:
            if steps is not None:
                steps.after()
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    @fenced
    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Keep nothing of the model."""
        super().teardown(trainer, pl_module, stage)
        self._steps = None

    @contextmanager
    def _listening(self, trainer: Any) -> Iterator[StepListener | None]:
        """Count the time within as spent on gathering; a failure is said once, and ends the listening."""
        if self._steps is None or self._session is None:
            yield None
            return
        with self._fenced(trainer), self._session.gathering():
            try:
                yield self._steps
            except Exception:
                self._steps = None
                raise

"""One monitor during one fit. It knows no Trainer: a callback tells it when a step begins and ends."""

from __future__ import annotations

import math
import sysconfig
import traceback
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lightning_symmetry.measurement.budget import Budget
from lightning_symmetry.measurement.indicators import Piece, nonfinite
from lightning_symmetry.measurement.measure import Ranks, join, measure
from lightning_symmetry.measurement.snapshot import snapshot
from lightning_symmetry.measurement.transitions import Transition, Transitions
from lightning_symmetry.sinks.recorder import Recorder
from lightning_symmetry.sinks.warning import warn

PATIENCE = 2
"""How many failures a monitor is forgiven before it stands down."""


@dataclass(frozen=True)
class Plan:
    """What to measure.

    Attributes:
        pieces: The pieces of a measurement, the same on every rank.
        aggregates: From the values of all pieces to what is told of the model as a whole.
        findings: What there is to note of the model before the first measurement: details of events by their kind.
        take_sums: What this rank has gathered since the last measurement, of the same names and shapes on every rank;
            summed over ranks it is measured beside the model's tensors.
    """

    pieces: Sequence[Piece]
    aggregates: Callable[[Mapping[str, float]], dict[str, float]]
    findings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    take_sums: Callable[[], Mapping[str, Tensor]] = dict


class Session:
    """Measures a model at the steps that the budget allows, and hands on what was measured.

    Args:
        name: The name of the monitor, for messages.
        make_plan: From the model and its first batch to what to measure; called once, at the first step, on every rank.
        aggregates: The names of what is told of the model as a whole.
        budget: When to measure.
        ranks: Who measures together.
        recorder: Where measurements go; on other ranks than zero, one that keeps them in memory.
        transitions: What is watched for in them.
        alert_on: The kinds of events of which alerts are sent.
        on_transition: Called on rank zero with each transition; None for nothing.
        raise_errors: Raise failures, instead of warning of them.
    """

    def __init__(
        self,
        name: str,
        make_plan: Callable[[nn.Module, Any], Plan],
        aggregates: Sequence[str],
        budget: Budget,
        ranks: Ranks,
        recorder: Recorder,
        transitions: Transitions,
        alert_on: Collection[str],
        on_transition: Callable[[Transition], Any] | None,
        raise_errors: bool,
    ) -> None:
        self._name = name
        self._make_plan = make_plan
        self._untold = dict.fromkeys(aggregates, math.nan)
        self._budget = budget
        self._ranks = ranks
        self._recorder = recorder
        self._transitions = transitions
        self._alert_on = alert_on
        self._on_transition = on_transition
        self._raise_errors = raise_errors
        self._plan: Plan | None = None
        self._row: tuple[int, dict[str, float]] | None = None
        self._failures = 0
        self._measured_at = -1
        recorder.overheads.append(lambda: budget.overhead)
        recorder.counters.append(lambda: transitions.counts)

    def skip(self, step: int) -> None:
        """Take a step for measured, as a resumed run's first may be: measure next when the step after it is due."""
        self._measured_at = step
        self._budget.plan(step, 0.0, 0.0)

    def hurry(self, step: int) -> None:
        """Make a step due, as the last of a training is."""
        self._budget.due, self._budget.planned = step, True

    def gathers(self, step: int, window: int) -> bool:
        """Whether a measurement is due within so many steps after this one."""
        return not self._standing_down and step >= self._budget.due - window

    def measuring(self) -> AbstractContextManager[None]:
        """Count the time within as spent on measuring."""
        return self._budget.measuring()

    @property
    def measured_at(self) -> int:
        """The step of the last measurement, or the one taken for measured; -1 before the first."""
        return self._measured_at

    def step_begins(self, step: int, model: nn.Module, batch: Any) -> dict[str, float]:
        """Measure if the step is due; parameters without a shape yet, of lazy modules, are waited for.

        Returns:
            What is told of the model as a whole, the same on all ranks: NaN where that is not known; empty where
            nothing was measured.
        """
        self._budget.step_begins(step)
        if step < self._budget.due or self._standing_down or any(map(is_lazy, model.parameters())):
            return {}
        with self._fenced(step), self._budget.measuring():
            if self._plan is None:
                self._plan = self._make_plan(model, batch)
                self._budget.settle()
                for kind, details in self._plan.findings.items():
                    self._recorder.event(step, kind, **details)
            if self._budget.planned:
                return self._measure(step, model)
            agreed = measure([], {}, self._ranks, self._budget.step_time)
            self._budget.replan(step, agreed.step_time)
        return self._untold if self._plan is None else {}

    def step_ends(self, loss: float | None) -> None:
        """Hand on what was measured when the step began, with the loss of the step."""
        if self._row is None:
            return
        with self._budget.measuring():
            step, values = self._row
            self._row = None
            self._recorder.record(step, values if loss is None else {**values, "loss": loss})
        if not self._budget.counting:
            self._budget.start_counting()

    @property
    def awaits_loss(self) -> bool:
        """Whether a measurement waits for the loss of its step."""
        return self._row is not None

    def finish(self, step: int, model: nn.Module) -> None:
        """Measure where training ended."""
        if self._plan is not None and step > self._measured_at and not self._standing_down:
            with self._fenced(step), self._budget.measuring():
                self._measure(step, model)
        self.step_ends(None)

    @property
    def _standing_down(self) -> bool:
        return self._failures >= PATIENCE

    def _measure(self, step: int, model: nn.Module) -> dict[str, float]:
        assert self._plan is not None
        gathered = join(self._plan.take_sums(), self._ranks)
        tensors = {**snapshot(model), **gathered}
        measured = measure(self._plan.pieces, tensors, self._ranks, self._budget.step_time, self._budget.owed)
        self._budget.settle()
        self._measured_at = step
        self._budget.plan(step, measured.cost, measured.step_time)
        aggregates = self._plan.aggregates(measured.values)
        self._row = (step, {**aggregates, **measured.values})
        if any(map(math.isnan, measured.values.values())):
            names = [*(name for name, _ in model.named_parameters()), *gathered]
            bad = nonfinite({name: tensors[name] for name in names})
            self._recorder.nonfinite(step, bad, alert="nonfinite" in self._alert_on)
        self._tell(step, self._transitions.observe(step, measured.values))
        if measured.error is not None:
            self._fail(step, measured.error, here_alone=True)
        elif measured.failed:
            self._fail(step, RuntimeError("another rank failed; its log says why"))
        return {**self._untold, **aggregates}

    def _tell(self, step: int, found: Sequence[Transition]) -> None:
        """Tell of transitions: the history and the loggers, each kind at once, and who asked to be called."""
        for kind, alike in groupby(sorted(found, key=lambda transition: transition.kind), lambda one: one.kind):
            self._recorder.events(step, kind, [one.details() for one in alike], alert=kind in self._alert_on)
        if self._on_transition is None or self._ranks.rank != 0:
            return
        for transition in found:
            try:
                self._on_transition(transition)
            except Exception as error:
                if self._raise_errors:
                    raise
                warn(f"on_transition failed at step {step}; training goes on. {type(error).__name__}: {error}")

    @contextmanager
    def _fenced(self, step: int) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self._fail(step, error)

    def _fail(self, step: int, error: Exception, here_alone: bool = False) -> None:
        """Count a failure and say so: rank zero for all ranks, and the rank on which alone it happened."""
        if self._raise_errors:
            raise error
        self._failures = PATIENCE if self._plan is None else self._failures + 1
        self._budget.due = max(self._budget.due, step + 1)
        self._recorder.errors += 1
        message = f"{type(error).__name__}: {error}{_line_of(error)}"
        told = {"where": self._name, "message": message}
        self._recorder.events(step, "error", [told], alert="error" in self._alert_on)
        if here_alone or self._ranks.rank == 0:
            fate = "stands down" if self._standing_down else "goes on"
            warn(f"{self._name} failed at step {step} and {fate}; training is not affected. {message}")


def _line_of(error: BaseException) -> str:
    """Where in the user's own code an error came from: the last line that is of no installed package and not ours."""
    installed = (*map(sysconfig.get_path, ("stdlib", "purelib", "platlib")), str(Path(__file__).parents[1]))
    lines = [
        line for line in traceback.extract_tb(error.__traceback__) if not line.filename.startswith((*installed, "<"))
    ]
    return f" ({lines[-1].filename}, line {lines[-1].lineno}, in {lines[-1].name})" if lines else ""

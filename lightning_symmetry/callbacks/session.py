"""One monitor during one fit. It knows no Trainer: a callback tells it when a step begins and ends."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.parameter import is_lazy

from lightning_symmetry.callbacks.telling import tell, tell_of_failure
from lightning_symmetry.measurement.beside import Beside
from lightning_symmetry.measurement.budget import Budget
from lightning_symmetry.measurement.device import device_of
from lightning_symmetry.measurement.frozen import Memory
from lightning_symmetry.measurement.indicators import NONE_YET, nonfinite
from lightning_symmetry.measurement.measure import (
    FailedOnARank,
    Measured,
    Measurement,
    Ranks,
    join,
    nonfinite_parameters,
    together,
)
from lightning_symmetry.measurement.plan import Plan
from lightning_symmetry.measurement.schedule import Costs, Numbers
from lightning_symmetry.measurement.slices import within_one
from lightning_symmetry.measurement.snapshot import snapshot
from lightning_symmetry.measurement.transitions import Transition, Transitions
from lightning_symmetry.sinks.recorder import Recorder

PATIENCE = 2
"""How many failures a monitor is forgiven before it stands down."""


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

    Attributes:
        awaits_loss: Whether a measurement waits for the loss of its step.
        beside: What is measured beside the step; it must `join` before parameters change.
        measured_at: The step of the last measurement, or the one taken for measured; -1 before the first.
        taken_at: The step at which what was gathered was taken last, likewise.
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
        self._on_transition = on_transition if ranks.rank == 0 else None
        self._raise_errors = raise_errors
        self._host = device_of(ranks.device)
        self.beside = Beside(self._host, budget.measuring, lambda: self._fenced(self._step))
        budget.in_slices = not self._host.lag
        self._lag = 0 if (budget.every_n_steps or math.inf) <= 2 * self._host.lag else self._host.lag
        self._memory = Memory(at_once=not self._host.lag)
        self._plan: Plan | None = None
        self._plan_from = self._step = self._wakes_at = self._joined_at = 0
        self._state: Mapping[str, Any] = {}
        self._measurement: Measurement | None = None
        self._gathered: Mapping[str, Tensor] | None = None
        self._gathering = 0.0
        self._reached: int | None = None
        self._read: Callable[[], Measured] | None = None
        self._row: tuple[int, dict[str, float]] | None = None
        self._loss: Callable[[], Tensor] | None = None
        self._failures = self._failures_here = 0
        self.awaits_loss = False
        self.measured_at = self.taken_at = -1
        recorder.overheads.append(budget.overhead)
        recorder.counters.append(lambda: transitions.counts)

    def begin(self, step: int, measured: bool = False, state: Mapping[str, Any] | None = None) -> None:
        """Go on where a run stopped, or begin.

        Args:
            step: The step that training begins with.
            measured: Whether it is taken for measured, as a resumed run's first may be, or one without anything to
                measure yet; the next is then measured first.
            state: The budget of the run that is gone on with.

        Raises:
            Exception: The state cannot be read; all else is done.
        """
        if measured:
            self.measured_at = self.taken_at = step
            self._budget.plan(step, Costs(), 0.0)
        if state:
            self._budget.restore(state, max(step, self.measured_at + 1))
            self._state = state

    def listen_first(self, window: int) -> None:
        """Plan what to measure when so many steps were listened to, or when the first measurement is due."""
        self._budget.wait_until(self.measured_at + window)
        self._plan_from = self._wakes_at = self._budget.due

    @property
    def gathered_at(self) -> float:
        """The step at which what is gathered is taken next; inf where that is not known."""
        return math.inf if self._gathered is not None or self._standing_down else self._budget.gather_at

    @property
    def wakes_at(self) -> int:
        """The step before which nothing needs to be told of steps; at first, and for some after it, they are timed."""
        return self._wakes_at if self._budget.knows_step_time else 0

    @contextmanager
    def gathering(self) -> Iterator[None]:
        """Count the time within as spent on gathering what is measured."""
        before = self._budget.spent
        with self._budget.measuring():
            yield
        self._gathering += self._budget.spent - before

    def idles(self, step: int) -> bool:
        """Note that a step begins, and tell whether there is nothing to do."""
        self._step = step
        self._budget.step_begins(step)
        return step < self._wakes_at

    def step_begins(self, step: int, model: nn.Module, batch: Any) -> dict[str, float]:
        """Measure what is due at this step; parameters without a shape yet, of lazy modules, are waited for.

        Returns:
            What is told of the model as a whole, the same on all ranks: NaN where that is not known; empty where
            no measurement is complete.
        """
        if self.idles(step) or self._standing_down:
            return {}
        if self._plan is None and any(map(is_lazy, model.parameters())):
            return {}
        told: dict[str, float] = {}
        with self._fenced(step), self._budget.measuring():
            if self._plan is None:
                self._make(step, model, batch)
            told = self._work(step, model)
        self._wakes_at = self._next_step
        if self._state and self._reached is None and not self.awaits_loss and not self._budget.counting:
            self._budget.start_counting(step)  # a run that is gone on with has measured before
        return told if self._plan is not None else self._untold

    def step_ends(self, loss: Tensor | None) -> None:
        """Hand on what was measured when the step began, with the loss of the step."""
        self.beside.join()
        if self.awaits_loss:
            with self._budget.measuring():
                self.awaits_loss = False
                self._loss = None if loss is None else self._host.copied(loss.detach())
                self._hand_on()

    def pauses(self) -> None:
        """Make use of a pause of the training, for what takes longer than a step may."""
        with self._budget.measuring():
            self._refreshing(self._recorder.pause)

    def finish(self, step: int, model: nn.Module, gathered: bool = True) -> None:
        """Measure where training ended.

        Args:
            step: The step.
            model: The model.
            gathered: Whether anything was gathered since it was taken last; else what was taken is measured, if any.
        """
        with self._fenced(step), self._budget.measuring():
            if self._reached is not None:
                self._complete(step, model, lag=0)
            if step > self.measured_at and not self._standing_down and (gathered or self._gathered is not None):
                if self._plan is None and self._plan_from:
                    self._make(step, model, None)
                if self._plan is not None:
                    if gathered:
                        self._drop()
                    self._measure((), step, model, due=True)
                    self._complete(step, model, lag=0)
        self.step_ends(None)

    def stop(self, step: int, model: nn.Module) -> None:
        """Hand on what all ranks have measured, and wait for nobody: training has failed."""
        self._ranks = replace(self._ranks, world_size=1)
        with self._fenced(step), self._budget.measuring():
            self.beside.join()
            if self._read is not None:
                self._complete(step, model, lag=0)
        self.step_ends(None)

    @property
    def _standing_down(self) -> bool:
        return self._failures >= PATIENCE

    @property
    def _next_step(self) -> int:
        """The step before which there is nothing to do."""
        if self._standing_down:
            return sys.maxsize
        if self._reached is not None:
            return self._lag + (self._reached if self._read is None else self._joined_at)
        if self._plan is None:
            return self._plan_from
        next_step = self._budget.next_step
        return next_step if self._gathered is not None else min(next_step, self._budget.gather_at)

    def _make(self, step: int, model: nn.Module, batch: Any) -> None:
        self._plan = together(lambda: self._make_plan(model, batch), self._ranks)
        if self._state:
            self._budget.restore(self._state, max(step, self.measured_at + 1), len(self._plan.pieces))
        self._budget.settle()
        for kind, details in self._plan.findings.items():
            self._recorder.finding(step, kind, details)

    def _work(self, step: int, model: nn.Module) -> dict[str, float]:
        """Measure the pieces whose turn it is, or bring a measurement of an earlier step to its end."""
        if self._reached is not None:
            return self._complete(step, model, self._lag)
        due = step >= self._budget.due
        if not self._budget.planned and (not due or self._budget.costs.pieces):
            if due:
                self._plan_first_interval(step)
            return {}
        self._measure(self._budget.take(step), step, model, due)
        return self._complete(step, model, self._lag) if due else {}

    def _plan_first_interval(self, step: int) -> None:
        """Agree on how long a step takes, and on what it cost to hand on the first measurement."""
        agreed = Measurement([], self._ranks, self._host).joined(self._budget.step_time, rest=self._budget.owed)()
        self._budget.settle()
        costs = self._budget.costs
        self._budget.plan(step, replace(costs, rest=costs.rest + agreed.costs.rest), agreed.step_time)

    def _measure(self, pieces: Numbers, step: int, model: nn.Module, due: bool) -> None:
        """Measure some pieces; all that are left where the step is due."""
        assert self._plan is not None
        if self._gathered is None and (due or step >= self._budget.gather_at):
            started = time.perf_counter()
            self._gathered, self.taken_at = join(self._take_sums(step), self._ranks), step
            self._gathering += time.perf_counter() - started
        if self._measurement is None:
            self._measurement = Measurement(self._plan.pieces, self._ranks, self._host, self._memory)
        if due:
            pieces += tuple(number for number in self._measurement.left if number not in pieces)
            self._reached, self.awaits_loss = step, True
        left = tuple(number for number in pieces if number not in self._measurement.begun)
        if left:
            self._begin(self._measurement, left, model)
        elif pieces or due:
            self.beside.go_on(math.inf if due else self._budget.at_once)

    def _begin(self, measurement: Measurement, pieces: Numbers, model: nn.Module) -> None:
        """Begin to measure pieces, beside the step where the device allows: what is spread all ranks gather in step."""
        assert self._plan is not None
        cut = self._reached is None and self._budget.comes_again(pieces)
        besides, prepare = {**self._host.kept(model.named_buffers()), **(self._gathered or {})}, self._plan.prepare
        read = partial(snapshot, model, self._ranks, besides)

        def work() -> None:
            measurement.measure(
                pieces,
                read=lambda: within_one(read().copied) if cut else read(),
                prepare=prepare,
                frozen=lambda name: not model.get_parameter(name).requires_grad,
            )

        if any(isinstance(parameter, DTensor) for parameter in model.parameters()):
            work()
        else:
            self.beside.begin(work, self._budget.at_once if cut else math.inf)

    def _take_sums(self, step: int) -> Mapping[str, Tensor]:
        """What this rank has gathered; nothing where that fails, so that no rank waits for this one."""
        assert self._plan is not None
        try:
            return self._plan.take_sums()
        except Exception as error:
            if self._ranks.world_size == 1:
                raise
            self._fail(step, error, here_alone=True, known=False)
            return self._plan.no_sums

    def _complete(self, step: int, model: nn.Module, lag: int) -> dict[str, float]:
        """Bring a measurement to its end, as far as it can be without waiting for the device."""
        assert self._plan is not None and self._measurement is not None and self._reached is not None
        if self._read is None and step >= self._reached + lag:
            self.beside.join()
            rest = max(self._budget.owed - self._measurement.seconds - self._gathering, 0.0)
            self._read = self._measurement.joined(self._budget.step_time, self._gathering, rest, self._failures_here)
            self._joined_at = step
            self._gathering, self._failures_here = 0.0, 0
            self._budget.settle()
        if self._read is None or step < self._joined_at + lag:
            return {}
        measured, reached, gathered = self._read(), self._reached, self._gathered or {}
        self._drop()
        self.measured_at = reached
        self._memory.learn(self._plan.pieces, measured.values, measured.digests)
        self._budget.plan(reached, measured.costs, measured.step_time, after=step)
        unknown = set(self._plan.unknown(gathered))
        values = {key: value for key, value in measured.values.items() if key not in unknown and value != NONE_YET}
        aggregates = self._plan.aggregates(values)
        self._row = (reached, {**aggregates, **values})
        if any(map(math.isnan, values.values())):
            bad = nonfinite_parameters(model, self._ranks) or nonfinite(gathered)
            self._recorder.nonfinite(reached, bad, alert="nonfinite" in self._alert_on)
        found = self._transitions.observe(reached, values)
        tell(reached, found, self._recorder, self._alert_on, self._on_transition, self._raise_errors)
        if not self.awaits_loss:
            self._hand_on()
        if measured.error is not None:
            self._fail(reached, measured.error, here_alone=True)
        elif measured.failed:
            self._fail(reached, RuntimeError("another rank failed; its log says why"))
        return {**self._untold, **aggregates}

    def _drop(self) -> None:
        """Keep nothing of the measurement in the making."""
        self.beside.give_up()
        self._measurement = self._gathered = self._read = self._reached = None

    def _hand_on(self) -> None:
        """Record the row, with the loss of its step where that is known."""
        if self._row is not None:
            (step, values), self._row = self._row, None
            loss, self._loss = self._loss, None
            values = values if loss is None else {**values, "loss": float(loss())}
            self._refreshing(lambda: self._recorder.record(step, values))
            if not self._budget.counting:
                self._budget.start_counting(step)

    def _refreshing(self, record: Callable[[], None]) -> None:
        """Do what may make pictures; these have a share of their own, and do not put off the next measurement."""
        before = self._recorder.refreshing
        record()
        self._budget.settle(self._recorder.refreshing - before)

    @contextmanager
    def _fenced(self, step: int) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            if self._plan is None:
                self._failures = PATIENCE - 1  # without a plan there is nothing to go on with
            self._drop()
            here_alone = isinstance(error, FailedOnARank) and error.here
            self._fail(step, error, here_alone, known=self._plan is None or self._ranks.world_size == 1)

    def fail(self, step: int, error: Exception) -> None:
        """Count a failure outside of a measurement; other ranks, which go on with theirs, hear of it with the next."""
        if self._ranks.world_size == 1:
            self._drop()
        self._fail(step, error, here_alone=True, known=self._ranks.world_size == 1)

    def _fail(self, step: int, error: Exception, here_alone: bool = False, known: bool = True) -> None:
        """Count a failure and say so: rank zero for all ranks, and the rank on which alone it happened.

        A rank does not stand down before the others know why, since they would wait for it.
        """
        if self._raise_errors:
            raise error
        if self._standing_down:
            return
        self._failures += known
        self._failures_here += not known
        self._budget.due = max(self._budget.due, step + 1)
        warned, goes_on = here_alone or self._ranks.rank == 0, not self._standing_down
        tell_of_failure(step, error, self._name, self._recorder, "error" in self._alert_on, warned, goes_on)

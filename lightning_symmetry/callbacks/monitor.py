"""What all monitors share: the Trainer's hooks, each one line into a `Session`, which knows no Trainer."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cached_property
from typing import Any, ClassVar, Literal
from weakref import WeakKeyDictionary

import torch
from lightning.pytorch import Callback
from torch import nn

from lightning_symmetry.callbacks import hooks
from lightning_symmetry.callbacks.alerts import ALERT_ON, AlertKind, chosen_alerts
from lightning_symmetry.callbacks.fence import fenced
from lightning_symmetry.callbacks.run import begin_run, loss_in, open_recorder, ranks_of, steps_done
from lightning_symmetry.callbacks.session import PATIENCE, Session
from lightning_symmetry.history import History
from lightning_symmetry.measurement.budget import Budget
from lightning_symmetry.measurement.measure import join
from lightning_symmetry.measurement.plan import Plan
from lightning_symmetry.measurement.selection import check_patterns, select
from lightning_symmetry.measurement.snapshot import refuse_flattened
from lightning_symmetry.measurement.transitions import Transition, Transitions
from lightning_symmetry.sinks.recorder import Recorder
from lightning_symmetry.sinks.warning import warn

SHARE_OF_MEASUREMENTS, SHARE_OF_REPORTS = 0.5, 0.1
"""The shares of the budget that measurements may take, and reports and heatmaps. The rest is kept for what no clock of
ours sees: caches that a measurement leaves cold, and hooks that slow a step beside what they do."""

OnError = Literal["warn", "raise"]
OnTransition = Callable[[Transition], Any] | None

_RECORDERS: WeakKeyDictionary[Any, Recorder] = WeakKeyDictionary()


class Monitor(Callback):
    """A callback that measures a model during training, on a budget, and never disturbs the training.

    Args:
        max_overhead: The share of the time of training, in (0, 1), that all monitors of a Trainer together may take;
            the interval between measurements follows from it. The first measurement, with the search for symmetries
            before it, and the last, where training ends, are paid once and do not count.
        every_n_train_steps: Measure at every so many steps instead, whatever it costs.
        include: A regular expression; only what belongs to a parameter whose name it is found in is measured.
        exclude: A regular expression; what belongs to a parameter whose name it is found in is not measured.
        on_error: ``"warn"``: a failure is warned of and counted, and the monitor that failed twice stands down;
            ``"raise"``: it is raised.
        alert_on: The kinds of events of which a W&B run sends an alert: ``"breaking"``, ``"restoration"``,
            ``"rank_jump"``, ``"rank_collapse"``, ``"representation_collapse"``, ``"death_of_units"``,
            ``"nonfinite"`` (a parameter holds a NaN or an infinity), ``"error"`` (the monitor failed). Empty for none.
        on_transition: Called on rank zero with each `Transition`, at the step at which it is found. What it raises is
            warned of, and never reaches the training.

    Attributes:
        failures: How many of its hooks have failed in this fit.
        history: What was measured, in the run's folder too: see `read_history`.
        section: What the keys of what it measures of each part of the model begin with.
        aggregates: The keys of what it tells of the model as a whole, for `EarlyStopping` and `ModelCheckpoint` to
            watch: NaN where it failed (`EarlyStopping` then ends the training in good order; with
            ``check_finite=False`` it lets it go on).
        selected_by: Of what the names are that `include` and `exclude` are looked for in.

    Raises:
        ValueError: An argument is out of its range.
    """

    section: ClassVar[str]
    aggregates: ClassVar[tuple[str, ...]]
    selected_by: ClassVar[str] = "parameter"

    def __init__(
        self,
        max_overhead: float = 0.01,
        every_n_train_steps: int | None = None,
        include: str | None = None,
        exclude: str | None = None,
        on_error: OnError = "warn",
        alert_on: Collection[AlertKind] = ALERT_ON,
        on_transition: OnTransition = None,
    ) -> None:
        if not 0 < max_overhead < 1:
            raise ValueError(
                f"max_overhead={max_overhead!r} is no share of the time of training: "
                "give a number above 0 and below 1, as 0.01 for one percent"
            )
        if every_n_train_steps is not None and every_n_train_steps < 1:
            raise ValueError(f"every_n_train_steps={every_n_train_steps!r} must be at least 1, or None for the budget")
        if on_error not in ("warn", "raise"):
            raise ValueError(f'on_error={on_error!r} must be "warn" or "raise"')
        check_patterns(include, exclude)
        self.max_overhead = max_overhead
        self.every_n_train_steps = every_n_train_steps
        self.include = include
        self.exclude = exclude
        self.on_error = on_error
        self.alert_on = chosen_alerts(alert_on)
        self.on_transition = on_transition
        self.history = History(None)
        self.failures = 0
        self._session: Session | None = None
        self._transitions = Transitions()
        self._restored: Mapping[str, Any] = {}  # what a checkpoint holds, until it is taken up
        self._told: dict[str, float] = {}
        self._budget: Budget | None = None

    def make_plan(self, trainer: Any, model: nn.Module, batch: Any) -> Plan:
        """What to measure, from the model and its first batch."""
        raise NotImplementedError

    def selectable(self, model: nn.Module) -> list[str]:
        """The names that `include` and `exclude` are looked for in."""
        return [name for name, _ in model.named_parameters()]

    def config(self) -> dict[str, Any]:
        """The arguments of this monitor, for the run's config."""
        kinds = [kind for kind in type(self).__mro__ if issubclass(kind, Monitor)]
        names = [name for kind in kinds for name in inspect.signature(kind).parameters]
        values = {name: getattr(self, name) for name in names if hasattr(self, name)}
        return {
            name: getattr(value, "__qualname__", type(value).__name__) if callable(value) else value
            for name, value in values.items()
        }

    @cached_property
    def state_key(self) -> str:
        """The name of its state in a checkpoint."""
        return self._generate_state_key(include=self.include, exclude=self.exclude)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps, as plain values; without what fails, since the checkpoint is the user's."""
        try:
            return self.state()
        except Exception as error:
            if self.on_error == "raise":
                raise
            with suppress(Exception):
                warn(f"{type(self).__name__} leaves nothing in the checkpoint. {type(error).__name__}: {error}")
            return {}

    def state(self) -> dict[str, Any]:
        """What is known of the series that are watched, and the budget."""
        of_budget = {} if self._budget is None else {"budget": self._budget.state()}
        return {"transitions": self._transitions.state(), "told": self._told, **of_budget}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep what a checkpoint holds for the fit that begins; some strategies read it only after `on_fit_start`."""
        self._restored = state_dict

    def select(self, names: Iterable[str]) -> list[str]:
        """Those names that `include` and `exclude` leave.

        Raises:
            ValueError: A regular expression is found in no name.
        """
        return select(names, self.include, self.exclude, of=self.selected_by)

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Refuse what cannot work, and open the run's history."""
        self.failures = 0
        refused = self._refused(trainer, pl_module)
        if refused is not None:
            raise refused
        self._begin(trainer, pl_module)

    @fenced
    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Begin the run, or go on with it where a checkpoint left it; repeat no measurement that it has already."""
        measured: dict[str, float] = {}
        self._stand_together(trainer, self._session is not None)
        with self._fenced(trainer):
            if self._session is not None:
                config = {type(monitor).__name__: monitor.config() for monitor in _monitors(trainer)}
                begin_run(_RECORDERS[trainer], trainer, pl_module, config)
                self._take_up(trainer)
                measured = self._measured_at(steps_done(trainer))
        if self._session is not None:
            if steps_done(trainer) > 0:  # rank zero alone has the history
                measured = trainer.strategy.broadcast(measured)
            with self._taking_up("the budget"):
                self._session.begin(steps_done(trainer), self._is_measured(measured), self._restored.get("budget"))
        if measured:
            self._transitions.observe(steps_done(trainer), measured)
        self._tell(trainer)
        hooks.pass_over(self, trainer, [*hooks.inherited(self), *hooks.OF_MEASURED_STEPS])

    @hooks.wakeful
    @fenced
    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Measure, if the step is due, the parameters with which the step begins."""
        step = steps_done(trainer)
        if self._session is None or self._session.idles(step):
            hooks.sleep(self, trainer, self.wakes_at)
        else:
            told = self._session.step_begins(step, pl_module, batch)
            if self._session.awaits_loss or self._session.beside.works:
                hooks.attend(self, hooks.OF_MEASURED_STEPS[not self._session.beside.works :])
            self._told |= told
            self._tell(trainer)

    @fenced
    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        """Wait for what is measured beside the step: the optimizer changes what it reads."""
        if self._session is not None:
            self._session.beside.join()

    @property
    def wakes_at(self) -> float:
        """The step before which there is nothing to do when a step begins."""
        return math.inf if self._session is None else self._session.wakes_at

    @fenced
    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Record what was measured, with the loss of the step."""
        if self._session is not None:
            self._session.step_ends(loss_in(outputs))
        hooks.pass_over(self, trainer, hooks.OF_MEASURED_STEPS)

    @fenced
    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Make the report anew, if that is due, where training pauses by itself."""
        if self._session is not None:
            self._session.pauses()

    @fenced
    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Make the report anew, if that is due."""
        self.on_validation_end(trainer, pl_module)

    @fenced
    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Measure the parameters with which training ends."""
        if self._session is not None:
            self._session.finish(steps_done(trainer), pl_module)

    @fenced
    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        """Make the report."""
        self._end(trainer)

    @fenced
    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Make the report of what there is."""
        self._restored = {}
        with self._fenced(trainer):
            if self._session is not None:
                self._session.stop(steps_done(trainer), pl_module)
        self._end(trainer)

    @fenced
    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Forget the checkpoint: a fit that begins later takes up its own."""
        self._restored = {}

    def fail(self, trainer: Any, error: Exception) -> None:
        """Count a failure of a hook, and tell of it; the monitor that failed twice stands down."""
        self.failures += 1
        if self.failures > PATIENCE:
            return
        try:
            assert self._session is not None
            self._session.fail(steps_done(trainer), error)
        except Exception:  # before the session has begun, or where telling fails
            warn(f"{type(self).__name__} failed; training is not affected. {type(error).__name__}: {error}")

    def _tell(self, trainer: Any) -> None:
        """Let EarlyStopping and ModelCheckpoint watch what is known of the model as a whole, on every rank alike.

        Not by `log`: of what is logged the trainer works out each value again at every step.
        """
        trainer.callback_metrics.update({name: torch.tensor(value) for name, value in self._told.items()})

    def _stand_together(self, trainer: Any, ready: bool) -> None:
        """Measure nothing where some rank cannot: the others would wait for it."""
        if join({"missing": torch.tensor(float(not ready))}, ranks_of(trainer))["missing"]:
            self._session = None

    def _take_up(self, trainer: Any) -> None:
        """Go on from what a checkpoint holds, where there is one."""
        self._told = {}
        if not self._restored:
            if trainer.ckpt_path is not None and steps_done(trainer) > 0:
                warn(
                    f"{type(self).__name__} begins anew: the checkpoint is of a run without it, or with other arguments"
                )
            return
        with self._taking_up("the detectors of transitions"):
            self._transitions.restore(self._restored["transitions"])
            self._told = {name: value for name, value in self._restored["told"].items() if math.isfinite(value)}

    @contextmanager
    def _taking_up(self, what: str) -> Iterator[None]:
        """Go on without what a checkpoint holds where that cannot be read, as that of another version."""
        try:
            yield
        except Exception as error:
            self._restored = {}
            warn(
                f"{type(self).__name__} begins anew: {what} in the checkpoint cannot be read. "
                f"{type(error).__name__}: {error}"
            )

    @contextmanager
    def _fenced(self, trainer: Any) -> Iterator[None]:
        """Go on with the rest of a hook where a part of it fails."""
        try:
            yield
        except Exception as error:
            if self.on_error == "raise":
                raise
            self.fail(trainer, error)

    def _refused(self, trainer: Any, model: Any) -> ValueError | None:
        """Why this monitor cannot work here, if so."""
        try:
            self._check(trainer, model)
        except ValueError as error:
            return error
        except Exception as error:
            if self.on_error == "raise":
                raise
            self.fail(trainer, error)
        return None

    def _check(self, trainer: Any, model: Any) -> None:
        if not any(True for _ in model.parameters()):
            raise ValueError(
                f"{type(self).__name__} has nothing to measure: "
                f"{type(model).__name__} has no parameters when fit starts"
            )
        self.select(self.selectable(model))
        if [type(monitor) for monitor in _monitors(trainer)].count(type(self)) > 1:
            raise ValueError(
                f"callbacks has two of {type(self).__name__}, which would write the same keys: give one, with an "
                "`include` that finds the parameters of both"
            )

    @fenced
    def _begin(self, trainer: Any, model: Any) -> None:
        self._session = None
        refuse_flattened(model)
        monitors = _monitors(trainer)
        recorder = _RECORDERS.get(trainer) or open_recorder(
            trainer, SHARE_OF_REPORTS * max(monitor.max_overhead for monitor in monitors)
        )
        _RECORDERS[trainer] = recorder
        self.history = recorder.history
        self._transitions = Transitions()
        share = self.max_overhead * SHARE_OF_MEASUREMENTS / len(monitors)
        others = [monitor for monitor in monitors if monitor is not self]
        self._budget = Budget(
            share,
            self.every_n_train_steps,
            trainer.world_size,
            others=lambda: [other._budget for other in others if other._budget is not None],
            idle=hooks.IDLE,
        )
        self._session = Session(
            name=type(self).__name__,
            make_plan=lambda module, batch: self.make_plan(trainer, module, batch),
            aggregates=self.aggregates,
            budget=self._budget,
            ranks=ranks_of(trainer),
            recorder=recorder,
            transitions=self._transitions,
            alert_on=self.alert_on,
            on_transition=self.on_transition,
            raise_errors=self.on_error == "raise",
        )

    def _is_measured(self, measured: Mapping[str, float]) -> bool:
        """Whether nothing is left to measure at the first step, by what the history has of it."""
        return bool(measured)

    def _measured_at(self, step: int) -> dict[str, float]:
        """What this monitor measured at a step, where a run that goes on has stopped there."""
        if step == 0:
            return {}
        series = {key: self.history.series(key) for key in self.history.keys(f"{self.section}/")}
        return {key: values[-1] for key, (steps, values) in series.items() if steps[-1] == step}

    def _end(self, trainer: Any) -> None:
        session, self._session = self._session, None
        if session is not None:
            with self._fenced(trainer):
                session.beside.close()
        hooks.let_go(self)
        recorder = _RECORDERS.get(trainer)
        if recorder is not None and all(monitor._session is None for monitor in _monitors(trainer)):
            recorder.close(steps_done(trainer))
            del _RECORDERS[trainer]


def _monitors(trainer: Any) -> list[Monitor]:
    return [callback for callback in trainer.callbacks if isinstance(callback, Monitor)]

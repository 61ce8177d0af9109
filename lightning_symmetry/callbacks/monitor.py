"""What all monitors share: the Trainer's hooks, each one line into a `Session`, which knows no Trainer."""

from __future__ import annotations

import difflib
import inspect
import os
import re
import time
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal
from weakref import WeakKeyDictionary

from lightning.pytorch import Callback
from torch import Tensor, nn

from lightning_symmetry.callbacks.session import Plan, Session
from lightning_symmetry.history import History
from lightning_symmetry.measurement.budget import Budget
from lightning_symmetry.measurement.measure import Ranks
from lightning_symmetry.sinks.recorder import Recorder

SHARE_OF_REPORTS = 0.1
"""The share of the budget that reports and heatmaps may take; measurements have the rest."""

OnError = Literal["warn", "raise"]

_RECORDERS: WeakKeyDictionary[Any, Recorder] = WeakKeyDictionary()


class Monitor(Callback):
    """A callback that measures a model during training, on a budget, and never disturbs the training.

    Args:
        max_overhead: The share of the time of training, in (0, 1), that all monitors of a Trainer together may take;
            the interval between measurements follows from it. The first measurement, with the search for symmetries
            before it, is paid once and does not count.
        every_n_train_steps: Measure at every so many steps instead, whatever it costs.
        include: A regular expression; only what belongs to a parameter whose name it is found in is measured.
        exclude: A regular expression; what belongs to a parameter whose name it is found in is not measured.
        on_error: ``"warn"``: a failure is warned of and counted, and the monitor that failed twice stands down;
            ``"raise"``: it is raised.

    Attributes:
        history: What was measured, in the run's folder too: see `read_history`.

    Raises:
        ValueError: An argument is out of its range.
    """

    def __init__(
        self,
        max_overhead: float = 0.01,
        every_n_train_steps: int | None = None,
        include: str | None = None,
        exclude: str | None = None,
        on_error: OnError = "warn",
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
        for name, pattern in (("include", include), ("exclude", exclude)):
            try:
                re.compile(pattern or "")
            except re.error as error:
                raise ValueError(f"{name}={pattern!r} is no regular expression: {error}") from error
        self.max_overhead = max_overhead
        self.every_n_train_steps = every_n_train_steps
        self.include = include
        self.exclude = exclude
        self.on_error = on_error
        self.history = History(None)
        self._session: Session | None = None

    def make_plan(self, trainer: Any, model: nn.Module, batch: Any) -> Plan:
        """What to measure, from the model and its first batch."""
        raise NotImplementedError

    def config(self) -> dict[str, Any]:
        """The arguments of this monitor, for the run's config."""
        return {name: getattr(self, name) for name in inspect.signature(type(self)).parameters}

    def select(self, names: Iterable[str]) -> list[str]:
        """Those names that `include` and `exclude` leave.

        Raises:
            ValueError: A regular expression is found in no name.
        """
        names = list(names)
        for argument, pattern in (("include", self.include), ("exclude", self.exclude)):
            if pattern is not None and not any(re.search(pattern, name) for name in names):
                nearest = difflib.get_close_matches(pattern, names, n=3, cutoff=0) or names[:3]
                raise ValueError(
                    f"{argument}={pattern!r} is found in the name of no parameter; the nearest are {', '.join(nearest)}"
                )
        return [
            name
            for name in names
            if (self.include is None or re.search(self.include, name))
            and not (self.exclude is not None and re.search(self.exclude, name))
        ]

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Refuse what cannot work, and open the run's history."""
        self._begin(trainer, pl_module)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Measure, if the step is due, the parameters with which the step begins."""
        if self._session is not None:
            _watch(pl_module, self._session.step_begins(_step(trainer), pl_module, batch))

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Record what was measured, with the loss of the step."""
        if self._session is not None and self._session.awaits_loss:
            self._session.step_ends(_loss(outputs))

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Measure the parameters with which training ends."""
        if self._session is not None:
            self._session.finish(_step(trainer), pl_module)

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        """Make the report."""
        self._end(trainer)

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Make the report of what there is."""
        if self._session is not None:
            self._session.step_ends(None)
        self._end(trainer)

    def _begin(self, trainer: Any, model: Any) -> None:
        names = [name for name, _ in model.named_parameters()]
        if not names:
            raise ValueError(
                f"{type(self).__name__} has nothing to measure: "
                f"{type(model).__name__} has no parameters when fit starts"
            )
        self.select(names)
        monitors = [callback for callback in trainer.callbacks if isinstance(callback, Monitor)]
        recorder = _RECORDERS.get(trainer) or _open(trainer, model, monitors)
        _RECORDERS[trainer] = recorder
        self.history = recorder.history
        self._session = Session(
            name=type(self).__name__,
            make_plan=lambda module, batch: self.make_plan(trainer, module, batch),
            budget=Budget(self.max_overhead * (1 - SHARE_OF_REPORTS) / len(monitors), self.every_n_train_steps),
            ranks=Ranks(
                rank=trainer.global_rank,
                world_size=trainer.world_size,
                device=trainer.strategy.root_device,
                sum=lambda tensor: trainer.strategy.reduce(tensor, reduce_op="sum"),
            ),
            recorder=recorder,
            raise_errors=self.on_error == "raise",
        )

    def _end(self, trainer: Any) -> None:
        self._session = None
        recorder = _RECORDERS.get(trainer)
        monitors = [callback for callback in trainer.callbacks if isinstance(callback, Monitor)]
        if recorder is not None and all(monitor._session is None for monitor in monitors):
            recorder.close(_step(trainer))
            del _RECORDERS[trainer]


def _open(trainer: Any, model: Any, monitors: Iterable[Monitor]) -> Recorder:
    """The recorder of a run, shared by its monitors: on other ranks than zero it keeps what it is given in memory."""
    monitors = list(monitors)
    folder = _run_folder(trainer)
    share = SHARE_OF_REPORTS * max(monitor.max_overhead for monitor in monitors)
    if not trainer.is_global_zero:
        return Recorder(None, [], share)
    recorder = Recorder(folder, trainer.loggers, share)
    recorder.begin(
        _step(trainer),
        config={type(monitor).__name__: monitor.config() for monitor in monitors},
        name=_run_name(trainer),
        model=type(model).__name__,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        started=time.time(),
        versions={package: version(package) for package in ("lightning-symmetry", "torch")},
    )
    return recorder


def _run_folder(trainer: Any) -> Path | None:
    """``symmetry/RUN`` in the trainer's log directory, on all ranks; None where nothing may be written."""
    directory = trainer.log_dir
    if directory is None or trainer.fast_dev_run:
        return None
    folder = Path(directory) / "symmetry" / _run_name(trainer)
    existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    return folder if os.access(existing, os.W_OK) else None


def _run_name(trainer: Any) -> str:
    """The logger's run id or version, else the time at which the run starts."""
    named = trainer.logger.version if trainer.logger is not None else None
    if isinstance(named, int):
        return f"version_{named}"
    return str(named) if named else time.strftime("%Y-%m-%d_%H-%M-%S")


def _step(trainer: Any) -> int:
    """The optimizer steps done, as Lightning counts them for its loggers: several optimizers count once."""
    return int(trainer.fit_loop.epoch_loop._batches_that_stepped)


def _loss(outputs: Any) -> float | None:
    loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
    return float(loss) if isinstance(loss, Tensor) and loss.numel() == 1 else None


def _watch(model: Any, aggregates: Mapping[str, float]) -> None:
    """Let EarlyStopping and ModelCheckpoint watch what is told of the model as a whole, on every rank alike."""
    if aggregates:
        model.log_dict(dict(aggregates), logger=False, on_step=True, on_epoch=False, batch_size=1)

"""One Lightning logger as a sink: whatever it is, and whatever it does, training goes on.

Loggers are asked for what they can do, not for what they are: one whose experiment can define metrics is W&B's, of
either package name under which Lightning is installed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from plotly.graph_objects import Figure

from lightning_symmetry.history import Event
from lightning_symmetry.sinks import wandb_run
from lightning_symmetry.sinks.wandb_alerts import Alerts
from lightning_symmetry.sinks.warning import warn

PATIENCE = 3
"""How many failures in a row a sink is forgiven before it is given up."""


class LoggerSink:
    """Passes measurements on to a logger.

    Args:
        logger: Any Lightning logger.
    """

    def __init__(self, logger: Any) -> None:
        self._logger = logger
        self._failures = 0
        self._alerts = Alerts()

    def begin(self, config: Mapping[str, Any]) -> None:
        """Tell the run how its monitors are configured, where it has a place for that."""
        self._fenced(self._begin, config)

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Log the values of one measurement as one row."""
        self._fenced(self._log, values, step)

    def log_figures(self, figures: Mapping[str, Figure], step: int) -> None:
        """Log figures, where the logger takes any."""
        self._fenced(self._log_figures, figures, step)

    def alert(self, events: Sequence[Event]) -> None:
        """Send one alert for events of one kind, where the logger sends any."""
        self._fenced(self._alert, events)

    def _begin(self, config: Mapping[str, Any]) -> None:
        if self._is_wandb():
            wandb_run.set_config(self._logger.experiment, config)

    def _log(self, values: Mapping[str, float], step: int) -> None:
        if self._is_wandb():
            wandb_run.define_metrics(self._logger.experiment, values)
        self._logger.log_metrics(dict(values), step=step)

    def _log_figures(self, figures: Mapping[str, Figure], step: int) -> None:
        if self._is_wandb():
            self._logger.log_metrics(wandb_run.as_media(figures), step=step)

    def _alert(self, events: Sequence[Event]) -> None:
        if self._is_wandb():
            self._alerts.send(self._logger.experiment, events)

    def _is_wandb(self) -> bool:
        return hasattr(type(getattr(self._logger, "experiment", None)), "define_metric")

    def _fenced(self, function: Any, *args: Any) -> None:
        if self._failures >= PATIENCE:
            return
        try:
            function(*args)
            self._failures = 0
        except Exception as error:
            self._failures += 1
            if self._failures in (1, PATIENCE):
                fate = (
                    "is given up; the history in the run's folder goes on" if self._failures == PATIENCE else "goes on"
                )
                name = type(self._logger).__name__
                warn(f"lightning_symmetry could not log to {name}, which {fate}: {type(error).__name__}: {error}")

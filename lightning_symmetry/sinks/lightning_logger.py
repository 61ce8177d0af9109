"""One Lightning logger as a sink: whatever it is, and whatever it does, training goes on.

Loggers are asked for what they can do, not for what they are: one whose experiment can define metrics is W&B's, of
either package name under which Lightning is installed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from plotly.graph_objects import Figure

from lightning_symmetry.history import Event
from lightning_symmetry.sinks import wandb_run
from lightning_symmetry.sinks.wandb_alerts import Alerts
from lightning_symmetry.sinks.warning import warn

PATIENCE = 3
"""How many failures in a row a sink is forgiven before it is given up."""


class LoggerSink:
    """Passes measurements on to a logger. Where that fails it is warned of once, and the logger given up in the end.

    Args:
        logger: Any Lightning logger.
    """

    def __init__(self, logger: Any) -> None:
        self._logger = logger
        self._failures = 0
        self._warned = False
        self._alerts = Alerts()

    def begin(self, config: Mapping[str, Any]) -> None:
        """Tell the run how its monitors are configured, where it has a place for that."""
        self._on_wandb(lambda run: wandb_run.set_config(run, config))

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Log the values of one measurement as one row."""
        self._fenced(lambda: self._log(values, step))

    def log_figure(self, key: str, figure: Figure, step: int) -> None:
        """Log a figure, where the logger shows any."""
        self._on_wandb(lambda run: self._logger.log_metrics({key: wandb_run.figure(figure)}, step=step))

    def log_report(self, report: Path, step: int) -> None:
        """Log the report, where the logger shows any."""
        self._on_wandb(lambda run: self._logger.log_metrics({wandb_run.REPORT: wandb_run.page(report)}, step=step))

    def alert(self, events: Sequence[Event]) -> None:
        """Send one alert for events of one kind, where the logger sends any."""
        self._on_wandb(lambda run: self._alerts.send(run, events))

    @property
    def shows_media(self) -> bool:
        """Whether it is worth while to draw anything for this logger."""
        return self._fenced(self._wandb_run) is not None

    def _log(self, values: Mapping[str, float], step: int) -> None:
        run = self._wandb_run()
        if run is not None:
            prefix = getattr(self._logger, "_prefix", "")
            joined = f"{prefix}{self._logger.LOGGER_JOIN_CHAR}" if prefix else ""
            wandb_run.define_metrics(run, [f"{joined}{key}" for key in values])
        self._logger.log_metrics(dict(values), step=step)
        self._failures = 0

    def _on_wandb(self, use: Callable[[Any], None]) -> None:
        def if_wandb() -> None:
            run = self._wandb_run()
            if run is not None:
                use(run)

        self._fenced(if_wandb)

    def _wandb_run(self) -> Any:
        """The W&B run; None where the logger has none, and where W&B is switched off."""
        run = getattr(self._logger, "experiment", None)
        return run if hasattr(type(run), "define_metric") and not getattr(run, "disabled", False) else None

    def _fenced(self, use: Callable[[], Any]) -> Any:
        if self._failures >= PATIENCE:
            return None
        try:
            return use()
        except Exception as error:
            self._failures += 1
            if not self._warned:
                self._warned = True
                warn(
                    f"lightning_symmetry could not log to {type(self._logger).__name__}, and gives it up after "
                    f"{PATIENCE} failures in a row; training and the history go on. {type(error).__name__}: {error}"
                )
            return None

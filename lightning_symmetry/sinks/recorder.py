"""What becomes of a measurement: a line of the run's history, a row of each logger, and now and then a new report."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities.rank_zero import rank_zero_info
from plotly.graph_objects import Figure

from lightning_symmetry.history import FILE_NAME, Event, History
from lightning_symmetry.report import render_report
from lightning_symmetry.report.charts import (
    broken_fraction_heatmap,
    effective_rank_heatmap,
    feature_rank_heatmap,
    linear_cka_heatmap,
)
from lightning_symmetry.report.marks import mark_events
from lightning_symmetry.sinks.lightning_logger import LoggerSink
from lightning_symmetry.sinks.warning import warn

REPORT_NAME = "report.html"
HISTORY_ONLY = ("loss", "representation/linear_cka/")
"""What begins the keys that loggers do not get: what the user's own logging has already, and pairs of layers, which are
too many to be charts of their own."""

_HEATMAPS: dict[str, tuple[str, Callable[[History], Figure]]] = {
    "symmetry/broken_fraction_heatmap": ("symmetry/broken_fraction/", broken_fraction_heatmap),
    "spectrum/effective_rank_heatmap": ("spectrum/effective_rank/", effective_rank_heatmap),
    "representation/effective_rank_heatmap": ("representation/effective_rank/", feature_rank_heatmap),
    "representation/linear_cka_heatmap": ("representation/linear_cka/", linear_cka_heatmap),
}


class Recorder:
    """The one place to which all monitors of a run hand what they measured.

    The report and the heatmaps are made anew when making them takes a small share of the time since they were last
    made.

    Args:
        folder: The run's folder; None keeps the history in memory and makes no report.
        loggers: The Lightning loggers to pass measurements on to.
        share: The share of the time of training that reports and heatmaps may take.

    Attributes:
        history: What was recorded.
        overheads: One function for each monitor: the share of time that it took.
        counters: One function for each monitor: how many transitions of each kind it saw.
        report: The path of the report; None where there is none.
        errors: How many failures of the monitors were recorded.
        refreshing: The seconds spent on reports and heatmaps.
        begun: Whether it was noted that the run begins.
    """

    def __init__(self, folder: Path | None, loggers: Sequence[Any], share: float) -> None:
        self.history = _opened(folder / FILE_NAME) if folder is not None else History(None)
        self.report = folder / REPORT_NAME if folder is not None else None
        self.overheads: list[Callable[[], float]] = []
        self.counters: list[Callable[[], Mapping[str, int]]] = []
        self.errors = 0
        self.refreshing = 0.0
        self._sinks = [LoggerSink(logger) for logger in loggers]
        self._share = share
        self._refreshed = -float("inf")
        self._cost_of_refresh = 0.0
        self.begun = False
        self._warned = False
        self._closed = False

    def begin(self, step: int, config: Mapping[str, Any], **details: Any) -> None:
        """Note that the run begins, or goes on: how its monitors are configured, and what else there is to tell."""
        self.begun = True
        self.event(step, "run", config=dict(config), **details)
        self.errors = sum(event.kind == "error" for event in self.history.events if step > 0)
        for sink in self._sinks:
            sink.begin(config)

    def event(self, step: int, kind: str, **details: Any) -> None:
        """Add an event to the history."""
        self._fenced(self.history.append_event, step, kind, **details)

    def finding(self, step: int, kind: str, details: Mapping[str, Any]) -> None:
        """Add an event, unless the last of its kind says the same, as where a run goes on."""
        known = next((event.details for event in reversed(self.history.events) if event.kind == kind), None)
        if known != json.loads(json.dumps(details)):
            self.event(step, kind, **details)

    def events(self, step: int, kind: str, told: Sequence[Mapping[str, Any]], alert: bool) -> None:
        """Add events of one kind to the history, and send one alert for all of them if one is wanted."""
        for details in told:
            self.event(step, kind, **details)
        if alert:
            for sink in self._sinks:
                sink.alert([Event(step, time.time(), kind, details) for details in told])

    def nonfinite(self, step: int, parameters: Sequence[str], alert: bool = False) -> None:
        """Add one event that names those parameters that were finite until now."""
        known = {
            name
            for event in self.history.events
            if event.kind == "nonfinite"
            for name in event.details.get("parameters", ())
        }
        new = [name for name in parameters if name not in known]
        if new:
            self.events(step, "nonfinite", [{"parameter": new[0], "parameters": new}], alert)

    def record(self, step: int, values: Mapping[str, float]) -> None:
        """Add a measurement to the history, pass it on to the loggers, and refresh the report where that is due."""
        values = {
            **values,
            **self._transitions(),
            "monitor/overhead": sum(overhead() for overhead in self.overheads),
            "monitor/errors": float(self.errors),
        }
        self._closed = False
        self._fenced(self.history.append, step, values)
        for sink in self._sinks:
            sink.log({key: value for key, value in values.items() if not key.startswith(HISTORY_ONLY)}, step)
        if time.perf_counter() - self._refreshed > self._cost_of_refresh / self._share:
            self._refresh(step)

    def _transitions(self) -> dict[str, float]:
        counts: Counter[str] = Counter()
        for counter in self.counters:
            counts.update(counter())
        return {f"transition/{kind}": float(count) for kind, count in counts.items()}

    def close(self, step: int) -> None:
        """Make the last report, and say where it is."""
        if self._closed or not self.history.measurements:
            return
        self._closed = True
        self._refresh(step)
        if self.report is not None:
            rank_zero_info(f"Symmetry report: {self.report}")

    def _refresh(self, step: int) -> None:
        started = time.perf_counter()
        if self.report is not None:
            self._fenced(render_report, self.history, self.report)
        figures = {key: draw for key, (prefix, draw) in _HEATMAPS.items() if self.history.keys(prefix)}
        if self._sinks and figures:
            self._fenced(self._log_figures, figures, step)
        self._refreshed = time.perf_counter()
        self._cost_of_refresh = self._refreshed - started
        self.refreshing += self._cost_of_refresh

    def _log_figures(self, figures: Mapping[str, Callable[[History], Figure]], step: int) -> None:
        drawn = {key: mark_events(draw(self.history), self.history) for key, draw in figures.items()}
        for sink in self._sinks:
            sink.log_figures(drawn, step)

    def _fenced(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        try:
            function(*args, **kwargs)
        except Exception as error:
            if not self._warned:
                self._warned = True
                warn(
                    f"lightning_symmetry could not write to {self.history.path}, and says so once; training goes on: "
                    f"{type(error).__name__}: {error}"
                )


def _opened(path: Path) -> History:
    """The history kept in a file, gone on with where there is one; a damaged file is put aside."""
    try:
        return History(path)
    except ValueError as error:
        aside = path.with_name(f"{path.name}.damaged-{time.time_ns()}")
        path.rename(aside)
        warn(f"lightning_symmetry begins a new history, and keeps the one that it cannot read as {aside}: {error}")
        return History(path)

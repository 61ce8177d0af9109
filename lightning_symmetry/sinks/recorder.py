"""What becomes of a measurement: a line of the run's history, a row of each logger, and now and then new pictures.

No step of training waits for more than a row and one heatmap, each some milliseconds; a report takes longer, and is
made where training pauses by itself, and at its end.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from threading import Thread
from typing import Any

from lightning.pytorch.utilities.rank_zero import rank_zero_info

from lightning_symmetry.history import FILE_NAME, Event, History
from lightning_symmetry.report import render_report
from lightning_symmetry.sinks.discretion import discreet
from lightning_symmetry.sinks.heatmaps import draw_heatmap, heatmaps
from lightning_symmetry.sinks.key_limit import KeyLimit
from lightning_symmetry.sinks.lightning_logger import LoggerSink
from lightning_symmetry.sinks.upkeep import Upkeep
from lightning_symmetry.sinks.warning import warn

REPORT_NAME = "report.html"
REPORT_SECONDS = 0.5
"""What the first report is expected to take; heatmaps are drawn at the first measurement, which is paid once."""

HISTORY_ONLY = ("loss", "representation/linear_cka/")
"""What begins the keys that loggers do not get: what the user's own logging has already, and pairs of layers, which are
too many to be charts of their own."""


class Recorder:
    """The one place to which all monitors of a run hand what they measured.

    A picture is made anew when making it takes a small share of the time since it was last made.

    Args:
        folder: The run's folder; None keeps the history in memory and makes no report.
        loggers: The Lightning loggers to pass measurements on to.
        share: The share of the time of training that reports and heatmaps may take.

    Attributes:
        history: What was recorded.
        overheads: One function for each monitor: the share of time that it took until a step.
        counters: One function for each monitor: how many transitions of each kind it saw.
        report: The path of the report; None where there is none.
        errors: How many failures of the monitors were recorded.
        begun: Whether it was noted that the run begins.
    """

    def __init__(self, folder: Path | None, loggers: Sequence[Any], share: float) -> None:
        self.history = _opened(folder / FILE_NAME) if folder is not None else History(None)
        self.report = folder / REPORT_NAME if folder is not None else None
        self.overheads: list[Callable[[int], float]] = []
        self.counters: list[Callable[[], Mapping[str, int]]] = []
        self.errors = 0
        self._sinks = [LoggerSink(logger) for logger in loggers]
        self._limit = KeyLimit(self.history)
        self._report_upkeep = Upkeep(share / 2, first=REPORT_SECONDS)
        self._heatmap_upkeep = Upkeep(share / 2)
        self._undrawn: list[str] = []
        self.begun = False
        self._warned = False
        self._closed = False

    def begin(self, step: int, config: Mapping[str, Any], **details: Any) -> None:
        """Note that the run begins, or goes on: how its monitors are configured, and what else there is to tell."""
        self.begun = True
        begins = self.event(step, "run", config=dict(config), **details)
        if step > 0:
            self.errors = sum(event.kind == "error" for event in self.history.events)
        for sink in self._sinks:
            sink.begin(begins.details.get("config", {}))

    def event(self, step: int, kind: str, **details: Any) -> Event:
        """Add an event to the history, and return what may be told of it."""
        told = Event(step, time.time(), kind, self._fenced(discreet, details) or {})
        self._fenced(self.history.append_event, step, kind, **told.details)
        return told

    def finding(self, step: int, kind: str, details: Mapping[str, Any]) -> None:
        """Add an event, unless the last of its kind says the same, as where a run goes on."""
        known = next((event.details for event in reversed(self.history.events) if event.kind == kind), None)
        if known != json.loads(json.dumps(self._fenced(discreet, details))):
            self.event(step, kind, **details)

    def events(self, step: int, kind: str, told: Sequence[Mapping[str, Any]], alert: bool) -> None:
        """Add events of one kind to the history, and send one alert for all of them if one is wanted."""
        events = [self.event(step, kind, **details) for details in told]
        if alert:
            for sink in self._sinks:
                sink.alert(events)

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
        """Add a measurement to the history, and pass it on to the loggers, with a heatmap where one is due."""
        values = {
            **values,
            **self._transitions(),
            "monitor/overhead": sum(overhead(step) for overhead in self.overheads),
            "monitor/errors": float(self.errors),
        }
        self._closed = False
        self._fenced(self.history.append, step, values)
        if self._sinks:
            told = {key: value for key, value in values.items() if not key.startswith(HISTORY_ONLY)}
            told = self._limit.choose(told)
            for sink in self._sinks:
                sink.log(told, step)
        if self._heatmap_upkeep.due and not self._undrawn:
            self._undrawn = heatmaps(self.history)
        if self._undrawn:
            self._send_heatmap(step)

    def pause(self) -> None:
        """Make the report anew if that is due: training pauses by itself, for a validation or between epochs."""
        if self.report is not None and self.history.keys() and self._report_upkeep.due:
            self._make_report()

    @property
    def refreshing(self) -> float:
        """The seconds spent on reports and heatmaps."""
        return self._report_upkeep.spent + self._heatmap_upkeep.spent

    def _transitions(self) -> dict[str, float]:
        counts: Counter[str] = Counter()
        for counter in self.counters:
            counts.update(counter())
        return {f"transition/{kind}": float(count) for kind, count in counts.items()}

    def close(self, step: int) -> None:
        """Make all pictures for the last time, say where the report is, and send it to loggers that show it."""
        if self._closed or not self.history.keys():
            return
        self._closed = True
        self._undrawn = heatmaps(self.history)
        while self._undrawn:
            self._send_heatmap(step)
        if self.report is not None and self._make_report():
            rank_zero_info(f"Symmetry report: {self.report}")
            for sink in self._sinks:
                sink.log_report(self.report, step)

    def _make_report(self) -> bool:
        with self._report_upkeep.at_work():
            return self._fenced(render_report, self.history, self.report) is not None

    def _send_heatmap(self, step: int) -> None:
        """Draw and send one heatmap, in a thread that is waited for, since its memory is not the training's.

        With the first, libraries for pictures and tables are loaded. What stays of them in the heap of the training
        scatters the blocks that each later step takes, which makes a step of a millisecond one percent slower.
        """
        key = self._undrawn.pop(0)
        sinks = [sink for sink in self._sinks if sink.shows_media]
        if sinks:
            with self._heatmap_upkeep.at_work():
                parts = (self._draw_and_send, key, sinks, step)
                drawing = Thread(target=self._fenced, args=parts, name="lightning_symmetry")
                drawing.start()
                drawing.join()

    def _draw_and_send(self, key: str, sinks: Sequence[LoggerSink], step: int) -> None:
        figure = draw_heatmap(key, self.history)
        for sink in sinks:
            sink.log_figure(key, figure, step)

    def _fenced(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call a function, and return what it returns; None where it fails."""
        try:
            return function(*args, **kwargs)
        except Exception as error:
            if not self._warned:
                self._warned = True
                warn(
                    f"lightning_symmetry could not write to {self.history.path}, and says so once; training goes on: "
                    f"{type(error).__name__}: {error}"
                )
            return None


def _opened(path: Path) -> History:
    """The history kept in a file, gone on with where there is one; a damaged file is put aside."""
    try:
        return History(path)
    except ValueError as error:
        aside = path.with_name(f"{path.name}.damaged-{time.time_ns()}")
        path.rename(aside)
        warn(f"lightning_symmetry begins a new history, and keeps the one that it cannot read as {aside}: {error}")
        return History(path)

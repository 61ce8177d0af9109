"""One self-contained HTML file for a run: it opens from disk, asks for nothing on the network, and needs no account.

Plotly draws the charts (its JavaScript is embedded once, 5 MB), Jinja fills the page around them. A content security
policy in the page forbids every request, so that "no network" holds whatever a chart would like to load.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup
from plotly.offline import get_plotlyjs, get_plotlyjs_version

from lightning_symmetry.history import Event, History
from lightning_symmetry.report import charts
from lightning_symmetry.report.events import MEANINGS, describe, in_words
from lightning_symmetry.report.marks import mark_transitions

MOST_EVENTS = 100
"""Most events listed, the latest."""


@dataclass(frozen=True)
class Headline:
    """One number of the first screen, as text: `first` is empty where only the last value tells something."""

    label: str
    first: str
    last: str
    meaning: str


def render_report(history: History, path: Path) -> Path:
    """Write the report of a run.

    The file is replaced atomically: who has it open, or reads it while training goes on, never sees half of it.

    Args:
        history: The run.
        path: The HTML file; its folder is created.

    Returns:
        `path`.

    Raises:
        OSError: If the file cannot be written.

    Example:
        >>> import tempfile
        >>> history = History(None)
        >>> history.append(0, {"loss": 2.3})
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     render_report(history, Path(folder) / "report.html").name
        'report.html'
    """
    page = _template().render(
        **_identity(history),
        headlines=_headlines(history),
        charts=_charts(history),
        groups=len(history.keys("symmetry/broken_fraction/")),
        layers=len(history.keys("spectrum/effective_rank/")),
        most_rows=charts.MOST_ROWS,
        symmetries=_symmetries(history),
        events=_events(history),
        events_left_out=max(0, len(_notable(history)) - MOST_EVENTS),
        plotly_js=Markup(get_plotlyjs()),
        plotly_js_version=get_plotlyjs_version(),
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        unfinished.write_text(page, encoding="utf-8")
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
    return path


def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("lightning_symmetry", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("template.html")


def _identity(history: History) -> dict[str, Any]:
    run = _last_event(history, "run")
    details = dict(run.details) if run else {}
    times = [measurement.time for measurement in history.measurements] + [event.time for event in history.events]
    return {
        "run_name": details.get("name") or "unnamed run",
        "model": details.get("model") or "",
        "versions": details.get("versions") or {},
        "started": _clock(min(times)) if times else "",
        "written": _clock(max(times)) if times else "",
        "measurements": len({measurement.step for measurement in history.measurements}),
        "last_step": max((measurement.step for measurement in history.measurements), default=0),
    }


def _clock(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).astimezone().strftime("%Y-%m-%d %H:%M %Z")


def _last_event(history: History, kind: str) -> Event | None:
    return next((event for event in reversed(history.events) if event.kind == kind), None)


def _headlines(history: History) -> list[Headline]:
    known = (
        ("loss", "{:.4g}", "training loss", "at the first and the last measurement"),
        ("symmetry/broken_fraction", "{:.2f}", "broken fraction", "mean over groups: 0 symmetric, 1 broken"),
        ("complexity/effective_parameters", "{:,.0f}", "effective parameters", "without repeated and dead units"),
        ("complexity/effective_rank_fraction", "{:.2f}", "rank fraction", "effective / full rank, mean of layers"),
        ("monitor/overhead", "{:.2%}", "monitoring cost", "share of training time"),
    )
    headlines = []
    for key, number, label, meaning in known:
        if key in history:
            values = history.series(key)[1]
            first = "" if len(values) == 1 or key == "monitor/overhead" else _text(values[0], number)
            headlines.append(Headline(label, first, _text(values[-1], number), meaning))
    return headlines


def _text(value: float, number: str) -> str:
    return "not finite" if math.isnan(value) else number.format(value)


def _charts(history: History) -> dict[str, Markup]:
    """Return the HTML of every chart that has something to draw."""
    figures = {
        "dynamics": charts.learning_dynamics_chart(history),
        "groups": charts.broken_fraction_heatmap(history),
        "complexity": charts.complexity_chart(history),
        "layers": charts.effective_rank_heatmap(history),
        "ranks": charts.effective_rank_chart(history),
        "features": charts.feature_rank_heatmap(history),
        "similarity": charts.linear_cka_heatmap(history),
        "collapse": charts.neural_collapse_chart(history),
    }
    return {name: _html(name, mark_transitions(figure, history)) for name, figure in figures.items() if figure.data}


def _html(name: str, figure: go.Figure) -> Markup:
    config = {
        "displaylogo": False,
        "responsive": True,
        "showSendToCloud": False,  # the page keeps its data to itself
        "modeBarButtonsToRemove": ["select2d", "lasso2d", "zoomIn2d", "zoomOut2d", "autoScale2d"],
    }
    return Markup(
        figure.to_html(
            full_html=False,
            include_plotlyjs=False,
            div_id=f"chart-{name}",
            default_height=f"{figure.layout.height}px",
            config=config,
        )
    )


def _symmetries(history: History) -> dict[str, Any] | None:
    """Return what was found, or None where nobody has looked."""
    found = _last_event(history, "symmetries")
    if found is None:
        return None
    groups = [_group(history, group) for group in found.details.get("groups", [])]
    return {"groups": groups, "share": found.details.get("share")}


def _group(history: History, group: Mapping[str, Any]) -> dict[str, Any]:
    key = "symmetry/broken_fraction/" + group["name"].replace(".", "_")
    values = history.series(key)[1] if key in history else []
    return {
        "kind": group["kind"],
        "name": group["name"],
        "size": group["size"],
        "moves": [*group.get("parameters", []), *group.get("buffers", [])],
        "preserves": group.get("preserves", "output"),
        "exact": group.get("exact", True),
        "verified": group.get("verified"),
        "broken": [_text(value, "{:.2f}") for value in (values[0], values[-1])] if values else [],
    }


def _notable(history: History) -> list[Event]:
    return [event for event in history.events if event.kind not in ("run", "symmetries")]


def _events(history: History) -> list[dict[str, Any]]:
    return [
        {
            "step": event.step,
            "time": _clock(event.time),
            "kind": in_words(event.kind),
            "told": describe(event),
            "meaning": MEANINGS.get(event.kind, ""),
            "bad": event.kind not in ("breaking", "restoration", "rank_jump"),
        }
        for event in _notable(history)[-MOST_EVENTS:]
    ]

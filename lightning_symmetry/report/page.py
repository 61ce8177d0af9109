"""One self-contained HTML file: it opens from disk, asks for nothing on the network, and needs no account.

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
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs, get_plotlyjs_version

from lightning_symmetry.history import Event, History
from lightning_symmetry.report.drawing import MOST_POINTS
from lightning_symmetry.report.summaries import Summary, summary


@dataclass(frozen=True)
class Panel:
    """A chart on a page.

    Attributes:
        drawing: Its HTML.
        summary: The same in words and numbers, for who does not see it.
    """

    drawing: Markup
    summary: Summary


def write_page(template: str, path: Path, **context: Any) -> Path:
    """Fill a template of this folder, and put the file in place atomically.

    Who has the page open, or reads it while training goes on, never sees half of it.

    Args:
        template: The name of the template.
        path: The HTML file; its folder is created.
        **context: What the template asks for.

    Returns:
        `path`.

    Raises:
        OSError: If the file cannot be written.
    """
    environment = Environment(
        loader=PackageLoader("lightning_symmetry", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template(template).render(
        plotly_js=Markup(get_plotlyjs()), plotly_js_version=get_plotlyjs_version(), most_points=MOST_POINTS, **context
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        unfinished.write_text(page, encoding="utf-8")
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
    return path


def panels(figures: Mapping[str, go.Figure]) -> dict[str, Panel]:
    """Return those that have something to draw, by name."""
    return {name: Panel(_html(name, figure), summary(figure)) for name, figure in figures.items() if figure.data}


def is_thinned(history: History) -> bool:
    """Whether some series of a run is longer than a line drawn of it can be, or was thinned already."""
    lengths = (len(history.series(key)[0]) for key in history.keys(""))
    return last_event(history, "thinned") is not None or any(length > MOST_POINTS for length in lengths)


def identity(history: History) -> dict[str, Any]:
    """What a run is: its name, model, versions and times, and how much was measured of it."""
    run = last_event(history, "run")
    details = dict(run.details) if run else {}
    measurements = history.measurements
    times = [measurement.time for measurement in measurements] + [event.time for event in history.events]
    return {
        "run_name": details.get("name") or "unnamed run",
        "named": bool(details.get("name")),
        "model": details.get("model") or "",
        "versions": details.get("versions") or {},
        "started": clock(min(times)) if times else "",
        "written": clock(max(times)) if times else "",
        "measurements": len({measurement.step for measurement in measurements}),
        "last_step": max((measurement.step for measurement in measurements), default=0),
    }


def clock(seconds: float) -> str:
    """A time to the minute, with its zone."""
    return datetime.fromtimestamp(seconds).astimezone().strftime("%Y-%m-%d %H:%M %Z")


def in_digits(value: float, number: str) -> str:
    """A number as text; NaN in words, and thousands and millions by their letter where the format is "SI".

    Example:
        >>> in_digits(13_130, "SI"), in_digits(0.5, "{:.2f}"), in_digits(math.nan, "SI")
        ('13.1k', '0.50', 'not finite')
    """
    if math.isnan(value):
        return "not finite"
    if number != "SI":
        return number.format(value)
    power = max(0, min(int(math.log10(max(abs(value), 1))) // 3, 4))
    return f"{value / 1000**power:.3g}{('', 'k', 'M', 'G', 'T')[power]}"


def last_event(history: History, kind: str) -> Event | None:
    """The latest event of a kind; None where there is none."""
    return next((event for event in reversed(history.events) if event.kind == kind), None)


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

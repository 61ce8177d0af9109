"""Transitions on the time axes of a chart: a dotted line at the step, and a handle above it that names it."""

from __future__ import annotations

import html
from collections.abc import Sequence

import plotly.graph_objects as go

from lightning_symmetry.history import Event, History
from lightning_symmetry.report.events import describe, in_words, is_transition

MOST_MARKS = 60
"""Most steps that are marked, the latest."""

MOST_NAMED = 8
"""Most transitions that one mark names."""

_COLOUR = "#7d8590"


def mark_transitions(figure: go.Figure, history: History) -> go.Figure:
    """Mark every transition of a run on every axis of steps.

    Args:
        figure: A chart with the training step along x, changed in place.
        history: The run.

    Returns:
        The figure.
    """
    if not figure.data:
        return figure
    steps: dict[int, list[Event]] = {}
    for event in history.events:
        if is_transition(event):
            steps.setdefault(event.step, []).append(event)
    marked = sorted(steps)[-MOST_MARKS:]
    stacked = [axis.plotly_name.removeprefix("yaxis") for axis in figure.select_yaxes()]
    lines = [_line(step, number) for step in marked for number in stacked]
    figure.update_layout(
        shapes=[*figure.layout.shapes, *lines],
        annotations=[*figure.layout.annotations, *(_handle(step, steps[step]) for step in marked)],
    )
    return figure


def _line(step: int, number: str) -> go.layout.Shape:
    return go.layout.Shape(
        type="line",
        x0=step,
        x1=step,
        xref=f"x{number}",
        y0=0,
        y1=1,
        yref=f"y{number} domain",
        line={"color": _COLOUR, "width": 1, "dash": "dot"},
        layer="above",
    )


def _handle(step: int, events: Sequence[Event]) -> go.layout.Annotation:
    names = [f"{in_words(event.kind)}: {describe(event)}" for event in events[:MOST_NAMED]]
    if len(events) > MOST_NAMED:
        names.append(f"and {len(events) - MOST_NAMED} more")
    return go.layout.Annotation(
        x=step,
        xref="x",
        y=1,
        yref="paper",
        yanchor="bottom",
        text="▼",
        showarrow=False,
        font={"size": 10, "color": _COLOUR},
        hovertext="<br>".join(html.escape(name, quote=False) for name in names),
    )

"""Events on the time axes of a chart: a dotted line at the step, and a handle above it that names them."""

from __future__ import annotations

import html
from collections.abc import Sequence

import plotly.graph_objects as go

from lightning_symmetry.history import Event, History
from lightning_symmetry.report.drawing import GREY
from lightning_symmetry.report.events import describe, in_words, is_transition, notable

MOST_MARKS = 60
"""Most steps that are marked, the latest."""

MOST_NAMED = 8
"""Most events that one mark names."""

TROUBLE = "#d0453a"
"""The colour of what went wrong."""


def mark_events(figure: go.Figure, history: History, colour: str = GREY, whose: str = "") -> go.Figure:
    """Mark every event of a run on every axis of steps: a triangle for a transition, a cross for what went wrong.

    Args:
        figure: A chart, changed in place; one without an axis of steps is left as it is.
        history: The run.
        colour: Of the marks of transitions.
        whose: The name of the run, where several are drawn.

    Returns:
        The figure.
    """
    if not figure.data or figure.data[0].x is None:
        return figure
    steps: dict[int, list[Event]] = {}
    for event in notable(history):
        steps.setdefault(event.step, []).append(event)
    marked = sorted(steps)[-MOST_MARKS:]
    stacked = [axis.plotly_name.removeprefix("yaxis") for axis in figure.select_yaxes()]
    lines = [_line(step, number, colour) for step in marked for number in stacked]
    figure.update_layout(
        shapes=[*figure.layout.shapes, *lines],
        annotations=[*figure.layout.annotations, *(_handle(step, steps[step], colour, whose) for step in marked)],
    )
    return figure


def _line(step: int, number: str, colour: str) -> go.layout.Shape:
    return go.layout.Shape(
        type="line",
        x0=step,
        x1=step,
        xref=f"x{number}",
        y0=0,
        y1=1,
        yref=f"y{number} domain",
        line={"color": colour, "width": 1, "dash": "dot"},
        layer="above",
    )


def _handle(step: int, events: Sequence[Event], colour: str, whose: str) -> go.layout.Annotation:
    names = [f"{in_words(event.kind)}: {describe(event)}" for event in events[:MOST_NAMED]]
    if len(events) > MOST_NAMED:
        names.append(f"and {len(events) - MOST_NAMED} more")
    if whose:
        names.insert(0, whose)
    wrong = not all(map(is_transition, events))
    return go.layout.Annotation(
        x=step,
        xref="x",
        y=1,
        yref="paper",
        yanchor="bottom",
        text=f'<span style="color: {TROUBLE if wrong else colour}">{"✕" if wrong else "▼"}</span>',
        showarrow=False,
        font={"size": 12 if wrong else 10},
        hovertext="<br>".join(html.escape(name, quote=False) for name in [f"step {step}", *names]),
    )

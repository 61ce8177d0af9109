"""What a chart shows, in words and numbers: for who cannot see it, and for who wants the numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import plotly.graph_objects as go

MOST_SPOKEN = 4
"""Most series that the sentence tells of; the table has all."""


@dataclass(frozen=True)
class Summary:
    """A chart without its picture.

    Attributes:
        sentence: What it shows, to be read out.
        headings: Of the columns of a table of its numbers.
        rows: The rows of that table, as text.
    """

    sentence: str
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]


def summary(figure: go.Figure) -> Summary:
    """Summarise a chart of lines, or a heatmap, by the first, lowest, highest and last number of each series.

    Example:
        >>> from lightning_symmetry.history import History
        >>> from lightning_symmetry.report.charts import loss_chart
        >>> history = History(None)
        >>> for step, loss in enumerate([2.0, 0.5, 1.0]):
        ...     history.append(step, {"loss": loss})
        >>> summary(loss_chart(history)).sentence
        '1 series over steps 0 to 2. loss: training loss: first 2, lowest 0.5, highest 2, last 1.'
    """
    if figure.data[0].type == "heatmap" and figure.data[0].x is None:
        return _of_pairs(figure.data[0])
    rows = [row for trace in figure.data for row in _rows(figure, trace)]
    steps = [step for trace in figure.data for step in trace.x]
    spoken = [
        f"{name}: first {first}, lowest {lowest}, highest {highest}, last {last}"
        for name, first, lowest, highest, last in rows[:MOST_SPOKEN]
    ]
    others = f"; and {len(rows) - MOST_SPOKEN} more, in the table below" if len(rows) > MOST_SPOKEN else ""
    return Summary(
        f"{len(rows)} series over steps {min(steps)} to {max(steps)}. {'; '.join(spoken)}{others}.",
        ("series", "first", "lowest", "highest", "last"),
        rows,
    )


def _rows(figure: go.Figure, trace: go.Scatter | go.Heatmap) -> list[tuple[str, ...]]:
    if trace.type == "scatter":
        label = figure.layout["yaxis" + trace.yaxis[1:] if trace.yaxis else "yaxis"].title.text or ""
        return [_row(f"{label.partition('<br>')[0]}: {trace.meta}", trace.y)]
    return [_row(name, row) for name, row in zip(trace.meta, trace.customdata, strict=True)]


def _row(name: str, values: Sequence[float | None]) -> tuple[str, ...]:
    finite = [value for value in values if value is not None]
    if not finite:
        return (name, *["not finite"] * 4)
    last = finite[-1] if values[-1] is not None else None
    return (
        name,
        *("not finite" if value is None else f"{value:.4g}" for value in (finite[0], min(finite), max(finite), last)),
    )


def _of_pairs(trace: go.Heatmap) -> Summary:
    """Of each layer, which other one is least and which is most like it."""
    rows = []
    for i, name in enumerate(trace.meta):
        others = sorted(
            (z, other)
            for j, (z, other) in enumerate(zip(trace.z[i], trace.meta, strict=True))
            if j != i and z is not None
        )
        told = [f"{other} ({z:.3g})" for z, other in (others[0], others[-1])] if others else ["", ""]
        rows.append((name, *told))
    spoken = [f"{name}: least like {least}, most like {most}" for name, least, most in rows[:MOST_SPOKEN] if least]
    return Summary(f"{len(rows)} layers. {'; '.join(spoken)}.", ("layer", "least like", "most like"), rows)

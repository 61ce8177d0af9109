"""How lines and heatmaps over training are drawn: small pieces that every chart is made of.

There are two sorts of charts:

- **lines**, one per group, layer or run: the six that moved most are coloured, the others are grey and named when
  pointed at, so that a large model stays readable. The colours are told apart under the common kinds of colour
  blindness, and stand out from a white page and from a dark one (a contrast of 3 and more);
- **heatmaps**, one row per group or layer, in the order of the model (cividis, even for colour-blind readers).

All are bounded in size, whatever the length of the run and the size of the model: at most 60 rows or lines, those that
moved most; at most 200 columns, evenly thinned; and at most 300 points a line (100 in grey), the extremes of each
stretch of the run. Figures hold plain lists of finite numbers and `None`, so every reader of JSON can draw them.
Backgrounds are transparent, and text is a mid grey that the page replaces by that of its theme.
"""

from __future__ import annotations

import html
import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from lightning_symmetry.decimation import decimate
from lightning_symmetry.history import History
from lightning_symmetry.report.names import short_names

MOST_ROWS = 60
"""Most rows of a heatmap and most lines of a chart."""

MOST_COLUMNS = 200
"""Most columns of a heatmap."""

MOST_POINTS = 300
"""Most points of a line: a pair for every six pixels of a wide page."""

COLOURS = ("#338dff", "#fe511d", "#2d8758", "#8500ff", "#b210a6", "#b57ca6")
"""Of lines."""

GREY = "#7d8590"
"""Of what is no group, layer or run of its own."""

MOST_POINTS_IN_GREY = 100
"""Most points of a line in the background."""

Series = tuple[list[int], list[float]]

_FAINT = "rgba(125, 133, 144, 0.55)"
_GRID = "rgba(125, 133, 144, 0.25)"


def by_name(history: History, prefix: str) -> dict[str, Series]:
    """Return the series of the keys that begin with `prefix`, by the rest of the key."""
    return {key.removeprefix(prefix): history.series(key) for key in history.keys(prefix)}


def relative(series: Series) -> Series:
    """Divide by the largest finite value (a series that is 0 throughout stays 0)."""
    steps, values = series
    largest = max((value for value in values if math.isfinite(value)), default=0.0)
    return steps, [value / largest if largest > 0 else value for value in values]


def moved_most(series: Mapping[str, Series], at_most: int) -> dict[str, Series]:
    """Keep the `at_most` series that moved most, in their given order."""
    kept = set(sorted(series, key=lambda name: -_movement(series[name]))[:at_most])
    return {name: series[name] for name in series if name in kept}


def colours(series: Mapping[str, Series]) -> dict[str, str]:
    """Give a colour to those that moved most."""
    return dict(zip(moved_most(series, len(COLOURS)), COLOURS, strict=False))


def lines(history: History, prefix: str, coloured: Mapping[str, str], noun: str) -> list[go.Scatter]:
    """Draw a line for every name, the coloured ones above the grey."""
    series = by_name(history, prefix)
    labels = dict(zip(series, short_names(list(series)), strict=True))
    grey = [name for name in moved_most(series, MOST_ROWS) if name not in coloured]
    traces = [
        line(
            f"{len(grey)} other {noun if len(grey) > 1 else noun.removesuffix('s')}",
            series[name],
            color=_FAINT,
            width=1,
            at_most=MOST_POINTS_IN_GREY,
            full_name=name,
            legendgroup="others",
            showlegend=name == grey[0],
        )
        for name in grey
    ]
    return traces + [
        line(labels[name], series[name], color=colour, width=2, full_name=name, legendgroup=name)
        for name, colour in coloured.items()
        if name in series
    ]


def line(
    name: str,
    series: Series,
    *,
    color: str,
    width: int,
    dash: str = "solid",
    full_name: str = "",
    legendgroup: str = "",
    showlegend: bool = True,
    at_most: int = MOST_POINTS,
) -> go.Scatter:
    """Draw one series, thinned to the extremes of its stretches; `full_name` is shown when pointed at."""
    steps, values = series
    kept = decimate(steps, values, at_most)
    return go.Scatter(
        x=[steps[i] for i in kept],
        y=[float(f"{values[i]:.6g}") if math.isfinite(values[i]) else None for i in kept],
        name=html.escape(name, quote=False),
        mode="lines+markers" if len(kept) <= 20 else "lines",
        line={"color": color, "width": width, "dash": dash},
        marker={"size": width + 3},
        meta=full_name or name,
        hovertemplate=f"{html.escape(full_name or name, quote=False)}<br>step %{{x}}<br>%{{y:.4g}}<extra></extra>",
        legendgroup=legendgroup or name,
        showlegend=showlegend,
    )


def heatmap(colour: Mapping[str, Series], shown: Mapping[str, Series], colour_label: str, hover: str) -> go.Figure:
    """Draw rows x steps; a cell is what was last measured at or before its step, `shown` is its number when pointed at.

    Rows stand at 0, 1, 2, ... and carry their names as tick labels: two names that shorten alike stay two rows.
    """
    all_steps = sorted({step for steps, _ in colour.values() for step in steps})
    columns = [all_steps[i] for i in _evenly(len(all_steps), MOST_COLUMNS)]
    names = [html.escape(name, quote=False) for name in colour]
    figure = chart([], "", height=176 + 18 * max(len(names), 2))
    if not names:
        return figure
    numbers = [_sampled(shown[name], columns) for name in colour]
    figure.add_trace(
        go.Heatmap(
            x=columns,
            y=list(range(len(names))),
            z=[_sampled(series, columns) for series in colour.values()],
            customdata=numbers,
            text=[[name] * len(columns) for name in names],  # plain strings, which Plotly copies quickly
            meta=list(colour),
            zmin=0,
            zmax=1,
            colorscale="Cividis",
            hoverongaps=False,
            hovertemplate=hover + "<extra></extra>",
            colorbar={**COLOURBAR, "title": {"text": colour_label, "side": "top"}},
        )
    )
    figure.update_yaxes(
        tickmode="array",
        tickvals=list(range(len(names))),
        ticktext=[html.escape(name, quote=False) for name in short_names(list(colour))],
        autorange="reversed",
        showgrid=False,
    )
    figure.update_xaxes(showgrid=False, title_text="")
    figure.add_annotation(  # the axis' own title Plotly would move into the rows
        text="training step", x=0.5, xref="paper", y=0, yref="paper", yanchor="top", yshift=-20, showarrow=False
    )
    figure.update_layout(margin_b=48, minreducedheight=20)
    return figure


def chart(
    traces: Sequence[go.Scatter],
    y_label: str,
    *,
    height: int,
    y_range: tuple[float, float] | None = None,
    rangemode: str = "normal",
    scale: str = "linear",
) -> go.Figure:
    """Make a figure with the training step along x."""
    figure = go.Figure(traces, layout={"template": go.layout.Template()})
    figure.update_xaxes(title_text="training step", **_AXIS)
    figure.update_yaxes(title_text=y_label, range=y_range, rangemode=rangemode, type=scale, **_Y_AXIS)
    figure.update_layout(height=height, **_LAYOUT)
    return figure


def stacked(figures: Sequence[go.Figure]) -> go.Figure:
    """Put the figures that have traces one above the other, on one shared axis of steps and with one legend."""
    drawn = [figure for figure in figures if figure.data]
    if not drawn:
        return chart([], "", height=200)
    heights = [figure.layout.height for figure in drawn]
    whole = make_subplots(
        rows=len(drawn), cols=1, shared_xaxes=True, row_heights=heights, vertical_spacing=0.05 if len(drawn) > 1 else 0
    )
    in_legend: set[str] = set()
    for row, figure in enumerate(drawn, start=1):
        for trace in figure.data:
            trace.showlegend = bool(trace.showlegend and trace.legendgroup not in in_legend)
            if trace.showlegend:
                in_legend.add(trace.legendgroup)
            whole.add_trace(trace, row=row, col=1)
        y = figure.layout.yaxis
        whole.update_yaxes(
            title_text=y.title.text, range=y.range, rangemode=y.rangemode, type=y.type, row=row, **_Y_AXIS
        )
    whole.update_xaxes(**_AXIS)
    whole.update_xaxes(title_text="training step", row=len(drawn))
    whole.update_layout(template=go.layout.Template(), height=sum(heights), **_LAYOUT)
    return whole


def number(value: float) -> float | None:
    """Four digits are more than a pixel shows, and NaN is a gap."""
    return float(f"{value:.4g}") if math.isfinite(value) else None


def _movement(series: Series) -> float:
    """Range of the values; infinite where some are not finite, since that is what a reader must see first."""
    values = series[1]
    return max(values) - min(values) if all(map(math.isfinite, values)) else math.inf


def _evenly(count: int, at_most: int) -> list[int]:
    """Return at most `at_most` evenly spaced indices below `count`, the first and the last among them."""
    if count <= at_most:
        return list(range(count))
    return [round(i * (count - 1) / (at_most - 1)) for i in range(at_most)]


def _sampled(series: Series, columns: Sequence[int]) -> list[float | None]:
    """Return the last value at or before each column; `None` before the first and where it was NaN."""
    steps, values = series
    found = [bisect_right(steps, column) - 1 for column in columns]
    return [number(values[i]) if i >= 0 else None for i in found]


COLOURBAR = {
    "orientation": "h",
    "thickness": 10,
    "x": 0,
    "xanchor": "left",
    "y": 1,
    "yanchor": "bottom",
    "ypad": 18,
    "len": 0.6,
    "tickvals": [0, 0.5, 1],
}
"""Above a heatmap, from 0 to 1."""

_AXIS = {
    "ticks": "",
    "gridcolor": _GRID,
    "zeroline": False,
    "linecolor": _GRID,
    "automargin": True,
}
_Y_AXIS = {**_AXIS, "title_standoff": 12}
_LAYOUT = {
    "font": {"color": GREY, "size": 12, "family": "system-ui, sans-serif"},
    "paper_bgcolor": "rgba(0, 0, 0, 0)",
    "plot_bgcolor": "rgba(0, 0, 0, 0)",
    "margin": {"l": 10, "r": 10, "t": 44, "b": 10},
    "modebar": {"bgcolor": "rgba(0, 0, 0, 0)", "color": GREY, "activecolor": COLOURS[0]},
    "hovermode": "closest",
    "legend": {"orientation": "h", "x": 0, "xanchor": "left", "y": 0, "yanchor": "bottom", "yref": "container"},
}

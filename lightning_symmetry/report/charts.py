"""Pictures of a run: pure functions from a history to a `plotly.graph_objects.Figure`.

Every chart has the training step along x. There are two sorts:

- **lines**, one per group or layer: the six that moved most are coloured (Okabe and Ito's colours, which colour-blind
  readers can tell apart), the others are grey and named when pointed at, so that a large model stays readable;
- **heatmaps**, one row per group or layer, in the order of the model (cividis, even for colour-blind readers).

All are bounded in size, whatever the length of the run and the size of the model: at most 60 rows or lines, those that
moved most, and at most 200 columns (1,000 points a line), evenly thinned, with the first and the last kept. Figures
hold plain lists of finite numbers and `None`, so every reader of JSON can draw them. Backgrounds are transparent and
text is a mid grey: they can be read on a light page and on a dark one.

A history that lacks the keys of a chart gives a figure without traces.
"""

from __future__ import annotations

import html
import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from lightning_symmetry.history import History

MOST_ROWS = 60
"""Most rows of a heatmap and most lines of a chart."""

MOST_COLUMNS = 200
"""Most columns of a heatmap."""

MOST_POINTS = 1000
"""Most points of a line."""

Series = tuple[list[int], list[float]]

_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#CC79A7")
_GREY = "#7d8590"
_FAINT = "rgba(125, 133, 144, 0.55)"
_GRID = "rgba(125, 133, 144, 0.25)"
_LABEL_LENGTH = 24


def loss_chart(history: History) -> go.Figure:
    """Training loss at each measurement."""
    traces = []
    if "loss" in history:
        traces = [_line("training loss", history.series("loss"), color=_GREY, width=2, showlegend=False)]
    return _figure(traces, "loss", height=260)


def broken_fraction_chart(history: History) -> go.Figure:
    """Broken fraction of every group (0 fully symmetric, 1 fully broken), and the mean of all groups."""
    traces = _lines(history, "symmetry/broken_fraction/", _group_colours(history), "groups")
    if "symmetry/broken_fraction" in history and len(traces) > 1:
        mean = history.series("symmetry/broken_fraction")
        traces.append(_line("mean of all groups", mean, color=_GREY, width=3, dash="dash"))
    return _figure(traces, "broken fraction", y_range=(-0.04, 1.04), height=380)


def nearest_distance_chart(history: History) -> go.Figure:
    """Distance of the two most similar units of every group (0 equal, 0.71 orthogonal): it falls before a merge."""
    traces = _lines(history, "symmetry/nearest_distance_min/", _group_colours(history), "groups")
    return _figure(traces, "nearest distance", height=320, rangemode="tozero")


def learning_dynamics_chart(history: History) -> go.Figure:
    """Loss, broken fraction and nearest distance one above the other, on one shared axis of steps."""
    return _stacked([loss_chart(history), broken_fraction_chart(history), nearest_distance_chart(history)])


def broken_fraction_heatmap(history: History) -> go.Figure:
    """Broken fraction as groups x steps (dark 0, fully symmetric; bright 1, fully broken)."""
    series = _moved_most(_by_name(history, "symmetry/broken_fraction/"), MOST_ROWS)
    hover = "%{customdata[0]}<br>step %{x}<br>broken fraction %{z:.3f}"
    return _heatmap(series, series, "broken fraction", hover)


def effective_rank_chart(history: History) -> go.Figure:
    """Effective rank of every layer."""
    prefix = "spectrum/effective_rank/"
    relative = {name: _relative(series) for name, series in _by_name(history, prefix).items()}
    return _figure(_lines(history, prefix, _colours(relative), "layers"), "effective rank", height=420)


def effective_rank_heatmap(history: History, prefix: str = "spectrum/effective_rank/") -> go.Figure:
    """Effective rank as layers x steps, each relative to that layer's largest over the run, so that layers compare."""
    ranks = _by_name(history, prefix)
    relative = _moved_most({name: _relative(series) for name, series in ranks.items()}, MOST_ROWS)
    hover = (
        "%{customdata[0]}<br>step %{x}<br>effective rank %{customdata[1]:.4g}<br>%{z:.0%} of its largest<extra></extra>"
    )
    return _heatmap(relative, ranks, "effective rank / its largest", hover)


def feature_rank_heatmap(history: History) -> go.Figure:
    """Effective rank of what each layer returns, as `effective_rank_heatmap`."""
    return effective_rank_heatmap(history, "representation/effective_rank/")


def neural_collapse_chart(history: History) -> go.Figure:
    """The marks of neural collapse, one above the other, on one axis of steps."""
    figures = []
    for mark, label in (
        ("nc1", "NC1 within / between"),
        ("nc2_equiangularity", "NC2 angles"),
        ("nc3", "NC3 duality"),
        ("nc4", "NC4 nearest mean"),
    ):
        series = _by_name(history, f"representation/{mark}/")
        traces = [_line(name, one, color=_COLOURS[0], width=2, showlegend=False) for name, one in series.items()]
        figures.append(_figure(traces, label, height=180, rangemode="tozero"))
    return _stacked(figures)


def linear_cka_heatmap(history: History) -> go.Figure:
    """Linear CKA of every two layers, as last measured (dark 0, unlike; bright 1, alike)."""
    prefix = "representation/linear_cka/"
    last = {tuple(key.removeprefix(prefix).split("/")): history.series(key)[1][-1] for key in history.keys(prefix)}
    names = list(dict.fromkeys(name for pair in last for name in pair))
    figure = _figure([], "", height=160 + 18 * max(len(names), 8))
    if not names:
        return figure
    pairs = [[(one, other) for other in names] for one in names]
    z = [[1.0 if a == b else _number(last.get((a, b), last.get((b, a), math.nan))) for a, b in row] for row in pairs]
    labels = [[f"{html.escape(a)}<br>{html.escape(b)}" for a, b in row] for row in pairs]
    hover = "%{customdata}<br>linear CKA %{z:.3f}<extra></extra>"
    trace = go.Heatmap(z=z, customdata=labels, zmin=0, zmax=1, colorscale="Cividis", hovertemplate=hover)
    figure.add_trace(trace)
    ticks = {"tickmode": "array", "tickvals": list(range(len(names))), "showgrid": False}
    short = [html.escape(name, quote=False) for name in short_names(names)]
    figure.update_xaxes(title_text="", ticktext=short, **ticks)
    figure.update_yaxes(ticktext=short, autorange="reversed", **ticks)
    return figure


def complexity_chart(history: History) -> go.Figure:
    """Effective parameters, and effective rank as a fraction of full rank (mean over layers), on one axis of steps."""
    figures = []
    for key, label, y_range in (
        ("complexity/effective_parameters", "effective parameters", None),
        ("complexity/effective_rank_fraction", "rank fraction", (-0.04, 1.04)),
    ):
        if key in history:
            traces = [_line(label, history.series(key), color=_COLOURS[0], width=2, showlegend=False)]
            figures.append(_figure(traces, label, y_range=y_range, height=220))
    return _stacked(figures)


def short_names(names: Sequence[str], length: int = _LABEL_LENGTH) -> list[str]:
    """Shorten names for legends and axes: drop the words that all begin with, then words from the middle of long ones.

    Example:
        >>> short_names(["model_encoder_fc1", "model_encoder_fc2"])
        ['fc1', 'fc2']
        >>> short_names(["blocks_11_self_attention_output_projection"])
        ['blocks_11_…_projection']
    """
    words = [name.split("_") for name in names]
    shared = 0
    if len(names) > 1:
        shortest = min(len(row) for row in words)
        while shared < shortest - 1 and len({row[shared] for row in words}) == 1:
            shared += 1
        if shared and any(row[shared].isdigit() for row in words):
            shared -= 1  # "blocks_0", not a bare "0"
    return [_short_name(row[shared:], length) for row in words]


def _short_name(words: list[str], length: int) -> str:
    head, tail = words[: len(words) // 2], words[len(words) // 2 :]
    name = "_".join(words)
    while len(name) > length and len(tail) > 1:
        if len(head) > len(tail):
            head = head[:-1]
        else:
            tail = tail[1:]
        name = "_".join([*head, "…", *tail])
    return name if len(name) <= length else f"{name[: length // 2]}…{name[-(length - 1 - length // 2) :]}"


def _by_name(history: History, prefix: str) -> dict[str, Series]:
    return {key.removeprefix(prefix): history.series(key) for key in history.keys(prefix)}


def _relative(series: Series) -> Series:
    """Divide by the largest finite value (a series that is 0 throughout stays 0)."""
    steps, values = series
    largest = max((value for value in values if math.isfinite(value)), default=0.0)
    return steps, [value / largest if largest > 0 else value for value in values]


def _movement(series: Series) -> float:
    """Range of the values; infinite where some are not finite, since that is what a reader must see first."""
    values = series[1]
    return max(values) - min(values) if all(map(math.isfinite, values)) else math.inf


def _moved_most(series: Mapping[str, Series], at_most: int) -> dict[str, Series]:
    """Keep the `at_most` series that moved most, in their given order."""
    kept = set(sorted(series, key=lambda name: -_movement(series[name]))[:at_most])
    return {name: series[name] for name in series if name in kept}


def _colours(series: Mapping[str, Series]) -> dict[str, str]:
    """Give a colour to those that moved most."""
    return dict(zip(_moved_most(series, len(_COLOURS)), _COLOURS, strict=False))


def _group_colours(history: History) -> dict[str, str]:
    """One colour a group, the same in every chart of groups."""
    return _colours(_by_name(history, "symmetry/broken_fraction/"))


def _evenly(count: int, at_most: int) -> list[int]:
    """Return at most `at_most` evenly spaced indices below `count`, the first and the last among them."""
    if count <= at_most:
        return list(range(count))
    return [round(i * (count - 1) / (at_most - 1)) for i in range(at_most)]


def _number(value: float) -> float | None:
    """Four digits are more than a pixel shows, and NaN is a gap."""
    return float(f"{value:.4g}") if math.isfinite(value) else None


def _lines(history: History, prefix: str, colours: Mapping[str, str], noun: str) -> list[go.Scatter]:
    series = _by_name(history, prefix)
    labels = dict(zip(series, short_names(list(series)), strict=True))
    grey = [name for name in _moved_most(series, MOST_ROWS) if name not in colours]
    traces = [
        _line(
            f"{len(grey)} other {noun if len(grey) > 1 else noun.removesuffix('s')}",
            series[name],
            color=_FAINT,
            width=1,
            full_name=name,
            legendgroup="others",
            showlegend=name == grey[0],
        )
        for name in grey
    ]
    return traces + [
        _line(labels[name], series[name], color=colour, width=2, full_name=name, legendgroup=name)
        for name, colour in colours.items()
        if name in series
    ]


def _line(
    name: str,
    series: Series,
    *,
    color: str,
    width: int,
    dash: str = "solid",
    full_name: str = "",
    legendgroup: str = "",
    showlegend: bool = True,
) -> go.Scatter:
    steps, values = series
    kept = _evenly(len(steps), MOST_POINTS)
    return go.Scatter(
        x=[steps[i] for i in kept],
        y=[values[i] if math.isfinite(values[i]) else None for i in kept],
        name=html.escape(name, quote=False),
        mode="lines+markers" if len(kept) <= 20 else "lines",
        line={"color": color, "width": width, "dash": dash},
        marker={"size": width + 3},
        hovertemplate=f"{html.escape(full_name or name, quote=False)}<br>step %{{x}}<br>%{{y:.4g}}<extra></extra>",
        legendgroup=legendgroup or name,
        showlegend=showlegend,
    )


def _heatmap(colour: Mapping[str, Series], shown: Mapping[str, Series], colour_label: str, hover: str) -> go.Figure:
    """Draw rows x steps; a cell is what was last measured at or before its step, `shown` is its number when pointed at.

    Rows stand at 0, 1, 2, ... and carry their names as tick labels: two names that shorten alike stay two rows.
    """
    all_steps = sorted({step for steps, _ in colour.values() for step in steps})
    columns = [all_steps[i] for i in _evenly(len(all_steps), MOST_COLUMNS)]
    names = [html.escape(name, quote=False) for name in colour]
    figure = _figure([], "", height=120 + 18 * max(len(names), 4))
    if not names:
        return figure
    numbers = [_sampled(shown[name], columns) for name in colour]
    figure.add_trace(
        go.Heatmap(
            x=columns,
            y=list(range(len(names))),
            z=[_sampled(series, columns) for series in colour.values()],
            customdata=[[[name, value] for value in row] for name, row in zip(names, numbers, strict=True)],
            zmin=0,
            zmax=1,
            colorscale="Cividis",
            hoverongaps=False,
            hovertemplate=hover + "<extra></extra>",
            colorbar={
                "title": {"text": colour_label, "side": "top"},
                "orientation": "h",
                "thickness": 10,
                "x": 0,
                "xanchor": "left",
                "y": 1,
                "yanchor": "bottom",
                "len": 0.7,
                "tickvals": [0, 0.5, 1],
            },
        )
    )
    figure.update_yaxes(
        tickmode="array",
        tickvals=list(range(len(names))),
        ticktext=[html.escape(name, quote=False) for name in short_names(list(colour))],
        autorange="reversed",
        showgrid=False,
    )
    figure.update_xaxes(showgrid=False)
    return figure


def _sampled(series: Series, columns: Sequence[int]) -> list[float | None]:
    """Return the last value at or before each column; `None` before the first and where it was NaN."""
    steps, values = series
    found = [bisect_right(steps, column) - 1 for column in columns]
    return [_number(values[i]) if i >= 0 else None for i in found]


def _figure(
    traces: Sequence[go.Scatter],
    y_label: str,
    *,
    height: int,
    y_range: tuple[float, float] | None = None,
    rangemode: str = "normal",
) -> go.Figure:
    figure = go.Figure(traces, layout={"template": go.layout.Template()})
    figure.update_xaxes(title_text="training step", **_AXIS)
    figure.update_yaxes(title_text=y_label, range=y_range, rangemode=rangemode, **_AXIS)
    figure.update_layout(height=height, **_LAYOUT)
    return figure


def _stacked(figures: Sequence[go.Figure]) -> go.Figure:
    """Put the figures that have traces one above the other, on one shared axis of steps and with one legend."""
    drawn = [figure for figure in figures if figure.data]
    if not drawn:
        return _figure([], "", height=200)
    heights = [figure.layout.height for figure in drawn]
    stacked = make_subplots(
        rows=len(drawn), cols=1, shared_xaxes=True, row_heights=heights, vertical_spacing=0.05 if len(drawn) > 1 else 0
    )
    in_legend: set[str] = set()
    for row, figure in enumerate(drawn, start=1):
        for trace in figure.data:
            trace.showlegend = bool(trace.showlegend and trace.legendgroup not in in_legend)
            if trace.showlegend:
                in_legend.add(trace.legendgroup)
            stacked.add_trace(trace, row=row, col=1)
        y_axis = figure.layout.yaxis
        stacked.update_yaxes(
            title_text=y_axis.title.text, range=y_axis.range, rangemode=y_axis.rangemode, row=row, **_AXIS
        )
    stacked.update_xaxes(**_AXIS)
    stacked.update_xaxes(title_text="training step", row=len(drawn))
    stacked.update_layout(template=go.layout.Template(), height=sum(heights), **_LAYOUT)
    return stacked


_AXIS = {"ticks": "", "gridcolor": _GRID, "zeroline": False, "linecolor": _GRID, "automargin": True}
_LAYOUT = {
    "font": {"color": _GREY, "size": 12, "family": "system-ui, sans-serif"},
    "paper_bgcolor": "rgba(0, 0, 0, 0)",
    "plot_bgcolor": "rgba(0, 0, 0, 0)",
    "margin": {"l": 10, "r": 10, "t": 28, "b": 10},
    "modebar": {"bgcolor": "rgba(0, 0, 0, 0)", "color": _GREY, "activecolor": _COLOURS[0]},
    "hovermode": "closest",
    "legend": {"orientation": "h", "x": 0, "xanchor": "left", "y": 0, "yanchor": "bottom", "yref": "container"},
}

"""Pictures of a run: pure functions from a history to a `plotly.graph_objects.Figure`, with the step along x.

A history that lacks the keys of a chart gives a figure without traces. How all are drawn: `drawing`.
"""

from __future__ import annotations

import html
import math

import plotly.graph_objects as go

from lightning_symmetry.history import History
from lightning_symmetry.report.drawing import (
    COLOURBAR,
    COLOURS,
    GREY,
    MOST_ROWS,
    by_name,
    chart,
    colours,
    heatmap,
    line,
    lines,
    moved_most,
    number,
    relative,
    stacked,
)
from lightning_symmetry.report.names import short_names


def loss_chart(history: History) -> go.Figure:
    """Training loss at each measurement."""
    traces = []
    if "loss" in history:
        traces = [line("training loss", history.series("loss"), color=GREY, width=2, showlegend=False)]
    return chart(traces, "loss", height=230)


def broken_fraction_chart(history: History) -> go.Figure:
    """Broken fraction of every group (0 fully symmetric, 1 fully broken), and the mean of all groups."""
    traces = lines(history, "symmetry/broken_fraction/", _group_colours(history), "groups")
    if "symmetry/broken_fraction" in history and len(traces) > 1:
        mean = history.series("symmetry/broken_fraction")
        traces.append(line("mean of all groups", mean, color=GREY, width=3, dash="dash"))
    return chart(traces, "broken fraction", y_range=(-0.04, 1.04), height=300)


def nearest_distance_chart(history: History) -> go.Figure:
    """Distance of the two most similar units of every group (0 equal, 0.71 orthogonal): it falls before a merge."""
    traces = lines(history, "symmetry/nearest_distance_min/", _group_colours(history), "groups")
    return chart(traces, "nearest distance", height=230, rangemode="tozero")


def learning_dynamics_chart(history: History) -> go.Figure:
    """Loss, broken fraction and nearest distance one above the other, on one shared axis of steps."""
    return stacked([loss_chart(history), broken_fraction_chart(history), nearest_distance_chart(history)])


def broken_fraction_heatmap(history: History) -> go.Figure:
    """Broken fraction as groups x steps (dark 0, fully symmetric; bright 1, fully broken)."""
    series = moved_most(by_name(history, "symmetry/broken_fraction/"), MOST_ROWS)
    hover = "%{text}<br>step %{x}<br>broken fraction %{z:.3f}"
    return heatmap(series, series, "broken fraction", hover)


def effective_rank_chart(history: History) -> go.Figure:
    """Effective rank of every layer."""
    prefix = "spectrum/effective_rank/"
    comparable = {name: relative(series) for name, series in by_name(history, prefix).items()}
    return chart(
        lines(history, prefix, colours(comparable), "layers"), "effective rank", height=320, rangemode="tozero"
    )


def effective_rank_heatmap(history: History, prefix: str = "spectrum/effective_rank/") -> go.Figure:
    """Effective rank as layers x steps, each relative to that layer's largest over the run, so that layers compare."""
    ranks = by_name(history, prefix)
    comparable = moved_most({name: relative(series) for name, series in ranks.items()}, MOST_ROWS)
    hover = "%{text}<br>step %{x}<br>effective rank %{customdata:.4g}<br>%{z:.0%} of its largest"
    return heatmap(comparable, ranks, "effective rank / its largest", hover)


def feature_rank_heatmap(history: History) -> go.Figure:
    """Effective rank of what each layer returns, as `effective_rank_heatmap`."""
    return effective_rank_heatmap(history, "representation/effective_rank/")


def formation_chart(history: History) -> go.Figure:
    """Rank of the features as a fraction of full rank, dormant units, and alignment, one above the other."""
    figures = []
    if "representation/effective_rank_fraction" in history:
        mean = history.series("representation/effective_rank_fraction")
        traces = [line("mean of all layers", mean, color=COLOURS[0], width=2, showlegend=False)]
        figures.append(chart(traces, "rank fraction", y_range=(-0.04, 1.04), height=200))
    coloured = colours(by_name(history, "representation/effective_rank/"))
    for indicator, label in (("activation_weight_alignment", "alignment"), ("dormant_fraction", "dormant units")):
        traces = lines(history, f"representation/{indicator}/", coloured, "layers")
        figures.append(chart(traces, label, y_range=(-0.04, 1.04), height=200))
    return stacked(figures)


def neural_collapse_chart(history: History) -> go.Figure:
    """The marks of neural collapse, one above the other, on one axis of steps."""
    figures = []
    for mark, label, scale in (
        ("nc1", "NC1<br>within / between", "log"),
        ("nc2_equiangularity", "NC2<br>angles", "linear"),
        ("nc3", "NC3<br>duality", "linear"),
        ("nc4", "NC4<br>nearest mean", "linear"),
    ):
        series = by_name(history, f"representation/{mark}/")
        name = label.replace("<br>", " ")
        traces = [
            line(f"{name}, {layer}", one, color=COLOURS[0], width=2, showlegend=False) for layer, one in series.items()
        ]
        figures.append(chart(traces, label, height=150, rangemode="tozero", scale=scale))
    whole = stacked(figures)
    positive = [value for trace in figures[0].data for value in trace.y if value is not None and value > 0]
    if positive and math.floor(math.log10(max(positive))) > math.ceil(math.log10(min(positive))):
        whole.update_yaxes(dtick=1, selector={"type": "log"})  # two powers of ten and more, without the 2 and 5 between
    return whole


def linear_cka_heatmap(history: History) -> go.Figure:
    """Linear CKA of every two layers, as last measured (dark 0, unlike; bright 1, alike)."""
    prefix = "representation/linear_cka/"
    last = {tuple(key.removeprefix(prefix).split("/")): history.series(key)[1][-1] for key in history.keys(prefix)}
    names = list(dict.fromkeys(name for pair in last for name in pair))
    figure = chart([], "", height=200 + 18 * max(len(names), 8))
    if not names:
        return figure
    pairs = [[(one, other) for other in names] for one in names]
    z = [[1.0 if a == b else number(last.get((a, b), last.get((b, a), math.nan))) for a, b in row] for row in pairs]
    labels = [[f"{html.escape(a)}<br>{html.escape(b)}" for a, b in row] for row in pairs]
    trace = go.Heatmap(
        z=z,
        customdata=labels,
        meta=names,
        zmin=0,
        zmax=1,
        colorscale="Cividis",
        hovertemplate="%{customdata}<br>linear CKA %{z:.3f}<extra></extra>",
        colorbar={**COLOURBAR, "title": {"text": "linear CKA", "side": "top"}},
    )
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
            traces = [line(label, history.series(key), color=COLOURS[0], width=2, showlegend=False)]
            figures.append(chart(traces, label, y_range=y_range, height=200, rangemode="tozero"))
    return stacked(figures)


def _group_colours(history: History) -> dict[str, str]:
    """One colour a group, the same in every chart of groups."""
    return colours(by_name(history, "symmetry/broken_fraction/"))

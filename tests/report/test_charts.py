from __future__ import annotations

import html
import json
import math

import plotly.graph_objects as go
import pytest

from lightning_symmetry.history import History
from lightning_symmetry.report import charts
from lightning_symmetry.report.drawing import MOST_COLUMNS, MOST_POINTS, MOST_ROWS

CHARTS = [
    charts.loss_chart,
    charts.broken_fraction_chart,
    charts.nearest_distance_chart,
    charts.learning_dynamics_chart,
    charts.broken_fraction_heatmap,
    charts.effective_rank_chart,
    charts.effective_rank_heatmap,
    charts.complexity_chart,
    charts.feature_rank_heatmap,
    charts.formation_chart,
    charts.linear_cka_heatmap,
    charts.neural_collapse_chart,
]


def history_of(series: dict[str, dict[int, float]]) -> History:
    history = History(None)
    for step in sorted({step for values in series.values() for step in values}):
        history.append(step, {key: values[step] for key, values in series.items() if step in values})
    return history


def trace_named(figure: go.Figure, name: str) -> go.Scatter:
    (trace,) = [trace for trace in figure.data if trace.name == name]
    return trace


@pytest.mark.parametrize("chart", CHARTS)
def test_a_chart_without_its_keys_has_no_traces(chart) -> None:
    assert len(chart(History(None)).data) == 0


@pytest.mark.parametrize("chart", CHARTS)
def test_a_chart_is_strict_json_with_every_number_in_plain_text(chart, run_history: History) -> None:
    text = chart(run_history).to_json()
    json.loads(text, parse_constant=pytest.fail)
    assert "bdata" not in text  # Plotly's base64 arrays, which other readers may not know


@pytest.mark.parametrize("chart", CHARTS)
def test_a_chart_has_no_background_and_no_request_to_make(chart, run_history: History) -> None:
    figure = chart(run_history)
    assert figure.layout.paper_bgcolor == figure.layout.plot_bgcolor == "rgba(0, 0, 0, 0)"
    assert {trace.type for trace in figure.data} <= {"scatter", "heatmap"}
    assert not figure.layout.images


def test_the_loss_is_drawn_as_measured() -> None:
    (trace,) = charts.loss_chart(history_of({"loss": {0: 2.0, 5: 1.0, 10: math.nan}})).data
    assert list(trace.x) == [0, 5, 10]
    assert list(trace.y) == [2.0, 1.0, None]


def test_every_group_is_a_line_named_in_full_when_pointed_at() -> None:
    series = {f"symmetry/broken_fraction/net_fc{i}": {0: 1.0, 1: 1.0 - 0.1 * i} for i in range(4)}
    figure = charts.broken_fraction_chart(history_of(series))
    assert [trace.name for trace in figure.data] == ["fc0", "fc1", "fc2", "fc3"]
    assert [trace.hovertemplate.split("<br>")[0] for trace in figure.data] == [f"net_fc{i}" for i in range(4)]
    assert list(trace_named(figure, "fc3").y) == [1.0, 0.7]
    assert len({trace.line.color for trace in figure.data}) == 4


def test_the_mean_is_drawn_where_there_are_several_groups() -> None:
    one = {"symmetry/broken_fraction": {0: 0.5}, "symmetry/broken_fraction/a": {0: 0.5}}
    two = {**one, "symmetry/broken_fraction/b": {0: 0.5}}
    assert [trace.name for trace in charts.broken_fraction_chart(history_of(one)).data] == ["a"]
    assert charts.broken_fraction_chart(history_of(two)).data[-1].name == "mean of all groups"


def test_of_many_layers_the_six_that_moved_most_are_coloured_and_the_rest_share_one_legend_entry() -> None:
    series = {f"spectrum/effective_rank/layer{i}": {0: 10.0, 1: 10.0 - 0.1 * i} for i in range(30)}
    figure = charts.effective_rank_chart(history_of(series))
    assert len(figure.data) == 30
    legend = [trace.name for trace in figure.data if trace.showlegend is not False]
    assert legend == ["24 other layers", *(f"layer{i}" for i in range(24, 30))]


def test_a_group_has_one_colour_in_all_charts() -> None:
    groups = range(12)
    history = history_of(
        {f"symmetry/broken_fraction/g{i}": {0: 1.0, 1: 1.0 - i / 12} for i in groups}
        | {f"symmetry/nearest_distance_min/g{i}": {0: 1.0, 1: i / 12} for i in groups}
    )
    broken, nearest = charts.broken_fraction_chart(history), charts.nearest_distance_chart(history)
    coloured = {trace.name: trace.line.color for trace in broken.data if not trace.name.startswith("6 other")}
    assert coloured.keys() == {f"g{i}" for i in range(6, 12)}
    assert coloured == {trace.name: trace.line.color for trace in nearest.data if trace.name in coloured}


def test_learning_dynamics_share_the_axis_of_steps_and_name_each_group_once(run_history: History) -> None:
    figure = charts.learning_dynamics_chart(run_history)
    assert [axis.title.text for axis in figure.select_yaxes()] == ["loss", "broken fraction", "nearest distance"]
    assert len({axis.matches or "x3" for axis in figure.select_xaxes()}) == 1
    legend = [trace.name for trace in figure.data if trace.showlegend]
    assert len(legend) == len(set(legend)) == 6 + 1 + 1  # coloured groups, the others, the mean


def test_learning_dynamics_without_a_loss_begin_with_the_broken_fraction() -> None:
    figure = charts.learning_dynamics_chart(history_of({"symmetry/broken_fraction/a": {0: 1.0, 1: 0.5}}))
    assert [axis.title.text for axis in figure.select_yaxes()] == ["broken fraction"]
    assert list(figure.data[0].y) == [1.0, 0.5]


def test_the_heatmap_of_groups_has_a_row_per_group_in_the_order_of_the_model() -> None:
    series = {"symmetry/broken_fraction/b": {0: 1.0, 5: 0.25}, "symmetry/broken_fraction/a": {0: 0.5, 5: 0.5}}
    figure = charts.broken_fraction_heatmap(history_of(series))
    (heatmap,) = figure.data
    assert list(heatmap.x) == [0, 5]
    assert [list(row) for row in heatmap.z] == [[1.0, 0.25], [0.5, 0.5]]
    assert list(figure.layout.yaxis.ticktext) == ["b", "a"]
    assert figure.layout.yaxis.autorange == "reversed"  # the first row on top
    assert (heatmap.zmin, heatmap.zmax) == (0, 1)


def test_rank_is_coloured_relative_to_the_layers_largest_and_told_as_it_is() -> None:
    figure = charts.effective_rank_heatmap(history_of({"spectrum/effective_rank/fc": {0: 8.0, 1: 4.0, 2: 2.0}}))
    (heatmap,) = figure.data
    assert list(heatmap.z[0]) == [1.0, 0.5, 0.25]
    assert list(heatmap.customdata[0]) == [8.0, 4.0, 2.0]
    assert list(heatmap.text[0]) == ["fc"] * 3


def test_a_layer_of_rank_zero_throughout_is_dark() -> None:
    (heatmap,) = charts.effective_rank_heatmap(history_of({"spectrum/effective_rank/fc": {0: 0.0, 1: 0.0}})).data
    assert list(heatmap.z[0]) == [0.0, 0.0]


def test_a_cell_holds_what_was_last_measured_and_nan_is_a_gap() -> None:
    series = {
        "symmetry/broken_fraction/often": {0: 1.0, 1: math.nan, 2: 0.5, 3: 0.25},
        "symmetry/broken_fraction/rare": {1: 0.75, 3: 0.5},
    }
    (heatmap,) = charts.broken_fraction_heatmap(history_of(series)).data
    assert [list(row) for row in heatmap.z] == [[1.0, None, 0.5, 0.25], [None, 0.75, 0.75, 0.5]]


def test_names_that_shorten_alike_stay_two_rows() -> None:
    names = [f"{'a' * 20}{middle}{'z' * 20}" for middle in ("left", "right")]
    figure = charts.broken_fraction_heatmap(history_of({f"symmetry/broken_fraction/{n}": {0: 1.0} for n in names}))
    assert len(set(figure.layout.yaxis.ticktext)) == 1
    assert list(figure.data[0].y) == [0, 1]
    assert [row[0] for row in figure.data[0].text] == names


@pytest.mark.parametrize("heatmap", [charts.broken_fraction_heatmap, charts.effective_rank_heatmap])
def test_a_heatmap_of_a_large_model_keeps_the_rows_that_moved_most_and_first_and_last_step(heatmap) -> None:
    history = History(None)
    for step in range(0, 3000, 3):
        values = {f"symmetry/broken_fraction/n{i}": 1.0 - i * step / 300_000 for i in range(100)}
        values |= {f"spectrum/effective_rank/n{i}": 50.0 - i * step / 10_000 for i in range(100)}
        values["symmetry/broken_fraction/n3"] = values["spectrum/effective_rank/n3"] = math.nan
        history.append(step, values)
    figure = heatmap(history)
    (trace,) = figure.data
    assert list(figure.layout.yaxis.ticktext) == ["n3", *(f"n{i}" for i in range(41, 100))]  # NaN is the worst
    assert len(trace.z) == MOST_ROWS
    assert len(trace.x) == MOST_COLUMNS
    assert (trace.x[0], trace.x[-1]) == (0, 2997)
    assert len(figure.to_json()) < 1_000_000


def test_long_runs_are_thinned_with_first_last_and_every_peak_kept() -> None:
    losses = {step: step % 7 for step in range(12_345)} | {5_432: 1000.0, 9_876: -1000.0, 7_000: math.nan}
    (trace,) = charts.loss_chart(history_of({"loss": losses})).data
    assert len(trace.x) <= MOST_POINTS
    assert (trace.x[0], trace.x[-1]) == (0, 12_344)
    drawn = dict(zip(trace.x, trace.y, strict=True))
    assert (drawn[5_432], drawn[9_876], drawn[7_000]) == (1000.0, -1000.0, None)


def test_complexity_shows_what_was_measured_of_it() -> None:
    key = "complexity/effective_parameters"
    assert [axis.title.text for axis in charts.complexity_chart(history_of({key: {0: 9.0}})).select_yaxes()] == [
        "effective parameters"
    ]
    both = history_of({key: {0: 9.0}, "complexity/effective_rank_fraction": {0: 0.5}})
    assert [list(trace.y) for trace in charts.complexity_chart(both).data] == [[9.0], [0.5]]


def test_a_single_measurement_is_a_dot() -> None:
    figure = charts.loss_chart(history_of({"loss": {0: 2.0}}))
    assert "markers" in figure.data[0].mode


@pytest.mark.parametrize("chart", [charts.broken_fraction_chart, charts.broken_fraction_heatmap])
def test_a_name_that_looks_like_markup_is_escaped(chart) -> None:
    figure = chart(history_of({"symmetry/broken_fraction/<b>x": {0: 1.0}}))
    assert "<b>" not in figure.to_json()
    assert html.escape("<b>x") in figure.to_json()


def test_the_likeness_of_layers_is_a_square_with_ones_on_its_diagonal():
    history = History(None)
    history.append(0, {"representation/linear_cka/a/b": 0.9, "representation/linear_cka/a/c": 0.1})
    history.append(5, {"representation/linear_cka/a/b": 0.5, "representation/linear_cka/b/c": math.nan})
    (trace,) = charts.linear_cka_heatmap(history).data
    assert [list(row) for row in trace.z] == [[1, 0.5, 0.1], [0.5, 1, None], [0.1, None, 1]]
    assert not charts.linear_cka_heatmap(History(None)).data


def test_the_marks_of_neural_collapse_are_drawn_one_above_the_other():
    history = History(None)
    history.append(0, {"representation/nc1/head": 2.0, "representation/nc4/head": 0.5})
    figure = charts.neural_collapse_chart(history)
    assert [list(trace.y) for trace in figure.data] == [[2.0], [0.5]]
    assert not charts.neural_collapse_chart(History(None)).data


@pytest.mark.parametrize(("values", "dtick"), [((0.5, 250.0), 1), ((0.5, 9.0), None), ((0.0, 2.0), None)])
def test_variability_over_decades_is_marked_at_powers_of_ten(values: tuple[float, float], dtick: int | None) -> None:
    figure = charts.neural_collapse_chart(history_of({"representation/nc1/head": dict(enumerate(values))}))
    assert [(axis.type, axis.dtick) for axis in figure.select_yaxes()] == [("log", dtick)]


def test_the_formation_of_representations_is_drawn_from_what_was_measured_of_it() -> None:
    history = history_of(
        {
            "representation/effective_rank_fraction": {0: 0.9, 1: 0.5},
            "representation/effective_rank/fc": {0: 9.0, 1: 5.0},
            "representation/dormant_fraction/fc": {0: 0.0, 1: 0.25},
        }
    )
    figure = charts.formation_chart(history)
    assert [axis.title.text for axis in figure.select_yaxes()] == ["rank fraction", "dormant units"]
    assert [list(trace.y) for trace in figure.data] == [[0.9, 0.5], [0.0, 0.25]]

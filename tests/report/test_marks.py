from __future__ import annotations

from collections.abc import Callable

import plotly.graph_objects as go
import pytest

from lightning_symmetry.history import History
from lightning_symmetry.report import charts
from lightning_symmetry.report.marks import MOST_MARKS, mark_events

TRANSITION = {"group": "a", "indicator": "symmetry/distinct_units", "since": 3, "before": 8.0, "after": 6.0}


@pytest.mark.parametrize(
    "chart", [charts.learning_dynamics_chart, charts.broken_fraction_heatmap, charts.effective_rank_chart]
)
def test_events_are_marked_on_every_axis_of_steps(chart: Callable[[History], go.Figure]) -> None:
    keys = ("loss", "symmetry/broken_fraction/a", "symmetry/nearest_distance_min/a", "spectrum/effective_rank/a")
    history = History(None)
    history.append_event(0, "run", name="a")
    for step in range(10):
        history.append(step, dict.fromkeys(keys, 1.0))
    for kind in ("restoration", "rank_collapse"):
        history.append_event(5, kind, **TRANSITION, confidence=0.99)
    history.append_event(7, "nonfinite", parameter="fc.weight")
    figure = mark_events(chart(history), history)
    axes = list(figure.select_yaxes())
    assert [shape.x0 for shape in figure.layout.shapes] == [5] * len(axes) + [7] * len(axes)
    change, trouble = [annotation for annotation in figure.layout.annotations if annotation.text != "training step"]
    assert "▼" in change.text and "✕" in trouble.text
    assert "restoration: distinct units of a fell from 8 to 6 between steps 3 and 5" in change.hovertext
    assert "rank collapse" in change.hovertext
    assert "step 7<br>nonfinite: parameter: fc.weight" in trouble.hovertext


def test_a_chart_without_an_axis_of_steps_is_left_as_it_is() -> None:
    history = History(None)
    history.append(5, {"representation/linear_cka/a/b": 0.5})
    history.append_event(5, "restoration", **TRANSITION)
    figure = mark_events(charts.linear_cka_heatmap(history), history)
    assert not figure.layout.shapes and not figure.layout.annotations


def test_marks_are_bounded_and_escaped() -> None:
    history = History(None)
    for step in range(200):
        history.append(step, {"loss": 1.0})
        history.append_event(step, "restoration", **{**TRANSITION, "group": "<b>"})
    figure = mark_events(charts.loss_chart(history), history)
    assert len(figure.layout.annotations) == MOST_MARKS
    assert figure.layout.annotations[-1].x == 199
    assert "<b>" not in figure.layout.annotations[0].hovertext


def test_a_chart_without_traces_stays_without_marks() -> None:
    history = History(None)
    history.append_event(5, "restoration", **TRANSITION)
    assert not mark_events(charts.loss_chart(history), history).layout.shapes

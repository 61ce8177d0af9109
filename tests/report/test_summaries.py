from __future__ import annotations

import math

from lightning_symmetry.history import History
from lightning_symmetry.report import charts
from lightning_symmetry.report.summaries import summary


def test_a_line_is_told_by_its_first_lowest_highest_and_last_value() -> None:
    history = History(None)
    for step, loss in enumerate([2.0, 5.0, 0.25, 1.0]):
        history.append(10 * step, {"loss": loss})
    told = summary(charts.loss_chart(history))
    assert told.headings == ("series", "first", "lowest", "highest", "last")
    assert told.rows == [("loss: training loss", "2", "0.25", "5", "1")]
    assert told.sentence == (
        "1 series over steps 0 to 30. loss: training loss: first 2, lowest 0.25, highest 5, last 1."
    )


def test_lines_of_stacked_charts_are_told_apart_by_their_axis() -> None:
    history = History(None)
    history.append(0, {"symmetry/broken_fraction/fc": 1.0, "symmetry/nearest_distance_min/fc": 0.5})
    rows = summary(charts.learning_dynamics_chart(history)).rows
    assert [row[0] for row in rows] == ["broken fraction: fc", "nearest distance: fc"]


def test_a_heatmap_is_told_by_the_numbers_behind_its_colours() -> None:
    history = History(None)
    history.append(0, {"spectrum/effective_rank/fc1": 8.0, "spectrum/effective_rank/fc2": math.nan})
    history.append(1, {"spectrum/effective_rank/fc1": 2.0, "spectrum/effective_rank/fc2": math.nan})
    assert summary(charts.effective_rank_heatmap(history)).rows == [
        ("fc1", "8", "2", "8", "2"),
        ("fc2", *["not finite"] * 4),
    ]


def test_a_last_value_that_is_not_finite_is_told() -> None:
    history = History(None)
    history.append(0, {"loss": 1.0})
    history.append(1, {"loss": math.nan})
    assert summary(charts.loss_chart(history)).rows == [("loss: training loss", "1", "1", "1", "not finite")]


def test_likeness_is_told_by_the_least_and_the_most_like_layer() -> None:
    history = History(None)
    history.append(
        0,
        {
            "representation/linear_cka/a/b": 0.9,
            "representation/linear_cka/a/c": 0.1,
            "representation/linear_cka/b/c": 0.5,
        },
    )
    assert summary(charts.linear_cka_heatmap(history)).rows == [
        ("a", "c (0.1)", "b (0.9)"),
        ("b", "c (0.5)", "a (0.9)"),
        ("c", "a (0.1)", "b (0.5)"),
    ]


def test_of_many_series_the_sentence_tells_a_few_and_the_table_all() -> None:
    history = History(None)
    history.append(0, {f"spectrum/effective_rank/fc{i}": 1.0 for i in range(9)})
    told = summary(charts.effective_rank_heatmap(history))
    assert "and 5 more, in the table below" in told.sentence
    assert len(told.rows) == 9

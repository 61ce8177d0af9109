"""The heatmaps that loggers get are small whatever the size of the model and the length of the run."""

from __future__ import annotations

import json
import math

import pytest

from lightning_symmetry.history import History
from lightning_symmetry.sinks.heatmaps import HEATMAPS, MOST_COLUMNS, MOST_EVENTS, MOST_ROWS, draw_heatmap, heatmaps

BROKEN, RANKS, FEATURES, CKA = HEATMAPS
ROWS, STEPS, LAYERS = 300, 5_000, 48
EVENT = {"indicator": "spectrum/effective_rank", "since": 0, "before": 8.0, "after": 9.0, "confidence": 1.0}


@pytest.fixture(scope="module")
def large():
    """A run of 300 groups and 5,000 measurements; group g moves by g / 300."""
    history = History(None)
    names = [f"decoder_layers_{i}_self_attention_output_projection_heads" for i in range(ROWS)]
    for step in range(STEPS):
        moved = step / STEPS
        values = {f"symmetry/broken_fraction/{name}": 1 - moved * row / ROWS for row, name in enumerate(names)}
        if step == STEPS - 1:
            pairs = [(i, j) for i in range(LAYERS) for j in range(i)]
            values |= {f"representation/linear_cka/{names[i]}/{names[j]}": 0.123456 for i, j in pairs}
        history.append(step, values)
    for step in range(0, STEPS, 50):
        history.append_event(step, "rank_jump", group=names[step % ROWS], **EVENT)
    return history


@pytest.mark.parametrize("key", [BROKEN, CKA])
def test_a_large_run_gives_a_small_figure(large, key):
    assert len(json.dumps(draw_heatmap(key, large).to_plotly_json(), default=list)) < 300_000


def test_the_rows_are_those_that_moved_most_and_the_last_step_is_shown(large):
    (heatmap,) = draw_heatmap(BROKEN, large).data
    assert (len(heatmap.z), len(heatmap.z[0])) == (MOST_ROWS, MOST_COLUMNS)
    assert heatmap.x[0] == 0 and heatmap.x[-1] == STEPS - 1
    assert max(row[-1] for row in heatmap.z) == pytest.approx(MOST_ROWS / ROWS, abs=0.01)


def test_layers_are_chosen_evenly_for_pairs(large):
    (heatmap,) = draw_heatmap(CKA, large).data
    assert len(heatmap.z) == len(heatmap.z[0]) == MOST_ROWS
    assert {value for row in heatmap.z for value in row} == {1.0, 0.1235}


def test_the_latest_transitions_are_marked_on_steps_and_none_on_pairs(large):
    steps = [shape.x0 for shape in draw_heatmap(BROKEN, large).layout.shapes]
    assert steps == list(range(STEPS - 50 * MOST_EVENTS, STEPS, 50))
    assert not draw_heatmap(CKA, large).layout.shapes


def test_a_small_run_is_shown_whole():
    history = History(None)
    history.append(0, {"spectrum/effective_rank/fc1": 4.0, "spectrum/effective_rank/fc2": 2.0})
    history.append(7, {"spectrum/effective_rank/fc1": math.nan, "spectrum/effective_rank/fc2": 1.0})
    assert heatmaps(history) == [RANKS]
    (heatmap,) = draw_heatmap(RANKS, history).data
    assert [list(row) for row in heatmap.z] == [[1.0, None], [1.0, 0.5]]
    assert list(heatmap.x) == [0, 7]


def test_series_that_begin_late_are_blank_before():
    history = History(None)
    history.append(0, {"representation/effective_rank/a": 4.0})
    history.append(5, {"representation/effective_rank/a": 4.0, "representation/effective_rank/b": 2.0})
    (heatmap,) = draw_heatmap(FEATURES, history).data
    assert [list(row) for row in heatmap.z] == [[1.0, 1.0], [None, 1.0]]

"""The heatmaps that loggers get while training goes on: drawn in milliseconds, and small enough to be sent often.

A figure in a dashboard is some hundred pixels wide and is sent again and again, so it shows less than the report does:
of a run's history the 32 rows that moved most at 64 steps, whatever the length of the run and the size of the model.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from typing import TypeVar

from plotly.graph_objects import Figure

from lightning_symmetry.history import History
from lightning_symmetry.report.charts import (
    broken_fraction_heatmap,
    effective_rank_heatmap,
    feature_rank_heatmap,
    linear_cka_heatmap,
)
from lightning_symmetry.report.events import notable
from lightning_symmetry.report.marks import mark_events

T = TypeVar("T")

MOST_ROWS = 32
"""Most groups or layers of a heatmap."""

MOST_COLUMNS = 64
"""Most steps of a heatmap."""

MOST_EVENTS = 10
"""Most events marked on a heatmap, the latest."""

PAIRS = "representation/linear_cka/"
"""What the keys of pairs of layers begin with."""

_CHARTS: dict[str, tuple[str, Callable[[History], Figure]]] = {
    "symmetry/broken_fraction_heatmap": ("symmetry/broken_fraction/", broken_fraction_heatmap),
    "spectrum/effective_rank_heatmap": ("spectrum/effective_rank/", effective_rank_heatmap),
    "representation/effective_rank_heatmap": ("representation/effective_rank/", feature_rank_heatmap),
    "representation/linear_cka_heatmap": (PAIRS, linear_cka_heatmap),
}

HEATMAPS = tuple(_CHARTS)
"""The keys of all heatmaps."""


def heatmaps(history: History) -> list[str]:
    """Return the keys of those heatmaps for which a history holds anything.

    Example:
        >>> history = History(None)
        >>> history.append(0, {"spectrum/effective_rank/fc1": 3.0})
        >>> heatmaps(history)
        ['spectrum/effective_rank_heatmap']
    """
    return [key for key, (prefix, _) in _CHARTS.items() if history.keys(prefix)]


def draw_heatmap(key: str, history: History) -> Figure:
    """Draw one heatmap.

    Args:
        key: One of `HEATMAPS`.
        history: The run.

    Returns:
        A figure of at most 32 rows (those that moved most) and 64 steps; of pairs of layers, 32 x 32.

    Raises:
        KeyError: `key` is none of `HEATMAPS`.
    """
    prefix, draw = _CHARTS[key]
    if prefix == PAIRS:
        return draw(_last_pairs(history))
    thinned = _thinned(history, prefix)
    return mark_events(draw(thinned), thinned)


def _thinned(history: History, prefix: str) -> History:
    """The latest events, and at most so many series at so many steps."""
    series = {key: history.series(key) for key in history.keys(prefix)}
    longest = max((steps for steps, _ in series.values()), key=len)
    columns = evenly(longest, MOST_COLUMNS)
    rows = {key: _at(columns, steps, values) for key, (steps, values) in series.items()}
    moved_most = set(sorted(rows, key=lambda key: _movement(rows[key]), reverse=True)[:MOST_ROWS])
    thinned = History(None)
    for number, step in enumerate(columns):
        thinned.append(step, {key: row[number] for key, row in rows.items() if key in moved_most})
    for event in notable(history)[-MOST_EVENTS:]:
        thinned.append_event(event.step, event.kind, **event.details)
    return thinned


def _at(columns: Sequence[int], steps: Sequence[int], values: Sequence[float]) -> list[float]:
    """What a series was last at or before each of the columns; NaN before its first step."""
    found = [bisect_right(steps, column) for column in columns]
    return [values[after - 1] if after else math.nan for after in found]


def _movement(row: Sequence[float]) -> float:
    """The range of a row; infinite where it holds a NaN, which is what a reader must see first."""
    return max(row) - min(row) if all(map(math.isfinite, row)) else math.inf


def _last_pairs(history: History) -> History:
    """What was last measured of each pair of at most so many layers, evenly chosen."""
    pairs = {tuple(key.removeprefix(PAIRS).split("/")): key for key in history.keys(PAIRS)}
    kept = set(evenly(list(dict.fromkeys(name for pair in pairs for name in pair)), MOST_ROWS))
    last = History(None)
    last.append(0, {key: history.series(key)[1][-1] for pair, key in pairs.items() if kept.issuperset(pair)})
    return last


def evenly(items: Sequence[T], at_most: int) -> list[T]:
    """Return at most so many of the items, evenly spaced, the first and the last among them.

    Example:
        >>> evenly([0, 1, 2, 3, 4, 5, 6], 3)
        [0, 3, 6]
    """
    if len(items) <= at_most:
        return list(items)
    return [items[round(i * (len(items) - 1) / (at_most - 1))] for i in range(at_most)]

"""The comparison of several runs: what differs in how they were set up, how they went, and where they ended."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from lightning_symmetry.history import History
from lightning_symmetry.report.drawing import COLOURS, chart, line, stacked
from lightning_symmetry.report.events import notable
from lightning_symmetry.report.html import HEADLINES, MOST_IN_FULL, told
from lightning_symmetry.report.marks import mark_events
from lightning_symmetry.report.page import identity, in_digits, is_thinned, last_event, panels, write_page

MOST_EVENTS = 100
"""Most events listed of each run, the latest."""

MOST_ROWS = 1000
"""Most rows of the table of last values, those that differ most."""

DASHES = ("solid", "dash", "dot")
"""Of lines, once all colours are taken."""

AGGREGATES: Mapping[str, Sequence[tuple[str, str, tuple[float, float] | None]]] = {
    "dynamics": (("loss", "loss", None), ("symmetry/broken_fraction", "broken fraction", (-0.04, 1.04))),
    "complexity": (
        ("complexity/effective_parameters", "effective parameters", None),
        ("complexity/effective_rank_fraction", "rank of weights", (-0.04, 1.04)),
    ),
    "formation": (("representation/effective_rank_fraction", "rank of features", (-0.04, 1.04)),),
}
"""Of each hierarchy, what is told of the model as a whole: key, label and range."""

PARTS = (
    ("symmetry/broken_fraction/", "broken fraction"),
    ("spectrum/effective_rank/", "rank of weights"),
    ("representation/effective_rank/", "rank of features"),
)
"""What is compared of every group and layer: how its keys begin, and its name."""

ABSENT = "-"
"""What stands for a value that a run does not have."""


def render_comparison(histories: Mapping[str, History], path: Path) -> Path:
    """Write a page that compares runs: one self-contained HTML file, as `render_report` writes for one.

    Args:
        histories: Two runs or more, by the names under which to show them.
        path: The HTML file; its folder is created.

    Returns:
        `path`.

    Raises:
        ValueError: If there are fewer than two runs.
        OSError: If the file cannot be written.

    Example:
        >>> import tempfile
        >>> before, after = History(None), History(None)
        >>> before.append(0, {"loss": 2.3})
        >>> after.append(0, {"loss": 2.1})
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     render_comparison({"before": before, "after": after}, Path(folder) / "comparison.html").name
        'comparison.html'
    """
    if len(histories) < 2:
        raise ValueError(
            f"histories={list(histories)!r}: a comparison needs two runs or more; render_report makes a page of one"
        )
    drawn = panels({name: comparison_chart(histories, name) for name in AGGREGATES})
    identities = {name: identity(history) for name, history in histories.items()}
    parts, parts_left_out = _parts(histories)
    return write_page(
        "comparison.html",
        path,
        names=list(histories),
        colours=dict(zip(histories, _colours(len(histories)), strict=True)),
        identities=identities,
        headlines=_headlines(histories),
        panels=drawn,
        settings=_settings(histories),
        parts=parts,
        parts_left_out=parts_left_out,
        kinds=[name for _, name in PARTS if any(row["kind"] == name for row in parts)],
        events=[
            {"run": name, **told(event, drawn)}
            for name, history in histories.items()
            for event in notable(history)[-MOST_EVENTS:]
        ],
        events_left_out=sum(max(0, len(notable(history)) - MOST_EVENTS) for history in histories.values()),
        most_in_full=MOST_IN_FULL,
        thinned=any(map(is_thinned, histories.values())),
        versions={},
        absent=ABSENT,
    )


def comparison_chart(histories: Mapping[str, History], hierarchy: str) -> go.Figure:
    """Draw the aggregates of one hierarchy, a line for each run, with the events of each in its colour.

    Args:
        histories: The runs, by name.
        hierarchy: `"dynamics"`, `"complexity"` or `"formation"`.

    Returns:
        The figure, without traces where no run has measured any of it.
    """
    colours = _colours(len(histories))
    figures = []
    for key, label, y_range in AGGREGATES[hierarchy]:
        traces = [
            line(name, history.series(key), color=colours[i], width=2, dash=DASHES[i // len(COLOURS) % len(DASHES)])
            for i, (name, history) in enumerate(histories.items())
            if key in history
        ]
        figures.append(chart(traces, label, y_range=y_range, height=260, rangemode="tozero"))
    figure = stacked(figures)
    for colour, (name, history) in zip(colours, histories.items(), strict=True):
        mark_events(figure, history, colour, whose=name)
    return figure


def _colours(count: int) -> list[str]:
    return [COLOURS[i % len(COLOURS)] for i in range(count)]


def _headlines(histories: Mapping[str, History]) -> list[dict[str, Any]]:
    """The last value of each headline in each run."""
    rows = []
    for key, number, label, meaning in HEADLINES:
        last = [history.series(key)[1][-1] if key in history else None for history in histories.values()]
        if any(value is not None for value in last):
            shown = [ABSENT if value is None else in_digits(value, number) for value in last]
            rows.append({"label": label, "meaning": meaning, "values": shown})
    return rows


def _parts(histories: Mapping[str, History]) -> tuple[list[dict[str, Any]], int]:
    """The last value of every group and layer in each run, those that differ most first; and how many are left out."""
    rows = []
    for prefix, kind in PARTS:
        for key in dict.fromkeys(key for history in histories.values() for key in history.keys(prefix)):
            last = [history.series(key)[1][-1] if key in history else None for history in histories.values()]
            rows.append({"kind": kind, "name": key.removeprefix(prefix), **_compared(last)})
    rows.sort(key=lambda row: -row["share"])
    return rows[:MOST_ROWS], max(0, len(rows) - MOST_ROWS)


def _compared(last: Sequence[float | None]) -> dict[str, Any]:
    """Values as text, and their difference: of two runs the second less the first, of more the largest difference.

    `share` is the difference relative to the largest value: by it groups and layers of all sizes compare.
    """
    finite = [value for value in last if value is not None and math.isfinite(value)]
    spread = max(finite) - min(finite) if len(finite) > 1 else 0.0
    both = len(last) == 2 and len(finite) == 2
    difference = finite[1] - finite[0] if both else spread
    return {
        "values": [ABSENT if value is None else in_digits(value, "{:.4g}") for value in last],
        "difference": f"{difference:{'+' if both else ''}.3g}" if len(finite) > 1 else ABSENT,
        "share": spread / (max(map(abs, finite), default=0.0) or 1.0),
    }


def _settings(histories: Mapping[str, History]) -> list[dict[str, Any]]:
    """What differs in how the runs were set up: the model, the versions, and the monitors' arguments."""
    settings = []
    for history in histories.values():
        run = last_event(history, "run")
        details = {key: value for key, value in run.details.items() if key not in ("name", "started")} if run else {}
        settings.append(dict(_flattened(details)))
    names = dict.fromkeys(name for setting in settings for name in setting)
    rows = [{"name": name, "values": [setting.get(name, ABSENT) for setting in settings]} for name in names]
    return [row for row in rows if len(set(row["values"])) > 1]


def _flattened(details: Mapping[str, Any], parents: str = "") -> Iterator[tuple[str, str]]:
    for name, value in details.items():
        if isinstance(value, Mapping):
            yield from _flattened(value, f"{parents}{name}.")
        else:
            yield f"{parents}{name}", str(value)

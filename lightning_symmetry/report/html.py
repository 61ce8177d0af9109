"""The report of one run: what happened, the three hierarchies, and the symmetries found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_symmetry.history import Event, History
from lightning_symmetry.keys import key_names
from lightning_symmetry.report import charts
from lightning_symmetry.report.drawing import MOST_ROWS
from lightning_symmetry.report.events import GOOD, MEANINGS, describe, in_words, notable
from lightning_symmetry.report.marks import mark_events
from lightning_symmetry.report.page import clock, identity, in_digits, is_thinned, last_event, panels, write_page

MOST_EVENTS = 100
"""Most events listed, the latest."""

MOST_IN_FULL = 12
"""Most events listed without a box that scrolls."""

HEADLINES = (
    ("loss", "{:.4g}", "training loss", "of one batch"),
    ("symmetry/broken_fraction", "{:.2f}", "broken fraction", "mean over groups: 0 symmetric, 1 broken"),
    ("complexity/effective_parameters", "SI", "effective parameters", "without repeated and dead units"),
    ("complexity/effective_rank_fraction", "{:.2f}", "rank of weights", "effective / full rank, mean of layers"),
    ("representation/effective_rank_fraction", "{:.2f}", "rank of features", "effective / full rank, mean of layers"),
    ("monitor/overhead", "{:.2%}", "monitoring cost", "share of training time"),
)
"""What is told of a run first: its key, how its number is written, its name, and what it means."""

NEAREST = {
    "symmetry": ("dynamics",),
    "spectrum": ("ranks", "complexity"),
    "representation": ("features", "formation"),
}
"""The charts in which an event of an indicator is seen, the best first."""


@dataclass(frozen=True)
class Headline:
    """One number of the first screen, as text: `first` is empty where only the last value tells something."""

    label: str
    first: str
    last: str
    meaning: str


def render_report(history: History, path: Path) -> Path:
    """Write the report of a run.

    The file is replaced atomically: who has it open, or reads it while training goes on, never sees half of it.

    Args:
        history: The run.
        path: The HTML file; its folder is created.

    Returns:
        `path`.

    Raises:
        OSError: If the file cannot be written.

    Example:
        >>> import tempfile
        >>> history = History(None)
        >>> history.append(0, {"loss": 2.3})
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     render_report(history, Path(folder) / "report.html").name
        'report.html'
    """
    drawn = panels({name: mark_events(figure, history) for name, figure in _figures(history).items()})
    return write_page(
        "report.html",
        path,
        **identity(history),
        headlines=_headlines(history),
        panels=drawn,
        groups=len(history.keys("symmetry/broken_fraction/")),
        layers=len(history.keys("spectrum/effective_rank/")),
        most_rows=MOST_ROWS,
        thinned=is_thinned(history),
        symmetries=_symmetries(history),
        events=_listed(notable(history)[-MOST_EVENTS:], drawn),
        most_in_full=MOST_IN_FULL,
        events_left_out=max(0, len(notable(history)) - MOST_EVENTS),
    )


def _figures(history: History) -> dict[str, Any]:
    return {
        "dynamics": charts.learning_dynamics_chart(history),
        "groups": charts.broken_fraction_heatmap(history),
        "complexity": charts.complexity_chart(history),
        "layers": charts.effective_rank_heatmap(history),
        "ranks": charts.effective_rank_chart(history),
        "formation": charts.formation_chart(history),
        "features": charts.feature_rank_heatmap(history),
        "similarity": charts.linear_cka_heatmap(history),
        "collapse": charts.neural_collapse_chart(history),
    }


def _headlines(history: History) -> list[Headline]:
    headlines = []
    for key, number, label, meaning in HEADLINES:
        if key in history:
            values = history.series(key)[1]
            first = "" if len(values) == 1 or key == "monitor/overhead" else in_digits(values[0], number)
            told_of = f"{meaning}{_grid(history)}" if key == "monitor/overhead" else meaning
            headlines.append(Headline(label, first, in_digits(values[-1], number), told_of))
    return headlines


def _grid(history: History) -> str:
    """Say where monitors measure at fixed steps, whatever it costs: the budget does not hold then."""
    run = last_event(history, "run")
    config = run.details.get("config") if run else None
    monitors = [each for each in config.values() if isinstance(each, Mapping)] if isinstance(config, Mapping) else []
    grids = sorted({grid for each in monitors if isinstance(grid := each.get("every_n_train_steps"), int)})
    return f", on a fixed grid of {' and '.join(map(str, grids))} steps instead of a budget" if grids else ""


def _symmetries(history: History) -> dict[str, Any] | None:
    """Return what was found, or None where nobody has looked."""
    found = last_event(history, "symmetries")
    if found is None:
        return None
    details = found.details.get("groups", [])
    without = last_event(history, "unmeasured")
    unmeasured = without.details.get("groups", []) if without is not None else []
    keys = key_names(group["name"] for group in details if group["name"] not in unmeasured)
    groups = [_group(history, group, keys.get(group["name"])) for group in details]
    return {
        "groups": groups,
        "share": found.details.get("share"),
        "kinds": list(dict.fromkeys(group["kind"] for group in groups)),
    }


def _group(history: History, group: Mapping[str, Any], name: str | None) -> dict[str, Any]:
    """What the table tells of a group, whose values are logged under a name, if they are."""
    key = f"symmetry/broken_fraction/{name}"
    values = history.series(key)[1] if key in history else []
    return {
        "kind": group["kind"],
        "name": group["name"],
        "size": group["size"],
        "moves": [*group.get("parameters", []), *group.get("buffers", [])],
        "preserves": group.get("preserves", "output"),
        "exact": group.get("exact", True),
        "verified": group.get("verified"),
        "broken": [in_digits(value, "{:.2f}") for value in (values[0], values[-1])] if values else [],
    }


def _listed(events: Sequence[Event], drawn: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Events in words; what a kind usually means is told at the first of that kind."""
    rows = [told(event, drawn) for event in events]
    explained: set[str] = set()
    for row in rows:
        if row["kind"] in explained:
            row["meaning"] = ""
        explained.add(row["kind"])
    return rows


def told(event: Event, drawn: Mapping[str, Any]) -> dict[str, Any]:
    """Return an event in words, with the chart in which to see it: that of its indicator, or else the first."""
    section = str(event.details.get("indicator", "")).partition("/")[0]
    nearest = NEAREST.get(section, ("dynamics",))
    return {
        "step": event.step,
        "time": clock(event.time),
        "kind": in_words(event.kind),
        "told": describe(event),
        "meaning": MEANINGS.get(event.kind, ""),
        "bad": event.kind not in GOOD,
        "place": next((name for name in (*nearest, *drawn) if name in drawn), ""),
    }

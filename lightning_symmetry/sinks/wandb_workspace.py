"""The W&B workspace of a project: the three hierarchies as sections, from the keys that the monitors log.

A pure function of the project: panels find their keys by regular expressions, so that one workspace serves all models
of a project, and the same arguments give the same specification. `wandb_views` saves it.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import wandb_workspaces.workspaces as ws
from wandb_workspaces.reports.v2.interface import BarPlot, LinePlot, MediaBrowser, RunComparer

from lightning_symmetry.sinks.wandb_run import REPORT, STEP_METRIC

NAME = "Symmetry"
"""The name of the workspace where none is given."""

MOST_BARS = 12
"""Most groups shown as bars."""

_BROKEN = "symmetry/broken_fraction"


def workspace(entity: str, project: str, name: str = NAME, groups: Sequence[str] = ()) -> ws.Workspace:
    """Specify the workspace of a project.

    Args:
        entity: The user or team that owns the project.
        project: The project.
        name: The name of the workspace.
        groups: The groups to show as bars, as they are named in keys: those of `least_broken`.

    Returns:
        The workspace, not yet saved.

    Example:
        >>> [section.name for section in workspace("me", "vision").sections]
        ['Learning dynamics', 'Complexity', 'Representation', 'Monitor', 'Comparison of runs']
    """
    sections = [
        _section("Learning dynamics", _learning_dynamics(groups)),
        _section("Complexity", _complexity()),
        _section("Representation", _representation()),
        _section(
            "Monitor",
            [_line("Share of time spent on measuring", "monitor/overhead"), _line("Failures", "monitor/errors")],
            is_open=False,
        ),
        _section("Comparison of runs", [RunComparer(diff_only="split")], is_open=False),
    ]
    settings = ws.WorkspaceSettings(x_axis=STEP_METRIC, group_by_prefix="first")
    return ws.Workspace(entity=entity, project=project, name=name, sections=sections, settings=settings)


def specification(specified: ws.Workspace) -> dict[str, Any]:
    """Return what W&B is sent of a workspace, as plain JSON values."""
    view = specified._to_model()
    spec = json.loads(view.spec.model_dump_json(by_alias=True, exclude_none=True))
    return {"entity": view.entity, "project": view.project, "name": view.display_name, "spec": spec}


def least_broken(summaries: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return the groups that are least broken at the end of runs: at most `MOST_BARS`, the least broken first.

    Args:
        summaries: The summaries of runs, as W&B returns them: key to ``{"min": ..., "max": ..., "last": ...}``.

    Example:
        >>> least_broken([{f"symmetry/broken_fraction/fc{i}": {"last": 1 / i} for i in (1, 2, 3)}])
        ['fc3', 'fc2', 'fc1']
    """
    last: dict[str, float] = {}
    for summary in summaries:
        for key, value in summary.items():
            group = key.removeprefix(f"{_BROKEN}/")
            number = value.get("last") if isinstance(value, Mapping) else value
            if group != key and isinstance(number, int | float) and math.isfinite(number):
                last[group] = min(last.get(group, math.inf), number)
    return sorted(last, key=lambda group: (last[group], group))[:MOST_BARS]


def _learning_dynamics(groups: Sequence[str]) -> list[Any]:
    bars = [_bars("Broken fraction at the end, mean over groups", [_BROKEN])]
    if groups:
        bars.append(_bars("The least broken groups", [f"{_BROKEN}/{group}" for group in groups]))
    return [
        _line("Loss", regex=".*loss.*"),
        _line("Broken fraction, mean over groups (0 symmetric, 1 broken)", _BROKEN, y=(0, 1)),
        _media("Broken fraction, groups x steps", "symmetry/broken_fraction_heatmap"),
        _line("Broken fraction of each group", regex=f"{_BROKEN}/.*", y=(0, 1)),
        *bars,
        _line("Transitions seen", regex="transition/.*"),
        _line("Distance of the two nearest units (falls before units merge)", regex="symmetry/nearest_distance_min/.*"),
        _line("Distinct units", regex="symmetry/distinct_(alive_)?units/.*"),
        _line("Alive units", regex="symmetry/alive_units/.*"),
        _line("Rank of products of maps", regex="symmetry/product_(effective_)?rank/.*"),
        _line("Largest attention logit that heads can give", regex="symmetry/attention_logit_bound/.*"),
        _line("Imbalance between the sides of units", regex="symmetry/imbalance/.*", y=(0, 1)),
        _line("Imbalance of the gradient's noise", regex="symmetry/noise_imbalance/.*", y=(0, 1)),
        _line("Share of the optimizer's step along the orbits", regex="symmetry/orbit_fraction", y=(0, 1)),
        _media("Report", REPORT),
    ]


def _complexity() -> list[Any]:
    return [
        _line("Effective parameters", "complexity/effective_parameters"),
        _line("Effective rank / full rank, mean over layers", "complexity/effective_rank_fraction", y=(0, 1)),
        _media("Effective rank, layers x steps", "spectrum/effective_rank_heatmap"),
        _line("Effective rank of each layer", regex="spectrum/effective_rank/.*"),
        _line("Stable rank of each layer", regex="spectrum/stable_rank/.*"),
        _line("Spectral norm of each layer", regex="spectrum/spectral_norm/.*"),
        _line("Effective rank of gradients", regex="spectrum/gradient_effective_rank/.*"),
        _line("Stable rank of gradients", regex="spectrum/gradient_stable_rank/.*"),
        _line("Spectral norm of gradients", regex="spectrum/gradient_spectral_norm/.*"),
        _line("Size of updates relative to weights", regex="spectrum/update_ratio/.*"),
        _line("Stable rank of updates", regex="spectrum/update_stable_rank/.*"),
    ]


def _representation() -> list[Any]:
    return [
        _media("Effective rank of features, layers x steps", "representation/effective_rank_heatmap"),
        _media("Similarity of layers (linear CKA)", "representation/linear_cka_heatmap"),
        _line("Effective rank of features", regex="representation/effective_rank/.*"),
        _line("Share of dormant units", regex="representation/dormant_fraction/.*", y=(0, 1)),
        _line("Neural collapse", regex="representation/nc[1-4].*"),
        _line("Alignment of features, weights and gradients", regex="representation/.*alignment/.*"),
        _line("Decay of the spectrum of features (alpha-ReQ)", regex="representation/alpha_req/.*"),
        _line("Distance of tokens from their mean", regex="representation/token_rank_residual/.*"),
    ]


def _section(name: str, panels: Sequence[Any], is_open: bool = True) -> ws.Section:
    for panel in panels:  # the library draws names at random
        panel._id = hashlib.sha256(f"{name}/{getattr(panel, 'title', None)}".encode()).hexdigest()[:12]
    axis = ws.SectionPanelSettings(x_axis=STEP_METRIC)
    return ws.Section(name=name, panels=list(panels), is_open=is_open, panel_settings=axis)


def _line(
    title: str, key: str | None = None, *, regex: str | None = None, y: tuple[float | None, float | None] = (None, None)
) -> LinePlot:
    pattern = None if regex is None else f"^{regex}$"
    return LinePlot(
        title=title, x=STEP_METRIC, y=[] if key is None else [key], metric_regex=pattern, range_y=y, max_runs_to_show=10
    )


def _bars(title: str, keys: Sequence[str]) -> BarPlot:
    """Bars of the last values, which is a part of the summaries that the monitors define."""
    return BarPlot(title=title, metrics=[f"{key}.last" for key in keys], range_x=(0, 1), max_bars_to_show=100)


def _media(title: str, key: str) -> MediaBrowser:
    return MediaBrowser(title=title, media_keys=[key], num_columns=1)

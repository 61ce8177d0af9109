"""What only a W&B run can do. `wandb` is imported when it is needed, and only here and beside.

Nothing here waits for the network: rows, media files, alerts and definitions are handed to W&B's own process, which
sends them when it can. A table, a `wandb.plot` or an artifact would ask the server first.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from plotly.graph_objects import Figure

STEP_METRIC = "trainer/global_step"
"""The x axis that Lightning's WandbLogger logs with every row."""

REPORT = "symmetry/report"
"""The key of the report, a panel in the section of the symmetries."""

_DEFINED: WeakKeyDictionary[Any, set[str]] = WeakKeyDictionary()


def define_metrics(run: Any, keys: Iterable[str]) -> None:
    """Define each key that was not defined before: exactly, since of several globs that match W&B takes any."""
    defined = _DEFINED.setdefault(run, set())
    for key in keys:
        if key not in defined:
            run.define_metric(key, step_metric=STEP_METRIC, summary="min,max,last")
            defined.add(key)


def set_config(run: Any, config: Mapping[str, Any]) -> None:
    """Write how the monitors are configured into the run's config."""
    run.config.update({"lightning_symmetry": dict(config)}, allow_val_change=True)


def figure(drawn: Figure) -> Any:
    """A Plotly figure as a media file."""
    import wandb

    return wandb.Plotly(drawn)


def page(path: Path) -> Any:
    """A page that needs nothing beside it as a media file, as it is."""
    import wandb

    return wandb.Html(str(path), inject=False)

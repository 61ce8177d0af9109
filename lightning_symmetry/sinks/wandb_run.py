"""What only a W&B run can do. `wandb` is imported when it is needed, and only here and beside."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any
from weakref import WeakKeyDictionary

from plotly.graph_objects import Figure

STEP_METRIC = "trainer/global_step"
"""The x axis that Lightning's WandbLogger logs with every row."""

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


def as_media(figures: Mapping[str, Figure]) -> dict[str, Any]:
    """Plotly figures as media files: they upload in the background, where a table would block training."""
    import wandb

    return {key: wandb.Plotly(figure) for key, figure in figures.items()}

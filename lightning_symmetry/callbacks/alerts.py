"""The kinds of events of which alerts can be sent."""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal

from lightning_symmetry.measurement.transitions import TRANSITION_KINDS, TransitionKind

AlertKind = TransitionKind | Literal["nonfinite", "error"]
ALERT_KINDS = (*TRANSITION_KINDS, "nonfinite", "error")
ALERT_ON: Collection[AlertKind] = ("nonfinite", "rank_collapse", "representation_collapse", "death_of_units")


def chosen_alerts(alert_on: Collection[str]) -> tuple[str, ...]:
    """The kinds that are asked for, in the order of `ALERT_KINDS`.

    Raises:
        ValueError: One is no kind of event.
    """
    kinds = [alert_on] if isinstance(alert_on, str) else list(alert_on)
    for kind in kinds:
        if kind not in ALERT_KINDS:
            raise ValueError(f"alert_on={alert_on!r}: {kind!r} is no kind of event; known are {', '.join(ALERT_KINDS)}")
    return tuple(kind for kind in ALERT_KINDS if kind in kinds)

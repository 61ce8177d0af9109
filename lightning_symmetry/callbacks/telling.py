"""Whom transitions are told of: the history and the loggers, and who asked to be called."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from itertools import groupby
from typing import Any

from lightning_symmetry.measurement.transitions import Transition
from lightning_symmetry.sinks.recorder import Recorder
from lightning_symmetry.sinks.warning import warn


def tell(
    step: int,
    found: Sequence[Transition],
    recorder: Recorder,
    alert_on: Collection[str],
    call: Callable[[Transition], Any] | None,
    raise_errors: bool,
) -> None:
    """Tell of transitions, all of a kind at once.

    Args:
        step: The step at which they were found.
        found: The transitions.
        recorder: Where they are recorded.
        alert_on: The kinds of which alerts are sent.
        call: Called with each; None for nobody. What it raises is warned of.
        raise_errors: Raise that instead.
    """
    for kind, alike in groupby(sorted(found, key=lambda transition: transition.kind), lambda one: one.kind):
        recorder.events(step, kind, [one.details() for one in alike], alert=kind in alert_on)
    for transition in found if call is not None else ():
        try:
            call(transition)  # type: ignore[misc]
        except Exception as error:
            if raise_errors:
                raise
            warn(f"on_transition failed at step {step}; training goes on. {type(error).__name__}: {error}")

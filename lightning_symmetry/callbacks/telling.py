"""Whom transitions and failures are told of: the history and the loggers, and who asked to be called or warned."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from itertools import groupby
from typing import Any

from lightning_symmetry.callbacks.origin import line_of
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


def tell_of_failure(
    step: int, error: Exception, name: str, recorder: Recorder, alert: bool, warned: bool, goes_on: bool
) -> None:
    """Tell of a failure of a monitor.

    Args:
        step: The step at which it failed.
        error: Why.
        name: The name of the monitor.
        recorder: Where failures are counted and recorded.
        alert: Whether an alert is sent.
        warned: Whether this process warns of it.
        goes_on: Whether the monitor goes on.
    """
    message = f"{type(error).__name__}: {error}{line_of(error)}"
    recorder.errors += 1
    recorder.events(step, "error", [{"where": name, "message": message}], alert)
    if warned:
        fate = "goes on" if goes_on else "stands down"
        warn(f"{name} failed at step {step} and {fate}; training is not affected. {message}")

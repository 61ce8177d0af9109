"""Events in words: what happened, where, since when, and what it usually means."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning_symmetry.history import Event, History

MEANINGS: Mapping[str, str] = {
    "breaking": "Units that were alike, or dead, have become distinct: the model gained parameters that matter, "
    "which often comes with a drop of the loss.",
    "restoration": "Units have become equal and act as one: weight decay or gradient noise is making the model "
    "smaller than it looks.",
    "rank_jump": "A layer has begun to use another direction: the model is learning a new feature.",
    "rank_collapse": "A layer has lost directions: often too much weight decay, too large a learning rate, or a loss "
    "that a simpler model solves as well.",
    "representation_collapse": "The features of a layer have lost dimensions: good at the end of a classification, "
    "else often a collapse of self-supervised training, or features that the next task will miss.",
    "death_of_units": "Units no longer contribute, and seldom come back: often too large a learning rate, too much "
    "weight decay, or inputs that have shifted.",
    "nonfinite": "Training has diverged or overflowed: look at the learning rate, the precision and the last batches.",
    "error": "A monitor could not measure; training is not affected.",
}
"""What an event of each kind usually means."""

GOOD = ("breaking", "restoration", "rank_jump")
"""Kinds of events that are a part of learning, and no trouble by themselves."""


COUNTS = ("distinct_units", "alive_units", "product_rank")
"""Indicators that are whole numbers; the level before a transition is a mean of several."""


def is_transition(event: Event) -> bool:
    """Whether an event tells of an indicator that changed."""
    return {"group", "indicator", "since", "before", "after"} <= event.details.keys()


def in_words(kind: str) -> str:
    """A kind without underscores.

    Example:
        >>> in_words("rank_collapse")
        'rank collapse'
    """
    return kind.replace("_", " ")


def describe(event: Event) -> str:
    """What happened, where, and since when.

    Example:
        >>> details = {"group": "fc1", "indicator": "spectrum/effective_rank", "since": 40, "before": 8.0, "after": 2.0}
        >>> describe(Event(step=60, time=0.0, kind="rank_collapse", details={**details, "confidence": 0.998}))
        'effective rank of fc1 fell from 8 to 2 between steps 40 and 60 (confidence 0.998)'
        >>> describe(Event(step=60, time=0.0, kind="nonfinite", details={"parameter": "fc1.weight"}))
        'parameter: fc1.weight'
    """
    told: Mapping[str, Any] = event.details
    if event.kind == "nonfinite" and "parameters" in told:
        others = f" and {len(told['parameters']) - 3} more" if len(told["parameters"]) > 3 else ""
        return f"NaN or infinity in {', '.join(told['parameters'][:3])}{others}"
    if not is_transition(event):
        return ", ".join(f"{name}: {value}" for name, value in told.items())
    verb = "rose" if told["after"] > told["before"] else "fell"
    name = told["indicator"].rpartition("/")[2]
    indicator, number = in_words(name), ".0f" if name in COUNTS else ".4g"
    confidence = f" (confidence {told['confidence']:.3g})" if told.get("confidence") is not None else ""
    return (
        f"{indicator} of {told['group']} {verb} from {told['before']:{number}} to {told['after']:{number}} "
        f"between steps {told['since']} and {event.step}{confidence}"
    )


def notable(history: History) -> list[Event]:
    """The events that something happened in, in the order in which they did: no notes of how the run is set up."""
    return [event for event in history.events if event.kind not in ("run", "symmetries", "unheard", "thinned")]

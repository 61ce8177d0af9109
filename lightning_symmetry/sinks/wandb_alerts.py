"""Alerts of a W&B run: one for what happened at once, and none for what was told a while ago."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from lightning_symmetry.history import Event
from lightning_symmetry.report.events import MEANINGS, describe, in_words

WAIT = 3600.0
"""For how many seconds an alert of the same kind and group is not sent again."""

MOST_NAMED = 10
"""Most events that one alert names."""

LONGEST_TITLE = 63
"""Most characters of the title of an alert, which W&B wants to be fewer than 64."""

_LEVELS = {"nonfinite": "ERROR", "error": "WARN", "breaking": "INFO", "rank_jump": "INFO", "restoration": "INFO"}


class Alerts:
    """Sends alerts of a run, each kind and group once in a while: W&B itself waits by title alone.

    Args:
        wait: For how many seconds an alert of the same kind and group is not sent again.
        clock: Seconds that only grow.
    """

    def __init__(self, wait: float = WAIT, clock: Callable[[], float] = time.monotonic) -> None:
        self._wait = wait
        self._clock = clock
        self._sent: dict[tuple[str, str], float] = {}

    def send(self, run: Any, events: Sequence[Event]) -> None:
        """Send one alert for those events, all of one kind and step, of which none was sent a while ago.

        Args:
            run: The W&B run.
            events: What happened.
        """
        now = self._clock()
        new = [event for event in events if now - self._sent.get(_place(event), -float("inf")) >= self._wait]
        if not new:
            return
        kind = new[0].kind
        run.alert(title=_title(new), text=_text(new), level=_LEVELS.get(kind, "WARN"))
        self._sent.update({_place(event): now for event in new})


def _place(event: Event) -> tuple[str, str]:
    where = event.details.get("group") or event.details.get("parameter") or event.details.get("where") or ""
    return event.kind, str(where)


def _title(events: Sequence[Event]) -> str:
    others = f" and {len(events) - 1} more" if len(events) > 1 else ""
    kind, where = _place(events[0])
    begin = f"{in_words(kind).capitalize()}: "
    room = LONGEST_TITLE - len(begin) - len(others)
    if len(where) > room:  # the end of a name tells more than its beginning
        where = f"…{where[1 - room :]}"
    return f"{begin}{where}{others}"


def _text(events: Sequence[Event]) -> str:
    told = [f"Step {event.step}: {describe(event)}." for event in events[:MOST_NAMED]]
    if len(events) > MOST_NAMED:
        told.append(f"And {len(events) - MOST_NAMED} more.")
    return "\n".join([*told, MEANINGS.get(events[0].kind, "")]).strip()

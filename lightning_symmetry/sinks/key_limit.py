"""How many keys loggers get: a dashboard of thousands of charts freezes, so a large model is shown in part.

Of each section of keys at most `MOST_KEYS` go to loggers, all those of a group or layer or none: of groups the least
broken, of layers those of the lowest effective rank, as they were first measured; of equals, as all groups are when a
training begins at random, some from everywhere in the model. The choice stays for the run, so that no chart has holes.
Aggregates always go; history, report and heatmaps know of no limit.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping

from lightning_symmetry.history import History
from lightning_symmetry.sinks.warning import warn

MOST_KEYS = {"symmetry": 450, "spectrum": 350, "representation": 150}
"""Most keys of each section; with the aggregates fewer than a thousand. GPT-2 small begins with 405, 258 and 73."""

GOLDEN_RATIO = (math.sqrt(5) - 1) / 2
"""The fractions of its multiples are spread evenly, however many are taken, and keep step with no period of layers."""

_RANKED_BY = {
    "symmetry": ("broken_fraction", "the least broken groups"),
    "spectrum": ("effective_rank", "the layers of the lowest effective rank"),
    "representation": ("effective_rank", "the layers of the lowest effective rank"),
}


class KeyLimit:
    """Chooses what loggers get of a run.

    Args:
        history: The run; what it holds first decides, so that a resumed run goes on with the same keys.
        most: Most keys of each section.

    Example:
        >>> history = History(None)
        >>> history.append(0, {"spectrum/effective_rank/fc1": 9.0, "spectrum/effective_rank/fc2": 2.0})
        >>> limit = KeyLimit(history, most={"spectrum": 1})
        >>> limit.choose({"spectrum/effective_rank/fc1": 8.0, "spectrum/effective_rank/fc2": 2.0})
        {'spectrum/effective_rank/fc2': 2.0}
    """

    def __init__(self, history: History, most: Mapping[str, int] = MOST_KEYS) -> None:
        self._history = history
        self._room = dict(most)
        self._goes: dict[str, bool] = {}
        self._left_out: dict[str, set[str]] = {section: set() for section in most}

    def choose(self, values: Mapping[str, float]) -> dict[str, float]:
        """Return those of the values of a measurement that loggers get."""
        new: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
        for key in values:
            section, _, rest = key.partition("/")
            part = rest.partition("/")[2]
            if part and section in self._room and key not in self._goes:
                new[section][part].append(key)
        for section, parts in new.items():
            self._admit(section, parts)
        return {key: value for key, value in values.items() if self._goes.get(key, True)}

    def _admit(self, section: str, parts: Mapping[str, list[str]]) -> None:
        """Decide on keys that are new, those of a group or layer together."""
        indicator, in_words = _RANKED_BY[section]
        ranks = {
            part: (self._first(f"{section}/{indicator}/{part}"), position * GOLDEN_RATIO % 1)
            for position, part in enumerate(parts)
        }
        left_out, told = self._left_out[section], bool(self._left_out[section])
        for part in sorted(parts, key=ranks.__getitem__):
            fits = len(parts[part]) <= self._room[section] and part not in left_out
            self._goes.update(dict.fromkeys(parts[part], fits))
            self._room[section] -= len(parts[part]) * fits
            if not fits:
                left_out.add(part)
        if left_out and not told:
            keys = [key for part in parts.values() for key in part]
            warn(
                f"loggers get {sum(map(self._goes.__getitem__, keys))} of {len(keys)} {section}/ keys, those of "
                f"{in_words} at first, since dashboards freeze at thousands of charts. The history and the report hold "
                "all of them; `include` and `exclude` choose others."
            )

    def _first(self, key: str) -> float:
        """What was first measured, in two decimals: what differs less is equal."""
        value = self._history.series(key)[1][0] if key in self._history else math.inf
        return round(value, 2) if math.isfinite(value) else math.inf

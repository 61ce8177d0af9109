"""Which indicators are watched for transitions, and what a rise and a fall of each is called.

A permutation symmetry breaks where units become distinct, and is restored where they merge; a unit that dies restores
its sign or rescaling; a product of maps, or a matrix, gains rank or loses it; a layer's features lose rank where the
representation collapses. Of the indicators of a group the one that counts is watched: it says how many units or
directions are concerned.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from lightning_symmetry.functional.transitions import Detector, Shift, observe

TransitionKind = Literal[
    "breaking", "restoration", "rank_jump", "rank_collapse", "representation_collapse", "death_of_units"
]
TRANSITION_KINDS: tuple[TransitionKind, ...] = get_args(TransitionKind)


@dataclass(frozen=True)
class Watch:
    """How one indicator is watched.

    Attributes:
        rise: What a rise is; None where it is nothing to tell.
        fall: What a fall is.
        least: The smallest change that matters.
        least_relative: The same, relative to the level; the larger of the two counts.
        of_largest: Relative to the largest value so far instead: of a group of 64 units a tenth is 6, even where few
            of them are distinct.
    """

    rise: TransitionKind | None
    fall: TransitionKind
    least: float
    least_relative: float
    of_largest: bool = False


WATCHED: Mapping[str, Watch] = {
    "symmetry/distinct_units": Watch("breaking", "restoration", 0.5, 0.08, of_largest=True),
    "symmetry/alive_units": Watch("breaking", "death_of_units", 0.5, 0.08, of_largest=True),
    "symmetry/product_rank": Watch("rank_jump", "rank_collapse", 0.5, 0.1),
    "spectrum/effective_rank": Watch("rank_jump", "rank_collapse", 0.25, 0.1),
    "representation/effective_rank": Watch(None, "representation_collapse", 0.25, 0.2),
}
"""The indicators that are watched, for every group and layer, by ``SECTION/INDICATOR``."""


LEAST_RATIO = 2.0
"""What is told before an indicator's noise is known: that it has doubled, or halved."""


@dataclass(frozen=True)
class Transition:
    """A transition of a symmetry group or a layer.

    Attributes:
        kind: One of `TRANSITION_KINDS`.
        group: The group or the layer, as its keys name it.
        indicator: What changed: ``SECTION/INDICATOR``.
        step: The step of the measurement at which it was certain.
        since: The step of the measurement at which it began.
        before: The indicator before.
        after: The indicator when it was certain; a slow transition may go on from there.
        confidence: In [0, 1]; see `lightning_symmetry.functional.transitions.Shift`.
    """

    kind: TransitionKind
    group: str
    indicator: str
    step: int
    since: int
    before: float
    after: float
    confidence: float

    @property
    def size(self) -> float:
        """How much the indicator changed."""
        return self.after - self.before

    def details(self) -> dict[str, Any]:
        """What is told of it in the history, beside its kind and step."""
        told = asdict(self)
        del told["kind"], told["step"]
        return {**told, "size": self.size}


class Transitions:
    """The detectors of all series that a monitor measures.

    Attributes:
        counts: How many transitions of each kind there were; 0 for a kind that is watched for.

    Example:
        >>> transitions = Transitions()
        >>> ranks = [4.0] * 20 + [2.0] * 5
        >>> found = [transitions.observe(i, {"spectrum/effective_rank/fc": rank}) for i, rank in enumerate(ranks)]
        >>> found[22]  # doctest: +NORMALIZE_WHITESPACE
        [Transition(kind='rank_collapse', group='fc', indicator='spectrum/effective_rank', step=22, since=20,
         before=4.0, after=2.0, confidence=1.0)]
        >>> transitions.counts
        {'rank_jump': 0, 'rank_collapse': 1}
    """

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self._detectors: dict[str, Detector] = {}
        self._largest: dict[str, float] = {}
        self._step = -1

    def observe(self, step: int, values: Mapping[str, float]) -> list[Transition]:
        """Take in one measurement.

        Args:
            step: Its step; one that was seen already, as by a run that resumes where it ended, is passed over.
            values: Its values by key; those that are not watched are passed over.

        Returns:
            The transitions of which it made certain.
        """
        if step <= self._step:
            return []
        self._step = step
        found = []
        for key, value in values.items():
            indicator, _, group = key.rpartition("/")
            watch = WATCHED.get(indicator)
            if watch is None:
                continue
            if key not in self._detectors:
                self._expect(watch)
            detector = self._detectors.get(key, Detector())
            least, relative = watch.least, watch.least_relative
            if watch.of_largest:
                self._largest[key] = largest = max(self._largest.get(key, 0.0), value if math.isfinite(value) else 0.0)
                least, relative = max(least, relative * largest), 0.0
            self._detectors[key], shift = observe(detector, step, value, least, relative, LEAST_RATIO)
            kind = None if shift is None else _kind(watch, shift)
            if shift is not None and kind is not None:
                self.counts[kind] += 1
                found.append(
                    Transition(kind, group, indicator, step, shift.since, shift.before, shift.after, shift.confidence)
                )
        return found

    def state(self) -> dict[str, Any]:
        """What `restore` needs to go on: plain values, that JSON can hold."""
        return {
            "step": self._step,
            "counts": dict(self.counts),
            "largest": dict(self._largest),
            "detectors": {key: asdict(detector) for key, detector in self._detectors.items()},
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` returned.

        Raises:
            KeyError: Something is missing.
            TypeError: Something is unknown, as from another version, or no number.
        """
        detectors = {key: Detector.from_dict(detector) for key, detector in state["detectors"].items()}
        step, counts = int(state["step"]), {kind: int(count) for kind, count in state["counts"].items()}
        largest = {key: float(value) for key, value in state["largest"].items()}
        self._step, self._detectors, self.counts, self._largest = step, detectors, counts, largest

    def _expect(self, watch: Watch) -> None:
        for kind in (watch.rise, watch.fall):
            if kind is not None:
                self.counts.setdefault(kind, 0)


def _kind(watch: Watch, shift: Shift) -> TransitionKind | None:
    return watch.rise if shift.size > 0 else watch.fall

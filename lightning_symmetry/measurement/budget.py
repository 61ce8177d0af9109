"""When to measure next: as often as a share of the time of training allows.

A measurement that took c seconds allows the next after c / (share x step time) steps. Intervals are taken from the
ladder 1, 2, 5, 10, 20, 50, ... and due steps from their multiples, so that runs share a grid.
"""

from __future__ import annotations

import math
import statistics
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

WARM_UP = 5
"""How many steps are timed before the first interval is planned."""


class Budget:
    """Decides at which steps to measure. It reads no clock but its own, and knows of ranks only what it is told.

    Args:
        share: The share of the time of training that measuring may take.
        every_n_steps: A fixed interval instead.

    Attributes:
        due: The next step at which to measure, or to plan.
        planned: Whether that step was planned from the cost of a measurement; until then `due` is the end of the
            warm-up.
    """

    def __init__(self, share: float, every_n_steps: int | None = None) -> None:
        self.share = share
        self.every_n_steps = every_n_steps
        self.due = 0
        self.planned = True
        self._spent = 0.0
        self._entered: float | None = None
        self._settled = 0.0
        self._began: tuple[float, float] | None = None
        self._cost = 0.0
        self._last_step: tuple[int, float] | None = None
        self._durations: deque[float] = deque(maxlen=50)

    def step_begins(self, step: int) -> None:
        """Note the time at which a step begins, less what was spent on measuring."""
        now = time.perf_counter() - self._spent
        if self._last_step is not None and step > self._last_step[0]:
            self._durations.append((now - self._last_step[1]) / (step - self._last_step[0]))
        if self._last_step is None or step > self._last_step[0]:
            self._last_step = (step, now)

    @contextmanager
    def measuring(self) -> Iterator[None]:
        """Count the time within as spent on measuring."""
        self._entered = time.perf_counter()
        try:
            yield
        finally:
            self._spent, self._entered = self.spent, None

    @property
    def spent(self) -> float:
        """The seconds spent on measuring."""
        return self._spent + (time.perf_counter() - self._entered if self._entered is not None else 0.0)

    @property
    def owed(self) -> float:
        """The seconds spent since they were last settled, to be counted in the cost of the next measurement."""
        return self.spent - self._settled

    def settle(self) -> None:
        """Owe nothing: what was spent until now is in the cost of a measurement, or is paid once."""
        self._settled = self.spent

    def start_counting(self) -> None:
        """Count from now on: the first measurement, with the search for symmetries, is paid once and not counted."""
        self.settle()
        self._began = (time.perf_counter(), self.spent)

    @property
    def counting(self) -> bool:
        """Whether the first measurement is over."""
        return self._began is not None

    @property
    def step_time(self) -> float:
        """The median seconds of a step of training, over the last fifty; 0 where none was timed."""
        return statistics.median(self._durations) if self._durations else 0.0

    @property
    def overhead(self) -> float:
        """The share of the time since the first measurement that was spent on measuring."""
        if self._began is None:
            return 0.0
        began, spent = self._began
        return (self.spent - spent) / max(time.perf_counter() - began, 1e-9)

    def plan(self, step: int, cost: float, step_time: float) -> None:
        """Set the next due step after a measurement at `step`.

        Args:
            step: The step of the measurement.
            cost: The seconds that it took, on the rank on which it took longest.
            step_time: The seconds of a step of training, the same on all ranks; 0 where none was timed yet.
        """
        if self.every_n_steps is not None:
            self.due = next_multiple(step + 1, self.every_n_steps)
            return
        self._cost = cost
        self.planned = step_time > 0
        if not self.planned:
            self.due = step + WARM_UP
            return
        wait = max(1, math.ceil(cost / (self.share * step_time)))
        self.due = next_multiple(step + wait, ladder(wait))

    def replan(self, step: int, step_time: float) -> None:
        """Plan the first interval at the end of the warm-up, from the cost of the measurement before it."""
        self.plan(step, self._cost, step_time)


def ladder(steps: int) -> int:
    """The least interval of the ladder 1, 2, 5, 10, 20, 50, ... that is no shorter than so many steps.

    Example:
        >>> [ladder(steps) for steps in (1, 2, 3, 6, 11, 170)]
        [1, 2, 5, 10, 20, 200]
    """
    decade: int = 10 ** (len(str(steps)) - 1)
    return next(rung * decade for rung in (1, 2, 5, 10) if rung * decade >= steps)


def next_multiple(step: int, interval: int) -> int:
    """The least multiple of the interval that is at or after a step."""
    return -(-step // interval) * interval

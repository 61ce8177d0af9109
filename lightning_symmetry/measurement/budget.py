"""When to measure next, and what at which step: as often as a share of the time of training allows.

A measurement that takes c seconds is due again after c / (share x step time) steps. Intervals are taken from the
ladder 1, 2, 5, 10, 20, 50, ... and due steps from their multiples, so that runs share a grid. What is measured is
spread over the steps up to the due one, as `lightning_symmetry.measurement.schedule` says. Between measurements ranks
do not talk: each plans by itself from what all were told at the end of the last one.
"""

from __future__ import annotations

import math
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from lightning_symmetry.measurement.schedule import (
    WINDOW,
    Bundle,
    Costs,
    Numbers,
    apart,
    bundles_of,
    earliest,
    ladder,
    next_multiple,
    slice_of,
    sliced,
    stretched,
)

TIMED = 5
"""How many steps are timed after each at which something was measured."""

LEAST = 0.25
"""The least part of what may be spent that is left for measuring, however short steps are."""

WARM_UP = 5
"""How many steps are timed before the first interval is planned."""


class Budget:
    """Decides at which steps to measure what. It reads no clock but its own, and knows of ranks only what it is told.

    Args:
        share: The share of the time of training that measuring may take.
        every_n_steps: A fixed interval instead; all is then measured at the due step.
        world_size: How many ranks share out the pieces.
        others: The budgets of the other monitors of the same training, once they have any. What these spend is no part
            of a step, and where they measure a bundle this one measures none.
        idle: The seconds that a step costs where nothing is measured; they are paid first.

    Attributes:
        in_slices: Whether a bundle that costs more than half of what a window earns may be measured in slices.
        due: The next step at which a measurement is complete, or at which to plan.
        planned: Whether that step was planned from the cost of a measurement; until then `due` is the end of the
            warm-up.
        costs: What a measurement costs, the same on all ranks.
        gather_at: The step at which what was gathered is taken, before anything is measured.
        at_once: The most seconds that a bundle takes at one step: what is left of it then waits for its next slice.
    """

    def __init__(
        self,
        share: float,
        every_n_steps: int | None = None,
        world_size: int = 1,
        others: Callable[[], Sequence[Budget]] = tuple,
        idle: float = 0.0,
    ) -> None:
        self.share = share
        self.idle = idle
        self.every_n_steps = every_n_steps
        self.due = 0
        self.planned = True
        self.costs = Costs()
        self.gather_at = 0
        self.at_once = math.inf
        self.in_slices = False
        self._world_size = world_size
        self._others = others
        self._agenda: deque[tuple[int, Numbers]] = deque()
        self._recent: list[tuple[int, float]] = []
        self._spent = 0.0
        self._entered: float | None = None
        self._settled = 0.0
        self._began: tuple[int, float, float] | None = None
        self._timed = 0
        self._last_step = -1
        self._last_time = 0.0
        self._durations: deque[float] = deque(maxlen=50)

    def step_begins(self, step: int) -> None:
        """Note the time at which a step begins, less what was spent on measuring; not after a sleep."""
        if step > self._last_step:
            now = time.perf_counter() - self._spent - sum(other.spent for other in self._others())
            if 0 <= self._last_step == step - 1:
                self._durations.append(now - self._last_time)
                self._timed += 1
            self._last_step, self._last_time = step, now

    @contextmanager
    def measuring(self) -> Iterator[None]:
        """Count the time within as spent on measuring, once where it is within another."""
        if self._entered is not None:
            yield
            return
        self._entered = time.perf_counter()
        self._timed = 0
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
        """The seconds spent since they were last settled, to be counted in the cost of a measurement."""
        return self.spent - self._settled

    def settle(self, seconds: float | None = None) -> None:
        """Owe nothing, or so many seconds less: they are in the cost of a measurement, or are paid otherwise."""
        self._settled = self.spent if seconds is None else self._settled + seconds

    def start_counting(self, step: int) -> None:
        """Count from a step on: the first measurement, with the search for symmetries, is paid once and not counted."""
        self._began = (step, time.perf_counter(), self.spent)

    @property
    def counting(self) -> bool:
        """Whether the first measurement is over."""
        return self._began is not None

    @property
    def step_time(self) -> float:
        """The median seconds of a step of training, over the last fifty that were timed; 0 where none was timed."""
        return statistics.median(self._durations) if self._durations else 0.0

    @property
    def knows_step_time(self) -> bool:
        """Whether enough steps were timed: fifty in all, and some since it measured last."""
        return len(self._durations) == self._durations.maxlen and self._timed >= TIMED

    def overhead(self, step: int) -> float:
        """The share of the time since the first measurement that was spent on measuring, and on hooks until a step."""
        if self._began is None:
            return 0.0
        first, began, spent = self._began
        idle = self.idle * max(step - first, 0)
        return (self.spent - spent + idle) / max(time.perf_counter() - began, 1e-9)

    def plan(self, step: int, costs: Costs, step_time: float, after: int | None = None) -> None:
        """Set the next due step after a measurement, and what to measure at which step until then.

        Args:
            step: The step of the measurement.
            costs: What the next one will cost, the same on all ranks.
            step_time: The seconds of a step of training, the same on all ranks; 0 where none was timed yet.
            after: The step that has begun already, where the measurement was of an earlier one.
        """
        since = step if after is None else after
        self.costs = costs
        self._agenda.clear()
        self.planned = step_time > 0 or self.every_n_steps is not None
        if not self.planned:
            self.due = self.gather_at = step + WARM_UP
            return
        if self.every_n_steps is not None:
            self.due = self.gather_at = next_multiple(since + 1, self.every_n_steps)
            bundles = bundles_of(costs, self._world_size)
            self._agenda.append((self.due, tuple(number for bundle in bundles for number in bundle.pieces)))
            return
        earned = self.earned(step_time)
        bundles = self._bundles(earned, least=earned)
        paid = _paid(costs, bundles)
        steps = earliest(paid, earned, since, self._recent)
        self.due = next_multiple(steps[-1], ladder(steps[-1] - step))
        self._place(stretched(steps, since, self.due), since, paid, bundles)

    def earned(self, step_time: float) -> float:
        """The seconds that a step of so many earns for measuring."""
        whole = self.share * step_time
        return max(whole - self.idle, LEAST * whole)

    def _bundles(self, rate: float, least: float = 0.0) -> list[Bundle]:
        """The bundles of the next measurement, in slices where they are dear."""
        earned = rate * WINDOW if self.in_slices else math.inf
        bundles = bundles_of(self.costs, self._world_size, least)
        self.at_once = slice_of(bundles, earned)
        return sliced(bundles, earned, self.at_once)

    def wait_until(self, step: int) -> None:
        """Let the warm-up last until a step, at the least."""
        if not self.planned:
            self.due = self.gather_at = max(self.due, step)

    def _place(self, steps: Sequence[int], since: int, paid: Sequence[float], bundles: Sequence[Bundle]) -> None:
        steps = apart(steps, since, lambda step: any(other.measures_at(step) for other in self._others()))
        self.gather_at = steps[0] if len(steps) > len(bundles) else self.due
        pieces = [bundle.pieces for bundle in bundles]
        self._agenda.extend(zip(steps[len(steps) - len(pieces) :], pieces, strict=True))
        placed = [*self._recent, *zip(steps, paid, strict=True)]
        self._recent = [(at, cost) for at, cost in placed if at > self.due - WINDOW]

    def comes_again(self, pieces: Numbers) -> bool:
        """Whether pieces that were taken are measured in slices, of which there are more to come."""
        return any(set(pieces) <= set(others) for _, others in self._agenda)

    def measures_at(self, step: int) -> bool:
        """Whether a bundle is to be measured at a step."""
        return any(at == step for at, _ in self._agenda)

    @property
    def next_step(self) -> int:
        """The step before which there is nothing to do."""
        return self._agenda[0][0] if self._agenda else self.due

    def take(self, step: int) -> Numbers:
        """The pieces to measure at a step, the first for rank 0 and so on: one bundle, or all that is left when due."""
        taken: Numbers = ()
        while self._agenda and self._agenda[0][0] <= step and (not taken or step >= self.due):
            taken += self._agenda.popleft()[1]
        return taken

    def state(self) -> dict[str, Any]:
        """What `restore` needs to go on: plain values, that JSON can hold."""
        return {"due": self.due, "planned": self.planned, "costs": asdict(self.costs)}

    def restore(self, state: Mapping[str, Any], step: int, n_pieces: int | None = None) -> None:
        """Go on from what `state` returned: the step that was due stays due, and what is measured leads up to it.

        Args:
            state: What `state` returned.
            step: The step that begins.
            n_pieces: How many pieces there are to measure; where it is not known yet, or another number than before,
                all is measured at the due step.

        Raises:
            KeyError: Something is missing.
            TypeError: Something is unknown, as from another version, or no number.
            ValueError: Likewise.
        """
        parts = {part: float(cost) for part, cost in state["costs"].items() if part != "pieces"}
        costs = Costs(tuple(map(float, state["costs"]["pieces"])), **parts)
        due, planned = int(state["due"]), bool(state["planned"])
        self.costs, self.planned, self.due = costs, planned, max(due, step)
        if self.every_n_steps is not None:
            self.due, self.planned = next_multiple(step if due <= step else step + 1, self.every_n_steps), True
        self.gather_at = self.due
        self._agenda.clear()
        if n_pieces is not None and n_pieces != len(costs.pieces):
            self.costs = Costs()
        elif n_pieces and self.planned and self.every_n_steps is None and step < self.due:
            rate = max(sum(_paid(costs, bundles_of(costs, self._world_size))), 1e-9) / (self.due - step)
            bundles = self._bundles(rate)
            paid = _paid(costs, bundles)
            steps = earliest(paid, rate, step)
            self._place(stretched(steps, step, self.due), step, paid, bundles)


def _paid(costs: Costs, bundles: Sequence[Bundle]) -> list[float]:
    """What is paid at each step of a measurement: for what was gathered, if anything, and for each bundle."""
    paid = [bundle.cost for bundle in bundles] or [0.0]
    paid[-1] += costs.rest
    return [costs.gathering, *paid] if costs.gathering else paid

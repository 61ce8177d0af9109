"""When to do again what is not urgent: once it takes no more than a share of the time since it was last done."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Upkeep:
    """Keeps work that recurs within a share of the time.

    Args:
        share: The share of the time, in (0, 1), that the work may take.
        first: The seconds that it is expected to take the first time.
        clock: Seconds that only grow.

    Attributes:
        spent: The seconds that the work took so far.

    Example:
        >>> now = [0.0]
        >>> upkeep = Upkeep(0.01, clock=lambda: now[0])
        >>> with upkeep.at_work():
        ...     now[0] = 2.0
        >>> now[0] = 200.0
        >>> upkeep.due
        False
        >>> now[0] = 203.0
        >>> upkeep.due
        True
    """

    def __init__(self, share: float, first: float = 0.0, clock: Callable[[], float] = time.perf_counter) -> None:
        self._share = share
        self._clock = clock
        self._next = clock() + first / share
        self.spent = 0.0

    @property
    def due(self) -> bool:
        """Whether the work may be done again."""
        return self._clock() >= self._next

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Time the work within: it puts off the next by its own cost / `share`."""
        began = self._clock()
        try:
            yield
        finally:
            ended = self._clock()
            self.spent += ended - began
            self._next = max(self._next, ended) + (ended - began) / self._share

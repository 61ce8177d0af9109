"""Group testing: which of many things pass, where one trial can take any number of them at once.

Sets that fail are halved, the largest first, until the culprits are alone: some ``k log2(n / k)`` trials for k culprits
among n. The number of trials is bounded. What is then still together with a culprit does not pass; since the largest
sets come first, most others have passed by then.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import TypeVar

Thing = TypeVar("Thing")

MOST_TRIALS = 200
"""The largest number of trials, after the first."""


def passing(
    things: Sequence[Thing], passes: Callable[[Sequence[Thing]], bool], most_trials: int = MOST_TRIALS
) -> list[Thing]:
    """Those things that pass, in their order.

    Args:
        things: Any things.
        passes: Tries some of them together: true where each of them would pass alone.
        most_trials: The largest number of trials after the first.

    Example:
        >>> passing([1, 2, 3, 4, 5], lambda some: 3 not in some)
        [1, 2, 4, 5]
    """
    if not things or passes(things):
        return list(things)
    passed: set[int] = set()
    failing = deque([range(len(things))])
    trials = 0
    while failing and trials < most_trials:
        some = failing.popleft()
        first, second = some[: len(some) // 2], some[len(some) // 2 :]
        if not first:
            continue
        # Where the first half passes, a culprit is in the second; one that would be alone there is tried all the same.
        trials += 1
        first_passes = passes([things[place] for place in first])
        second_passes = False
        if not first_passes or len(second) == 1:
            trials += 1
            second_passes = passes([things[place] for place in second])
        for half, half_passes in ((first, first_passes), (second, second_passes)):
            if half_passes:
                passed.update(half)
            else:
                failing.append(half)
    return [things[place] for place in sorted(passed)]

"""Where in time the parts of a measurement go: spread evenly over the steps up to the one at which it is due.

Ranks measure in rounds, one piece each at the same step, the dearest pieces first: so a round costs all of them about
the same. Rounds are joined to bundles, of which no two are measured at one step, until one costs at least as much as
preparing it, and as one step earns. Nothing here reads a clock: ranks that know the same costs find the same steps.

A bundle of cost c is earned in c / rate steps, where rate is what may be spent for each step. It comes at the first
step at which it and all before it are earned, and at which the bundles of the last `WINDOW` steps together cost no more
than so many steps earn: then what is spent keeps to its share over every window, and not on average alone. A bundle
that costs more than half of what a window earns is measured in slices; where it cannot be, it is on average within its
share.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

WINDOW = 200
"""Over how many steps, at the least, what is spent keeps to its share."""

SLICES = 4
"""How many slices of one bundle a window earns."""

MOST_SLICES = 200
"""The most slices of a bundle: beyond them it is on average alone within its share."""

Numbers = tuple[int, ...]


@dataclass(frozen=True)
class Costs:
    """The seconds of the parts of a measurement, the same on all ranks.

    Attributes:
        pieces: Of each piece.
        preparation: Of what comes before the pieces of each bundle.
        gathering: Of what is gathered at training steps before the first bundle.
        rest: Of all else: of recording it, and of the hooks.
    """

    pieces: tuple[float, ...] = ()
    preparation: float = 0.0
    gathering: float = 0.0
    rest: float = 0.0


@dataclass(frozen=True)
class Bundle:
    """Pieces that are measured at one step.

    Attributes:
        pieces: Their numbers: the first for rank 0, the next for rank 1, and so on, round by round.
        cost: Seconds.
    """

    pieces: Numbers
    cost: float


def bundles_of(costs: Costs, world_size: int, least: float = 0.0) -> list[Bundle]:
    """The bundles of a measurement.

    Args:
        costs: Of the measurement.
        world_size: How many ranks share out the pieces.
        least: What a bundle may cost in any case.

    Example:
        >>> [bundle.pieces for bundle in bundles_of(Costs((0.1, 0.5, 0.2, 0.4, 0.1), preparation=0.4), world_size=1)]
        [(1,), (3,), (2, 0, 4)]
        >>> [bundle.pieces for bundle in bundles_of(Costs((0.1, 0.5, 0.2, 0.4, 0.1)), world_size=2)]
        [(1, 3), (2, 0), (4,)]
    """
    order = sorted(range(len(costs.pieces)), key=lambda number: -costs.pieces[number])
    bundles: list[Bundle] = []
    pieces: Numbers = ()
    cost = 0.0
    for place in range(0, len(order), world_size):
        pieces += tuple(order[place : place + world_size])
        cost += costs.pieces[order[place]]
        if cost >= max(costs.preparation, least):
            bundles.append(Bundle(pieces, costs.preparation + cost))
            pieces, cost = (), 0.0
    if pieces:
        last = bundles.pop() if bundles else Bundle((), costs.preparation)
        bundles.append(Bundle(last.pieces + pieces, last.cost + cost))
    return bundles


def slice_of(bundles: Sequence[Bundle], earned: float) -> float:
    """The most seconds of a slice, where a window earns so many: a part of them, but of no bundle too many slices."""
    return max(earned / SLICES, 2 * max((bundle.cost for bundle in bundles), default=0.0) / MOST_SLICES)


def sliced(bundles: Iterable[Bundle], earned: float, most: float) -> list[Bundle]:
    """Bundles with those that cost more than half of what a window earns cut in slices: the same pieces, several times.

    There are slices for twice the cost: each begins with cold caches, and what is left at the last is done at once.

    Args:
        bundles: The bundles.
        earned: What a window earns.
        most: The most seconds of a slice.

    Example:
        >>> slices = sliced([Bundle((1,), 0.25), Bundle((0, 2), 0.1)], earned=0.2, most=0.05)
        >>> len(slices), slices[0], slices[-1]
        (11, Bundle(pieces=(1,), cost=0.05), Bundle(pieces=(0, 2), cost=0.1))
    """
    slices: list[Bundle] = []
    for bundle in bundles:
        if bundle.cost > earned / 2:
            count = math.ceil(2 * bundle.cost / most * (1 - 1e-12))
            slices += [Bundle(bundle.pieces, 2 * bundle.cost / count)] * count
        else:
            slices.append(bundle)
    return slices


def earliest(
    costs: Iterable[float], rate: float, since: int, before: Iterable[tuple[int, float]] = (), window: int = WINDOW
) -> list[int]:
    """The earliest steps at which bundles may come, one after the other.

    Args:
        costs: The seconds of each bundle.
        rate: The seconds that may be spent for each step of training.
        since: The step since which they are earned.
        before: Earlier bundles: the steps at which they came, and their seconds.
        window: Over how many steps what is spent keeps to its share.

    Example:
        >>> earliest([1.0, 0.5, 2.0], rate=0.01, since=1000)
        [1100, 1150, 1350]
    """
    recent = deque(before)
    steps: list[int] = []
    step, total = since, 0.0
    for cost in costs:
        total += cost
        step = max(step + 1, since + math.ceil(total / rate * (1 - 1e-12)))
        while recent and (
            recent[0][0] <= step - window or sum(c for _, c in recent) + cost > rate * window * (1 + 1e-12)
        ):
            step = max(step, recent.popleft()[0] + window)
        recent.append((step, cost))
        steps.append(step)
    return steps


def stretched(steps: Sequence[int], since: int, due: int) -> list[int]:
    """Steps drawn apart, or together, so that the last is the one at which all is due."""
    length = max(steps[-1] - since, 1)
    return [since + -((since - step) * (due - since) // length) for step in steps]


def apart(steps: Sequence[int], since: int, taken: Callable[[int], bool]) -> list[int]:
    """Steps moved back to such as nobody else has taken, each before the next, as far as there are any.

    Args:
        steps: The steps, in order.
        since: The step after which the first may come.
        taken: Whether somebody else has taken a step.

    Example:
        >>> apart([3, 7, 10], since=0, taken=lambda step: step in (3, 9, 10))
        [2, 7, 8]
    """
    moved: list[int] = []
    for step in reversed(steps):
        step = min([step, *(later - 1 for later in moved[-1:])])
        while step > since + 1 and taken(step):
            step -= 1
        moved.append(max(step, since + 1))
    return moved[::-1]


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

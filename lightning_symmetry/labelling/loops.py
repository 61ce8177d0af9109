"""Loops over the positions of an axis.

A model may walk an axis in Python, as it does where one expert runs after the other::

    for e in range(n):
        total += route[:, e] * expert(tokens, weight[e])

Selecting a position tells it from the others. But where the parts selected meet position by position, and what comes of
them is added up, the axes walked are one axis, whose positions may be permuted together. That each of them is treated
alike is not followed any further: it is proposed, and verification decides. Laid side by side in order, as heads that
are modules, they are the axis again.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import combinations

from lightning_symmetry.labelling.axes import Axis, atoms, pin, size, unify


@dataclass(eq=False)
class Loop:
    """An axis whose positions are selected one by one.

    Attributes:
        axis: The axis.
        alone: Whether its positions are alike though no others meet them, as those of stacked modules.
        ordered: Whether what comes of them is not just added up, or laid side by side.
        walked: The positions that are selected.
    """

    axis: Axis
    alone: bool = False
    ordered: bool = False
    walked: set[int] = field(default_factory=set)


Positions = dict[Loop, int | None]
"""At which position of each loop a tensor stands; None where it comes of several."""


class Loops:
    """The loops of a tape, and which of them meet."""

    def __init__(self) -> None:
        self._loops: list[Loop] = []
        self._met: defaultdict[tuple[Loop, Loop], set[tuple[int, int]]] = defaultdict(set)

    def over(self, axis: Axis, alone: bool) -> Loop:
        """A new loop."""
        self._loops.append(Loop(axis, alone))
        return self._loops[-1]

    def meet(self, inputs: Iterable[Positions], in_any_order: bool) -> Positions:
        """The positions at which the outputs of an operation stand, from those of its inputs."""
        together: Positions = {}
        for positions in inputs:
            for loop, position in positions.items():
                if together.setdefault(loop, position) != position:
                    together[loop] = None
                    loop.ordered = loop.ordered or not in_any_order
        standing = [(loop, position) for loop, position in together.items() if position is not None]
        for (left, here), (right, there) in combinations(standing, 2):
            self._met[left, right].add((here, there))
        return together

    def join(self) -> None:
        """Make one axis of those that met position by position; tell the positions of all others apart."""
        joined: set[Loop] = set()
        for (left, right), met in self._met.items():
            if size(left.axis) == size(right.axis) and met == {(n, n) for n in left.walked | right.walked}:
                unify(left.axis, right.axis)
                joined.update((left, right))
        for loop in self._loops:
            if loop.ordered or not (loop.alone or loop in joined):
                pin(loop.axis, "walked in order")


def laid_side_by_side(inputs: Sequence[Positions]) -> Loop | None:
    """A loop all of whose positions come one after the other, where no other loop has them in another order."""
    standing = ((loop, position) for positions in inputs for loop, position in positions.items())
    loops = dict.fromkeys(loop for loop, position in standing if position is not None)
    moving = {loop: found for loop in loops if len(set(found := [each.get(loop) for each in inputs])) > 1}
    if any(found != list(range(len(inputs))) for found in moving.values()):
        return None
    return next((loop for loop in moving if size(loop.axis) == len(inputs)), None)


def walked_beside(positions: Positions) -> list[Axis]:
    """The axes of which a tensor stands at one position, each once."""
    axes = [loop.axis for loop, position in positions.items() if position is not None]
    return list({tuple(atoms(axis)): axis for axis in axes}.values())

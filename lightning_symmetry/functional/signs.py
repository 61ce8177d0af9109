"""The best of all signs, without trying them all.

What two units cost is a sum of terms, each with one value where it is flipped and another where it is not. A term is
flipped by a set of signs, and by an odd number of them: the bits of a number. Signs that share no term are chosen each
by itself; the sign that most terms share is tried both ways.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

Costs = Mapping[int, tuple[Tensor, Tensor]]
"""By the signs that flip a term, as bits: its cost where it is not flipped, and where it is; of one shape."""


def least_over_signs(costs: Costs) -> Tensor:
    """The least sum of costs over all choices of signs.

    Args:
        costs: The terms.

    Returns:
        Elementwise, of the shape of the costs; 0 where there are none.

    Example:
        >>> one, two, three = torch.tensor(1.0), torch.tensor(2.0), torch.tensor(3.0)
        >>> least_over_signs({0: (three, one), 1: (two, one), 3: (one, three)})  # 3 + 1 + 1: the second sign is -1 too
        tensor(5.)
    """
    total = costs[0][0] if 0 in costs else torch.zeros(())
    for signs, terms in _components(costs):
        shared = max(_bits(signs), key=lambda bit: sum(bool(term & bit) for term in terms))
        plus, minus = (least_over_signs(at_signs(terms, shared, choice)) for choice in (0, shared))
        total = total + torch.minimum(plus, minus)
    return total


def at_signs(costs: Costs, signs: int, choice: int) -> dict[int, tuple[Tensor, Tensor]]:
    """The costs that are left when some of the signs are chosen.

    Args:
        costs: Terms.
        signs: The bits of the signs that are chosen.
        choice: The bits of those of them that are -1.

    Returns:
        Terms that the other signs flip.
    """
    left: dict[int, tuple[Tensor, Tensor]] = {}
    for term, (plus, minus) in costs.items():
        if (term & choice).bit_count() % 2:
            plus, minus = minus, plus
        known = left.get(term & ~signs)
        left[term & ~signs] = (plus, minus) if known is None else (known[0] + plus, known[1] + minus)
    return left


def bits_of(terms: Iterable[int]) -> int:
    """All signs that flip one of the terms."""
    bits = 0
    for term in terms:
        bits |= term
    return bits


def _components(costs: Costs) -> list[tuple[int, dict[int, tuple[Tensor, Tensor]]]]:
    """Terms that signs join, with the bits of these signs."""
    components: list[tuple[int, dict[int, tuple[Tensor, Tensor]]]] = []
    for term, cost in costs.items():
        if term:
            joined = {term: cost}
            signs = term
            for other in [other for other in components if other[0] & term]:
                components.remove(other)
                joined |= other[1]
                signs |= other[0]
            components.append((signs, joined))
    return components


def _bits(number: int) -> list[int]:
    return [1 << place for place in range(number.bit_length()) if number >> place & 1]

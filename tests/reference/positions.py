"""What an axis means: its positions in order, each by the digits that its atoms have there."""

from itertools import product

from lightning_symmetry.labelling.axes import Place, resolve

SEGMENT = "segment"


def positions(axis):
    """Every position of an axis: a tuple of pairs (atom, digit), and (SEGMENT, number) within a concatenation."""
    return [sum(digits, ()) for digits in product(*map(_digits, resolve(axis)))]


def _digits(factor):
    if isinstance(factor, Place):
        return [((factor.atom, digit),) for digit in range(factor.size)]
    return [((SEGMENT, number), *rest) for number, segment in enumerate(factor.segments) for rest in positions(segment)]

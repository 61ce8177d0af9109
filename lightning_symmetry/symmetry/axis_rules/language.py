"""The small language in which a rule says what an operation does to axes.

A rule names the dimensions of the tensors that go in and come out, in the manner of ``einsum``::

    "m k, k n -> m n"                               matrix product
    "n (g i) _ _, (g o) i _ _ -> n (g o) _ _"       grouped convolution
    "n a, n b -> n (a + b)"                         concatenation
    "e d, n @ e -> n d"                             look up rows by their numbers
    "..."                                           pointwise, with broadcasting: every tensor in and out

========== =======================================================================================================
``k``      an axis; the same letter is the same axis. In the outputs alone, it is a new one
``_``      an axis whose positions are told apart
``1``      a dimension of one position
``...``    any dimensions, aligned from the right, those of one position broadcast
``(g i)``  a row-major product of axes
``(a + b)``  axes laid end to end
``@ e``    the entries are numbers of positions along an axis: indices
``; a``    after the outputs: tensors that exist only within the operation, as the mean that a norm takes
========== =======================================================================================================

The rule's meaning can be put to the test: permute the positions of a letter in every input that has it, and the outputs
come out permuted along that letter, and unchanged otherwise. The tests ask every operation just that.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

from lightning_symmetry.symmetry.axes import Axis, Concatenation, fresh, narrow, pin, size, split, unify

_LETTER = r"[^\W\d_]\w*"
_TOKEN = re.compile(rf"\.\.\.|\(({_LETTER}(?:\s*\+\s*{_LETTER})+|{_LETTER}(?:\s+{_LETTER})+)\)|\b(?:{_LETTER}|_|1)\b")


@dataclass(frozen=True)
class Term:
    """One dimension of a pattern: `letters` of a product, or of a concatenation where `laid_end_to_end`."""

    letters: tuple[str, ...]
    laid_end_to_end: bool = False


ELLIPSIS = Term(("...",))
TOLD_APART = Term(("_",))
Pattern = tuple[Term, ...]


@dataclass(frozen=True)
class Rule:
    """A parsed rule: the dimensions of the inputs, the outputs, and the tensors within.

    Of each input and output, `input_indices` and `output_indices` hold the letter along which its entries are indices;
    it is empty where they are not.
    """

    text: str
    inputs: tuple[Pattern, ...]
    outputs: tuple[Pattern, ...]
    within: tuple[Pattern, ...] = ()
    input_indices: tuple[str, ...] = ()
    output_indices: tuple[str, ...] = ()

    def for_call(self, n_inputs: int, n_outputs: int) -> Rule:
        """The rule for so many tensors in and out: a pointwise rule, which has no arrow, is repeated for each.

        Raises:
            ValueError: The rule speaks of another number of tensors.
        """
        if "->" not in self.text:
            inputs, outputs = self.inputs * n_inputs, self.inputs * n_outputs
            return Rule(self.text, inputs, outputs, (), ("",) * n_inputs, ("",) * n_outputs)
        if (len(self.inputs), len(self.outputs)) != (n_inputs, n_outputs):
            raise ValueError(
                f"axis rule {self.text!r} has {len(self.inputs)} inputs and {len(self.outputs)} outputs, "
                f"but the operation has {n_inputs} and {n_outputs}"
            )
        return self


@cache
def parse(text: str) -> Rule:
    """Read a rule.

    Raises:
        ValueError: The text is no rule.
    """
    left, arrow, right = text.partition("->")
    outputs, _, within = right.partition(";")
    inputs, input_indices = _patterns(left)
    returned, output_indices = _patterns(outputs) if arrow else ((), ())  # "k, k ->" has one output, a number
    return Rule(text, inputs, returned, _patterns(within)[0] if within.strip() else (), input_indices, output_indices)


def _patterns(text: str) -> tuple[tuple[Pattern, ...], tuple[str, ...]]:
    patterns, indices = [], []
    for part in text.split(","):
        pattern, at, letter = part.partition("@")
        if at and not re.fullmatch(_LETTER, letter.strip()):
            raise ValueError(f"axis rule part {part!r} has no single letter after '@'")
        patterns.append(_pattern(pattern))
        indices.append(letter.strip())
    return tuple(patterns), tuple(indices)


def _pattern(text: str) -> Pattern:
    if _TOKEN.sub("", text).strip():
        raise ValueError(f"axis rule part {text!r} is not made of letters, '_', '1', '...' and '(a b)' or '(a + b)'")
    terms = []
    for match in _TOKEN.finditer(text):
        inside = match.group(1)
        if inside is None:
            terms.append(Term(() if match.group() == "1" else (match.group(),)))
        else:
            terms.append(Term(tuple(inside.replace("+", " ").split()), laid_end_to_end="+" in inside))
    if terms.count(ELLIPSIS) > 1:
        raise ValueError(f"axis rule part {text!r} has more than one '...'")
    return tuple(terms)


def joined(letters: Sequence[str]) -> str:
    """The term for letters laid end to end."""
    return letters[0] if len(letters) == 1 else f"({' + '.join(letters)})"


class Binding:
    """What the letters of one rule stand for in one call of an operation."""

    def __init__(self, sizes: Mapping[str, int]) -> None:
        self._sizes = dict(sizes)
        self._letters: dict[str, Axis] = {}
        self._broadcast: dict[int, Axis] = {}

    def read(self, pattern: Pattern, axes: Sequence[Axis]) -> None:
        """Unify the axes of an input with what its pattern says they are."""
        terms = self._spread(pattern, len(axes))
        for term, axis in zip(terms, axes, strict=True):
            if isinstance(term, int):
                self._broadcast[term] = self._unified(self._broadcast.get(term), axis)
            elif term == TOLD_APART:
                pin(axis, "positions told apart")
            elif size(axis) == 1:
                continue
            elif len(term.letters) == 1:
                self._read_letter(term.letters[0], axis)
            elif term.laid_end_to_end:
                lengths = self._lengths(term, size(axis))
                bounds = [sum(lengths[:k]) for k in range(len(lengths) + 1)]
                for letter, (start, stop) in zip(term.letters, pairwise(bounds), strict=True):
                    self._read_letter(letter, narrow(axis, start, stop))
            else:
                for letter, length in zip(term.letters, self._lengths(term, size(axis)), strict=True):
                    outer, axis = split(axis, length)
                    self._read_letter(letter, outer)

    def point(self, letter: str, axis: Axis | None) -> None:
        """Unify a letter with the axis along which the entries of an input are indices.

        Numbers that are no indices along a known axis tell positions apart. An axis may go on where no index reaches.
        """
        known = self.axis(letter)
        beyond = size(known) - size(axis) if axis is not None else -1
        if axis is None or beyond < 0:
            pin(known + (axis or ()), "looked up by number")
        else:
            unify(known, (Concatenation([axis, fresh(beyond, "never looked up")]),) if beyond else axis)

    def axis(self, letter: str) -> Axis:
        """The axis that a letter stands for."""
        if letter not in self._letters:
            self._letters[letter] = fresh(self._sizes.get(letter, 1))
        return self._letters[letter]

    def write(self, pattern: Pattern, shape: Sequence[int]) -> list[Axis]:
        """The axes of an output."""
        terms = self._spread(pattern, len(shape))
        return [self._write(term, length) for term, length in zip(terms, shape, strict=True)]

    def _write(self, term: Term | int, length: int) -> Axis:
        if isinstance(term, int):
            return self._broadcast.get(term, ())
        if term == TOLD_APART:
            return fresh(length, "positions told apart")
        parts = [
            self._letters.setdefault(letter, fresh(positions))
            for letter, positions in zip(term.letters, self._lengths(term, length), strict=True)
        ]
        return (Concatenation(parts),) if term.laid_end_to_end else sum(parts, ())

    def _read_letter(self, letter: str, axis: Axis) -> None:
        self._letters[letter] = self._unified(self._letters.get(letter), axis)
        self._sizes.setdefault(letter, size(axis))

    @staticmethod
    def _unified(known: Axis | None, axis: Axis) -> Axis:
        if known is None or size(known) == 1:
            return axis
        if size(axis) != 1:
            unify(known, axis)
        return known

    def _lengths(self, term: Term, total: int) -> list[int]:
        lengths = [self._sizes.get(letter) for letter in term.letters]
        known = [length for length in lengths if length is not None]
        rest = total - sum(known) if term.laid_end_to_end else total // max(math.prod(known), 1)
        return [rest if length is None else length for length in lengths]

    @staticmethod
    def _spread(pattern: Pattern, n_dims: int) -> list[Term | int]:
        """The pattern with its ellipsis replaced by the numbers of the broadcast dimensions, counted from the right."""
        n_broadcast = n_dims - sum(term != ELLIPSIS for term in pattern)
        if n_broadcast < 0 or (n_broadcast and ELLIPSIS not in pattern):
            raise ValueError(f"axis rule part of {len(pattern)} dimensions met a tensor of {n_dims}")
        spread: list[Term | int] = []
        for term in pattern:
            spread.extend(range(n_broadcast, 0, -1) if term == ELLIPSIS else [term])
        return spread

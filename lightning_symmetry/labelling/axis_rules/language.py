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

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

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

    @property
    def contracted(self) -> frozenset[str]:
        """The letters that no output has."""
        inside, outside = (
            {letter for pattern in patterns for term in pattern for letter in term.letters}
            for patterns in (self.inputs, self.outputs)
        )
        return frozenset(inside - outside)

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


def unread(shape: Sequence[int], letter: str) -> str:
    """The pattern of a tensor of which an operation reads nothing but the shape."""
    return " ".join(f"{letter}{k}" for k in range(len(shape)))

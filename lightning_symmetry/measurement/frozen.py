"""What has not changed is not measured again: the values of pieces that read frozen parameters alone.

Whether parameters have changed is told by a digest of their entries, not by their version: who writes to
``parameter.data``, as the moving average of a teacher does, leaves no other trace. Digests are summed over ranks with
the values, so that all ranks know both, whoever measured them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lightning_symmetry.measurement.indicators import Piece

MOST_ENTRIES = 2**16
"""How many entries of a parameter, evenly spaced, its digest is of."""


def digest(tensor: Tensor) -> Tensor:
    """A number, in float64, that entries seldom have in common with others: their sum with uneven weights.

    Example:
        >>> bool(digest(torch.tensor([1.0, 2.0])) == digest(torch.tensor([2.0, 1.0])))
        False
    """
    entries = tensor.detach().flatten()
    entries = entries[:: -(-len(entries) // MOST_ENTRIES) or 1].double()
    return entries @ torch.arange(1, len(entries) + 1, device=entries.device).double().sqrt()


@dataclass(frozen=True)
class Known:
    """What was measured of a piece: its values, the digest of what they were of, and if that was as the one before."""

    values: tuple[float, ...]
    digest: float
    again: bool


@dataclass
class Memory:
    """What is known of the pieces that read frozen parameters alone, the same on all ranks.

    Args:
        at_once: Whether digests are compared where they are taken. On an accelerator the host would wait for that;
            there a piece is not measured again once two digests in a row were the same, until one is another.

    Attributes:
        known: By the number of the piece.
    """

    at_once: bool
    known: dict[int, Known] = field(default_factory=dict)

    def recall(self, number: int, found: Tensor) -> Tensor | None:
        """The values of a piece, unless what they are of has changed."""
        known = self.known.get(number)
        if known is None or not (bool(found.cpu() == known.digest) if self.at_once else known.again):
            return None
        return torch.tensor(known.values, dtype=torch.float64)

    def learn(self, pieces: Sequence[Piece], values: Mapping[str, float], digests: Sequence[float]) -> None:
        """Keep what was measured; a digest of NaN is of what is not frozen."""
        before, self.known = self.known, {}
        for number, (piece, found) in enumerate(zip(pieces, digests, strict=True)):
            if not math.isnan(found):
                again = number in before and before[number].digest == found
                self.known[number] = Known(tuple(values[key] for key in piece.keys), found, again)


def digest_of(piece: Piece, tensors: Mapping[str, Tensor], frozen: Callable[[str], bool]) -> Tensor | None:
    """The digest of all that a piece reads; None where that is not known to be frozen."""
    if not piece.reads or not all(map(frozen, piece.reads)):
        return None
    return torch.stack([digest(tensors[name]) for name in piece.reads]).sum()

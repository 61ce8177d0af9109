"""How many parameters a model has that do something of their own."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def effective_parameters(numel: Sequence[int], shares: Sequence[Sequence[float]]) -> Tensor:
    """How many parameters are effective: ``sum over tensors of numel x product over axes of (effective / size)``.

    Of an axis of interchangeable units those are effective that are distinct and alive, n_eff of n; of d directions
    between two maps, of m and p dimensions, that carry the rank r, ``(m r + r p - r^2) / (m d + d p - d^2)`` are: the
    dimension of all pairs of maps of this rank, those that act alike taken for one. Ziyin, Xu, Chuang, "Remove
    Symmetries to Control Model Expressivity and Improve Optimization" (arXiv:2408.15495).

    Args:
        numel: ``(n_tensors,)``: how many entries each tensor has.
        shares: ``(n_tensors, any)``: of each axis of each tensor the share of its units that is effective, in [0, 1];
            axes without symmetry may be left out.

    Returns:
        0-d in [0, sum of numel] in float64: 0 where no tensor has an effective unit along all its axes, all where every
        unit is effective. NaN where a share is.

    Raises:
        ValueError: There are not as many lists of shares as tensors, or a share is not in [0, 1].

    Example:
        >>> effective_parameters([4 * 10, 10 * 3], [[6 / 10], [6 / 10]])  # 6 of 10 hidden units are distinct and alive
        tensor(42., dtype=torch.float64)
    """
    if len(numel) != len(shares):
        raise ValueError(f"{len(shares)} lists of shares for {len(numel)} tensors: give as many")
    if wrong := [share for each in shares for share in each if share < 0 or share > 1]:
        raise ValueError(f"a share of {wrong[0]!r}: give shares of units in [0, 1]")
    counts = [entries * math.prod(each) for entries, each in zip(numel, shares, strict=True)]
    return torch.tensor(math.fsum(counts), dtype=torch.float64)

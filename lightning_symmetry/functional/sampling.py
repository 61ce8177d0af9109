"""A sample of rows of bounded size, the same whatever the order, the batches and the processes in which they come.

Every row has a priority in [0, 1), a hash of its bits, and the sample is of the rows of lowest priority. So a sample of
samples is the sample of all rows, and no random stream is touched. Rows that are equal to the last bit are in it
together or not at all, as far as there is room.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_ODD = (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)  # those of SplitMix64


def empty_sample(size: int, width: int) -> Tensor:
    """A sample of no rows: ``(size, 1 + width)`` in float64, column 0 for the priority, infinite where no row is.

    Example:
        >>> rows_of(empty_sample(4, 2)).shape
        torch.Size([0, 2])
    """
    sample = torch.zeros(size, 1 + width, dtype=torch.float64)
    sample[:, 0] = math.inf
    return sample


def with_priorities(rows: Tensor) -> Tensor:
    """Put the priority of each row before it.

    Args:
        rows: ``(n, width)`` in float64.

    Returns:
        ``(n, 1 + width)``.

    Example:
        >>> with_priorities(torch.ones(2, 3, dtype=torch.float64)).shape
        torch.Size([2, 4])
    """
    first, second, third = (odd - 2**64 if odd >= 2**63 else odd for odd in _ODD)
    place = torch.arange(1, rows.shape[1] + 1, device=rows.device) * first | 1
    mixed = (rows.contiguous().view(torch.int64) * place).sum(1)
    for odd in (second, third):
        mixed = (mixed ^ (mixed >> 31 & 0x1FFFFFFFF)) * odd
    priority = (mixed >> 11 & (2**53 - 1)).double() / 2**53
    return torch.cat([priority[:, None], rows], dim=1)


def merge_samples(samples: Tensor) -> Tensor:
    """The sample of several samples.

    Args:
        samples: ``(n_samples, size, 1 + width)``.

    Returns:
        ``(size, 1 + width)``.

    Example:
        >>> sample = torch.cat([with_priorities(torch.eye(2, dtype=torch.float64)), empty_sample(1, 2)])
        >>> len(rows_of(merge_samples(torch.stack([sample, empty_sample(3, 2)]))))
        2
    """
    return lowest(samples.flatten(0, 1), samples.shape[1])


def lowest(rows: Tensor, size: int) -> Tensor:
    """The so many rows of lowest priority.

    Args:
        rows: ``(n, 1 + width)``, n at least ``size``.
        size: How many.

    Example:
        >>> lowest(torch.tensor([[0.5, 1.0], [0.1, 2.0]]), 1)
        tensor([[0.1000, 2.0000]])
    """
    return rows[rows[:, 0].topk(size, largest=False).indices]


def rows_of(sample: Tensor) -> Tensor:
    """The rows in a sample, without their priorities: ``(n, width)``.

    Example:
        >>> rows_of(with_priorities(torch.ones(2, 3, dtype=torch.float64)))
        tensor([[1., 1., 1.],
                [1., 1., 1.]], dtype=torch.float64)
    """
    return sample[sample[:, 0].isfinite(), 1:]

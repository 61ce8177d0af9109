r"""The tail of a sample as a power law, after Clauset, Shalizi and Newman.

Above x_min the density is taken as p(x) = (alpha - 1) / x_min (x / x_min)^-alpha. Of the m values that are at least
x_min, the maximum of the likelihood is at

    alpha = 1 + m / sum_i log(x_i / x_min),

and the Kolmogorov-Smirnov distance tells how far their distribution is from that law,

    D = max_j |1 - (x_j / x_min)^(1 - alpha) - j / m|,    x_0 = x_min <= x_1 <= ... <= x_{m-1}.

Every value of the sample is tried as x_min, and the one of the least D begins the tail.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

BLOCK_ELEMENTS = 2**20
"""How many entries an intermediate array may hold."""


def power_law_exponent(sample: Tensor) -> Tensor:
    """The exponent of the power law that the tail of a sample follows best.

    Clauset, Shalizi, Newman, "Power-law distributions in empirical data" (arXiv:0706.1062), section 3: n attempts in
    O(n^2) time, and O(n x block) memory.

    Args:
        sample: ``(n,)``, finite; values that are not positive are left out.

    Returns:
        0-d, above 1; inf where fewer than two positive values differ, which have no tail.

    Example:
        >>> quantiles = 1 - (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
        >>> round(power_law_exponent(quantiles ** (-1 / 1.5)).item(), 2)  # of the law with the exponent 2.5
        2.5
    """
    logs = sample[sample > 0].double().log().sort().values
    n = len(logs)
    first = torch.cat([logs[:1] > -math.inf, logs[1:] > logs[:-1]])
    begins = torch.nonzero(first & (logs < logs[-1:])).flatten()
    if len(begins) == 0:
        return logs.new_full((), math.inf)
    slopes, distances = zip(*(_fits(logs, rows) for rows in begins.split(max(1, BLOCK_ELEMENTS // n))), strict=True)
    return 1 + torch.cat(slopes)[torch.cat(distances).argmin()]


def _fits(logs: Tensor, begins: Tensor) -> tuple[Tensor, Tensor]:
    """Alpha - 1 and D of the tails that begin at some places; what lies before a tail adds 0 to both."""
    gaps = (logs - logs[begins, None]).clamp_min(0.0)
    places = torch.arange(len(logs), device=logs.device) - begins[:, None]
    sizes = len(logs) - begins
    slopes = sizes / gaps.sum(1)
    law, share = -torch.expm1(-slopes[:, None] * gaps), places.clamp_min(0) / sizes[:, None]
    return slopes, (law - share).abs().amax(1)

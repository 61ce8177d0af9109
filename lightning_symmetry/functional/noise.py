"""Where the noise of mini-batches pushes units whose two sides may be rescaled against each other.

The gradient moves nothing along the orbit of a rescaling, but its noise does: a step of SGD of size eta changes the
charge ``|a|^2 - |b|^2`` of a unit by exactly ``eta^2 (|g_a|^2 - |g_b|^2)``, g_a and g_b the gradients of its two sides,
of which that of the larger side is the smaller one. So the charge drifts until the noise of both sides is the same: the
noise equilibrium. Source: Ziyin, Wang, Li, Wu, "Parameter Symmetry and Noise Equilibrium of Stochastic Gradient
Descent" (arXiv:2402.07193).
"""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_symmetry.functional.precision import common_scale

SILENT = 1e-10
"""The share of the squared gradients below which their variance is taken for rounding, and for none."""


def noise_imbalance(incoming: Tensor, outgoing: Tensor) -> Tensor:
    """How far units are from the noise equilibrium: ``sum_i |Tr S_a,i - Tr S_b,i| / sum_i (Tr S_a,i + Tr S_b,i)``.

    S is the centred covariance over steps of the mini-batch gradient of one side of one unit.

    Args:
        incoming: ``(n_steps, n_units, dim)``: at each step the gradient of a_i, what a rescaling of unit i multiplies.
        outgoing: ``(n_steps, n_units, dim)``: the gradient of b_i, what it divides.

    Returns:
        0-d in [0, 1] in float64: 0 at the noise equilibrium, or where there is no noise (its variance is below 1e-10 of
        the squared gradient); 1 if of each unit one side alone is noisy.

    Raises:
        ValueError: The two sides are not of one number of steps and of units.

    References:
        Ziyin, Wang, Li, Wu, "Parameter Symmetry and Noise Equilibrium of Stochastic Gradient Descent",
        arXiv:2402.07193.

    Example:
        >>> signs = torch.tensor([1.0, -1.0])[:, None, None]
        >>> noise_imbalance(signs * torch.ones(2, 3, 4), signs * torch.ones(2, 3, 4))
        tensor(0., dtype=torch.float64)
        >>> noise_imbalance(signs * torch.ones(2, 3, 4), torch.ones(2, 3, 4))
        tensor(1., dtype=torch.float64)
    """
    if incoming.ndim != 3 or outgoing.ndim != 3 or incoming.shape[:2] != outgoing.shape[:2]:
        raise ValueError(
            f"gradients of shapes {tuple(incoming.shape)} and {tuple(outgoing.shape)}: expected "
            "(n_steps, n_units, dim) with one number of steps and of units"
        )
    sides = [side.detach().double() for side in (incoming, outgoing)]
    scale = common_scale(*sides)
    sides = [side / scale for side in sides]
    sums = [side.sum(0) for side in sides]
    squares = [side.square().sum((0, 2)) for side in sides]
    return noise_imbalance_of(sums[0], sums[1], squares[0], squares[1], sides[0].new_tensor(len(incoming)))


def noise_imbalance_of(
    incoming: Tensor, outgoing: Tensor, incoming_squares: Tensor, outgoing_squares: Tensor, steps: Tensor
) -> Tensor:
    """The same from sums over steps.

    Args:
        incoming: ``(n_units, dim)``: the sum of the gradients of a_i.
        outgoing: ``(n_units, dim)``: that of b_i.
        incoming_squares: ``(n_units,)``: the sum of their squared norms.
        outgoing_squares: ``(n_units,)``: that of b_i.
        steps: 0-d: the number of steps.

    Returns:
        As `noise_imbalance`.
    """
    steps = steps.clamp_min(1.0)
    sides = ((incoming, incoming_squares), (outgoing, outgoing_squares))
    traces = [(squares - sums.square().sum(1) / steps).clamp_min(0.0) for sums, squares in sides]
    total = (traces[0] + traces[1]).sum()
    is_silent = total <= SILENT * (incoming_squares + outgoing_squares).sum()
    return torch.where(is_silent, 0.0, (traces[0] - traces[1]).abs().sum() / total)

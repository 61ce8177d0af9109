r"""What one step of an optimizer did to a matrix: dW = W' - W.

Features move by a fixed amount at every width when |dW|_2 / |W|_2 does not depend on the width, for hidden layers: the
spectral condition for feature learning. Yang, Simon, Bernstein, "A Spectral Condition for Feature Learning"
(arXiv:2310.17813).
"""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_symmetry.functional.precision import common_scale
from lightning_symmetry.functional.spectrum import spectral_norm, stable_rank


def update_ratio(before: Tensor, after: Tensor) -> Tensor:
    """How much a matrix was changed, relative to itself: |after - before|_2 / |before|_2, in spectral norms.

    Yang, Simon, Bernstein, "A Spectral Condition for Feature Learning" (arXiv:2310.17813).

    Args:
        before: ``(m, n)``, or ``(out, in, *kernel)``.
        after: Of the same shape.

    Returns:
        0-d, at least 0: 0 where nothing was changed, about 1e-3 for a usual step of training; inf for a change of the
        zero matrix; NaN if an entry is not finite.

    Raises:
        ValueError: If the shapes differ, or have fewer than two dimensions.

    Example:
        >>> update_ratio(torch.eye(3), 0.75 * torch.eye(3)).item()
        0.25
    """
    before, change = _in_one_unit(before, after)
    size = spectral_norm(change)
    ratio: Tensor = torch.where(size == 0, 0.0, size / spectral_norm(before))
    return ratio


def update_stable_rank(before: Tensor, after: Tensor) -> Tensor:
    """In how many directions a matrix was changed: the stable rank |dW|_F^2 / |dW|_2^2 of dW = after - before.

    A plain gradient is of low rank; Adam's and Muon's steps are not. Yang, Simon, Bernstein, "A Spectral Condition for
    Feature Learning" (arXiv:2310.17813).

    Args:
        before: ``(m, n)``, or ``(out, in, *kernel)``.
        after: Of the same shape.

    Returns:
        0-d, in [1, min(m, n)]: 1 if one direction dominates, min(m, n) if all are changed alike; 0 where nothing was
        changed; NaN if an entry is not finite.

    Raises:
        ValueError: If the shapes differ, or have fewer than two dimensions.

    Example:
        >>> update_stable_rank(torch.eye(3), 0.75 * torch.eye(3)).item()
        3.0
    """
    return stable_rank(_in_one_unit(before, after)[1])


def _in_one_unit(before: Tensor, after: Tensor) -> tuple[Tensor, Tensor]:
    """The matrix and its change, both over a power of two: the change of large entries may be beyond their range."""
    if before.shape != after.shape:
        raise ValueError(
            f"before and after must be one matrix at two times; got shapes {tuple(before.shape)}, {tuple(after.shape)}"
        )
    dtype = torch.promote_types(before.dtype, torch.float32)
    first, second = before.detach().to(dtype), after.detach().to(dtype)
    scale = common_scale(first, second)
    return first / scale, second / scale - first / scale

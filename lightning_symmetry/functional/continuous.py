"""Order parameters of continuous groups, and of signs: which units are dead, how many directions a product has.

At the symmetric state of a sign or a rescaling a unit is zero: nothing comes in, or nothing goes out. At that of a
rotation of the d directions between two maps the product of the maps loses rank. Both are read off what the group
leaves unchanged: the product of a unit's two norms, and the product of the two maps. Source: Ziyin, Xu, Poggio, Chuang,
"Parameter Symmetry Potentially Unifies Deep Learning Theory" (arXiv:2502.05300).
"""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_symmetry.functional.precision import for_measuring, in_own_units, row_scales
from lightning_symmetry.functional.products import scaled_core


def alive_units(incoming: Tensor, outgoing: Tensor | None = None, tolerance: float = 1e-2) -> Tensor:
    """How many units are alive: unit i is dead when sqrt(|a_i| |b_i|) <= tolerance x the root mean square over units.

    It compares units with each other, since no other scale is known: where all shrink together, as by weight decay, all
    are alive until all are zero; then look at the spectral norm of the map.

    Ziyin, Xu, Poggio, Chuang, "Parameter Symmetry Potentially Unifies Deep Learning Theory" (arXiv:2502.05300).

    Args:
        incoming: ``(n_units, dim)``: a_i, what a rescaling of the unit multiplies.
        outgoing: ``(n_units, dim)``: b_i, what it divides; None takes |a_i| alone, as for a sign.
        tolerance: In (0, 1).

    Returns:
        0-d, a whole number in [0, n_units]: 0 if all units are zero, n_units if none is dead; NaN if an entry is not
        finite.

    Raises:
        ValueError: If ``tolerance`` is outside (0, 1), or a tensor is not of shape ``(n_units, dim)``.

    Example:
        >>> alive_units(torch.tensor([[3.0], [0.0], [2.0]]), torch.tensor([[1.0], [5.0], [0.0]]))
        tensor(1., dtype=torch.float64)
    """
    living = living_units(incoming, outgoing, tolerance)
    finite = incoming.isfinite().all() & (outgoing.isfinite().all() if outgoing is not None else True)
    return torch.where(finite, living.sum().double(), torch.nan)


def living_units(incoming: Tensor, outgoing: Tensor | None = None, tolerance: float = 1e-2) -> Tensor:
    """Which units are alive: those that `alive_units` counts.

    Ziyin, Xu, Poggio, Chuang, "Parameter Symmetry Potentially Unifies Deep Learning Theory" (arXiv:2502.05300).

    Args:
        incoming: ``(n_units, dim)``, as for `alive_units`.
        outgoing: ``(n_units, dim)``, as for `alive_units`.
        tolerance: In (0, 1).

    Returns:
        ``(n_units,)`` of truth values.

    Raises:
        ValueError: As `alive_units`.

    Example:
        >>> living_units(torch.tensor([[3.0], [0.0]]))
        tensor([ True, False])
    """
    _check(tolerance, incoming, *([] if outgoing is None else [outgoing]))
    above, below = (_roots(side) for side in (incoming, incoming if outgoing is None else outgoing))
    strengths = in_own_units(above * below)
    living: Tensor = strengths > tolerance * strengths.square().mean().sqrt()
    return living


def product_rank(incoming: Tensor, outgoing: Tensor, tolerance: float = 1e-2) -> Tensor:
    """How many directions the product of two maps has: the singular values of A^T B above a tolerance.

    The product is never formed: its singular values are those of R_A R_B^T, the triangular factors of A^T and B^T.
    Ziyin, Xu, Poggio, Chuang, "Parameter Symmetry Potentially Unifies Deep Learning Theory" (arXiv:2502.05300).

    Args:
        incoming: ``(d, m)``: A, the map into the d directions between.
        outgoing: ``(d, p)``: B, the map out of them.
        tolerance: The smallest singular value that counts, relative to the largest, in (0, 1).

    Returns:
        0-d, a whole number in [0, d]: 0 for a zero product; NaN if an entry is not finite.

    Raises:
        ValueError: If ``tolerance`` is outside (0, 1), or a tensor is not of shape ``(d, ·)``.

    Example:
        >>> product_rank(torch.eye(3), torch.diag(torch.tensor([1.0, 0.5, 1e-4])))
        tensor(2., dtype=torch.float64)
    """
    _check(tolerance, incoming, outgoing)
    if not bool(incoming.isfinite().all() and outgoing.isfinite().all()):
        return torch.full((), torch.nan, dtype=torch.float64, device=incoming.device)
    values = torch.linalg.svdvals(scaled_core(incoming, outgoing)[0])
    rank: Tensor = (values > tolerance * values[:1]).sum().double()
    return rank


def _roots(units: Tensor) -> Tensor:
    """The square roots of the lengths of units, over a power of two that all share."""
    units = for_measuring(units, torch.float64)
    scales = row_scales(units)
    lengths = torch.linalg.vector_norm(units / scales, dim=1)
    return in_own_units(scales[:, 0].sqrt() * lengths.sqrt())


def _check(tolerance: float, *tensors: Tensor) -> None:
    if not 0 < tolerance < 1:
        raise ValueError(f"tolerance={tolerance!r} is no relative size: give a number above 0 and below 1")
    shapes = [tuple(tensor.shape) for tensor in tensors]
    if any(len(shape) != 2 for shape in shapes) or len({shape[0] for shape in shapes}) != 1:
        raise ValueError(
            f"tensors must be of shape (n, dim) with one n; got {shapes}. Move the axis of the units to the front"
        )

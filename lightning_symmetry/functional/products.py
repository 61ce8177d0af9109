r"""The spectrum of a product of two maps, which is never formed.

Of A (d x m), into d directions, and B (d x p), out of them, the product A^T B is m x p and of rank at most d. With the
triangular factors of A^T = Q_A R_A and B^T = Q_B R_B it is Q_A (R_A R_B^T) Q_B^T: its singular values other than 0 are
those of the d x d matrix R_A R_B^T. No rotation of the d directions between, ``M A`` and ``M^-T B``, changes them.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lightning_symmetry.functional.precision import common_scale, for_measuring, working_dtype
from lightning_symmetry.functional.spectrum import spectral_norm


def product_core(incoming: Tensor, outgoing: Tensor) -> Tensor:
    """A small matrix with the singular values of the product A^T B, to give to any indicator of a spectrum.

    Args:
        incoming: ``(d, m)``: A, the map into the d directions between.
        outgoing: ``(d, p)``: B, the map out of them.

    Returns:
        ``(min(d, m), min(d, p))``, R_A R_B^T, over a power of two where the product is beyond the range of its dtype,
        which changes no rank; all NaN if an entry is not finite.

    Raises:
        ValueError: If a tensor is not of shape ``(d, ·)``.

    Example:
        >>> from lightning_symmetry.functional import effective_rank
        >>> query, key = torch.eye(2, 5), torch.eye(2, 7)
        >>> round(effective_rank(product_core(query, key)).item(), 6)
        2.0
    """
    core, scales = scaled_core(incoming, outgoing)
    range_of = torch.finfo(core.dtype)
    product = for_measuring(core, torch.float64) * (scales[0] * scales[1])
    magnitude = torch.linalg.vector_norm(product, math.inf).item() if core.numel() else 0.0
    return product.to(core) if range_of.tiny / range_of.eps <= magnitude <= range_of.max else core


def scaled_core(incoming: Tensor, outgoing: Tensor) -> tuple[Tensor, tuple[float, float]]:
    """`product_core` of both maps over powers of two, and these: in range whatever the size of the maps.

    Args:
        incoming: ``(d, m)``.
        outgoing: ``(d, p)``.

    Returns:
        ``(min(d, m), min(d, p))``, and what to multiply by.

    Raises:
        ValueError: As `product_core`.
    """
    _check(incoming, outgoing)
    dtype = working_dtype(incoming, outgoing)
    sides = [for_measuring(tensor, dtype) for tensor in (incoming, outgoing)]
    if not all(bool(side.isfinite().all()) for side in sides):
        shape = (min(incoming.shape), min(outgoing.shape))
        return torch.full(shape, math.nan, dtype=dtype, device=sides[0].device), (1.0, 1.0)
    first, second = (common_scale(side) for side in sides)
    left, right = (
        torch.linalg.qr((side / scale).mT, mode="r").R for side, scale in zip(sides, (first, second), strict=True)
    )
    return left @ right.mT, (first, second)


def attention_logit_bound(query: Tensor, key: Tensor) -> Tensor:
    """How large the logits of an attention head can be: s_1(W_Q^T W_K) / sqrt(d).

    For inputs x and y of length one, |x^T W_Q^T W_K y| / sqrt(d) is at most this; after a norm that divides by the root
    mean square of n entries inputs are of length sqrt(n), and logits at most n times it. Attention whose logits grow
    without bound becomes one-hot, its entropy collapses, and training with it. Zhai et al., "Stabilizing Transformer
    Training by Preventing Attention Entropy Collapse" (arXiv:2303.06296).

    Args:
        query: ``(d, m)``: W_Q of one head; with a bias as a further column, for inputs with a further entry of 1.
        key: ``(d, p)``: W_K of the same head.

    Returns:
        0-d, at least 0: 0 where all positions are attended to alike; NaN if an entry is not finite.

    Raises:
        ValueError: If a tensor is not of shape ``(d, ·)``.

    Example:
        >>> attention_logit_bound(6 * torch.eye(4), torch.eye(4)).item()
        3.0
    """
    core, scales = scaled_core(query, key)
    bound: Tensor = spectral_norm(core) / math.sqrt(len(query)) * min(scales) * max(scales)
    return bound


def rotary_attention_logit_bound(query: Tensor, key: Tensor) -> Tensor:
    """How large the logits of an attention head can be whose queries and keys are turned by positions (RoPE).

    At every distance of positions another rotation R of the planes stands between, and |x^T W_Q^T R W_K y| / sqrt(d) is
    at most s_1(C W_Q) s_1(C^-1 W_K) / sqrt(d), C a factor for each plane: that at which the plane's parts of both maps
    have the same Frobenius norm, so that no factor that goes from one to the other changes the bound. Otherwise as
    `attention_logit_bound`, which it is at least. Zhai et al., "Stabilizing Transformer Training by Preventing
    Attention Entropy Collapse" (arXiv:2303.06296).

    Args:
        query: ``(d / 2, 2, m)``: W_Q of one head, its rows by plane.
        key: ``(d / 2, 2, p)``: W_K of the same head.

    Returns:
        0-d, at least 0: 0 where all positions are attended to alike; NaN if an entry is not finite.

    Raises:
        ValueError: If a tensor is not of shape ``(d / 2, 2, ·)``.

    Example:
        >>> planes = torch.eye(4).view(2, 2, 4)
        >>> round(rotary_attention_logit_bound(6 * planes, planes).item(), 6)
        3.0
    """
    shapes = [tuple(query.shape), tuple(key.shape)]
    if any(len(shape) != 3 or shape[1] != 2 for shape in shapes) or shapes[0][0] != shapes[1][0]:
        raise ValueError(f"query and key must be of shape (d / 2, 2, m) and (d / 2, 2, p), by plane; got {shapes}")
    sides = [side.detach().double() for side in (query, key)]
    scales = [common_scale(side) for side in sides]
    sides = [side / scale for side, scale in zip(sides, scales, strict=True)]
    norms = [torch.linalg.vector_norm(side, dim=(1, 2), keepdim=True) for side in sides]
    factors = torch.where(norms[0] * norms[1] == 0, 0.0, (norms[1] / norms[0]).sqrt())
    inverse = torch.where(factors == 0, 0.0, factors.reciprocal())
    left, right = (spectral_norm((side * by).flatten(0, 1)) for side, by in zip(sides, (factors, inverse), strict=True))
    bound: Tensor = left * right / math.sqrt(2 * len(query)) * min(scales) * max(scales)
    return bound


def _check(incoming: Tensor, outgoing: Tensor) -> None:
    shapes = [tuple(incoming.shape), tuple(outgoing.shape)]
    if any(len(shape) != 2 for shape in shapes) or shapes[0][0] != shapes[1][0]:
        raise ValueError(
            f"incoming and outgoing must be of shape (d, m) and (d, p), d the directions between; got {shapes}. Give "
            "W_Q and W_K as nn.Linear holds them, of one head; of two maps one after another the second transposed."
        )

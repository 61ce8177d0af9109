"""Singular values, by the cheapest exact way.

They come from the Gram matrix on the smaller side of W (m x n, m <= n), G = W W^T (m x m), s_i = sqrt(lambda_i(G)): one
product and the eigenvalues of the small matrix, several times faster than an SVD. Squaring costs half of the digits:
eigenvalues below m eps lambda_1 are noise. A matrix that has such values, as at rank collapse, is measured again in
float64, where the noise lies at s_i / s_1 = sqrt(m eps64), about 4e-7 for m = 768, below the rank tolerance of float32.
Float64 matrices go to the SVD itself, and so does what asks for the smallest singular value.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lightning_symmetry.functional.precision import binary_scale, for_measuring, working_dtype


def singular_values(matrix: Tensor) -> Tensor:
    r"""Singular values, the largest first.

    s_i = sqrt(lambda_i(W W^T)), by the Gram matrix on the smaller side, repeated in float64 where float32 cannot
    resolve the smallest ones; by the SVD for a float64 matrix.

    Args:
        matrix: ``(m, n)``, or ``(out, in, *kernel)``, which is flattened to ``(out, in * kernel)``.

    Returns:
        ``(min(m, n),)`` in float64, in the units of ``matrix``. Values too small to be told from 0 are 0: below
        sqrt(min(m, n) eps64) s_1, or max(m, n) eps64 s_1 for a float64 matrix. All NaN if the matrix has a NaN or Inf.

    Raises:
        ValueError: If ``matrix`` has fewer than two dimensions.

    Example:
        >>> singular_values(torch.diag(torch.tensor([3.0, 4.0]))).tolist()
        [4.0, 3.0]
    """
    values, scale = scaled_singular_values(matrix)
    return values * scale


def scaled_singular_values(matrix: Tensor, whole: bool = False) -> tuple[Tensor, float]:
    """Singular values over a power of two, and this: their product may be beyond the range of float64.

    Args:
        matrix: As for `singular_values`.
        whole: Whether to take the SVD in float64, whatever the dtype, and keep what is noise.

    Returns:
        ``(min(m, n),)`` in float64, and what to multiply by.

    Raises:
        ValueError: As `singular_values`.
    """
    wide = _as_wide_matrix(matrix)
    if wide.numel() == 0:
        return wide.new_zeros(len(wide), dtype=torch.float64), 1.0
    magnitude = torch.linalg.vector_norm(wide, math.inf).item()
    if magnitude == 0 or not math.isfinite(magnitude):
        return wide.new_full((len(wide),), 0.0 if magnitude == 0 else math.nan, dtype=torch.float64), 1.0
    scale = binary_scale(magnitude, wide.dtype)
    wide = wide / scale
    if wide.dtype == torch.float32 and not whole:
        return _by_gram(wide), scale
    # LAPACK is several times slower on a wide matrix than on its transpose.
    values: Tensor = torch.linalg.svdvals(wide.mT if wide.is_complex() else wide.mT.double())
    noise = 0.0 if whole else wide.shape[1] * torch.finfo(torch.float64).eps
    return _drop_below(values, noise * values[0]), scale


def _as_wide_matrix(matrix: Tensor) -> Tensor:
    """``matrix`` flattened to two dimensions, detached, in the dtype to work in, with the smaller side first."""
    if matrix.ndim < 2:
        raise ValueError(
            f"matrix must have at least 2 dimensions, got shape {tuple(matrix.shape)}: a vector or a scalar has no "
            "spectrum. Leave it out, or give it as a matrix of one row, matrix.reshape(1, -1)."
        )
    dtype = torch.complex128 if matrix.is_complex() else working_dtype(matrix)
    flat: Tensor = for_measuring(matrix.flatten(1), dtype)
    return flat if flat.shape[0] <= flat.shape[1] else flat.T


def _by_gram(wide: Tensor) -> Tensor:
    """Singular values of a float32 ``(n, k)``, n <= k, with entries of order 1, from its ``(n, n)`` Gram matrix."""
    eigenvalues: Tensor = torch.linalg.eigvalsh(wide @ wide.T)
    # The bound on the noise is n eps lambda_1; where n is small, 1e-4 keeps the smallest value right to 1 % too.
    bound = max(len(wide) * torch.finfo(torch.float32).eps, 1e-4) * eigenvalues[-1]
    if not bool((eigenvalues >= bound).all()):  # LAPACK may also return NaN: see `eigenvalues_of`
        wide = wide.double()
        eigenvalues = torch.linalg.eigvalsh(wide @ wide.T)
        eigenvalues = _drop_below(eigenvalues, len(wide) * torch.finfo(torch.float64).eps * eigenvalues[-1])
    return eigenvalues.double().flip(0).sqrt()


def eigenvalues_of(symmetric: Tensor) -> Tensor:
    """Eigenvalues of a finite symmetric matrix, the smallest first, none NaN.

    In float32 LAPACK's eigenvalues of a matrix with many zero rows, as of dead units, can be NaN (seen in MKL 2024.2):
    they are computed again in float64.

    Args:
        symmetric: ``(n, n)``.

    Returns:
        ``(n,)``, in the dtype of ``symmetric``.

    Example:
        >>> eigenvalues_of(torch.diag(torch.tensor([3.0, 1.0])))
        tensor([1., 3.])
    """
    values: Tensor = torch.linalg.eigvalsh(symmetric)
    return torch.linalg.eigvalsh(symmetric.double()).to(symmetric) if bool(values.isnan().any()) else values


def _drop_below(values: Tensor, resolution: Tensor) -> Tensor:
    return torch.where(values < resolution, 0.0, values)

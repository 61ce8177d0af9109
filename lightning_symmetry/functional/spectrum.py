"""Ranks and norms of a matrix, from its singular values.

For W (m x n) with singular values s_1 >= ... >= s_r, r = min(m, n), let w_i = s_i / s_1. Every indicator here is a
function of s_1 and w, written once, in the table ``_FORMULAS``; the public functions give each its name and meaning. A
convolution kernel is read as out x (in kh kw). How the s_i are found: `lightning_symmetry.functional.singular_values`.

All results are detached 0-d float64 tensors on the device of the matrix: a measurement carries no gradient. The zero
matrix and an empty one have rank 0 in every sense; a NaN or Inf in the matrix makes every result NaN.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_symmetry.functional.power_law import power_law_exponent
from lightning_symmetry.functional.precision import row_scales, working_dtype
from lightning_symmetry.functional.singular_values import scaled_singular_values


def perplexity(weights: Tensor) -> Tensor:
    """The effective number of equal weights: exp of the Shannon entropy of the normalised weights.

    exp(H(p)), p_i = weights_i / sum weights, H(p) = -sum p_i log p_i.

    Args:
        weights: ``(n,)``, none negative.

    Returns:
        0-d, in [1, n]: 1 for a single weight, n for n equal ones; 0 if all weights are 0 or there is none.

    Example:
        >>> perplexity(torch.tensor([1.0, 1.0, 0.0]))
        tensor(2.)
    """
    weights = weights.to(torch.promote_types(weights.dtype, torch.float32))
    weights = weights / row_scales(weights)
    total = weights.sum()
    shares = torch.where(weights == 0, 0.0, weights / total)
    return torch.where(total == 0, 0.0, torch.exp(-torch.xlogy(shares, shares).sum()))


RESOLVED = 1e-5
"""Above this s_i / s_1 a Gram matrix in float64, whose noise is at s_i^2 / s_1^2 = m eps, tells s_i to 4 digits."""


EPS = torch.finfo(torch.float64).eps


class _Spectrum(NamedTuple):
    """What every formula is a function of."""

    norm: Tensor
    """s_1, 0-d."""
    relative: Tensor
    """w_i = s_i / s_1, from 1 down; ``[0]`` in place of an empty spectrum, zeros for the zero matrix."""
    tolerance: float
    """The relative size below which a singular value does not count as rank."""
    matrix: Tensor
    """Of which this is the spectrum."""


def _spectrum(matrix: Tensor) -> _Spectrum:
    values, scale = scaled_singular_values(matrix)
    if values.numel() == 0:
        values = values.new_zeros(1)
    # Half precision would have so large an eps that nothing counts: weights are kept in float32 or come from it.
    eps = min(torch.finfo(matrix.dtype).eps, torch.finfo(torch.float32).eps)
    tolerance = max(matrix.shape[0], matrix.shape[1:].numel()) * eps
    return _Spectrum(scale * values[0], torch.where(values == 0, 0.0, values / values[0]), tolerance, matrix)


def _srank(spectrum: _Spectrum, delta: float = 0.01) -> Tensor:
    weights = spectrum.relative.cpu()  # cumsum on CUDA refuses to run under deterministic algorithms
    sums = weights.cumsum(0)
    return (sums - weights < (1 - delta) * sums[-1]).sum().to(spectrum.relative.device)


def _condition_number(spectrum: _Spectrum) -> Tensor:
    is_double = working_dtype(spectrum.matrix) == torch.float64
    if bool((spectrum.relative[-1] >= (EPS if is_double else RESOLVED)) | (spectrum.norm == 0)):
        return spectrum.relative[-1].reciprocal()
    values, _ = scaled_singular_values(spectrum.matrix, whole=True)
    noise = EPS if is_double else EPS * max(spectrum.matrix.shape[0], spectrum.matrix.shape[1:].numel())
    return torch.where(values[-1] > noise * values[0], values[0] / values[-1], math.inf)


_FORMULAS: dict[str, Callable[[_Spectrum], Tensor]] = {
    "effective_rank": lambda s: perplexity(s.relative),
    "stable_rank": lambda s: s.relative.square().sum(),
    "participation_ratio": lambda s: s.relative.square().sum() ** 2 / s.relative.pow(4).sum().clamp_min(1.0),
    "entropy_rank": lambda s: perplexity(s.relative.square()),
    "numerical_rank": lambda s: (s.relative > s.tolerance).sum(),
    "srank": _srank,
    "spectral_norm": lambda s: s.norm,
    "nuclear_norm": lambda s: s.norm * s.relative.sum(),
    "frobenius_norm": lambda s: s.norm * s.relative.square().sum().sqrt(),
    "condition_number": _condition_number,
    "alpha": lambda s: power_law_exponent(s.relative.square()),
}

SPECTRAL_INDICATORS: tuple[str, ...] = tuple(_FORMULAS)
"""The names that `spectral_indicators` knows."""


def _apply(formula: Callable[[_Spectrum], Tensor], spectrum: _Spectrum) -> Tensor:
    """The value of ``formula`` as a 0-d float64 tensor; NaN for a matrix that is not finite (counts would give 0)."""
    return torch.where(spectrum.norm.isnan(), spectrum.norm, formula(spectrum).double())


def spectral_indicators(matrix: Tensor, names: Iterable[str] = SPECTRAL_INDICATORS) -> dict[str, Tensor]:
    """Several indicators of one matrix, from one decomposition.

    Args:
        matrix: ``(m, n)``, or ``(out, in, *kernel)``.
        names: Which ones, out of `SPECTRAL_INDICATORS`; all of them by default.

    Returns:
        Each name with its 0-d float64 value, in the order of ``names``.

    Raises:
        ValueError: If a name is unknown, or ``matrix`` has fewer than two dimensions.

    Example:
        >>> {name: value.item() for name, value in spectral_indicators(torch.eye(4), ["stable_rank", "srank"]).items()}
        {'stable_rank': 4.0, 'srank': 4.0}
    """
    names = tuple(names)
    if unknown := sorted(set(names) - set(_FORMULAS)):
        raise ValueError(f"names must be out of {', '.join(SPECTRAL_INDICATORS)}; got {', '.join(map(repr, unknown))}.")
    spectrum = _spectrum(matrix)
    return {name: _apply(_FORMULAS[name], spectrum) for name in names}


def effective_rank(matrix: Tensor) -> Tensor:
    """Effective rank: exp(H(p)), p_i = s_i / sum s, H the Shannon entropy.

    A smooth count of the directions that a matrix uses. Roy and Vetterli, "The effective rank" (EUSIPCO 2007).

    Args:
        matrix: ``(m, n)``, or ``(out, in, *kernel)``.

    Returns:
        0-d, in [1, min(m, n)]: 1 for a matrix of rank one, min(m, n) for an orthogonal one; 0 for the zero matrix.

    Raises:
        ValueError: If ``matrix`` has fewer than two dimensions.

    Example:
        >>> round(effective_rank(torch.eye(3)).item(), 6)
        3.0
    """
    return _apply(_FORMULAS["effective_rank"], _spectrum(matrix))


def stable_rank(matrix: Tensor) -> Tensor:
    """Stable rank: sum s^2 / s_1^2 = |W|_F^2 / |W|_2^2.

    Insensitive to small singular values. Rudelson and Vershynin, "Sampling from large matrices" (arXiv:math/0503442).

    Args:
        matrix: ``(m, n)``, or ``(out, in, *kernel)``.

    Returns:
        0-d, in [1, rank]: 1 if one direction dominates, the rank if all are equal; 0 for the zero matrix.

    Raises:
        ValueError: If ``matrix`` has fewer than two dimensions.

    Example:
        >>> stable_rank(torch.diag(torch.tensor([2.0, 1.0]))).item()
        1.25
    """
    return _apply(_FORMULAS["stable_rank"], _spectrum(matrix))


def participation_ratio(matrix: Tensor) -> Tensor:
    """Participation ratio of the squared singular values: (sum s^2)^2 / sum s^4.

    The inverse of the probability that two draws from s^2 / sum s^2 coincide: Rényi's counterpart of `entropy_rank`.
    Del Giudice, "Effective Dimensionality: A Tutorial" (doi:10.1080/00273171.2020.1743631).

    Args:
        matrix: ``(m, n)``, or ``(out, in, *kernel)``.

    Returns:
        0-d, in [1, rank]: 1 if one direction dominates, the rank if all are equal; 0 for the zero matrix.

    Raises:
        ValueError: If ``matrix`` has fewer than two dimensions.

    Example:
        >>> participation_ratio(torch.eye(3)).item()
        3.0
    """
    return _apply(_FORMULAS["participation_ratio"], _spectrum(matrix))


def entropy_rank(matrix: Tensor) -> Tensor:
    """Exponential of the von Neumann entropy: exp(H(q)), q_i = s_i^2 / sum s^2.

    As `effective_rank`, but of the energy s^2 rather than the amplitude s: never larger. Del Giudice, "Effective
    Dimensionality: A Tutorial" (doi:10.1080/00273171.2020.1743631).

    Args:
        matrix: ``(m, n)``, or ``(out, in, *kernel)``.

    Returns:
        0-d, in [1, min(m, n)]: 1 for a matrix of rank one, min(m, n) for an orthogonal one; 0 for the zero matrix.

    Raises:
        ValueError: If ``matrix`` has fewer than two dimensions.

    Example:
        >>> round(entropy_rank(torch.eye(3)).item(), 6)
        3.0
    """
    return _apply(_FORMULAS["entropy_rank"], _spectrum(matrix))


def numerical_rank(matrix: Tensor) -> Tensor:
    """Numerical rank: the number of s_i > max(m, n) eps s_1.

    The tolerance of ``numpy.linalg.matrix_rank``, eps being that of the dtype of ``matrix`` (of float32 for half
    precision, whose own eps would leave no rank at all). Golub and Van Loan, "Matrix Computations" (4th edition, 2013).

    Args:
        matrix: ``(m, n)``, or ``(out, in, *kernel)``.

    Returns:
        0-d, a whole number in [0, min(m, n)]: 0 for the zero matrix only.

    Raises:
        ValueError: If ``matrix`` has fewer than two dimensions.

    Example:
        >>> numerical_rank(torch.ones(3, 5)).item()
        1.0
    """
    return _apply(_FORMULAS["numerical_rank"], _spectrum(matrix))


def srank(matrix: Tensor, delta: float = 0.01) -> Tensor:
    """Kumar's effective rank: the least k with sum_{i<=k} s_i >= (1 - delta) sum s.

    How many directions carry all but a share ``delta`` of the spectrum. Kumar et al., "Implicit Under-Parameterization
    Inhibits Data-Efficient Deep Reinforcement Learning" (arXiv:2010.14498).

    Args:
        matrix: ``(m, n)``, or ``(out, in, *kernel)``.
        delta: The share that may be missing, in [0, 1).

    Returns:
        0-d, a whole number in [0, min(m, n)]: 0 for the zero matrix only.

    Raises:
        ValueError: If ``delta`` is outside [0, 1), or ``matrix`` has fewer than two dimensions.

    Example:
        >>> srank(torch.diag(torch.tensor([1.0, 1.0, 0.001]))).item()
        2.0
    """
    if not 0 <= delta < 1:
        raise ValueError(
            f"delta must be in [0, 1), got {delta}: it is the share of the spectrum left out, such as 0.01."
        )
    return _apply(partial(_srank, delta=delta), _spectrum(matrix))


def spectral_norm(matrix: Tensor) -> Tensor:
    """Spectral norm: s_1, the largest factor by which the matrix stretches a vector.

    Golub and Van Loan, "Matrix Computations" (4th edition, 2013).

    Args:
        matrix: ``(m, n)``, or ``(out, in, *kernel)``.

    Returns:
        0-d, at least 0, in the units of ``matrix``: 0 for a matrix of zeros.

    Raises:
        ValueError: If ``matrix`` has fewer than two dimensions.

    Example:
        >>> spectral_norm(torch.diag(torch.tensor([3.0, 4.0]))).item()
        4.0
    """
    return _apply(_FORMULAS["spectral_norm"], _spectrum(matrix))


def nuclear_norm(matrix: Tensor) -> Tensor:
    """Nuclear norm: sum s, the convex envelope of the rank on the unit ball of the spectral norm.

    Recht, Fazel, Parrilo, "Guaranteed Minimum-Rank Solutions" (arXiv:0706.4138).

    Args:
        matrix: ``(m, n)``, or ``(out, in, *kernel)``.

    Returns:
        0-d, at least 0, in the units of ``matrix``: 0 for a matrix of zeros.

    Raises:
        ValueError: If ``matrix`` has fewer than two dimensions.

    Example:
        >>> nuclear_norm(torch.diag(torch.tensor([3.0, 4.0]))).item()
        7.0
    """
    return _apply(_FORMULAS["nuclear_norm"], _spectrum(matrix))


def frobenius_norm(matrix: Tensor) -> Tensor:
    """Frobenius norm: sqrt(sum s^2), the root of the sum of squared entries.

    Golub and Van Loan, "Matrix Computations" (4th edition, 2013).

    Args:
        matrix: ``(m, n)``, or ``(out, in, *kernel)``.

    Returns:
        0-d, at least 0, in the units of ``matrix``: 0 for a matrix of zeros.

    Raises:
        ValueError: If ``matrix`` has fewer than two dimensions.

    Example:
        >>> frobenius_norm(torch.diag(torch.tensor([3.0, 4.0]))).item()
        5.0
    """
    return _apply(_FORMULAS["frobenius_norm"], _spectrum(matrix))


def condition_number(matrix: Tensor) -> Tensor:
    """Condition number: s_1 / s_r, r = min(m, n).

    Golub and Van Loan, "Matrix Computations" (4th edition, 2013).

    Args:
        matrix: ``(m, n)``, or ``(out, in, *kernel)``.

    Returns:
        0-d, in [1, inf]: 1 for an orthogonal matrix, inf for a singular one, the zero matrix and an empty one included.
        By the SVD in float64 where the Gram matrix cannot tell; singular is a matrix with s_r <= max(m, n) eps64 s_1,
        one of float64 with s_r <= eps64 s_1, which rounding can hide.

    Raises:
        ValueError: If ``matrix`` has fewer than two dimensions.

    Example:
        >>> condition_number(torch.ones(2, 2)).item()
        inf
    """
    return _apply(_FORMULAS["condition_number"], _spectrum(matrix))


def alpha(matrix: Tensor) -> Tensor:
    """Exponent of the power law p(x) ~ x^-alpha that the largest eigenvalues x_i = s_i^2 of W W^T follow.

    alpha = 1 + m / sum_i log(x_i / x_min) over the m eigenvalues x_i >= x_min, x_min where the distance of Kolmogorov
    and Smirnov between the tail and its law is least (Clauset, Shalizi, Newman, arXiv:0706.1062); the factor of the
    matrix does not matter. It tells how heavy the tail is: mostly 2 to 6 in the layers of trained networks, lower where
    they have learned more; below 2 a few directions dominate; above 6 there is no tail to speak of, as at a random
    initialisation. It is noisy: below some 100 eigenvalues, do not trust the first digit. As in WeightWatcher, but for
    convolutions, which that takes apart into one matrix for each position of the kernel. Martin and Mahoney, "Implicit
    Self-Regularization in Deep Neural Networks" (arXiv:1810.01075).

    Args:
        matrix: ``(m, n)``, or ``(out, in, *kernel)``.

    Returns:
        0-d, in (1, inf]: towards 1 the heavier the tail, inf where there is none: all nonzero singular values are
        equal, as in an orthogonal matrix or one of rank one, or there is none.

    Raises:
        ValueError: If ``matrix`` has fewer than two dimensions.

    Example:
        >>> quantiles = 1 - (torch.arange(200) + 0.5) / 200
        >>> round(alpha(torch.diag(quantiles ** (-0.5 / 1.5))).item(), 2)  # s^2 of the law with the exponent 2.5
        2.51
    """
    return _apply(_FORMULAS["alpha"], _spectrum(matrix))

"""Indicators of a spectrum from the full SVD in float64, one loop or formula each."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.integrate import quad

Array = NDArray[np.float64]


def singular_values(matrix: Array) -> Array:
    return np.linalg.svd(matrix.reshape(len(matrix), -1), compute_uv=False)


def exp_entropy(weights: Array) -> float:
    p = weights[weights > 0] / weights.sum()
    return float(np.exp(-np.sum(p * np.log(p))))


def srank(s: Array, delta: float) -> int:
    for k in range(1, len(s) + 1):
        if s[:k].sum() >= (1 - delta) * s.sum():
            return k
    raise AssertionError("the whole sum is always enough")


def power_law_exponent(sample: Array) -> float:
    """The procedure of Clauset, Shalizi and Newman, as in the code that they publish: one attempt after another."""
    x = np.sort(sample[sample > 0])
    best, exponent = np.inf, np.inf
    for minimum in np.unique(x)[:-1]:
        tail = x[x >= minimum]
        alpha = 1 + len(tail) / np.sum(np.log(tail / minimum))
        distance = np.max(np.abs(1 - (tail / minimum) ** (1 - alpha) - np.arange(len(tail)) / len(tail)))
        if distance < best:
            best, exponent = distance, alpha
    return float(exponent)


def indicators(matrix: Array, eps: float) -> dict[str, float]:
    """All indicators of a nonzero matrix; ``eps`` is that of the dtype it is stored in."""
    s = singular_values(matrix)
    return {
        "effective_rank": exp_entropy(s),
        "stable_rank": float(np.sum(s**2) / s[0] ** 2),
        "participation_ratio": float(np.sum(s**2) ** 2 / np.sum(s**4)),
        "entropy_rank": exp_entropy(s**2),
        "numerical_rank": float(
            np.linalg.matrix_rank(matrix.reshape(len(matrix), -1), rtol=rank_tolerance(matrix, eps))
        ),
        "srank": float(srank(s, 0.01)),
        "spectral_norm": float(s[0]),
        "nuclear_norm": float(np.sum(s)),
        "frobenius_norm": float(np.sqrt(np.sum(matrix**2))),
        "condition_number": float(s[0] / s[-1]),
        "alpha": power_law_exponent(s**2),
    }


def rank_tolerance(matrix: Array, eps: float) -> float:
    return max(len(matrix), matrix[0].size) * eps


def marchenko_pastur_effective_rank(aspect: float) -> float:
    """The limit of effective_rank / n of an n x (n / aspect) Gaussian matrix, aspect <= 1.

    The squared singular values over the longer side have the density sqrt((b - x)(x - a)) / (2 pi aspect x) on [a, b],
    a, b = (1 -+ sqrt(aspect))^2. With s = sqrt(x) and mean E s, H(p) - log n tends to -E[(s / E s) log(s / E s)].
    """
    low, high = (1 - np.sqrt(aspect)) ** 2, (1 + np.sqrt(aspect)) ** 2

    def mean(f):  # type: ignore[no-untyped-def]
        def integrand(x: float) -> float:
            return f(np.sqrt(x)) * np.sqrt((high - x) * (x - low)) / (2 * np.pi * aspect * x)

        return quad(integrand, low, high, limit=200)[0]

    mean_value = mean(lambda s: s)
    return float(np.exp(-mean(lambda s: s / mean_value * np.log(s / mean_value))))

"""How many directions a cloud of features fills, from sums over its samples.

For features Z (N x d) let M = Z^T Z / N be the second moment, m the mean, and C = M - m m^T the covariance, with
eigenvalues lambda_1 >= ... >= lambda_d. The sums N, sum z and sum z z^T tell both matrices, whatever N: they add up
over batches and over processes, and take d^2 numbers. Every indicator here is a function of the eigenvalues of one of
the two, written once, in the table ``_FORMULAS``, and none depends on the units of the features.

The singular values of Z are sqrt(N lambda_i(M)). Sums are kept in float64: the eigenvalues have an error of about d eps
times the largest one (for C, times that and |m|^2), below which they count as 0. All results are detached 0-d float64
tensors. Features that are all zero, and none at all, have rank 0 in every sense; features that are all the same have no
covariance, and so rank 0 in every sense but that of `effective_rank`, which does not take the mean away. A NaN or an
infinity in the features makes every result NaN.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_symmetry.functional.precision import for_measuring, in_own_units
from lightning_symmetry.functional.spectrum import perplexity


class Moments(NamedTuple):
    """Sums over samples, which add up over batches and over processes."""

    samples: Tensor
    """N, 0-d."""
    total: Tensor
    """sum z, ``(d,)``."""
    outer: Tensor
    """sum z z^T, ``(d, d)``."""


def moments(features: Tensor, mask: Tensor | None = None) -> Moments:
    """The sums over samples from which `feature_indicators` are computed.

    Args:
        features: ``(n_samples, dim)``.
        mask: ``(n_samples,)``, False for samples to leave out, such as padding; None for all.

    Returns:
        The sums in float64, which holds squares of features within 1e-150 and 1e150. Add them up, field by field, over
        batches.

    Raises:
        ValueError: If ``features`` has not two dimensions.

    Example:
        >>> moments(torch.tensor([[1.0, 2.0], [3.0, 4.0]])).total
        tensor([4., 6.], dtype=torch.float64)
    """
    rows = as_samples(features)
    if mask is None:
        return Moments(rows.new_tensor(len(rows)), rows.sum(0), rows.T @ rows)
    kept = mask.to(rows.device, torch.bool)
    rows = torch.where(kept[:, None], rows, 0.0)
    return Moments(kept.sum().double(), rows.sum(0), rows.T @ rows)


def as_samples(features: Tensor, name: str = "features") -> Tensor:
    """Features without their graph in float64.

    Args:
        features: ``(n_samples, dim)``.
        name: What an error calls them.

    Raises:
        ValueError: If ``features`` has not two dimensions.
    """
    if features.ndim != 2:
        raise ValueError(
            f"{name} must be (n_samples, dim), got shape {tuple(features.shape)}: flatten tokens and positions to "
            f"samples, as {name}.flatten(0, -2), or take their mean."
        )
    return for_measuring(features, torch.float64)


class _Spectra:
    """What every formula is a function of: relative eigenvalues, computed when they are asked for."""

    def __init__(self, moments: Moments) -> None:
        count = moments.samples.clamp_min(1.0)
        self._mean, self._second_moment = moments.total / count, moments.outer / count

    @cached_property
    def second_moment(self) -> Tensor:
        """The eigenvalues of M over the largest one, from 1 down; zeros where all are zero."""
        return _relative_eigenvalues(self._second_moment, self._mean.new_zeros(()))

    @cached_property
    def covariance(self) -> Tensor:
        """Likewise of C."""
        covariance = self._second_moment - torch.outer(self._mean, self._mean)
        return _relative_eigenvalues(covariance, self._mean.square().sum())


def _relative_eigenvalues(matrix: Tensor, subtracted: Tensor) -> Tensor:
    """Eigenvalues over the largest one, from 1 down, without what is noise, after something so large was subtracted."""
    eigenvalues: Tensor = torch.linalg.eigvalsh(matrix).flip(0)
    largest = eigenvalues[:1]
    resolution = len(matrix) * torch.finfo(matrix.dtype).eps * (largest + subtracted)
    return torch.where(eigenvalues <= resolution, 0.0, eigenvalues / largest)


def _participation_ratio(relative: Tensor) -> Tensor:
    return relative.sum() ** 2 / relative.square().sum().clamp_min(1.0)


def _isotropy(relative: Tensor) -> Tensor:
    if len(relative) < 2:
        return relative.sum()
    return ((_participation_ratio(relative) - 1) / (len(relative) - 1)).clamp_min(0.0)


def _alpha_req(relative: Tensor) -> Tensor:
    kept = relative > 0
    index = torch.arange(1, len(relative) + 1, dtype=relative.dtype, device=relative.device)
    weights = torch.where(kept, 1 / index, 0.0)
    weights = weights / weights.sum().clamp_min(1.0)  # the first is 1, or all are 0
    x, y = index.log(), torch.where(kept, relative, 1.0).log()
    x = x - (weights * x).sum()
    variance = (weights * x.square()).sum()
    return torch.where(kept.sum() < 2, 0.0, -(weights * x * y).sum() / torch.where(kept.sum() < 2, 1.0, variance))


_FORMULAS: dict[str, Callable[[_Spectra], Tensor]] = {
    "effective_rank": lambda s: perplexity(s.second_moment.sqrt()),
    "participation_ratio": lambda s: _participation_ratio(s.covariance),
    "stable_rank": lambda s: s.covariance.square().sum(),
    "isotropy": lambda s: _isotropy(s.covariance),
    "alpha_req": lambda s: _alpha_req(s.covariance),
    "nesum": lambda s: s.covariance.sum(),
}

FEATURE_INDICATORS: tuple[str, ...] = tuple(_FORMULAS)
"""The names that `feature_indicators` knows."""


def feature_indicators(moments: Moments, names: Iterable[str] = FEATURE_INDICATORS) -> dict[str, Tensor]:
    """Several indicators of one cloud of features, from its sums.

    Args:
        moments: Sums over samples, as from `moments`.
        names: Which ones, out of `FEATURE_INDICATORS`: ``"effective_rank"`` (of the features), and of their covariance
            ``"participation_ratio"``, ``"stable_rank"``, ``"isotropy"``, ``"alpha_req"`` and ``"nesum"``; all of them
            by default.

    Returns:
        Each name with its 0-d float64 value, in the order of ``names``.

    Raises:
        ValueError: If a name is unknown.

    Example:
        >>> features = torch.cat([torch.eye(3), -torch.eye(3)])
        >>> values = feature_indicators(moments(features), ["effective_rank", "nesum"])
        >>> {name: round(value.item(), 6) for name, value in values.items()}
        {'effective_rank': 3.0, 'nesum': 3.0}
    """
    names = tuple(names)
    if unknown := sorted(set(names) - set(_FORMULAS)):
        raise ValueError(f"names must be out of {', '.join(FEATURE_INDICATORS)}; got {', '.join(map(repr, unknown))}.")
    if moments.total.numel() == 0 or not bool(moments.outer.isfinite().all()):
        value = 0.0 if moments.total.numel() == 0 else math.nan
        return {name: moments.samples.new_tensor(value) for name in names}
    spectra = _Spectra(moments)
    return {name: _FORMULAS[name](spectra) for name in names}


def _of_features(name: str, features: Tensor) -> Tensor:
    return feature_indicators(moments(in_own_units(as_samples(features))), [name])[name]


def covariance_participation_ratio(features: Tensor) -> Tensor:
    """Participation ratio of the covariance: (sum lambda)^2 / sum lambda^2 = (tr C)^2 / tr C^2.

    The number of directions over which the variance is spread. Gao et al., "A theory of multineuronal dimensionality,
    dynamics and measurement" (doi:10.1101/214262).

    Args:
        features: ``(n_samples, dim)``.

    Returns:
        0-d, in [1, dim]: 1 if all variance lies in one direction, dim if it is the same in all; 0 without variance.

    Raises:
        ValueError: If ``features`` has not two dimensions.

    Example:
        >>> round(covariance_participation_ratio(torch.cat([torch.eye(3), -torch.eye(3)])).item(), 6)
        3.0
    """
    return _of_features("participation_ratio", features)


def covariance_stable_rank(features: Tensor) -> Tensor:
    """Stable rank of the covariance: sum lambda^2 / lambda_1^2 = |C|_F^2 / |C|_2^2.

    Less sensitive to weak directions than `nesum`, which is the stable rank of the centred features themselves.
    Rudelson and Vershynin, "Sampling from large matrices" (arXiv:math/0503442).

    Args:
        features: ``(n_samples, dim)``.

    Returns:
        0-d, in [1, dim]: 1 if one direction dominates, dim if the variance is the same in all; 0 without variance.

    Raises:
        ValueError: If ``features`` has not two dimensions.

    Example:
        >>> round(covariance_stable_rank(torch.cat([torch.eye(3), -torch.eye(3)])).item(), 6)
        3.0
    """
    return _of_features("stable_rank", features)


def isotropy(features: Tensor) -> Tensor:
    """Isotropy (IsoScore): (P - 1) / (dim - 1), P the participation ratio of the covariance.

    The share of directions that the variance uses beyond the one that it must. Rudman, Gillman, Rayne, Eickhoff,
    "IsoScore: Measuring the Uniformity of Embedding Space Utilization" (arXiv:2108.07344), whose algorithm comes down
    to this formula.

    Args:
        features: ``(n_samples, dim)``.

    Returns:
        0-d, in [0, 1]: 0 if all variance lies in one direction or there is none, 1 if it is the same in all (also for
        dim 1).

    Raises:
        ValueError: If ``features`` has not two dimensions.

    Example:
        >>> isotropy(torch.tensor([[1.0, 1.0], [2.0, 2.0], [3.0, 3.0]])).item()
        0.0
    """
    return _of_features("isotropy", features)


def alpha_req(features: Tensor) -> Tensor:
    """Decay of the spectrum (alpha-ReQ): alpha of lambda_i ~ i^-alpha.

    Minus the slope of log lambda_i over log i, by least squares over all lambda_i > 0 with weights 1 / i, with which
    every octave of i counts alike (those of the authors' code). Agrawal, Mondal, Ghosh, Richards, "alpha-ReQ: Assessing
    Representation Quality in Self-Supervised Learning by measuring eigenspectrum decay" (NeurIPS 2022).

    Args:
        features: ``(n_samples, dim)``.

    Returns:
        0-d, at least 0: 0 if the variance is the same in all directions, large if few directions hold it; good
        representations were found near 1. 0 also where fewer than two eigenvalues are left to fit.

    Raises:
        ValueError: If ``features`` has not two dimensions.

    Example:
        >>> scales = torch.arange(1, 5) ** -1.0  # variances i^-2
        >>> round(alpha_req(torch.cat([torch.diag(scales), -torch.diag(scales)])).item(), 6)
        2.0
    """
    return _of_features("alpha_req", features)


def nesum(features: Tensor) -> Tensor:
    """Normalised sum of eigenvalues (NESum): sum lambda / lambda_1.

    The stable rank of the centred features. He and Ozay, "Exploring the Gap between Collapsed and Whitened Features in
    Self-Supervised Learning" (ICML 2022).

    Args:
        features: ``(n_samples, dim)``.

    Returns:
        0-d, in [1, dim]: 1 if all variance lies in one direction, dim if it is the same in all; 0 without variance.

    Raises:
        ValueError: If ``features`` has not two dimensions.

    Example:
        >>> round(nesum(torch.cat([torch.eye(3), -torch.eye(3)])).item(), 6)
        3.0
    """
    return _of_features("nesum", features)

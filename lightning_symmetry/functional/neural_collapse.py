"""Neural collapse: how last-layer features gather at the corners of a simplex (Papyan, Han, Donoho).

For features h_i (N x d) with labels in C classes let mu_c be the mean of class c, mu_G the mean of the class means,
m_c = mu_c - mu_G, S_W = sum_i (h_i - mu_c(i)) (h_i - mu_c(i))^T / N and S_B = sum_c m_c m_c^T / C. At the end of
training: the variability within classes vanishes (NC1), the m_c become equally long and as far apart as can be (NC2),
the classifier becomes the class means (NC3), and so decides for the nearest one (NC4).

The sums n_c, sum_{i in c} h_i and sum_i h_i h_i^T tell NC1 to NC3, whatever N: they add up over batches and over
processes. NC4 needs the features once more, when the means are known.

Conventions, those of the authors' code where it has any: mu_G is the mean of the class means; S_B^+ is the
pseudo-inverse on the C - 1 directions that S_B can have; standard deviations over classes divide by C - 1. Classes
without a sample are left out of C. All results are detached 0-d float64 tensors, finite for finite features: 0 where
there are fewer than two classes to compare, but for `nc4`. A NaN or an infinity makes every result NaN.

Source: Papyan, Han, Donoho, "Prevalence of Neural Collapse during the terminal phase of deep learning training"
(arXiv:2008.08186).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_symmetry.functional.feature_spectrum import as_samples
from lightning_symmetry.functional.precision import for_measuring, in_own_units


class ClassMoments(NamedTuple):
    """Sums over samples, which add up over batches and over processes."""

    counts: Tensor
    """n_c, ``(n_classes,)``."""
    totals: Tensor
    """The sum of the features of each class, ``(n_classes, d)``."""
    outer: Tensor
    """sum h h^T over all samples of a class, ``(d, d)``."""


def class_moments(features: Tensor, labels: Tensor, num_classes: int) -> ClassMoments:
    """The sums over samples from which `nc1`, `nc2_equinorm`, `nc2_equiangularity` and `nc3` are computed.

    Args:
        features: ``(n_samples, dim)``.
        labels: ``(n_samples,)``, whole numbers in [0, num_classes); samples with another label are left out.
        num_classes: The number of classes.

    Returns:
        The sums in float64. Add them up, field by field, over batches.

    Raises:
        ValueError: If ``features`` has not two dimensions, or ``labels`` has not one label for each sample.

    Example:
        >>> class_moments(torch.eye(3), torch.tensor([0, 1, 1]), num_classes=2).counts
        tensor([1., 2.], dtype=torch.float64)
    """
    rows = as_samples(features)
    if labels.shape != rows.shape[:1]:
        raise ValueError(
            f"labels must be (n_samples,), one for each of the {len(rows)} samples of features; got shape "
            f"{tuple(labels.shape)}. Labels that are probabilities are given as labels.argmax(-1)."
        )
    width = rows.shape[1]
    shapes = ((num_classes,), (num_classes, width), (width, width))
    sums = ClassMoments(*(rows.new_zeros(shape) for shape in shapes))
    add_class_moments(sums, rows, labels)
    return sums


def add_class_moments(sums: ClassMoments, rows: Tensor, labels: Tensor) -> None:
    """Add those of more samples, in place: of wide features the sums are large.

    Args:
        sums: The sums until now.
        rows: ``(n_samples, dim)``, in float64.
        labels: ``(n_samples,)``, as for `class_moments`.

    Example:
        >>> sums = class_moments(torch.eye(3), torch.tensor([0, 1, 1]), num_classes=2)
        >>> add_class_moments(sums, torch.eye(3).double(), torch.tensor([0, 0, 7]))
        >>> sums.counts
        tensor([3., 2.], dtype=torch.float64)
    """
    classes = torch.arange(len(sums.counts), device=rows.device)
    one_hot = labels.to(rows.device)[:, None] == classes  # no scatter: it is not deterministic on CUDA
    rows = torch.where(one_hot.any(1, keepdim=True), rows, 0.0)
    indicator = one_hot.double()
    sums.counts.add_(indicator.sum(0))
    sums.totals.addmm_(indicator.T, rows)
    sums.outer.addmm_(rows.T, rows)


def class_means(moments: ClassMoments) -> Tensor:
    """The means of those classes that have samples, less the mean of these means: ``(n_present, dim)``."""
    present = moments.counts > 0
    means = moments.totals[present] / moments.counts[present, None]
    return means - means.mean(0) if len(means) else means


def nc1_of(moments: ClassMoments) -> Tensor:
    """`nc1` from sums over samples.

    Args:
        moments: Sums, as from `class_moments`.

    Returns:
        As for `nc1`.

    Example:
        >>> nc1_of(class_moments(torch.eye(2), torch.tensor([0, 1]), num_classes=2)).item()
        0.0
    """
    means = class_means(moments)
    if not bool(moments.outer.isfinite().all()):
        return means.new_tensor(math.nan)
    if len(means) < 2 or means.shape[1] == 0:
        return means.new_zeros(())
    present = moments.counts > 0
    totals, counts = moments.totals[present], moments.counts[present, None]
    within = (moments.outer - totals.T @ (totals / counts)) / counts.sum()
    # S_B = A^T A / C with A the means: its eigenvectors are the right singular vectors of A.
    _, lengths, directions = torch.linalg.svd(means, full_matrices=False)
    directions, lengths = directions[: len(means) - 1], lengths[: len(means) - 1]
    scale = torch.linalg.matrix_norm(totals / counts)
    kept = lengths > max(means.shape) * torch.finfo(means.dtype).eps * scale
    variances = ((directions @ within) * directions).sum(1).clamp_min(0.0)
    inverse = torch.where(kept, lengths, 1.0).square().reciprocal()
    # tr(S_W S_B^+) / C: the C of S_B and that of the definition cancel.
    return torch.where(kept, variances * inverse, 0.0).sum()


def nc2_equinorm_of(moments: ClassMoments) -> Tensor:
    """`nc2_equinorm` from sums over samples.

    Args:
        moments: Sums, as from `class_moments`.

    Returns:
        As for `nc2_equinorm`.

    Example:
        >>> moments = class_moments(torch.eye(3), torch.tensor([0, 1, 2]), num_classes=3)
        >>> round(nc2_equinorm_of(moments).item(), 12)
        0.0
    """
    return _variation(torch.linalg.vector_norm(class_means(moments), dim=1))


def nc2_equiangularity_of(moments: ClassMoments) -> Tensor:
    """`nc2_equiangularity` from sums over samples.

    Args:
        moments: Sums, as from `class_moments`.

    Returns:
        As for `nc2_equiangularity`.

    Example:
        >>> moments = class_moments(torch.eye(3), torch.tensor([0, 1, 2]), num_classes=3)
        >>> round(nc2_equiangularity_of(moments).item(), 12)
        0.0
    """
    means = class_means(moments)
    n = len(means)
    if n < 2:
        return means.new_zeros(())
    unit = _unit_rows(means)
    deviation = (unit @ unit.T + 1 / (n - 1)).abs()
    return (deviation.sum() - deviation.diagonal().sum()) / (n * (n - 1))


def nc3_of(moments: ClassMoments, weight: Tensor) -> Tensor:
    """`nc3` from sums over samples.

    Args:
        moments: Sums, as from `class_moments`.
        weight: ``(n_classes, dim)``, the classifier's.

    Returns:
        As for `nc3`.

    Raises:
        ValueError: If ``weight`` has not the shape of the sums of the classes.

    Example:
        >>> moments = class_moments(torch.tensor([[1.0], [-1.0]]), torch.tensor([0, 1]), num_classes=2)
        >>> round(nc3_of(moments, torch.tensor([[3.0], [-3.0]])).item(), 12)
        0.0
    """
    if weight.shape != moments.totals.shape:
        raise ValueError(
            f"weight must be {tuple(moments.totals.shape)}, a row for each class and a column for each feature; got "
            f"{tuple(weight.shape)}."
        )
    means = class_means(moments)
    if len(means) < 2:
        return means.new_zeros(())
    rows = for_measuring(weight, torch.float64)[moments.counts > 0]
    return (_unit(rows) - _unit(means)).square().sum()


def nc4_of(moments: ClassMoments, features: Tensor, predictions: Tensor) -> Tensor:
    """`nc4` from sums over samples, and features to decide on.

    Args:
        moments: Sums, as from `class_moments`.
        features: ``(n_samples, dim)``.
        predictions: ``(n_samples,)``, the class that the network decides for.

    Returns:
        As for `nc4`.

    Example:
        >>> moments = class_moments(torch.eye(2), torch.tensor([0, 1]), num_classes=2)
        >>> nc4_of(moments, torch.eye(2), torch.tensor([0, 0])).item()
        0.5
    """
    rows = as_samples(features)
    present = (moments.counts > 0).nonzero().squeeze(1)
    if not len(present) or not len(rows):
        return rows.new_ones(())
    means = moments.totals[present] / moments.counts[present, None]
    if not bool(rows.isfinite().all()) or not bool(means.isfinite().all()):
        return rows.new_tensor(math.nan)
    nearest = present[torch.cdist(rows, means, compute_mode="donot_use_mm_for_euclid_dist").argmin(1)]
    return (nearest == predictions.to(nearest.device)).double().mean()


def nc1(features: Tensor, labels: Tensor) -> Tensor:
    """Variability within classes, relative to that between: tr(S_W S_B^+) / C.

    Papyan, Han, Donoho, "Prevalence of Neural Collapse" (arXiv:2008.08186).

    Args:
        features: ``(n_samples, dim)``.
        labels: ``(n_samples,)``, whole numbers from 0.

    Returns:
        0-d, at least 0: 0 if all features of a class are the same; above 1 if classes overlap. 0 where the class means
        are all the same, or there are fewer than two classes.

    Raises:
        ValueError: If ``features`` has not two dimensions, or ``labels`` has not one label for each sample.

    Example:
        >>> features = torch.tensor([[2.0, 0.1], [2.0, -0.1], [-2.0, 0.1], [-2.0, -0.1]])
        >>> nc1(features, torch.tensor([0, 0, 1, 1])).item()
        0.0
    """
    return nc1_of(_class_moments(features, labels))


def nc2_equinorm(features: Tensor, labels: Tensor) -> Tensor:
    """How much the class means differ in length: std_c |m_c| / mean_c |m_c|.

    Papyan, Han, Donoho, "Prevalence of Neural Collapse" (arXiv:2008.08186).

    Args:
        features: ``(n_samples, dim)``.
        labels: ``(n_samples,)``, whole numbers from 0.

    Returns:
        0-d, in [0, sqrt(C)]: 0 if all are equally long, as of two classes they always are; large if a few are far
        longer than the others.

    Raises:
        ValueError: If ``features`` has not two dimensions, or ``labels`` has not one label for each sample.

    Example:
        >>> round(nc2_equinorm(torch.eye(3), torch.tensor([0, 1, 2])).item(), 12)
        0.0
    """
    return nc2_equinorm_of(_class_moments(features, labels))


def nc2_equiangularity(features: Tensor, labels: Tensor) -> Tensor:
    """How far the angles of the class means are from those of a simplex: mean_{c != c'} |cos(m_c, m_c') + 1/(C - 1)|.

    Papyan, Han, Donoho, "Prevalence of Neural Collapse" (arXiv:2008.08186).

    Args:
        features: ``(n_samples, dim)``.
        labels: ``(n_samples,)``, whole numbers from 0.

    Returns:
        0-d, in [0, 1 + 1/(C - 1)]: 0 if all are as far apart as can be; the most if all
        point the same way. The cosine with a mean of length 0 counts as 0.

    Raises:
        ValueError: If ``features`` has not two dimensions, or ``labels`` has not one label for each sample.

    Example:
        >>> round(nc2_equiangularity(torch.eye(3), torch.tensor([0, 1, 2])).item(), 12)
        0.0
    """
    return nc2_equiangularity_of(_class_moments(features, labels))


def nc3(features: Tensor, labels: Tensor, weight: Tensor) -> Tensor:
    """How far the classifier is from the class means: |W / |W|_F - M / |M|_F|_F^2, M the rows m_c.

    Papyan, Han, Donoho, "Prevalence of Neural Collapse" (arXiv:2008.08186).

    Args:
        features: ``(n_samples, dim)``.
        labels: ``(n_samples,)``, whole numbers in [0, n_classes).
        weight: ``(n_classes, dim)``, the classifier's; rows of classes without a sample are left out.

    Returns:
        0-d, in [0, 4]: 0 if both are the same but for a factor (self-duality), 2 if they are orthogonal.

    Raises:
        ValueError: If ``features`` has not two dimensions, ``labels`` has not one label for each sample, or ``weight``
            has another number of columns than ``features``.

    Example:
        >>> weight = torch.tensor([[3.0], [-3.0]])
        >>> round(nc3(torch.tensor([[1.0], [-1.0]]), torch.tensor([0, 1]), weight).item(), 12)
        0.0
    """
    moments = class_moments(in_own_units(as_samples(features)), labels, len(weight))
    return nc3_of(moments, in_own_units(for_measuring(weight, torch.float64)))


def nc4(features: Tensor, labels: Tensor, predictions: Tensor) -> Tensor:
    """How often the network decides for the class whose mean is nearest.

    Papyan, Han, Donoho, "Prevalence of Neural Collapse" (arXiv:2008.08186).

    Args:
        features: ``(n_samples, dim)``.
        labels: ``(n_samples,)``, whole numbers from 0; samples with another label are left out.
        predictions: ``(n_samples,)``, the class that the network decides for.

    Returns:
        0-d, in [0, 1]: 1 if it always does, 0 if it never does: 1 minus the mismatch of the paper. 1 where there is no
        sample.

    Raises:
        ValueError: If ``features`` has not two dimensions, or ``labels`` has not one label for each sample.

    Example:
        >>> nc4(torch.eye(2), torch.tensor([0, 1]), predictions=torch.tensor([0, 0])).item()
        0.5
    """
    rows = in_own_units(as_samples(features))
    moments = _class_moments(rows, labels)
    known = (labels >= 0).to(rows.device)
    return nc4_of(moments, rows[known], predictions.to(rows.device)[known])


def _class_moments(features: Tensor, labels: Tensor) -> ClassMoments:
    n_classes = int(labels.max()) + 1 if labels.numel() else 0
    return class_moments(in_own_units(as_samples(features)), labels, max(n_classes, 0))


def _variation(lengths: Tensor) -> Tensor:
    mean = lengths.mean()
    if len(lengths) < 2 or bool(mean == 0):
        return lengths.new_zeros(())
    return lengths.std() / mean


def _unit(matrix: Tensor) -> Tensor:
    norm = torch.linalg.matrix_norm(matrix)
    return matrix / torch.where(norm == 0, 1.0, norm)


def _unit_rows(matrix: Tensor) -> Tensor:
    norms = torch.linalg.vector_norm(matrix, dim=1, keepdim=True)
    return matrix / torch.where(norms == 0, 1.0, norms)

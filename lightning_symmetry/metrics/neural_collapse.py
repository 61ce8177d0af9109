"""Streaming twins of the four marks of neural collapse (Papyan, Han, Donoho, arXiv:2008.08186)."""

from typing import Any

import torch
from torch import Tensor

from lightning_symmetry.functional.feature_spectrum import as_samples
from lightning_symmetry.functional.neural_collapse import (
    ClassMoments,
    class_moments,
    nc1_of,
    nc2_equiangularity_of,
    nc2_equinorm_of,
    nc3_of,
    nc4_of,
)
from lightning_symmetry.functional.precision import for_measuring
from lightning_symmetry.functional.sampling import empty_sample, lowest, merge_samples, rows_of, with_priorities
from lightning_symmetry.metrics.representation_metric import RepresentationMetric, check_positive, check_width


class ClassMomentsMetric(RepresentationMetric):
    """A metric that is a function of sums over the features of each class.

    Args:
        num_classes: The number of classes.
        num_features: The dimension of the features.
        **kwargs: As for `torchmetrics.Metric`.

    Raises:
        ValueError: If a number is not at least 1.
    """

    higher_is_better = False
    counts: Tensor
    totals: Tensor
    outer: Tensor

    def __init__(self, num_classes: int, num_features: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_positive(num_classes=num_classes, num_features=num_features)
        self.num_classes = num_classes
        self.num_features = num_features
        self.add_sums(counts=(num_classes,), totals=(num_classes, num_features), outer=(num_features, num_features))

    def update(self, features: Tensor, labels: Tensor) -> None:
        """Add a batch.

        Args:
            features: ``(n_samples, num_features)``.
            labels: ``(n_samples,)``, whole numbers in [0, num_classes); samples with another label are left out.

        Raises:
            ValueError: If ``features`` or ``labels`` has another shape.
        """
        check_width(features, self.num_features)
        self.add(**class_moments(features, labels, self.num_classes)._asdict())

    @property
    def moments(self) -> ClassMoments:
        """The sums so far."""
        return ClassMoments(self.counts, self.totals, self.outer)


class NC1(ClassMomentsMetric):
    """Variability within classes, relative to that between: tr(S_W S_B^+) / C.

    At least 0: 0 if all features of a class are the same. Its twin is `lightning_symmetry.functional.nc1`. Papyan, Han,
    Donoho, "Prevalence of Neural Collapse" (arXiv:2008.08186).

    Entries must lie within 1e-75 and 1e75, zero apart, so that float64 holds sums of their products.

    Args:
        num_classes: The number of classes.
        num_features: The dimension of the features.
        **kwargs: As for `torchmetrics.Metric`.

    Raises:
        ValueError: If a number is not at least 1.

    Example:
        >>> metric = NC1(num_classes=2, num_features=1)
        >>> metric.update(torch.tensor([[2.0], [0.0]]), torch.tensor([0, 0]))
        >>> metric.update(torch.tensor([[-2.0], [0.0]]), torch.tensor([1, 1]))
        >>> round(metric.compute().item(), 6)
        0.5
    """

    def compute(self) -> Tensor:
        """The indicator of all features so far: 0-d."""
        return nc1_of(self.moments)


class NC2Equinorm(ClassMomentsMetric):
    """How much the class means differ in length: std_c |m_c| / mean_c |m_c|.

    In [0, sqrt(C)): 0 if all are equally long. Its twin is `lightning_symmetry.functional.nc2_equinorm`. Papyan, Han,
    Donoho, "Prevalence of Neural Collapse" (arXiv:2008.08186).

    Entries must lie within 1e-75 and 1e75, zero apart, so that float64 holds sums of their products.

    Args:
        num_classes: The number of classes.
        num_features: The dimension of the features.
        **kwargs: As for `torchmetrics.Metric`.

    Raises:
        ValueError: If a number is not at least 1.

    Example:
        >>> metric = NC2Equinorm(num_classes=3, num_features=3)
        >>> metric.update(torch.eye(3), torch.tensor([0, 1, 2]))
        >>> round(metric.compute().item(), 6)
        0.0
    """

    def compute(self) -> Tensor:
        """The indicator of all features so far: 0-d."""
        return nc2_equinorm_of(self.moments)


class NC2Equiangularity(ClassMomentsMetric):
    """How far the angles of the class means are from those of a simplex: mean_{c != c'} |cos(m_c, m_c') + 1/(C - 1)|.

    In [0, 1 + 1/(C - 1)): 0 if all are as far apart as can be, larger the more of them point the same way. Its twin is
    `lightning_symmetry.functional.nc2_equiangularity`. Papyan, Han, Donoho, "Prevalence of Neural Collapse"
    (arXiv:2008.08186).

    Entries must lie within 1e-75 and 1e75, zero apart, so that float64 holds sums of their products.

    Args:
        num_classes: The number of classes.
        num_features: The dimension of the features.
        **kwargs: As for `torchmetrics.Metric`.

    Raises:
        ValueError: If a number is not at least 1.

    Example:
        >>> metric = NC2Equiangularity(num_classes=3, num_features=3)
        >>> metric.update(torch.eye(3), torch.tensor([0, 1, 2]))
        >>> round(metric.compute().item(), 6)
        0.0
    """

    def compute(self) -> Tensor:
        """The indicator of all features so far: 0-d."""
        return nc2_equiangularity_of(self.moments)


class NC3(ClassMomentsMetric):
    """How far the classifier is from the class means: |W / |W|_F - M / |M|_F|_F^2, M the rows m_c.

    In [0, 4]: 0 if both are the same but for a factor (self-duality), 2 if they are orthogonal, 4 if they are opposite.
    W is the mean of the weights given. Its twin is `lightning_symmetry.functional.nc3`. Papyan, Han, Donoho,
    "Prevalence of Neural Collapse" (arXiv:2008.08186).

    Entries must lie within 1e-75 and 1e75, zero apart, so that float64 holds sums of their products.

    Args:
        num_classes: The number of classes.
        num_features: The dimension of the features.
        **kwargs: As for `torchmetrics.Metric`.

    Raises:
        ValueError: If a number is not at least 1.

    Example:
        >>> metric = NC3(num_classes=2, num_features=1)
        >>> metric.update(torch.tensor([[1.0], [-1.0]]), torch.tensor([0, 1]), torch.tensor([[3.0], [-3.0]]))
        >>> round(metric.compute().item(), 6)
        0.0
    """

    plot_upper_bound = 4.0
    weight: Tensor

    def __init__(self, num_classes: int, num_features: int, **kwargs: Any) -> None:
        super().__init__(num_classes, num_features, **kwargs)
        self.add_sums(weight=(num_classes, num_features))

    def update(self, features: Tensor, labels: Tensor, weight: Tensor) -> None:  # type: ignore[override]
        """Add a batch.

        Args:
            features: ``(n_samples, num_features)``.
            labels: ``(n_samples,)``, whole numbers in [0, num_classes); samples with another label are left out.
            weight: ``(num_classes, num_features)``, the classifier's.

        Raises:
            ValueError: If a tensor has another shape.
        """
        if weight.shape != self.weight.shape:
            raise ValueError(f"weight must be {tuple(self.weight.shape)}, got shape {tuple(weight.shape)}")
        super().update(features, labels)
        self.add(weight=for_measuring(weight, torch.float64))

    def compute(self) -> Tensor:
        """The indicator of all features so far: 0-d."""
        return nc3_of(self.moments, self.weight)


class NC4(ClassMomentsMetric):
    """How often the network decides for the class whose mean is nearest.

    In [0, 1]: 0 if it never does, 1 if it always does. The means are those of all samples; the decisions are compared
    on a sample of at most ``max_samples`` of them, the same whatever the order, the batches and the processes in which
    they come. Its twin is `lightning_symmetry.functional.nc4`. Papyan, Han, Donoho, "Prevalence of Neural Collapse"
    (arXiv:2008.08186).

    Entries must lie within 1e-75 and 1e75, zero apart, so that float64 holds sums of their products.

    Args:
        num_classes: The number of classes.
        num_features: The dimension of the features.
        max_samples: The size of the sample.
        **kwargs: As for `torchmetrics.Metric`.

    Raises:
        ValueError: If a number is not at least 1.

    Example:
        >>> metric = NC4(num_classes=2, num_features=2)
        >>> metric.update(torch.eye(2), torch.tensor([0, 1]), predictions=torch.tensor([0, 0]))
        >>> metric.compute().item()
        0.5
    """

    higher_is_better = True
    plot_upper_bound = 1.0
    sample: Tensor

    def __init__(self, num_classes: int, num_features: int, max_samples: int = 4096, **kwargs: Any) -> None:
        super().__init__(num_classes, num_features, **kwargs)
        check_positive(max_samples=max_samples)
        self.max_samples = max_samples
        self.add_state("sample", empty_sample(max_samples, 1 + num_features), dist_reduce_fx=merge_samples)

    def update(self, features: Tensor, labels: Tensor, predictions: Tensor) -> None:  # type: ignore[override]
        """Add a batch.

        Args:
            features: ``(n_samples, num_features)``.
            labels: ``(n_samples,)``, whole numbers in [0, num_classes); samples with another label are left out.
            predictions: ``(n_samples,)``, the class that the network decides for.

        Raises:
            ValueError: If a tensor has another shape.
        """
        super().update(features, labels)
        if predictions.shape != labels.shape:
            raise ValueError(
                f"predictions must be {tuple(labels.shape)}, one class for each sample, got shape "
                f"{tuple(predictions.shape)}. Logits are given as logits.argmax(-1)."
            )
        rows = torch.cat([predictions.to(features.device)[:, None].double(), as_samples(features)], dim=1)
        known = (labels >= 0) & (labels < self.num_classes)
        rows = with_priorities(rows[known.to(rows.device)]).to(self.sample.device)
        self.sample = lowest(torch.cat([self.sample, rows]), self.max_samples)

    def compute(self) -> Tensor:
        """The indicator of all features so far: 0-d."""
        rows = rows_of(self.sample)
        return nc4_of(self.moments, rows[:, 1:], rows[:, 0].long())
